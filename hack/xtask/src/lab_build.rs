//! I/O: `cargo xtask lab-build`: everything that the lab's machines are made of, built into a cache outside the source tree: the kernel, the
//! nodes' root and initrd, the images disk and the control plane's programs. Booting them is the tests' part (`tests/src/lab`).
//!
//! Invariant: a stage is built again exactly when the content that it is made from changed; `artifacts.json` names only finished stages.

mod boot;
mod cache;
mod cpio;
mod debian;
mod go_tools;
mod host;
mod images;
mod kernel;
mod key;
mod modules;
mod openvswitch;
mod root;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::cache::{Cache, Stage};
use self::go_tools::{CNI_PLUGINS, GoTools};
use self::key::Inputs;
use crate::image::products::{self, Profile};
use crate::workspace::Workspace;

/// Options of `lab-build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print where `artifacts.json` of the last build is, and build nothing.
    #[arg(long, conflicts_with = "check_host")]
    print: bool,
    /// Say what this machine lacks to build and run the lab, and build nothing.
    #[arg(long)]
    check_host: bool,
}

/// What `artifacts.json` holds. All paths are absolute and stay valid as long as the cache does.
#[derive(Debug, Serialize)]
struct Artifacts {
    vmlinuz: PathBuf,
    initrd: PathBuf,
    root_squashfs: PathBuf,
    images_disk: PathBuf,
    /// Programs that run on the host: the control plane and kubectl.
    bin: BTreeMap<&'static str, PathBuf>,
    /// CNI plugins for tests that need no guest.
    cni_plugins: BTreeMap<&'static str, PathBuf>,
    /// `uname -r` of the guests.
    kernel_version: String,
    qemu: PathBuf,
}

/// Builds what changed; the only line on standard output is the path of `artifacts.json`.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    if arguments.check_host {
        return host::check(workspace);
    }
    let folder = cache::folder()?;
    let path = artifacts_path(&folder, workspace.root());
    if !arguments.print {
        let start = Instant::now();
        let cache = Cache::open(folder)?;
        write(&path, &build(&cache, workspace)?)?;
        eprintln!("lab-build: all of it {:.1} s", start.elapsed().as_secs_f64());
    } else if !path.exists() {
        bail!("{} does not exist: run `cargo xtask lab-build` first", path.display());
    }
    println!("{}", path.display());
    Ok(())
}

/// Each work tree has its own, so that two of them can share a cache.
fn artifacts_path(cache: &Path, root: &Path) -> PathBuf {
    let tree = Inputs::new("tree", "").text("root", &root.to_string_lossy()).finish();
    cache.join("trees").join(tree.as_str()).join("artifacts.json")
}

fn build(cache: &Cache, workspace: &Workspace) -> Result<Artifacts> {
    let installed = debian::installed()?;
    let offer = debian::offer(cache.root())?;
    let tools = go_tools::build(cache, workspace, &installed)?;
    let kernel = kernel::image(cache, &offer)?;
    let netdevsim = kernel::netdevsim(cache, &offer, &installed)?;
    let modules = boot::modules(cache, workspace, &offer, &kernel, &netdevsim)?;
    let udev = kernel::udev(cache, &offer)?;
    let binaries = products::binaries(workspace, Profile::Dev, &images::BINARIES)?;
    let parts = root::Parts { tools: &tools, modules: &modules, udev: &udev, guest_agent: &binaries[0].1 };
    let root = root::squashfs(cache, workspace, &installed, &parts)?;
    let images = images::disk(cache, workspace, &tools, &binaries)?;
    let mut artifacts = artifacts(&tools, [&kernel, &modules, &root, &images], offer.kernel_release())?;
    artifacts.bin.insert("helm", go_tools::helm(cache, workspace)?);
    artifacts.bin.insert("crane", go_tools::crane(cache, workspace)?);
    artifacts.bin.insert("promtool", go_tools::promtool(cache, workspace)?);
    artifacts.bin.extend(go_tools::cert_manager(cache, workspace)?);
    let openvswitch = openvswitch::programs(cache, &offer)?;
    artifacts.bin.extend(openvswitch::FILES.map(|(name, file)| (name, openvswitch.path(file))));
    Ok(artifacts)
}

/// Helm alone, built if it is not in the cache.
pub(crate) fn helm(workspace: &Workspace) -> Result<PathBuf> {
    go_tools::helm(&Cache::open(cache::folder()?)?, workspace)
}

/// What speaks to registries, alone.
pub(crate) fn crane(workspace: &Workspace) -> Result<PathBuf> {
    go_tools::crane(&Cache::open(cache::folder()?)?, workspace)
}

fn artifacts(tools: &GoTools, [kernel, modules, root, images]: [&Stage; 4], release: &str) -> Result<Artifacts> {
    let paths = |names: &[&'static str]| names.iter().map(|name| Ok((*name, tools.path(name)?.to_path_buf()))).collect::<Result<BTreeMap<_, _>>>();
    Ok(Artifacts {
        vmlinuz: kernel.path("vmlinuz"),
        initrd: modules.path("initrd.gz"),
        root_squashfs: root.path("root.squashfs"),
        images_disk: images.path("images.squashfs"),
        bin: paths(&["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"])?,
        cni_plugins: paths(&CNI_PLUGINS)?,
        kernel_version: release.to_owned(),
        qemu: root::find_program(host::QEMU)?,
    })
}

fn write(path: &Path, artifacts: &Artifacts) -> Result<()> {
    let partial = path.with_extension("partial");
    let replace = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(&partial, serde_json::to_vec_pretty(artifacts)?)?;
        fs::rename(&partial, path)
    };
    replace().with_context(|| format!("write {}", path.display()))
}
