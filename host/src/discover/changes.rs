//! Pure: which functions and links the kernel's events name, collected until the next look.
//!
//! What does not live here: receiving events (`uevent`, `netlink::monitor`), what is read again because of them (`kept`).
//!
//! Invariant: an event is a reason to look and nothing more; what it names too vaguely, or what was lost, means everything.

use std::collections::BTreeSet;

use crate::pci::PciAddress;
use crate::uevent::Uevent;

/// More links than this are read faster all at once.
const LINKS_WORTH_NAMING: usize = 256;

/// The core of RDMA devices, as a module.
const IB_CORE: &str = "/module/ib_core";

/// What changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    everything: bool,
    functions: BTreeSet<PciAddress>,
    links: BTreeSet<u32>,
    rdma_mode: bool,
}

impl Changes {
    /// Everything may have changed.
    #[must_use]
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Whether everything may have changed.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Events were lost, or something changed of which nobody can say what it concerns.
    pub fn add_everything(&mut self) {
        *self = Self::everything();
    }

    /// A device event: it concerns the innermost PCI function on its path (`/devices/pci0000:00/0000:00:02.0/0000:01:00.0/net/eth0`); without one
    /// (a driver, a module) everything. Answers whether it is about anything that a look reads; if not, nothing is added.
    pub fn add_device(&mut self, event: &Uevent) -> bool {
        if !matters(event) {
            return false;
        }
        if event.devpath == IB_CORE {
            // The kernel loads it when it is first asked about RDMA devices, which a look does; the devices have events of their own.
            self.rdma_mode = true;
            return true;
        }
        match event.devpath.rsplit('/').find_map(|part| part.parse().ok()) {
            Some(function) => self.add_function(function),
            None => self.add_everything(),
        }
        true
    }

    /// A PCI function changed, came or went.
    pub fn add_function(&mut self, function: PciAddress) {
        if !self.everything {
            self.functions.insert(function);
        }
    }

    /// The link with this index changed, came or went.
    pub fn add_link(&mut self, ifindex: u32) {
        if !self.everything {
            self.links.insert(ifindex);
        }
        if self.links.len() > LINKS_WORTH_NAMING {
            self.add_everything();
        }
    }

    /// All of these and those.
    pub fn append(&mut self, more: &Self) {
        if more.everything {
            self.add_everything();
        }
        more.functions.iter().for_each(|function| self.add_function(*function));
        more.links.iter().for_each(|link| self.add_link(*link));
        self.rdma_mode |= more.rdma_mode;
    }

    /// Whether the namespace mode of RDMA devices may have become known.
    pub(super) fn rdma_mode(&self) -> bool {
        self.rdma_mode
    }

    /// The functions that are named.
    pub(super) fn functions(&self) -> impl Iterator<Item = PciAddress> {
        self.functions.iter().copied()
    }

    /// The links that are named, by index.
    pub(super) fn links(&self) -> impl Iterator<Item = u32> {
        self.links.iter().copied()
    }
}

/// Pods' veth pairs and bridges come and go all the time and are no business of ours.
fn matters(event: &Uevent) -> bool {
    matches!(event.subsystem.as_str(), "pci" | "net" | "infiniband" | "vdpa" | "drivers" | "module")
        && !event.devpath.starts_with("/devices/virtual/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(subsystem: &str, devpath: &str) -> Uevent {
        Uevent { action: "change".to_owned(), devpath: devpath.to_owned(), subsystem: subsystem.to_owned(), fields: BTreeMap::new() }
    }

    fn event(devpath: &str) -> Uevent {
        of("pci", devpath)
    }

    #[test]
    fn what_no_look_reads_adds_nothing() {
        let mut changes = Changes::default();
        for (subsystem, path) in [("net", "/devices/virtual/net/veth1"), ("block", "/devices/pci0000:00/0000:02:00.0/x")] {
            assert!(!changes.add_device(&of(subsystem, path)), "{path}");
        }
        assert_eq!(changes, Changes::default());
        assert!(changes.add_device(&of("module", IB_CORE)) && !changes.is_everything());
        assert!(changes.add_device(&of("module", "/module/vfio_pci")) && changes.is_everything());
    }

    #[test]
    fn an_event_names_the_innermost_function_of_its_path() {
        for path in ["", "/net/eth0", "/infiniband/mlx5_0", "/vdpa:0000:01:00.1", "/mlx5_core.sf.2/net/sf2"] {
            let mut changes = Changes::default();
            changes.add_device(&event(&format!("/devices/pci0000:00/0000:00:02.0/0000:01:00.1{path}")));
            assert_eq!(changes.functions().map(|function| function.to_string()).collect::<Vec<_>>(), ["0000:01:00.1"], "{path}");
        }
    }

    #[test]
    fn what_names_no_function_means_everything() {
        for path in ["/bus/pci/drivers/vfio-pci", "/module/igbvf", "/devices/pci0000:00", ""] {
            let mut changes = Changes::default();
            changes.add_device(&event(path));
            assert!(changes.is_everything(), "{path}");
        }
    }

    #[test]
    fn too_many_links_mean_everything_and_everything_stays() {
        let mut changes = Changes::default();
        (1..=256).for_each(|link| changes.add_link(link));
        assert!(!changes.is_everything() && changes.links().count() == 256);
        let mut all = Changes::default();
        all.append(&changes);
        assert_eq!(all, changes);
        all.add_link(257);
        all.add_link(1);
        assert_eq!(all, Changes::everything());
        changes.append(&all);
        assert_eq!(changes, Changes::everything());
    }
}
