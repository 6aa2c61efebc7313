//! I/O: one call of the CNI, as its own program makes it, on the machine whose files are below a folder: something to kill.
//!
//! What does not live here: what is proven (`tests/netns_cni_kills.rs`).

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result};
use sriov_cni::io::SystemIo;
use sriov_cni::request::Request;
use sriov_cni::{Error, error_version};
use sriov_host::Host;

fn main() -> Result<ExitCode> {
    let root = std::env::args().nth(1).context("usage: cni-probe ROOT")?;
    let mut stdin = Vec::new();
    std::io::stdin().lock().read_to_end(&mut stdin)?;
    call(&root, stdin)
}

/// As the plugin's own `main`, on the machine whose files are below `root`.
fn call(root: &str, stdin: Vec<u8>) -> Result<ExitCode> {
    let version = error_version(&stdin);
    let call = Request::parse(|name| std::env::var(name).ok(), stdin).map_err(Error::from);
    let (printed, code) = match call.and_then(|request| sriov_cni::run(&request, &Host::at(root), &SystemIo)) {
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(version)), ExitCode::FAILURE),
    };
    if let Some(printed) = printed {
        writeln!(std::io::stdout(), "{printed}").context("print the result")?;
    }
    Ok(code)
}
