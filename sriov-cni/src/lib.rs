//! I/O: the SR-IOV CNI: a VF into a pod's network namespace and back, for CNI 0.1.0 to 1.1.0.
//!
//! One call is one pass: [`Request`] from the environment and standard input, [`run`], one JSON value on standard output. What is decided
//! without the machine is pure (`request`, `conf`, `vlan_set`, `vf_plan`, `quirks`, `journal`, `result`, `errors`); each verb is one page (`add`, `del`,
//! `check`, `gc`, `status`) over the changes of `attach` and `restore`, with what few devices need in rooms of their own (`infiniband`, `rdma`, `trunk`). For people there are `explain` and `doctor`, which change nothing.
//!
//! What never lives here: an async runtime, a Kubernetes client, TLS; the process lives for milliseconds and must work while everything else
//! is down.
//!
//! Invariants: the journal is on disk before the first change of the machine; what a journal tells can always be taken back; a VF's lock is
//! never held while IPAM runs.

pub mod conf;
pub mod errors;
pub mod io;
pub mod journal;
pub mod log;
pub mod quirks;
pub mod request;
pub mod result;
pub mod state;
pub mod version;
pub mod vf_plan;
pub mod vlan_set;

pub mod attach;
pub mod device;
pub mod doctor;
pub mod explain;
pub mod ipam;
pub mod restore;

mod add;
mod check;
mod deadline;
mod del;
mod device_info;
mod gc;
mod go_plugin;
mod infiniband;
mod rdma;
mod status;
mod trunk;
mod undo;

use serde_json::{Value, json};
use sriov_host::Host;

use crate::conf::{ConfError, NetConf};
use crate::deadline::Deadline;
use crate::io::Io;
use crate::log::Log;
use crate::request::{Command, Request};
use crate::version::CniVersion;

pub use crate::errors::Error;

/// One call with everything that it may use.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) request: &'a Request,
    pub(crate) conf: &'a NetConf,
    pub(crate) host: &'a Host,
    pub(crate) io: &'a dyn Io,
    pub(crate) log: &'a Log,
    pub(crate) deadline: &'a Deadline,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("request", self.request).finish_non_exhaustive()
    }
}

/// Performs one call. What is returned goes to standard output; `None` is a success that prints nothing.
pub fn run(request: &Request, host: &Host, io: &dyn Io) -> Result<Option<Value>, Error> {
    if request.command == Command::Version {
        return Ok(Some(versions(&request.stdin)));
    }
    let conf = NetConf::parse(&request.stdin)?;
    let verb = request.command.as_str();
    let log = Log::new(conf.log_level, conf.log_file.as_deref(), format!("{verb} {}/{}", request.container_id, request.if_name));
    let deadline = Deadline::after(conf.deadline);
    let ctx = Context { request, conf: &conf, host, io, log: &log, deadline: &deadline };
    let needs = |needed| if conf.version < needed { Err(Error::VerbVersion { verb, needed, given: conf.version }) } else { Ok(()) };
    let done = match request.command {
        Command::Add => add::add(&ctx).map(|result| Some(result.encode(conf.version))),
        Command::Del => del::del(&ctx).map(|()| None),
        Command::Check => needs(CniVersion::V040).and_then(|()| check::check(&ctx)).map(|()| None),
        Command::Gc => needs(CniVersion::V110).and_then(|()| gc::gc(&ctx)).map(|()| None),
        Command::Status => needs(CniVersion::V110).and_then(|()| status::status(&ctx)).map(|()| None),
        Command::Version => Ok(None),
    };
    if let Err(error) = &done {
        log.write(log::Level::Error, error);
    }
    done
}

/// The form in which an error is told: that of the configuration as far as it can be read, else the newest.
pub fn error_version(stdin: &[u8]) -> CniVersion {
    match NetConf::parse(stdin) {
        Ok(conf) => conf.version,
        Err(ConfError::Decode(_) | ConfError::Version(_)) => CniVersion::NEWEST,
        Err(_) => {
            serde_json::from_slice::<Value>(stdin).ok().and_then(|wire| wire.get("cniVersion")?.as_str()?.parse().ok()).unwrap_or(CniVersion::NEWEST)
        }
    }
}

fn versions(stdin: &[u8]) -> Value {
    json!({
        "cniVersion": error_version(stdin).as_str(),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    })
}
