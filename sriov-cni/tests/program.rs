//! I/O: the program itself, environment and standard input in, standard output and exit code out: one folder of `testdata/program` a case.
//!
//! What lives here needs no VF and no namespace; what does is in the workspace's `tests/netns_cni.rs`. `@STATE@` in a configuration and in what is
//! printed stands for a folder of the case's own. The case's folder `state`, where there is one, is what this holds before, and `left` of what is
//! expected are the files that it holds after.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Runs one case and tells how it differs from what is expected.
fn difference(case: &Path) -> Result<Option<String>> {
    let text = |name: &str| std::fs::read_to_string(case.join(name)).with_context(|| format!("{}/{name}", case.display()));
    let state = tempfile::tempdir()?;
    let state_path = state.path().to_str().context("UTF-8")?;
    let given = case.join("state");
    for file in files_below(&given)? {
        let to = state.path().join(&file);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::copy(given.join(&file), to)?;
    }
    let stdin = text("stdin.json")?.replace("@STATE@", state_path);
    let environment = text("env")?;
    let output = call(environment.lines().filter_map(|line| line.split_once('=')), &stdin)?;
    let stdout = String::from_utf8(output.stdout)?.replace(state_path, "@STATE@");
    let stdout = if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap_or_else(|_| json!(stdout)) };
    let mut found = json!({"exit": output.status.code(), "stdout": stdout});
    if given.is_dir() {
        found["left"] = json!(files_below(state.path())?);
    }
    let expected: Value = serde_json::from_str(&text("expected.json")?)?;
    Ok((found != expected).then(|| format!("{}:\n  expected {expected}\n  found    {found}", case.display())))
}

/// The files below a folder by their paths in it; none where there is no folder.
fn files_below(folder: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).context("UTF-8")?;
            if path.is_dir() {
                found.extend(files_below(&path)?.into_iter().map(|below| format!("{name}/{below}")));
            } else {
                found.insert(name.to_owned());
            }
        }
    }
    Ok(found)
}

fn call<'a>(environment: impl IntoIterator<Item = (&'a str, &'a str)>, stdin: &str) -> Result<Output> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sriov"))
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // A program that does not read its input closes the pipe.
    let _ = child.stdin.take().context("a pipe")?.write_all(stdin.as_bytes());
    Ok(child.wait_with_output()?)
}

#[test]
fn each_case_prints_what_is_expected() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/program");
    let mut cases = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    cases.sort();
    ensure!(cases.len() >= 110, "cases are missing: {}", cases.len());
    let mut differences = Vec::new();
    for case in &cases {
        differences.extend(difference(case)?);
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Names of functions in Rust files below a folder.
fn functions_below(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for file in files_below(folder)? {
        if Path::new(&file).extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(folder.join(&file))?;
            let named = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
            found.extend(named.map(str::to_owned));
        }
    }
    Ok(())
}

/// The names in a folder, of JSON files without their ending.
fn names_in(folder: &Path) -> Result<BTreeSet<String>> {
    let names = std::fs::read_dir(folder)?.map(|entry| {
        let name = entry?.file_name().into_string().map_err(|name| anyhow::anyhow!("{} is not UTF-8", name.display()))?;
        Ok(name.strip_suffix(".json").map(str::to_owned).unwrap_or(name))
    });
    names.collect()
}

