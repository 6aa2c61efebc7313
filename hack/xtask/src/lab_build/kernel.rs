//! I/O: what the lab takes from Debian's archive: the kernel's image and modules, netdevsim built for it, and udev. Which versions is decided in
//! `debian`; what nodes get of it in `boot` and `root`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::cache::{Cache, Stage};
use super::debian::{self, KERNEL_SERIES, Offer, Package};
use super::key::{Inputs, files_below};
use crate::workspace::stdout_of;

/// `vmlinuz` and `lib/modules/<release>`, as Debian ships them.
pub(crate) fn image(cache: &Cache, offer: &Offer) -> Result<Stage> {
    let key = Inputs::new("kernel", include_str!("kernel.rs")).text("package", &offer.kernel.exact()).finish();
    cache.stage("kernel", key, |dir| {
        let release = offer.kernel_release();
        let debs = debian::download(std::slice::from_ref(&offer.kernel), &dir.join("deb"))?;
        let unpacked = dir.join("unpacked");
        debian::unpack(&debs[0], &unpacked)?;
        rename(&unpacked.join(format!("boot/vmlinuz-{release}")), &dir.join("vmlinuz"))?;
        make_folder(&dir.join("lib"))?;
        rename(&debian::find_below(&unpacked, &["lib/modules", "usr/lib/modules"])?, &dir.join("lib/modules"))?;
        stdout_of(Command::new("depmod").arg("-b").arg(dir).arg(release))?;
        remove_folders(&[dir.join("deb"), unpacked])
    })
}

/// `netdevsim.ko`, which Debian does not build, from the sources and headers of the same kernel.
pub(crate) fn netdevsim(cache: &Cache, offer: &Offer, installed: &[Package]) -> Result<Stage> {
    let compiler = installed.iter().find(|package| package.name == "gcc").map(Package::exact).unwrap_or_default();
    let key = Inputs::new("netdevsim", include_str!("kernel.rs")).text("kernel", &offer.kernel.exact()).text("compiler", &compiler).finish();
    cache.stage("netdevsim", key, |dir| {
        let release = offer.kernel_release();
        let generic = release.trim_end_matches("-amd64");
        let names = [
            format!("linux-headers-{release}"),
            format!("linux-headers-{generic}-common"),
            format!("linux-kbuild-{generic}"),
            format!("linux-source-{KERNEL_SERIES}"),
        ];
        let packages = names.map(|name| Package { name, version: offer.kernel.version.clone() });
        let debs = debian::download(&packages, &dir.join("deb"))?;
        let unpacked = dir.join("unpacked");
        for deb in &debs[..3] {
            debian::unpack(deb, &unpacked)?;
        }
        // The headers are not installed, so what they include by its absolute path is elsewhere.
        let headers = unpacked.join(format!("usr/src/linux-headers-{release}"));
        let common = unpacked.join(format!("usr/src/linux-headers-{generic}-common/Makefile"));
        let makefile = headers.join("Makefile");
        fs::write(&makefile, format!("include {}\n", common.display())).with_context(|| format!("write {}", makefile.display()))?;
        let source = extract_netdevsim(&debs[3], dir)?;
        // The last switch spares pahole, which BTF of the module would need.
        let mut make = Command::new("make");
        make.arg("-C").arg(&headers).arg(format!("M={}", source.display()));
        stdout_of(make.args(["CONFIG_NETDEVSIM=m", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]))?;
        stdout_of(Command::new("strip").arg("--strip-debug").arg("-o").arg(dir.join("netdevsim.ko")).arg(source.join("netdevsim.ko")))?;
        remove_folders(&[dir.join("deb"), unpacked, dir.join("source")])
    })
}

/// Takes `drivers/net/netdevsim` out of the source package: a tar.xz inside a tar, streamed.
fn extract_netdevsim(deb: &Path, dir: &Path) -> Result<PathBuf> {
    let target = dir.join("source");
    make_folder(&target)?;
    let mut outer = Command::new("dpkg").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().context("start dpkg")?;
    let inner_name = format!("./usr/src/linux-source-{KERNEL_SERIES}.tar.xz");
    let from = outer.stdout.take().context("read from dpkg")?;
    let mut middle = Command::new("tar").args(["-xO", &inner_name]).stdin(from).stdout(Stdio::piped()).spawn().context("start tar")?;
    let from = middle.stdout.take().context("read from tar")?;
    // The folder goes before the member's name: tar applies `-C` to what follows it.
    let mut inner = Command::new("tar");
    inner
        .stdin(from)
        .arg("-xJ")
        .arg("-C")
        .arg(&target)
        .args(["--strip-components=4", &format!("linux-source-{KERNEL_SERIES}/drivers/net/netdevsim")]);
    stdout_of(&mut inner)?;
    for (name, mut child) in [("dpkg", outer), ("tar", middle)] {
        let status = child.wait().with_context(|| format!("wait for {name}"))?;
        ensure!(status.success(), "{name} failed ({status}) while reading {}", deb.display());
    }
    Ok(target)
}

/// `lib` and `etc` of udev, unpacked below `udev`: predictable names of PFs and VFs without installing udev on this machine.
pub(crate) fn udev(cache: &Cache, offer: &Offer) -> Result<Stage> {
    let [udev, library] = &offer.udev;
    let key = Inputs::new("udev", include_str!("debian.rs")).text("udev", &udev.exact()).text("library", &library.exact()).finish();
    cache.stage("udev", key, |dir| {
        for deb in debian::download(&offer.udev, &dir.join("deb"))? {
            debian::unpack(&deb, dir)?;
        }
        remove_folders(&[dir.join("deb")])?;
        ensure!(!files_below(dir)?.is_empty(), "the udev packages were empty");
        Ok(())
    })
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))
}

fn remove_folders(paths: &[PathBuf]) -> Result<()> {
    paths.iter().try_for_each(|path| fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display())))
}
