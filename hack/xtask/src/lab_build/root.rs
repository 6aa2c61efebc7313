//! I/O: the read-only root of the nodes, one squashfs: busybox and Debian's network tools with their libraries, udev, the container runtime
//! and kubelet, the guest agent, the modules, and the files of `hack/lab/node`. What changes with every product build is on the images disk.
//!
//! The root is laid out with everything below `/usr` (`/bin`, `/sbin`, `/lib` are links), so real programs win over busybox applets of the
//! same name.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::boot::BUSYBOX;
use super::cache::{Cache, Stage};
use super::debian::{self, Package};
use super::go_tools::{CNI_PLUGINS, GoTools};
use super::key::{Inputs, files_below};
use crate::workspace::{Workspace, stdout_of};

const FOLDERS: [&str; 24] = [
    "dev",
    "etc/cni/net.d",
    "etc/systemd/network",
    "etc/udev/rules.d",
    "images",
    "mnt",
    "opt/cni/bin",
    "proc",
    "ro",
    "root",
    "run",
    "state",
    "sys",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/lib/modules",
    "usr/libexec/kubernetes",
    "usr/local/bin",
    "usr/local/sbin",
    "usr/sbin",
    "var/lib",
    "var/log",
    "tmp",
];
const MERGED: [(&str, &str); 4] = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// Dynamically linked programs of this machine that go into `/usr/sbin`.
const SBIN_PROGRAMS: [&str; 7] = ["ip", "bridge", "tc", "devlink", "ethtool", "kmod", "xtables-nft-multi"];
/// The same for `/usr/bin`. The shell is dash: Debian's busybox shell runs its own applets even where PATH has the real `ip`.
const BIN_PROGRAMS: [&str; 9] = ["dash", "mount", "umount", "nsenter", "findmnt", "lspci", "setpci", "rdma", "tcpdump"];
/// One program, many names.
const LINKS: [(&str, &str); 15] = [
    ("usr/bin/sh", "dash"),
    ("usr/sbin/init", "/usr/bin/busybox"),
    ("usr/sbin/modprobe", "kmod"),
    ("usr/sbin/insmod", "kmod"),
    ("usr/sbin/rmmod", "kmod"),
    ("usr/sbin/lsmod", "kmod"),
    ("usr/sbin/modinfo", "kmod"),
    ("usr/sbin/depmod", "kmod"),
    ("usr/sbin/iptables", "xtables-nft-multi"),
    ("usr/sbin/iptables-save", "xtables-nft-multi"),
    ("usr/sbin/iptables-restore", "xtables-nft-multi"),
    ("usr/sbin/ip6tables", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-save", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-restore", "xtables-nft-multi"),
    ("etc/mtab", "/proc/mounts"),
];
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";
/// The rules that load drivers and name netdevs; disks, input devices and the rest do not exist here.
const UDEV_RULES: [&str; 5] = ["50-udev-default", "60-infiniband", "75-net-description", "80-drivers", "80-net-setup-link"];
const RUNTIME: [&str; 5] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubelet"];

/// What the root is made from, besides this machine's programs.
pub(crate) struct Parts<'a> {
    /// etcd, kubelet, containerd ...
    pub(crate) tools: &'a GoTools,
    /// `lib/modules`.
    pub(crate) modules: &'a Stage,
    /// udev, unpacked.
    pub(crate) udev: &'a Stage,
    /// The static program that runs commands for the tests.
    pub(crate) guest_agent: &'a Path,
}

/// `root.squashfs`.
pub(crate) fn squashfs(cache: &Cache, workspace: &Workspace, installed: &[Package], parts: &Parts<'_>) -> Result<Stage> {
    let node = workspace.path("hack/lab/node");
    let mut inputs = Inputs::new("root", include_str!("root.rs"))
        .key("modules", &parts.modules.key)
        .key("udev", &parts.udev.key)
        .file("agent", parts.guest_agent)?
        .tree("node", &node)?
        .text("packages", &copied_packages(workspace, installed)?);
    for stage in &parts.tools.stages {
        inputs = inputs.key("tool", &stage.key);
    }
    cache.stage("root", inputs.finish(), |dir| {
        let root = Root { dir: dir.join("tree") };
        root.lay_out()?;
        root.add_programs()?;
        root.add_udev(&parts.udev.dir)?;
        for name in RUNTIME {
            root.copy(parts.tools.path(name)?, &format!("usr/local/bin/{name}"))?;
        }
        for name in CNI_PLUGINS.iter().chain(&["cnitool"]) {
            root.copy(parts.tools.path(name)?, &format!("opt/cni/bin/{name}"))?;
        }
        root.copy(parts.guest_agent, "usr/local/bin/guest-agent")?;
        root.copy_tree(&parts.modules.path("lib/modules"), "usr/lib/modules")?;
        root.copy_tree(&node, "")?;
        root.add_applets()?;
        pack(&root.dir, &dir.join("root.squashfs"))?;
        fs::remove_dir_all(&root.dir).with_context(|| format!("remove {}", root.dir.display()))
    })
}

