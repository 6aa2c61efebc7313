//! I/O: what the verbs need besides the machine itself: running an IPAM plugin. A trait, so that a test can stand in the place of a program
//! that is slow or fails, and can stop the process at each [`Moment`].
//!
//! What does not live here: what the answers mean (`ipam`).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use crate::request::Command;

/// A moment of ADD, for tests that end the process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The journal is on disk; nothing is changed.
    Journaled,
    /// The PF has set the VF's attributes.
    Configured,
    /// The netdev is in the pod under its new name.
    Moved,
    /// The netdev is up.
    Up,
    /// IPAM has answered.
    Delegated,
    /// Addresses and routes are in place.
    Addressed,
    /// The journal says "attached".
    Recorded,
}

impl Moment {
    /// All moments in order.
    pub const ALL: [Self; 7] = [Self::Journaled, Self::Configured, Self::Moved, Self::Up, Self::Delegated, Self::Addressed, Self::Recorded];
}

/// The surroundings of a verb.
pub trait Io {
    /// Runs another CNI plugin and returns what it printed.
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError>;

    /// ADD has come this far.
    fn reached(&self, _moment: Moment) {}
}

/// One call of another plugin.
#[derive(Clone, Copy, Debug)]
pub struct Delegation<'a> {
    /// Name of its program.
    pub plugin: &'a str,
    /// Verb.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_IFNAME`.
    pub if_name: &'a str,
    /// `CNI_NETNS`.
    pub netns: Option<&'a Path>,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// Network configuration for its standard input.
    pub conf: &'a [u8],
}

/// A plugin that could not be run or that failed.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// No such program.
    #[error("failed to find the plugin {plugin:?} in CNI_PATH ({})", path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":"))]
    Find {
        /// Its name.
        plugin: String,
        /// Where it was searched.
        path: Vec<PathBuf>,
    },
    /// It could not be started or spoken to.
    #[error("failed to run {program}: {cause}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It ended with failure.
    #[error("{plugin} failed ({status})")]
    Failed {
        /// Its name.
        plugin: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed: a CNI error, if it speaks the protocol.
        stdout: Vec<u8>,
    },
}

/// The program of a plugin on CNI_PATH.
pub(crate) fn find_plugin(path: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    path.iter().map(|dir| dir.join(plugin)).find(|program| program.is_file())
}

/// The surroundings of the product: programs on CNI_PATH.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIo;

impl Io for SystemIo {
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError> {
        let program =
            find_plugin(call.path, call.plugin).ok_or_else(|| DelegateError::Find { plugin: call.plugin.to_owned(), path: call.path.to_vec() })?;
        let run = |cause| DelegateError::Run { program: program.clone(), cause };
        let path = std::env::join_paths(call.path).map_err(|e| run(std::io::Error::other(e)))?;
        let mut child = std::process::Command::new(&program)
            .env("CNI_COMMAND", call.command.as_str())
            .env("CNI_CONTAINERID", call.container_id)
            .env("CNI_IFNAME", call.if_name)
            .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
            .env("CNI_ARGS", call.args)
            .env("CNI_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(run)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin may end without reading; how it ended says more than a broken pipe.
            let _ = stdin.write_all(call.conf);
        }
        let output = child.wait_with_output().map_err(run)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(DelegateError::Failed { plugin: call.plugin.to_owned(), status: output.status, stdout: output.stdout })
    }
}
