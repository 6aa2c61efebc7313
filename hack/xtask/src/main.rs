//! I/O: `cargo xtask`, the one program behind what CI and a person run in this repository. Arguments and wiring only; each subcommand is a module.

#![expect(
    clippy::print_stdout,
    reason = "a command line tool that reports on its standard output"
)]

mod image;
mod workspace;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::image::products::{self, Profile};
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
    /// Build the product's binaries and write its container images as OCI archives.
    Image {
        /// How the binaries are compiled.
        #[arg(long, value_enum, default_value = "dev")]
        profile: Profile,
        /// Folder for the archives [default: <target>/images].
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let workspace = Workspace::locate()?;
    match Arguments::parse().command {
        Task::Image { profile, out } => {
            let out = out.map_or_else(
                || workspace.target_dir().map(|target| target.join("images")),
                Ok,
            )?;
            for image in products::build(&workspace, profile, &out)? {
                println!(
                    "{} {} {}",
                    image.name,
                    image.digest,
                    image.archive.display()
                );
            }
            Ok(())
        }
    }
}
