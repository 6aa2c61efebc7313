//! I/O: the images disk, a squashfs that nodes mount at `/images`: container images as OCI archives with the digest of each in `manifest`, and the
//! same images imported (`containerd/`), which a new node copies to `/var/lib/containerd`. Nodes also take over `cni-bin/` into `/opt/cni/bin` and
//! `node-files/` into `/`, where a disk has them. The disk is built again with every product build; the root is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::boot::BUSYBOX;
use super::cache::{Cache, Stage};
use super::go_tools::GoTools;
use super::key::Inputs;
use super::root;
use crate::image::products::{self, Profile, Written};
use crate::image::{Content, ImageSpec, write_oci_archive};
use crate::workspace::{Workspace, stdout_of};

/// What every pod's sandbox runs; containerd's configuration in `hack/lab/node` names it.
const PAUSE: &str = "localhost/pause:lab";
/// For pods of the tests: a shell and busybox's network tools.
const BUSYBOX_IMAGE: &str = "localhost/busybox:lab";

/// Every binary that the lab takes from this workspace; the first is the guest agent.
pub(crate) const BINARIES: [(&str, &str); 5] = [
    ("sriov-tests", "guest-agent"),
    ("sriov-operator", "sriov-operator"),
    ("sriov-config-daemon", "sriov-config-daemon"),
    ("sriov-device-plugin", "sriov-device-plugin"),
    ("sriov-cni", "sriov"),
];

/// `images.squashfs`, from the product's binaries as they are built now.
pub(crate) fn disk(cache: &Cache, workspace: &Workspace, tools: &GoTools, binaries: &[(String, PathBuf)]) -> Result<Stage> {
    let lab = workspace.path("hack/lab");
    let recipe = concat!(include_str!("images.rs"), include_str!("../image.rs"), include_str!("../image/products.rs"));
    let mut inputs = Inputs::new("images", recipe).tree("images", &lab.join("images"))?.file("busybox", Path::new(BUSYBOX))?;
    for tool in &tools.stages {
        inputs = inputs.key("tool", &tool.key);
    }
    for (name, path) in &binaries[1..] {
        inputs = inputs.text("binary", name).file("content", path)?;
    }
    cache.stage("images", inputs.finish(), |dir| {
        let tree = dir.join("tree");
        let mut images = products::archives(workspace, Profile::Dev.into(), binaries, &tree)?;
        images.push(pause(&lab.join("images/pause.c"), dir, &tree)?);
        images.push(busybox(&tree)?);
        let name = |image: &Written| image.archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let manifest: Vec<String> = images.iter().map(|image| format!("{} {}\n", image.digest.hex(), name(image))).collect();
        fs::write(tree.join("manifest"), manifest.concat()).context("write the manifest of the images disk")?;
        unpack(&lab.join("images/unpack"), tools, &images, &tree.join("containerd"))?;
        root::pack(&tree, &dir.join("images.squashfs"))?;
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
    })
}

/// Imports the archives with the nodes' own containerd, in a mount namespace of its own and, for a person who is not root, a user namespace.
fn unpack(script: &Path, tools: &GoTools, images: &[Written], out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("make the folder {}", out.display()))?;
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if stdout_of(Command::new("id").arg("-u"))?.trim() != "0" {
        command.arg("--map-root-user");
    }
    command.arg(script).arg(tools.path("containerd")?).arg(tools.path("ctr")?).arg(out);
    stdout_of(command.args(images.iter().map(|image| &image.archive))).map(drop)
}

fn pause(source: &Path, dir: &Path, out: &Path) -> Result<Written> {
    let program = dir.join("pause");
    stdout_of(Command::new("gcc").args(["-Os", "-static", "-s", "-o"]).arg(&program).arg(source))?;
    let mut spec = ImageSpec::from_scratch(PAUSE);
    spec.entrypoint = vec!["/pause".to_owned()];
    spec.add_file(&program, "/pause")?;
    written(PAUSE, &spec, out.join("pause.tar"))
}

fn busybox(out: &Path) -> Result<Written> {
    let mut spec = ImageSpec::from_scratch(BUSYBOX_IMAGE);
    spec.cmd = vec!["sh".to_owned()];
    spec.add_file(Path::new(BUSYBOX), "/bin/busybox")?;
    for applet in stdout_of(Command::new(BUSYBOX).arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        spec.add(&format!("/bin/{applet}"), Content::Link("busybox".to_owned()))?;
    }
    written(BUSYBOX_IMAGE, &spec, out.join("busybox.tar"))
}

fn written(name: &'static str, spec: &ImageSpec, archive: PathBuf) -> Result<Written> {
    let digest = write_oci_archive(spec, &archive)?;
    Ok(Written { name, archive, digest })
}