/// The versions of the packages whose files are copied: the listed ones and every library.
fn copied_packages(workspace: &Workspace, installed: &[Package]) -> Result<String> {
    let path = workspace.path("hack/debian-packages");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let listed = debian::listed(&text);
    let copied = installed.iter().filter(|package| package.name.starts_with("lib") || listed.contains(&package.name.as_str()));
    Ok(copied.map(Package::exact).collect::<Vec<_>>().join(" "))
}

/// Packs a folder, uncompressed: unpacking would cost the emulated machine more than reading.
pub(crate) fn pack(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("mksquashfs");
    command.arg(from).arg(to).args(["-noappend", "-all-root", "-no-xattrs", "-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress"]);
    stdout_of(command.args(["-all-time", "0", "-mkfs-time", "0"])).map(drop)
}

/// The tree that becomes the squashfs.
struct Root {
    dir: PathBuf,
}

impl Root {
    fn lay_out(&self) -> Result<()> {
        for folder in FOLDERS {
            make_folder(&self.dir.join(folder))?;
        }
        for (link, target) in MERGED {
            self.link(link, target)?;
        }
        self.link("var/run", "../run")?;
        let tmp = self.dir.join("tmp");
        fs::set_permissions(&tmp, Permissions::from_mode(0o1777)).with_context(|| format!("set the mode of {}", tmp.display()))
    }

    fn add_programs(&self) -> Result<()> {
        for (folder, programs) in [("usr/sbin", &SBIN_PROGRAMS[..]), ("usr/bin", &BIN_PROGRAMS[..])] {
            for program in programs {
                self.copy_program(&find_program(program)?, &format!("{folder}/{program}"))?;
            }
        }
        for (link, target) in LINKS {
            self.link(link, target)?;
        }
        let xtables = Path::new(XTABLES);
        for library in files_below(xtables)? {
            self.copy(&xtables.join(&library), &format!("{XTABLES}/{}", library.display()))?;
        }
        let names = Path::new("/usr/share/misc/pci.ids");
        if names.exists() { self.copy(names, "usr/share/misc/pci.ids") } else { Ok(()) }
    }

    fn add_udev(&self, udev: &Path) -> Result<()> {
        self.copy_program(&debian::find_below(udev, &["bin/udevadm", "usr/bin/udevadm"])?, "usr/bin/udevadm")?;
        make_folder(&self.dir.join("usr/lib/systemd/network"))?;
        // udevadm is the daemon when it is called by this name.
        self.link("usr/lib/systemd/systemd-udevd", "/usr/bin/udevadm")?;
        let systemd = debian::find_below(udev, &["lib/systemd/network", "usr/lib/systemd/network"])?;
        self.copy(&systemd.join("99-default.link"), "usr/lib/systemd/network/99-default.link")?;
        let rules = debian::find_below(udev, &["lib/udev/rules.d", "usr/lib/udev/rules.d"])?;
        for rule in UDEV_RULES {
            self.copy(&rules.join(format!("{rule}.rules")), &format!("usr/lib/udev/rules.d/{rule}.rules"))?;
        }
        Ok(())
    }

    /// Links for the busybox applets that no real program stands for.
    fn add_applets(&self) -> Result<()> {
        self.copy(Path::new(BUSYBOX), "usr/bin/busybox")?;
        for applet in stdout_of(Command::new(BUSYBOX).arg("--list"))?.lines() {
            let taken = ["usr/bin", "usr/sbin"].iter().any(|folder| self.dir.join(folder).join(applet).symlink_metadata().is_ok());
            if !taken {
                self.link(&format!("usr/bin/{applet}"), "busybox")?;
            }
        }
        Ok(())
    }

    /// A program with the libraries that the loader of this machine finds for it.
    fn copy_program(&self, from: &Path, to: &str) -> Result<()> {
        self.copy(from, to)?;
        for library in libraries(&stdout_of(Command::new("ldd").arg(from))?) {
            if !self.dir.join(library.trim_start_matches('/')).exists() {
                self.copy(Path::new(library), library)?;
            }
        }
        Ok(())
    }

    /// A copy of a file, links followed, permission bits kept.
    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.dir.join(to.trim_start_matches('/'));
        make_folder(to.parent().unwrap_or(&self.dir))?;
        fs::copy(from, &to).map(drop).with_context(|| format!("copy {} to {}", from.display(), to.display()))
    }

    fn copy_tree(&self, from: &Path, to: &str) -> Result<()> {
        for file in files_below(from)? {
            let source = from.join(&file);
            ensure!(!source.is_symlink(), "{} is a link; the root copies only files", source.display());
            self.copy(&source, &Path::new(to).join(&file).to_string_lossy())?;
        }
        Ok(())
    }

    fn link(&self, link: &str, target: &str) -> Result<()> {
        let link = self.dir.join(link);
        symlink(target, &link).with_context(|| format!("link {} to {target}", link.display()))
    }
}

/// Pure: the files that `ldd` lists.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// A program in the folders where Debian has them, whatever PATH says.
pub(crate) fn find_program(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.with_context(|| format!("no program {name} on this machine; `cargo xtask lab-build --check-host` lists the missing packages"))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lists_libraries_and_the_loader_but_not_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(text), ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(libraries("\tstatically linked\n"), Vec::<&str>::new());
    }
}
