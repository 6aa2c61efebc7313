//! I/O (builds, a registry on loopback), tier 1: images as other programs see them: the archives that `cargo xtask image` writes, and what a registry has after
//! a push. The registry and the judge of what is well-formed are `crane`'s.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sriov_tests::lab::artifacts::{Artifacts, workspace};

const PATIENCE: Duration = Duration::from_secs(30);

/// A registry whose content is in memory. Ends with this value, or with the thread that started it.
struct Registry {
    process: Child,
    crane: String,
    address: String,
}

impl Registry {
    fn start(folder: &Path) -> Result<Self> {
        let crane = Artifacts::load()?.program("crane")?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = File::create(folder.join("registry.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", &crane, "registry", "serve", "--address", &address]);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("run crane")?;
        let registry = Self { process, crane, address };
        let deadline = Instant::now() + PATIENCE;
        while registry.crane(&["catalog", &registry.address]).is_err() {
            ensure!(Instant::now() < deadline, "the registry does not answer at {}", registry.address);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    fn crane(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new(&self.crane).args(arguments))
    }
}

impl Registry {
    /// Digest and size of the bytes that the registry has for a blob.
    fn read_back(&self, image: &str, digest: &str) -> Result<(String, u64)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("blob");
        let status = Command::new(&self.crane).args(["blob", &format!("{image}@{digest}")]).stdout(File::create(&path)?).status()?;
        ensure!(status.success(), "crane blob {image}@{digest}: {status}");
        let sum = output(Command::new("sha256sum").arg(&path))?;
        Ok((format!("sha256:{}", sum.split(' ').next().unwrap_or_default()), fs::metadata(&path)?.len()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only for a process that has been reaped.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// `cargo xtask image` with the binaries that the tests use anyway.
fn image(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["xtask", "image"]).args(arguments).current_dir(workspace());
    // Set by the cargo that runs the tests. Build scripts watch them, so the one started here would compile half of the dependencies again.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_TARGET_DIR") {
        command.env_remove(name);
    }
    output(&mut command)
}

/// Name and digest of each image that was written.
fn digests(said: &str) -> Vec<(&str, &str)> {
    said.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| name.starts_with("localhost/"))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or_default()))
        .collect()
}

#[test]
fn a_registry_has_what_was_built_and_the_same_binaries_give_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let registry = Registry::start(folder.path()).unwrap();
    let team = format!("{}/team", registry.address);
    let first = image(&["--out", &out("first"), "--push", &team, "--tag", "t1"]).unwrap();
    assert_eq!(digests(&first).len(), 2, "{first}");
    // Nobody listens there: the port was free a moment ago. The archives are written all the same, and nothing else is.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = image(&["--out", &out("second"), "--push", &nobody]).unwrap_err().to_string();
    assert!(error.contains("push") && error.contains(&nobody), "{error}");
    let left: Vec<_> = fs::read_dir(out("second")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| Path::new(name).extension().is_some_and(|end| end == "tar")), "{left:?}");
    for archive in ["sriov-operator.tar", "sriov-node.tar"] {
        let [one, two] = ["first", "second"].map(|name| fs::read(folder.path().join(name).join(archive)).unwrap());
        assert!(one == two, "{archive} of the same binaries differs");
    }
    for (name, digest) in digests(&first) {
        let image = name.trim_start_matches("localhost/").split(':').next().unwrap();
        let reference = format!("{team}/{image}:t1");
        assert_eq!(registry.crane(&["digest", &reference]).unwrap().trim(), digest, "{image}");
        assert!(first.contains(&format!("pushed {reference}@{digest}")), "{first}");
        let manifest: Value = serde_json::from_str(&registry.crane(&["manifest", &reference]).unwrap()).unwrap();
        // `crane validate` takes compressed layers only.
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            let read = registry.read_back(&format!("{team}/{image}"), blob["digest"].as_str().unwrap()).unwrap();
            assert_eq!(read, (blob["digest"].as_str().unwrap().to_owned(), blob["size"].as_u64().unwrap()), "{image}");
        }
        let config: Value = serde_json::from_str(&registry.crane(&["config", &reference]).unwrap()).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([manifest["layers"][0]["digest"]]), "{image}");
        let label = |name: &str| config["config"]["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap_or_default();
        assert_eq!((label("licenses"), label("version")), ("Apache-2.0", env!("CARGO_PKG_VERSION")), "{image}");
        assert_eq!(config["os"], "linux");
        // Nothing but the programs and mount points.
        let tar = folder.path().join("files.tar").display().to_string();
        registry.crane(&["export", &reference, &tar]).unwrap();
        let files = output(Command::new("tar").args(["--list", "--file", &tar])).unwrap();
        assert!(files.lines().any(|file| file == image.replace("sriov-node", "sriov-config-daemon")), "{image} has no program: {files}");
        assert!(!files.lines().any(|file| file.contains("bin/") || file.starts_with("lib")), "{image} has more than it needs: {files}");
    }
}

#[test]
fn what_cannot_be_pushed_is_refused_before_anything_is_built() {
    for (registry, tag, said) in [("https://registry.example", "1", "without https://"), ("registry.example", "no tag", "--tag")] {
        let error = image(&["--push", registry, "--tag", tag]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_image_for_another_processor_is_never_one_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let other = if std::env::consts::ARCH == "aarch64" { "amd64" } else { "arm64" };
    let error = image(&["--out", &folder.path().join("out").display().to_string(), "--arch", other]).unwrap_err().to_string();
    assert!(error.contains("--profile dist"), "{error}");
}

#[test]
fn an_image_for_an_unknown_processor_is_refused_with_those_that_are_known() {
    let error = image(&["--profile", "dist", "--arch", "mips"]).unwrap_err().to_string();
    assert!(error.contains("mips") && error.contains("amd64, arm64"), "{error}");
}

#[test]
fn a_missing_compiler_of_another_processor_is_said_before_anything_is_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let other = if std::env::consts::ARCH == "aarch64" { "amd64" } else { "arm64" };
    // A PATH with what cargo needs and no compiler of another processor.
    let tools = folder.path().join("bin");
    fs::create_dir(&tools).unwrap();
    for tool in ["rustc", "git", "cc", "ld", "env"] {
        let found = output(Command::new("sh").args(["-c", &format!("command -v {tool}")])).unwrap();
        std::os::unix::fs::symlink(found.trim(), tools.join(tool)).unwrap();
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["xtask", "image", "--profile", "dist", "--arch", other, "--out"]).arg(folder.path().join("out")).current_dir(workspace());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_TARGET_DIR") {
        command.env_remove(name);
    }
    let error = output(command.env("PATH", &tools)).unwrap_err().to_string();
    assert!(error.contains("linux-gnu-gcc does not run here") && error.contains(&format!("hack/image --arch {other}")), "{error}");
}
