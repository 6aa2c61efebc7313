//! I/O: what a node boots with: the modules it can load, and the initrd that mounts its root. Which modules is decided by lists in `hack/lab`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::cache::{Cache, Stage};
use super::cpio::Archive;
use super::debian::Offer;
use super::key::Inputs;
use super::modules::{self, ModuleIndex};
use crate::workspace::{Workspace, stdout_of};

/// `lib/modules/<release>` with what nodes load, uncompressed (unpacking xz is slow under emulation), and `initrd.gz`.
pub(crate) fn modules(cache: &Cache, workspace: &Workspace, offer: &Offer, kernel: &Stage, netdevsim: &Stage) -> Result<Stage> {
    let lab = workspace.path("hack/lab");
    let key = Inputs::new("modules", concat!(include_str!("boot.rs"), include_str!("modules.rs"), include_str!("cpio.rs")))
        .key("kernel", &kernel.key)
        .key("netdevsim", &netdevsim.key)
        .file("modules.txt", &lab.join("modules.txt"))?
        .tree("initrd", &lab.join("initrd"))?
        .file("busybox", Path::new(BUSYBOX))?
        .finish();
    cache.stage("modules", key, |dir| {
        let base = kernel.path("lib/modules").join(offer.kernel_release());
        let target = dir.join("lib/modules").join(offer.kernel_release());
        let index = ModuleIndex::parse(&read(&base.join("modules.dep"))?, &read(&base.join("modules.builtin"))?);
        let wanted = read(&lab.join("modules.txt"))?;
        copy_modules(&base, &target, &index.closure(modules::names(&wanted))?)?;
        make_folder(&target.join("extra"))?;
        copy(&netdevsim.path("netdevsim.ko"), &target.join("extra/netdevsim.ko"))?;
        for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            copy(&base.join(file), &target.join(file))?;
        }
        stdout_of(Command::new("depmod").arg("-b").arg(dir).arg(offer.kernel_release()))?;

        let names = read(&lab.join("initrd/modules.txt"))?;
        let order = index.closure(modules::names(&names))?;
        let files = order.iter().map(|path| target.join(path.trim_end_matches(".xz"))).collect::<Vec<_>>();
        write_initrd(&lab.join("initrd/init"), &files, &dir.join("initrd.gz"))
    })
}

/// Debian's static build.
pub(crate) const BUSYBOX: &str = "/usr/bin/busybox";

fn copy_modules(base: &Path, target: &Path, paths: &[String]) -> Result<()> {
    for path in paths {
        let to = target.join(path);
        make_folder(to.parent().unwrap_or(target))?;
        copy(&base.join(path), &to)?;
    }
    let packed: Vec<&String> = paths.iter().filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "xz")).collect();
    if !packed.is_empty() {
        stdout_of(Command::new("xz").current_dir(target).arg("--decompress").args(packed))?;
    }
    Ok(())
}

fn write_initrd(init: &Path, modules: &[PathBuf], out: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "lib", "lib/modules", "new", "proc", "ro", "state", "sys"] {
        archive.folder(folder);
    }
    // Before devtmpfs is mounted, what init says would be lost.
    archive.char_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &bytes(Path::new(BUSYBOX))?);
    archive.file("init", 0o755, &bytes(init)?);
    let mut order = Vec::new();
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("lib/modules/{name}"), 0o644, &bytes(module)?);
        order.push(format!("{name}\n"));
    }
    archive.file("modules.order", 0o644, order.concat().as_bytes());
    // Compressed just enough: the firmware copies it into the guest, the guest unpacks it.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&archive.finish()).context("compress the initrd")?;
    fs::write(out, gzip.finish().context("compress the initrd")?).with_context(|| format!("write {}", out.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))
}
