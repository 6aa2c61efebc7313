//! I/O: the program `sriov`. Called by a runtime: environment and standard input in, one JSON value on standard output, exit code 0 or 1.
//! Called by a person: `explain`, `doctor`, `--version`. Nothing else writes standard output.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use sriov_cni::conf::DEFAULT_STATE_DIR;
use sriov_cni::errors::error_json;
use sriov_cni::io::SystemIo;
use sriov_cni::journal;
use sriov_cni::request::{Request, mac_of_args};
use sriov_cni::version::CniVersion;
use sriov_cni::{Error, doctor, error_version, explain, run};
use sriov_host::Host;

const USAGE: &str = "usage: sriov explain [--json] < network-configuration.json   what ADD would do, or why it would refuse
       sriov doctor [--json] [--state-dir DIR]               what is remembered against what is; 1 if something has to be repaired
       sriov --version
A container runtime calls it without arguments, with CNI_COMMAND and its like in the environment.";

/// What `--version` prints, whole in the program's file: who installs it reads there whether journals of one program are read by another.
const IDENTITY: &str = concat!("sriov ", env!("CARGO_PKG_VERSION"), ", journals of version 1, CNI 0.1.0 to 1.1.0");
const _: () = assert!(journal::VERSION == 1, "IDENTITY names the version of the journals");

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        print(&error_json(CniVersion::NEWEST, 106, "an error in this program", &panic.to_string()));
        std::process::exit(1);
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => call(),
        ["explain", rest @ ..] if rest.iter().all(|flag| *flag == "--json") => explain_configuration(!rest.is_empty()),
        ["doctor"] => examine(DEFAULT_STATE_DIR, false),
        ["doctor", "--json"] => examine(DEFAULT_STATE_DIR, true),
        ["doctor", "--state-dir", dir] => examine(dir, false),
        ["doctor", "--state-dir", dir, "--json"] | ["doctor", "--json", "--state-dir", dir] => examine(dir, true),
        ["--version"] => {
            print(&IDENTITY);
            ExitCode::SUCCESS
        }
        ["--help"] => {
            print(&USAGE);
            ExitCode::SUCCESS
        }
        _ => complain(&USAGE),
    }
}

/// A call by a runtime.
fn call() -> ExitCode {
    // Room for most: read in one piece.
    let mut stdin = Vec::with_capacity(16 * 1024);
    // Without CNI_COMMAND there is no call: a person at a terminal would wait for ever.
    let done = if std::env::var_os("CNI_COMMAND").is_none() { Ok(0) } else { std::io::stdin().lock().read_to_end(&mut stdin) };
    if let Err(error) = done {
        print(&error_json(CniVersion::NEWEST, 5, "failed to read standard input", &error.to_string()));
        return ExitCode::FAILURE;
    }
    let call = Request::parse(|name| std::env::var(name).ok(), stdin.clone()).map_err(Error::from);
    match call.and_then(|request| run(&request, &Host::system(), &SystemIo)) {
        Ok(Some(result)) => print(&result),
        Ok(None) => {}
        Err(error) => {
            print(&error.to_json(error_version(&stdin)));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn explain_configuration(json: bool) -> ExitCode {
    let mut stdin = Vec::new();
    if let Err(error) = std::io::stdin().lock().read_to_end(&mut stdin) {
        return complain(&error);
    }
    let mac = match mac_of_args(&std::env::var("CNI_ARGS").unwrap_or_default()) {
        Ok(mac) => mac,
        Err(error) => return complain(&error),
    };
    let explanation = explain::explain(&stdin, mac.as_deref(), &Host::system());
    if json {
        print(&explanation.to_json());
    } else {
        print(&explanation);
    }
    if explanation.refusal.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn examine(state_dir: &str, json: bool) -> ExitCode {
    let program = std::env::current_exe().unwrap_or_else(|_| "sriov".into());
    let findings = match doctor::examine(Path::new(state_dir), &Host::system(), &program) {
        Ok(findings) => findings,
        Err(error) => return complain(&error),
    };
    if json {
        print(&findings.iter().map(doctor::Finding::to_json).collect::<Value>());
    } else {
        for finding in &findings {
            print(finding);
        }
    }
    if findings.iter().all(doctor::Finding::is_fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nothing can be told to a runtime that closed the pipe.
fn print(value: &dyn std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn complain(what: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "sriov: {what}");
    ExitCode::from(2)
}
