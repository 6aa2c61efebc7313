//! I/O: `cargo xtask check`: everything about this repository that a program can hold, one line with its time for each. The tests are elsewhere.
//!
//! Each check is a command over the real tree plus a pure function that decides; the unit tests show each deciding function inputs that it must refuse.
//! Invariant: a check that cannot be carried out has failed.

mod binary;
mod licences;
mod orphans;
mod texts;
mod walls;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::image::products::{self, Profile};
use crate::workspace::{Workspace, stdout_of};
use crate::{chart, gen_crds, gen_docs, gen_nic_names, gen_proto, gen_rights};

/// One thing that is checked.
struct Check {
    name: &'static str,
    run: fn(&Workspace) -> Result<()>,
}

/// Cheap ones first, so that a mistake is seen early.
const CHECKS: [Check; 24] = [
    Check { name: "fmt", run: fmt },
    Check { name: "first-line", run: first_line },
    Check { name: "forbidden-words", run: forbidden_words },
    Check { name: "process-spawns", run: process_spawns },
    Check { name: "machine-files", run: machine_files },
    Check { name: "orphan-files", run: orphan_files },
    Check { name: "wall-host", run: |workspace| wall(workspace, "sriov-host") },
    Check { name: "wall-crds", run: |workspace| wall(workspace, "sriov-crds") },
    Check { name: "wall-cni", run: |workspace| wall(workspace, "sriov-cni") },
    Check { name: "wall-operator", run: |workspace| wall(workspace, "sriov-operator") },
    Check { name: "wall-device-plugin", run: |workspace| wall(workspace, "sriov-device-plugin") },
    Check { name: "wall-config-daemon", run: |workspace| wall(workspace, "sriov-config-daemon") },
    Check { name: "wall-kubectl-sriov", run: |workspace| wall(workspace, "kubectl-sriov") },
    Check { name: "generated-crds", run: |workspace| gen_crds::run(workspace, true) },
    Check { name: "generated-proto", run: |workspace| gen_proto::run(workspace.root(), true) },
    Check { name: "generated-nic-names", run: |workspace| gen_nic_names::run(workspace, true) },
    Check { name: "generated-reference", run: |workspace| gen_docs::run(workspace, true) },
    Check { name: "generated-rights", run: |workspace| gen_rights::run(workspace, true) },
    Check { name: "generated-manifest", run: |workspace| chart::generate(workspace, true) },
    Check { name: "chart", run: chart::lint },
    Check { name: "dependency-licences", run: dependency_licences },
    Check { name: "clippy", run: clippy },
    Check { name: "fuzz-targets", run: fuzz_targets },
    Check { name: "cni-binary", run: cni_binary },
];

/// How a run of the checks ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

/// The names that `--only` takes.
pub(crate) fn names() -> Vec<&'static str> {
    CHECKS.iter().map(|check| check.name).collect()
}

/// Runs all checks, or only the named ones, to the end; a failed check does not stop the others. Prints as it goes.
pub(crate) fn run(workspace: &Workspace, only: &[String]) -> Result<Outcome> {
    for name in only {
        ensure!(names().contains(&name.as_str()), "no check is named {name:?}; there are {}", names().join(", "));
    }
    let mut outcome = Outcome::default();
    for check in CHECKS.iter().filter(|check| only.is_empty() || only.iter().any(|name| name == check.name)) {
        let started = Instant::now();
        let result = (check.run)(workspace);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                outcome.passed += 1;
                println!("ok    {:<20} {seconds:>6.1} s", check.name);
            }
            Err(error) => {
                outcome.failed += 1;
                println!("FAIL  {:<20} {seconds:>6.1} s", check.name);
                println!("      {}", format!("{error:#}").trim_end().replace('\n', "\n      "));
            }
        }
    }
    println!("check result: {} passed; {} failed", outcome.passed, outcome.failed);
    Ok(outcome)
}

fn fmt(workspace: &Workspace) -> Result<()> {
    let listed = workspace.cargo(&["fmt", "--all", "--check", "--", "--files-with-diff"]).output();
    let output = listed.context("start cargo fmt")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut files: Vec<&str> = text.lines().collect();
    files.sort_unstable();
    files.dedup();
    ensure!(files.is_empty(), "not formatted, run `cargo fmt --all`:\n{}", files.join("\n"));
    ensure!(output.status.success(), "cargo fmt failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    stdout_of(&mut workspace.cargo(&arguments)).map(drop)
}

/// The fuzz targets are in a workspace of their own, which no other command compiles. Checking them needs neither a nightly compiler nor the engine,
/// in whose place its build script takes any library.
fn fuzz_targets(workspace: &Workspace) -> Result<()> {
    for manifest in ["sriov-cni/fuzz/Cargo.toml", "device-plugin/fuzz/Cargo.toml"] {
        let mut command = workspace.cargo(&["check", "--quiet", "--manifest-path", manifest, "--bins"]);
        command.env("CARGO_TARGET_DIR", workspace.target_dir()?.join("fuzz")).env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libnone.a");
        stdout_of(&mut command)?;
    }
    Ok(())
}

/// The committed and new text files with their contents; binary files are left out.
fn texts(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let mut texts = Vec::new();
    for file in workspace.files()? {
        let bytes = std::fs::read(workspace.path(&file)).with_context(|| format!("read {}", file.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            texts.push((file, text));
        }
    }
    ensure!(!texts.is_empty(), "git lists no files");
    Ok(texts)
}

fn rust_texts(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let mut texts = texts(workspace)?;
    texts.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"));
    Ok(texts)
}

/// Fails with all findings, one a line.
fn none(findings: &[String]) -> Result<()> {
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n")) }
}

fn first_line(workspace: &Workspace) -> Result<()> {
    none(&texts::without_room(&rust_texts(workspace)?))
}

fn forbidden_words(workspace: &Workspace) -> Result<()> {
    none(&texts::forbidden(&texts(workspace)?, &texts::forbidden_words()))
}

fn process_spawns(workspace: &Workspace) -> Result<()> {
    none(&texts::spawns(&rust_texts(workspace)?))
}

fn machine_files(workspace: &Workspace) -> Result<()> {
    none(&texts::machine_files(&rust_texts(workspace)?))
}

fn orphan_files(workspace: &Workspace) -> Result<()> {
    let files = rust_texts(workspace)?.into_iter().collect();
    let orphans = orphans::orphans(&orphans::roots(workspace)?, &files);
    none(&orphans.iter().map(|file| format!("{}: no `mod` declares it", file.display())).collect::<Vec<_>>())
}

fn wall(workspace: &Workspace, package: &str) -> Result<()> {
    let wall = walls::of(package).with_context(|| format!("no wall is written for {package}"))?;
    let arguments = ["tree", "--package", package, "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
    none(&walls::violations(wall, &stdout_of(&mut workspace.cargo(&arguments))?))
}

fn dependency_licences(workspace: &Workspace) -> Result<()> {
    let deny = std::fs::read_to_string(workspace.path("deny.toml")).context("read deny.toml")?;
    let metadata = stdout_of(&mut workspace.cargo(&["metadata", "--format-version=1"]))?;
    none(&licences::objections(&metadata, &licences::allowed(&deny)?)?)
}

/// Builds the CNI as it is shipped and looks at the file.
fn cni_binary(workspace: &Workspace) -> Result<()> {
    let built = products::binaries(workspace, Profile::Dist, &[("sriov-cni", "sriov")])?;
    let (_, path) = built.first().context("cargo built no CNI")?;
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    none(&binary::objections(&bytes))
}
