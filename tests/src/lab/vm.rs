//! Pure: a node of the topology as a QEMU command line.
//!
//! What lives here: every argument QEMU gets. What does not: starting it, its networks, its disks.
//!
//! Invariant: the order of devices decides PCI addresses in the guest (PF k is bus k+1), so it only changes together with `topology::Nic`.

use std::path::{Path, PathBuf};

use super::topology::{Nic, Node, Tier};

/// Everything that QEMU needs to know of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// The guest as the topology has it.
    pub node: Node,
    /// What runs in it.
    pub tier: Tier,
    /// QEMU's binary.
    pub qemu: PathBuf,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk, this node's credentials appended.
    pub initrd: PathBuf,
    /// Root file system, read-only and shared by all guests.
    pub root_disk: PathBuf,
    /// Disk that keeps changes over a restart of the guest; without it they are kept in memory.
    pub state_disk: Option<PathBuf>,
    /// Container images and test files, read-only.
    pub images_disk: Option<PathBuf>,
    /// File that takes the serial console.
    pub console: PathBuf,
    /// Socket of QEMU's monitor.
    pub monitor: PathBuf,
}

impl VmSpec {
    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec![path(&self.qemu)];
        for words in [self.machine(), self.kernel_and_console(), self.disks(), self.management(), self.nics()] {
            argv.extend(words);
        }
        argv
    }

    fn machine(&self) -> Vec<String> {
        let node = &self.node;
        let mut words = strings(&["-name", &node.name(), "-accel", "tcg,thread=single", "-cpu", "qemu64"]);
        words.extend(strings(&["-M", "q35,kernel-irqchip=split"]));
        words.extend(strings(&["-m", &node.memory_mib.to_string(), "-smp", &node.processors.to_string()]));
        words.extend(strings(&["-display", "none", "-vga", "none", "-device", "virtio-rng-pci"]));
        // Every machine has one, and the kernel is told whether to use it: that is the usual case in the field, and without the device this emulation
        // loses timer interrupts of the second processor now and then, so that a boot hangs.
        words.extend(strings(&["-device", "intel-iommu,intremap=on,caching-mode=on"]));
        words
    }

    fn kernel_and_console(&self) -> Vec<String> {
        strings(&[
            "-kernel",
            &path(&self.kernel),
            "-initrd",
            &path(&self.initrd),
            "-append",
            &self.command_line(),
            "-serial",
            &format!("file:{}", path(&self.console)),
            "-qmp",
            &format!("unix:{},server=on,wait=off", path(&self.monitor)),
        ])
    }

    /// The guest's kernel command line.
    pub fn command_line(&self) -> String {
        let node = &self.node;
        let mut words = strings(&["console=ttyS0", "quiet", "mitigations=off", "nowatchdog"]);
        // Emulation delivers timer interrupts late when the machine is busy. A kernel that checks its timer at boot may give up then, and a periodic tick
        // makes good for a one-shot timer that fired late. Kept because the runs that are known good had it; not proven needed one by one.
        words.extend(strings(&["no_timer_check", "nohz=off", "highres=off"]));
        words.extend(strings(if node.iommu { &["intel_iommu=on", "iommu=pt"] } else { &["intel_iommu=off"] }));
        words.extend([format!("lab.n={}", node.number), "lab.net=10.10.0".to_owned(), format!("lab.tier={}", self.tier.number())]);
        words.extend(node.kernel_arguments.iter().cloned());
        words.join(" ")
    }

    fn disks(&self) -> Vec<String> {
        let mut words = disk("root", &self.root_disk, "readonly=on");
        if let Some(state) = &self.state_disk {
            // The disk lives as long as the lab, so nothing is gained by waiting for the host to write it.
            words.extend(disk("state", state, "cache=unsafe"));
        }
        if let Some(images) = &self.images_disk {
            words.extend(disk("images", images, "readonly=on"));
        }
        words
    }

    fn management(&self) -> Vec<String> {
        let netdev = format!("tap,id=mgmt,ifname={},script=no,downscript=no", self.node.management_tap());
        let device = format!("virtio-net-pci,netdev=mgmt,mac={}", self.node.management_mac());
        strings(&["-netdev", &netdev, "-device", &device])
    }

    fn nics(&self) -> Vec<String> {
        self.node.nics().flat_map(nic).collect()
    }
}

fn disk(name: &str, file: &Path, option: &str) -> Vec<String> {
    let drive = format!("file={},if=none,id={name},format=raw,{option}", path(file));
    strings(&["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={name},serial=lab-{name}")])
}

fn nic(nic: Nic) -> Vec<String> {
    // `slot` and `chassis` together must be unique among root ports.
    let port = format!("pcie-root-port,id={},bus=pcie.0,slot=0,chassis={}", nic.root_port(), nic.index);
    let netdev = format!("tap,id={},ifname={},script=no,downscript=no", nic.backend(), nic.tap());
    let device = format!("igb,id={},netdev={},mac={},bus={}", nic.device_id(), nic.backend(), nic.mac(), nic.root_port());
    strings(&["-device", &port, "-netdev", &netdev, "-device", &device])
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(node: Node, tier: Tier) -> VmSpec {
        let file = |name: &str| PathBuf::from(format!("/lab/{name}"));
        VmSpec {
            node,
            tier,
            qemu: "qemu-system-x86_64".into(),
            kernel: file("vmlinuz"),
            initrd: file("node1.initrd"),
            root_disk: file("root.squashfs"),
            state_disk: (tier == Tier::Cluster).then(|| file("node1.state")),
            images_disk: (tier == Tier::Cluster).then(|| file("images.squashfs")),
            console: file("node1.console"),
            monitor: file("node1.qmp"),
        }
    }

    /// One option and its value a line. To renew the files after an intended change: `UPDATE_GOLDEN=1 cargo test -p sriov-tests vm::`.
    fn check(case: &str, spec: &VmSpec) {
        let text = spec.argv().join("\n").replace("\n-", "\n\n-") + "\n";
        let file = format!("{}/testdata/lab/{case}.argv", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{file}");
    }

    #[test]
    fn a_cluster_node_has_all_disks_two_pfs_and_an_iommu() {
        check("cluster_node", &spec(Node::new(1), Tier::Cluster));
    }

    #[test]
    fn a_guest_without_an_iommu_has_the_device_but_a_kernel_that_is_told_to_leave_it_alone() {
        let node = Node { pfs: 1, kernel_arguments: vec!["debug".to_owned()], ..Node::new(2).without_iommu() };
        check("guest_without_iommu", &spec(node, Tier::Guests));
    }
}
