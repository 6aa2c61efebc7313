//! I/O: `cargo xtask`, the one program behind what CI and a person run in this repository. Arguments and wiring only; each subcommand is a module.

#![expect(clippy::print_stdout, reason = "a command line tool that reports on its standard output")]

mod chart;
mod check;
mod elf;
mod gen_crds;
mod gen_docs;
mod gen_nic_names;
mod gen_proto;
mod gen_rights;
mod image;
mod lab_build;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::image::Architecture;
use crate::image::products::{self, Build, Profile};
use crate::image::push::{push, reference};
use crate::workspace::Workspace;

/// Builds, generates and checks what is in this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check formatting, lints, the walls between the crates, orphan files and generated files.
    Check {
        /// Run only the check of this name; may be repeated.
        #[arg(long)]
        only: Vec<String>,
        /// Print the names of the checks.
        #[arg(long)]
        list: bool,
    },
    /// Write the CustomResourceDefinitions into crds/yaml.
    GenCrds {
        /// Change nothing; fail if something is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/reference.md, every kind with every field.
    GenDocs {
        /// Change nothing; fail if it is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write deploy/operator.yaml and the renders of the presets from the Helm chart in deploy/chart.
    GenManifest {
        /// Change nothing; fail if something is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write config-daemon/src/nic_names.txt, names of network functions from the PCI ID list.
    GenNicNames {
        /// Change nothing; fail if it is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write the Rust code of the kubelet's gRPC interfaces.
    GenProto {
        /// Change nothing; fail if something is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write accounts, roles and admission policies into the chart's templates.
    GenRights {
        /// Change nothing; fail if something is stale, or if a role is written by hand.
        #[arg(long)]
        check: bool,
    },
    /// Build the product's binaries and write its container images as OCI archives.
    Image(ImageArguments),
    /// Build what the lab's machines are made of and print the path of `artifacts.json`.
    LabBuild(lab_build::Arguments),
    /// Run the test tiers in order and end with a line of counts.
    Test {
        /// Which tiers, separated by commas.
        #[arg(long, default_value = "0,1,2,3")]
        tier: String,
    },
}

#[derive(Debug, clap::Args)]
struct ImageArguments {
    /// How the binaries are compiled.
    #[arg(long, value_enum, default_value = "dev")]
    profile: Profile,
    /// What they are compiled for [default: this machine].
    #[arg(long, value_enum)]
    arch: Option<Architecture>,
    /// Folder for the archives [default: <target>/images].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Build all of it once more, from nothing and in another folder, and fail unless the digests are the same.
    #[arg(long)]
    twice: bool,
    /// Put the images into this registry, `<host>[:<port>][/<path>]`, too.
    #[arg(long, value_name = "REGISTRY")]
    push: Option<String>,
    /// Tag in the registry.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), requires = "push")]
    tag: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what was checked or tested is right; anything else that fails is an error.
fn run(task: Task) -> Result<bool> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Check { list: true, .. } => println!("{}", check::names().join("\n")),
        Task::Check { only, .. } => return Ok(check::run(&workspace, &only)?.failed == 0),
        Task::GenCrds { check } => gen_crds::run(&workspace, check)?,
        Task::GenDocs { check } => gen_docs::run(&workspace, check)?,
        Task::GenManifest { check } => chart::generate(&workspace, check)?,
        Task::GenNicNames { check } => gen_nic_names::run(&workspace, check)?,
        Task::GenProto { check } => gen_proto::run(workspace.root(), check)?,
        Task::GenRights { check } => gen_rights::run(&workspace, check)?,
        Task::Image(arguments) => image(&workspace, arguments)?,
        Task::LabBuild(arguments) => lab_build::run(&workspace, &arguments)?,
        Task::Test { tier } => return Ok(test::run(&workspace, &test::tiers(&tier)?)),
    }
    Ok(true)
}

fn image(workspace: &Workspace, arguments: ImageArguments) -> Result<()> {
    let build = Build { profile: arguments.profile, architecture: arguments.arch.unwrap_or_default() };
    let out = match arguments.out {
        Some(out) => out,
        None => workspace.target_dir()?.join("images"),
    };
    if let Some(registry) = &arguments.push {
        // A build takes minutes; what cannot be pushed is said before.
        reference("image:any", registry, &arguments.tag)?;
    }
    let written = products::build(workspace, build, &out)?;
    for image in &written {
        let bytes = std::fs::metadata(&image.archive)?.len();
        println!("{} {} {bytes} bytes {}", image.name, image.digest, image.archive.display());
    }
    if arguments.twice {
        let folder = workspace.target_dir()?.join("twice");
        let again = products::build(&workspace.with_target_dir(&folder), build, &folder.join("images"))?;
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        for (first, second) in written.iter().zip(&again) {
            ensure!(first.digest == second.digest, "{} was {} and is {} when it is built again", first.name, first.digest, second.digest);
        }
        println!("built twice: the same digests");
    }
    if let Some(registry) = arguments.push {
        let crane = lab_build::crane(workspace)?;
        for image in &written {
            println!("pushed {}", push(&crane, image, &registry, &arguments.tag)?);
        }
    }
    Ok(())
}
