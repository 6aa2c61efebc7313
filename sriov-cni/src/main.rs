//! I/O: the program `sriov`: environment and standard input in, one JSON value on standard output, exit code 0 or 1. Nothing else writes
//! standard output.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use serde_json::Value;
use sriov_cni::errors::error_json;
use sriov_cni::io::SystemIo;
use sriov_cni::request::Request;
use sriov_cni::version::CniVersion;
use sriov_cni::{Error, error_version, run};
use sriov_host::Host;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        print(&error_json(CniVersion::NEWEST, 106, "an error in this program", &panic.to_string()));
        std::process::exit(1);
    }));
    let mut stdin = Vec::new();
    // Without CNI_COMMAND there is no call: a person at a terminal would wait for ever.
    let done = if std::env::var_os("CNI_COMMAND").is_none() { Ok(0) } else { std::io::stdin().lock().read_to_end(&mut stdin) };
    if let Err(error) = done {
        print(&error_json(CniVersion::NEWEST, 5, "failed to read standard input", &error.to_string()));
        return ExitCode::FAILURE;
    }
    let version = error_version(&stdin);
    let call = Request::parse(|name| std::env::var(name).ok(), stdin).map_err(Error::from);
    match call.and_then(|request| run(&request, &Host::system(), &SystemIo)) {
        Ok(Some(result)) => print(&result),
        Ok(None) => {}
        Err(error) => {
            print(&error.to_json(version));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Nothing can be told to a runtime that closed the pipe.
fn print(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
