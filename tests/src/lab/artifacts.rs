//! I/O: where the built parts of the lab are.
//!
//! What lives here: reading the list that `cargo xtask lab-build` writes, building the products. What does not: how parts are built (hack/xtask).
//!
//! Invariant: a part that is missing stops the lab with the name of what makes it; nothing is looked up in a second place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Names the list instead of asking `cargo xtask lab-build` for it.
pub const ARTIFACTS_VARIABLE: &str = "SRIOV_LAB_ARTIFACTS";

/// What `artifacts.json` lists; all paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Artifacts {
    /// Kernel image of the guests.
    pub vmlinuz: PathBuf,
    /// Initial RAM disk of the guests, without credentials.
    pub initrd: PathBuf,
    /// Root file system of the guests.
    pub root_squashfs: PathBuf,
    /// Container images and test files; a guest without containerd does without.
    #[serde(default)]
    pub images_disk: Option<PathBuf>,
    /// Programs that run on the host: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl.
    #[serde(default)]
    pub bin: BTreeMap<String, PathBuf>,
    /// Reference CNI plugins for tests on the host.
    #[serde(default)]
    pub cni_plugins: BTreeMap<String, PathBuf>,
    /// The guests' kernel.
    #[serde(default)]
    pub kernel_version: String,
    /// QEMU's binary.
    pub qemu: PathBuf,
}

impl Artifacts {
    /// Reads the list that [`ARTIFACTS_VARIABLE`] names, or has it made: nothing is rebuilt unless something changed.
    pub fn load() -> Result<Self> {
        let list = match std::env::var_os(ARTIFACTS_VARIABLE) {
            Some(path) => PathBuf::from(path),
            None => lab_build()?,
        };
        let text = fs::read(&list).with_context(|| format!("read {}", list.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", list.display()))
    }

    /// A program that runs on the host.
    pub fn program(&self, name: &str) -> Result<String> {
        let path = self.bin.get(name).with_context(|| format!("artifacts.json lists no program {name}; cargo xtask lab-build makes it"))?;
        Ok(path.display().to_string())
    }
}

/// Root of the source tree.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace()).stderr(Stdio::inherit());
    // Set by the cargo that runs the tests. Build scripts watch them, so the one started here would compile half of the dependencies again.
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)))
    {
        command.env_remove(name);
    }
    let output = command.output().context("run cargo")?;
    ensure!(output.status.success(), "cargo {}: {}", arguments.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn lab_build() -> Result<PathBuf> {
    let output = cargo(&["xtask", "lab-build"])?;
    let path = output.lines().last().map(str::trim).filter(|line| line.starts_with('/'));
    path.map(PathBuf::from).with_context(|| format!("cargo xtask lab-build ended without the path of artifacts.json: {output:?}"))
}

/// Builds our programs if they changed, for use on this machine, and gives the path of one. All of them at once, as `cargo xtask lab-build` does: a
/// smaller choice has other features of the dependencies, which would be compiled once more.
pub fn product(binary: &str) -> Result<PathBuf> {
    static BUILT: Mutex<bool> = Mutex::new(false);
    // Once in a process: nobody changes the sources under a test that runs, and asking cargo takes seconds.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*built {
        cargo(&["build", "--quiet", "--workspace", "--features", "sriov-tests/lab-vm,sriov-tests/lab-cluster", "--bins", "--tests"])?;
        *built = true;
    }
    // A test program is <target>/<triple>/debug/deps/<name>; the binaries of all packages are one folder up.
    let test = std::env::current_exe()?;
    let folder = test.parent().filter(|folder| folder.ends_with("deps")).and_then(Path::parent).or(test.parent());
    let path = folder.context("this program has no folder")?.join(binary);
    ensure!(path.is_file(), "{} does not exist although cargo built {binary}", path.display());
    Ok(path)
}
