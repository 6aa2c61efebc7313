//! I/O: builds the product's binaries and its two images, `operator` and `node`; the archive format is in the parent module.
//!
//! Both images start from nothing: static binaries, `/tmp` and mount points. They hold no shell, no users and no certificates, because the programs
//! trust only the cluster's own authority, which the kubelet mounts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use super::{Architecture, Content, Digest, ImageSpec, sbom, write_oci_archive};
use crate::elf;
use crate::workspace::{Workspace, show, stdout_of};

/// How the binaries are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// The build that the tests use anyway; debug sections are cut off for the image.
    Dev,
    /// What releases ship: optimised for size, link-time optimisation.
    Dist,
}

impl Profile {
    /// As `cargo --profile` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Dist => "dist",
        }
    }
}

/// What is built, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    pub(crate) profile: Profile,
    pub(crate) architecture: Architecture,
}

impl From<Profile> for Build {
    fn from(profile: Profile) -> Self {
        Self { profile, architecture: Architecture::default() }
    }
}

/// How the tests select what cargo builds.
pub(crate) const WHOLE_WORKSPACE: [&str; 3] = ["--workspace", "--features", "sriov-tests/lab-vm,sriov-tests/lab-cluster"];

/// One image that was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Full name with tag.
    pub name: &'static str,
    /// The archive.
    pub archive: PathBuf,
    /// The manifest's digest.
    pub digest: Digest,
}

struct Recipe {
    name: &'static str,
    title: &'static str,
    archive: &'static str,
    /// Most bytes that the shipped binaries may have together.
    limit: u64,
    /// Package and its binary, which becomes `/<binary>`.
    binaries: &'static [(&'static str, &'static str)],
    /// `uid:gid`; the node's programs change the machine and stay root.
    user: Option<&'static str>,
    entrypoint: &'static str,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "localhost/sriov-operator:dev",
        title: "SR-IOV network operator",
        archive: "sriov-operator.tar",
        limit: 20_000_000,
        binaries: &[("sriov-operator", "sriov-operator")],
        user: Some("65532:65532"),
        entrypoint: "/sriov-operator",
    },
    Recipe {
        name: "localhost/sriov-node:dev",
        title: "SR-IOV node: config daemon, device plugin, CNI",
        archive: "sriov-node.tar",
        limit: 25_000_000,
        binaries: &[("sriov-config-daemon", "sriov-config-daemon"), ("sriov-device-plugin", "sriov-device-plugin"), ("sriov-cni", "sriov")],
        user: None,
        entrypoint: "/sriov-config-daemon",
    },
];

/// Builds everything and writes `sriov-operator.tar` and `sriov-node.tar` into `out`.
pub(crate) fn build(workspace: &Workspace, what: Build, out: &Path) -> Result<Vec<Written>> {
    let wanted: Vec<(&str, &str)> = RECIPES.iter().flat_map(|recipe| recipe.binaries).copied().collect();
    archives(workspace, what, &binaries_for(workspace, what, &wanted)?, out)
}

/// Writes the images from binaries that are built already, among others.
pub(crate) fn archives(workspace: &Workspace, what: Build, built: &[(String, PathBuf)], out: &Path) -> Result<Vec<Written>> {
    let Build { profile, architecture } = what;
    std::fs::create_dir_all(out).with_context(|| format!("make the folder {}", out.display()))?;
    let stripped = workspace.target_dir()?.join("image").join(profile.name());
    std::fs::create_dir_all(&stripped).with_context(|| format!("make the folder {}", stripped.display()))?;
    RECIPES
        .iter()
        .map(|recipe| {
            let mut spec = ImageSpec { architecture, ..described(recipe) };
            for binary in programs(recipe, built, (profile == Profile::Dev).then_some(stripped.as_path()))? {
                let bytes = std::fs::read(&binary.path).with_context(|| format!("read {}", binary.path.display()))?;
                fits(&bytes, architecture).with_context(|| format!("put {} into {}", binary.path.display(), recipe.name))?;
                spec.add_file(&binary.path, &format!("/{}", binary.name))?;
            }
            if profile == Profile::Dist {
                ship(workspace, recipe, &mut spec, out)?;
            }
            let archive = out.join(recipe.archive);
            let digest = write_oci_archive(&spec, &archive)?;
            Ok(Written { name: recipe.name, archive, digest })
        })
        .collect()
}

/// Compiles `(package, binary)` pairs in one cargo run; the executables in the same order.
pub(crate) fn binaries(workspace: &Workspace, profile: Profile, wanted: &[(&str, &str)]) -> Result<Vec<(String, PathBuf)>> {
    binaries_for(workspace, profile.into(), wanted)
}

