//! I/O: where the workspace is, and how the other rooms of this program start cargo and the tools it needs.
//!
//! Nothing here decides anything. Every command runs in the workspace root, so a person may start `cargo xtask` from any folder of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The folder with the workspace's `Cargo.toml`.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
    /// Where cargo builds, if not where it does by itself.
    target: Option<PathBuf>,
}

impl Workspace {
    /// Looks upwards from the current folder for the `Cargo.toml` that has a `[workspace]` section.
    pub(crate) fn locate() -> Result<Self> {
        let start = std::env::current_dir().context("read the current folder")?;
        for folder in start.ancestors() {
            let manifest = folder.join("Cargo.toml");
            if std::fs::read_to_string(&manifest).is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]")) {
                return Ok(Self { root: folder.to_path_buf(), target: None });
            }
        }
        bail!("{} is not inside this workspace", start.display())
    }

    /// The same sources, built elsewhere.
    pub(crate) fn with_target_dir(&self, folder: &Path) -> Self {
        Self { target: Some(folder.to_path_buf()), ..self.clone() }
    }

    /// The workspace root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the workspace root.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The same cargo that started this program, in the workspace root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.current_dir(&self.root).args(arguments);
        // `cargo run` describes *this* package to us; a nested cargo must not take that for its own.
        // Build scripts watch some of it, so half of the dependencies would be compiled again.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)))
        {
            command.env_remove(name);
        }
        if let Some(target) = &self.target {
            command.env("CARGO_TARGET_DIR", target);
        }
        command
    }

    /// Where cargo builds for this workspace (honours `CARGO_TARGET_DIR`).
    pub(crate) fn target_dir(&self) -> Result<PathBuf> {
        #[derive(Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
        }
        let text = stdout_of(&mut self.cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
        let metadata: Metadata = serde_json::from_str(&text).context("parse the output of cargo metadata")?;
        Ok(metadata.target_directory)
    }

    /// The files that git tracks or would track: committed, staged, or new and not ignored; relative to the root, sorted.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut command = Command::new("git");
        command.current_dir(&self.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let text = stdout_of(&mut command)?;
        let mut files: Vec<PathBuf> = text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
        files.retain(|file| self.root.join(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }
}

/// Runs a command to its end; its standard output if it succeeded, otherwise an error with what it said.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}):\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {shown} as UTF-8"))
}

/// The command line as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    command.get_args().fold(program, |line, argument| line + " " + &argument.to_string_lossy())
}