/// The tables of README.md say which test covers what: `file: test, test; file: test`. A name that is cut short ends with `...`, one of several cases
/// with `*`.
#[test]
fn what_the_readme_names_as_covering_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut functions = BTreeSet::new();
    for folder in ["src", "tests", "../host/src", "../tests/tests"] {
        functions_below(&root.join(folder), &mut functions)?;
    }
    let cases = names_in(&root.join("testdata/program"))?;
    let attachments = names_in(&root.join("testdata/attach"))?;
    let readme = include_str!("../README.md");
    let (_, tables) = readme.split_once("## What covers").context("the tables")?;
    let cells = tables.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.trim_end_matches(['|', ' ']).rsplit_once(" | "));
    let (mut named, mut missing) = (0, Vec::new());
    for (_, cell) in cells {
        for part in cell.split("; ") {
            let (file, list) = part.split_once(": ").unwrap_or_default();
            for name in list.split([',', ' ', '(', ')']).map(|name| name.trim_matches('`')) {
                let listed = match file {
                    "program" => Some(&cases),
                    "netns_cni_golden" => Some(&attachments),
                    _ => None,
                };
                let there = if let Some(listed) = listed.filter(|_| name.contains('-')) {
                    name.strip_suffix('*').map_or_else(|| listed.contains(name), |start| listed.iter().any(|case| case.starts_with(start)))
                } else if name.matches('_').count() > 1 && !name.contains("::") && !name.ends_with(':') {
                    let start = name.trim_end_matches('.').trim_end_matches('_');
                    if name.ends_with("...") { functions.iter().any(|function| function.starts_with(start)) } else { functions.contains(start) }
                } else {
                    continue;
                };
                named += 1;
                missing.extend((!there).then(|| format!("{file}: {name}")));
            }
        }
    }
    ensure!(missing.is_empty(), "{missing:?}");
    ensure!(named > 100, "only {named} names were found");
    Ok(())
}

#[test]
fn a_state_folder_that_was_never_made_stays_unmade_by_del() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let conf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "sriov", "stateDir": state, "deviceID": "0000:01:10.2"});
    let environment = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "net1"), ("CNI_PATH", "/nowhere")];
    ensure!(call(environment, &conf.to_string())?.status.success());
    ensure!(!state.exists());
    Ok(())
}

/// Runs the program as a person does.
fn by_hand(arguments: &[&str], stdin: &str) -> Result<(Option<i32>, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sriov"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let _ = child.stdin.take().context("a pipe")?.write_all(stdin.as_bytes());
    let output = child.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

#[test]
fn the_command_that_doctor_names_repairs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().to_str().context("UTF-8")?;
    std::fs::create_dir_all(dir.path().join("v1"))?;
    std::fs::create_dir_all(dir.path().join("lock"))?;
    std::fs::create_dir_all(dir.path().join("pci"))?;
    let journal = dir.path().join("v1/0000:01:10.2.json");
    // Of another boot than any: nothing of this machine is touched.
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/journal/v1.json"), &journal)?;
    let (code, told) = by_hand(&["doctor", "--state-dir", state, "--json"], "")?;
    let told: Value = serde_json::from_str(&told)?;
    ensure!(code == Some(1) && told[0]["state"] == "before-reboot", "{code:?} {told}");
    let repair = told[0]["repair"].as_str().context("a command")?;
    let output = Command::new("sh").args(["-c", repair]).output()?;
    ensure!(output.status.success() && !journal.exists(), "{repair}: {output:?}");
    ensure!(by_hand(&["doctor", "--state-dir", state], "")? == (Some(0), String::new()));
    Ok(())
}

#[test]
fn people_are_told_what_it_is_and_how_it_is_called() -> Result<()> {
    let (code, version) = by_hand(&["--version"], "")?;
    ensure!(code == Some(0) && version.contains("journals of version 1, CNI 0.1.0 to 1.1.0"), "{version}");
    ensure!(by_hand(&["--help"], "")?.1.contains("sriov doctor"));
    ensure!(by_hand(&["attach"], "")?.0 == Some(2));
    let conf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "sriov", "spoofchk": "On", "deviceID": "0000:01:10.2"}).to_string();
    let (code, told) = by_hand(&["explain", "--json"], &conf)?;
    let told: Value = serde_json::from_str(&told)?;
    ensure!(code == Some(1) && told["refusal"]["code"] == 7 && told["steps"] == json!([]), "{told}");
    let (code, told) = by_hand(&["explain"], &conf)?;
    ensure!(code == Some(1) && told.starts_with("ADD would be refused (code 7): spoofchk is \"On\""), "{told}");
    Ok(())
}