fn binaries_for(workspace: &Workspace, what: Build, wanted: &[(&str, &str)]) -> Result<Vec<(String, PathBuf)>> {
    let Build { profile, architecture } = what;
    let mut command = workspace.cargo(&["build", "--profile", profile.name(), "--message-format=json-render-diagnostics"]);
    match profile {
        // What the tests build anyway, whatever is wanted: a smaller choice has other features of the dependencies, which would be compiled once more.
        Profile::Dev => {
            ensure!(architecture.is_here(), "dev images are for this machine only; for {} use --profile dist", architecture.name());
            command.args(["--bins", "--tests"]).args(WHOLE_WORKSPACE);
        }
        // What ships has the features that its own package asks for, and nobody else's.
        Profile::Dist => {
            let target = target(workspace, architecture)?;
            if !architecture.is_here() {
                cross(&mut command, architecture, &target)?;
            }
            command.args(["--config", &without_machine_paths(workspace, &target)?, "--target", &target]);
            for (package, binary) in wanted {
                command.args(["--package", package, "--bin", binary]);
            }
        }
    }
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", show(&command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", show(&command), output.status);
    }
    let executables = executables(&String::from_utf8_lossy(&output.stdout));
    wanted
        .iter()
        .map(|(_, binary)| {
            let found = executables.iter().find(|(name, _)| name == binary);
            found.cloned().with_context(|| format!("cargo built no binary named {binary}"))
        })
        .collect()
}

/// Rust's name of what binaries are compiled for: this machine's, with the other processor where that is wanted.
fn target(workspace: &Workspace, architecture: Architecture) -> Result<String> {
    let version = stdout_of(Command::new("rustc").arg("-vV").current_dir(workspace.root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let (_, rest) = host.split_once('-').with_context(|| format!("rustc's host {host:?} has no system"))?;
    Ok(format!("{}-{rest}", architecture.machine()))
}

/// The compiler's parts for another processor, as Debian names them (`gcc-aarch64-linux-gnu` and its C library). Some dependencies have C code, and the
/// linker is gcc's; what is missing is said before minutes of compiling.
fn cross(command: &mut Command, architecture: Architecture, target: &str) -> Result<()> {
    let tool = |name: &str| format!("{}-linux-gnu-{name}", architecture.machine());
    for name in [tool("gcc"), tool("ar")] {
        stdout_of(Command::new(&name).arg("--version"))
            .with_context(|| format!("{name} does not run here; as root `hack/image --arch {}` installs it", architecture.name()))?;
    }
    let variable = target.replace('-', "_");
    command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), tool("gcc"));
    command.env(format!("CC_{variable}"), tool("gcc")).env(format!("AR_{variable}"), tool("ar"));
    Ok(())
}

/// A cargo setting under which binaries do not tell, and do not depend on, the folders that they were built in.
fn without_machine_paths(workspace: &Workspace, target: &str) -> Result<String> {
    let text = |path: &Path| path.display().to_string();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let home = home.context("no folder of cargo: set CARGO_HOME or HOME")?;
    let folders = [(text(&home), "/cargo"), (text(&workspace.target_dir()?), "/target"), (text(workspace.root()), "/source")];
    let flags: Vec<String> = folders.iter().map(|(from, to)| format!("\"--remap-path-prefix={from}={to}\"")).collect();
    // Added to the flags of .cargo/config.toml.
    Ok(format!("target.{target}.rustflags=[{}]", flags.join(", ")))
}

/// Pure: the binaries that cargo's JSON messages report.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
        profile: Option<CompiledFor>,
    }
    #[derive(Deserialize)]
    struct CompiledFor {
        test: bool,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let programs = parsed.filter(|message| message.profile.as_ref().is_some_and(|profile| !profile.test));
    programs.filter_map(|message| Some((message.target?.name, message.executable?))).collect()
}

/// An image without its programs.
fn described(recipe: &Recipe) -> ImageSpec {
    let mut spec = ImageSpec::from_scratch(recipe.name);
    spec.entrypoint = vec![recipe.entrypoint.to_owned()];
    spec.user = recipe.user.map(str::to_owned);
    let label = |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.to_owned());
    let [title, licences, version] =
        [label("title", recipe.title), label("licenses", env!("CARGO_PKG_LICENSE")), label("version", env!("CARGO_PKG_VERSION"))];
    spec.labels.extend([title, licences, version]);
    spec
}

