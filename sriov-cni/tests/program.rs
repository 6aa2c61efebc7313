//! I/O: the program itself, environment and standard input in, standard output and exit code out: one folder of `testdata/program` a case.
//!
//! What lives here needs no VF and no namespace; what does is in the workspace's `tests/netns_cni.rs`. `@STATE@` in a configuration stands for
//! a folder of the case's own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Runs one case and tells how it differs from what is expected.
fn difference(case: &Path) -> Option<String> {
    let text = |name: &str| std::fs::read_to_string(case.join(name)).unwrap();
    let state = tempfile::tempdir().unwrap();
    let stdin = text("stdin.json").replace("@STATE@", state.path().to_str().unwrap());
    let environment = text("env");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sriov"))
        .env_clear()
        .envs(environment.lines().map(|line| line.split_once('=').unwrap()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A program that does not read its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stdout: Value = if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap_or_else(|_| json!(stdout)) };
    let found = json!({"exit": output.status.code(), "stdout": stdout});
    let expected: Value = serde_json::from_str(&text("expected.json")).unwrap();
    (found != expected).then(|| format!("{}:\n  expected {expected}\n  found    {found}", case.display()))
}

#[test]
fn each_case_prints_what_is_expected() {
    let mut cases: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/program"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 26, "cases are missing: {}", cases.len());
    let differences: Vec<_> = cases.iter().filter_map(|case| difference(case)).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_state_folder_that_was_never_made_stays_unmade_by_del() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let conf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "sriov", "stateDir": state, "deviceID": "0000:01:10.2"});
    let mut child = Command::new(env!("CARGO_BIN_EXE_sriov"))
        .env_clear()
        .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "net1"), ("CNI_PATH", "/nowhere")])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!state.exists());
}