/// An image has nothing but its programs: no loader, no libraries, and nothing that would emulate another processor.
fn fits(program: &[u8], architecture: Architecture) -> Result<()> {
    match elf::machine(program) {
        Some(machine) if machine == architecture.elf_machine() => {}
        Some(machine) => {
            bail!("it is for processor {machine} of the ELF list, and the image for {} ({})", architecture.name(), architecture.elf_machine())
        }
        None => bail!("it is no 64-bit ELF program"),
    }
    ensure!(elf::linked(program) == Some(false), "it is linked dynamically, and the image has neither loader nor libraries");
    Ok(())
}

struct Program {
    name: &'static str,
    path: PathBuf,
}

/// The binaries of an image; with a folder for them without debug sections, which are most of a dev binary's size and of the time that a guest takes to
/// import it. What ships was linked without them.
fn programs(recipe: &Recipe, built: &[(String, PathBuf)], stripped: Option<&Path>) -> Result<Vec<Program>> {
    let one = |name: &'static str| {
        let (_, built) = built.iter().find(|(found, _)| found == name).with_context(|| format!("no binary named {name} was built"))?;
        let Some(stripped) = stripped else { return Ok(Program { name, path: built.clone() }) };
        let path = stripped.join(name);
        stdout_of(Command::new("strip").arg("--strip-debug").arg("-o").arg(&path).arg(built))?;
        Ok(Program { name, path })
    };
    recipe.binaries.iter().map(|(_, name)| one(name)).collect()
}

/// What only images have that leave this machine: a list of what they were made from, in the image and beside its archive, and a limit of their size.
fn ship(workspace: &Workspace, recipe: &Recipe, spec: &mut ImageSpec, out: &Path) -> Result<()> {
    let bytes = spec.size()?;
    ensure!(bytes <= recipe.limit, "{} has {bytes} bytes of files; allowed are {}", recipe.name, recipe.limit);
    // Sources that came without git have no revision.
    let git = |arguments: &[&str]| stdout_of(Command::new("git").args(arguments).current_dir(workspace.root()));
    if let Ok(revision) = git(&["rev-parse", "HEAD"]) {
        let changed = if git(&["status", "--porcelain"])?.is_empty() { "" } else { "-changed" };
        spec.labels.insert("org.opencontainers.image.revision".to_owned(), format!("{}{changed}", revision.trim()));
    }
    let mut tree = workspace.cargo(&["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}\t{l}"]);
    tree.args(["--target", &target(workspace, spec.architecture)?]);
    for (package, _) in recipe.binaries {
        tree.args(["--package", package]);
    }
    let lock = std::fs::read_to_string(workspace.path("Cargo.lock")).context("read Cargo.lock")?;
    let path = out.join(recipe.archive).with_extension("cdx.json");
    std::fs::write(&path, sbom::cyclonedx(recipe.name, &stdout_of(&mut tree)?, &lock)?).with_context(|| format!("write {}", path.display()))?;
    spec.add("/usr/share/sbom.cdx.json", Content::Copy(path, 0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_messages_name_the_executables_and_nothing_else() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"sriov_host"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"sriov"},"profile":{"test":true},"executable":"/t/debug/deps/sriov-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"sriov"},"profile":{"test":false},"executable":"/t/debug/sriov"}"#,
            "\nplain text\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages), [("sriov".to_owned(), PathBuf::from("/t/debug/sriov"))]);
    }

    #[test]
    fn only_static_programs_of_its_processor_go_into_an_image() {
        use crate::elf::samples::{elf, with_library, with_loader};
        let said = |program: &[u8], architecture| fits(program, architecture).err().map(|error| error.to_string()).unwrap_or_default();
        let arm = elf(183, &[(1, vec![])]);
        assert_eq!(said(&arm, Architecture::Arm64), "");
        assert!(said(&arm, Architecture::Amd64).contains("processor 183"), "{}", said(&arm, Architecture::Amd64));
        assert!(said(&elf(62, &[(1, vec![])]), Architecture::Arm64).contains("the image for arm64 (183)"));
        for program in [with_loader(183), with_library(183)] {
            assert!(said(&program, Architecture::Arm64).contains("dynamically"));
        }
        assert!(said(b"#!/bin/sh", Architecture::Arm64).contains("no 64-bit ELF"));
    }

    #[test]
    fn the_two_images_carry_the_four_binaries_once() {
        let mut binaries: Vec<&str> = RECIPES.iter().flat_map(|recipe| recipe.binaries).map(|(_, binary)| *binary).collect();
        binaries.sort_unstable();
        assert_eq!(binaries, ["sriov", "sriov-config-daemon", "sriov-device-plugin", "sriov-operator"]);
    }
}
