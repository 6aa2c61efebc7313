//! Pure: what a lab consists of, as data.
//!
//! What lives here: nodes, their NICs, memory and kernel arguments, and the addresses and names that follow from them. What does not: how a
//! node becomes a QEMU command line (`vm`) and how the networks are made (`net`).
//!
//! Invariant: everything that two parts must agree on (an address, a MAC, an interface name) is computed here and nowhere else.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use sriov_host::mac::MacAddr;

/// How much of a cluster a lab brings up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tier {
    /// Guests alone: kernel, udev, SR-IOV NICs and the agent.
    Guests,
    /// Guests that run containerd and the kubelet, and a control plane on the host.
    Cluster,
}

impl Tier {
    /// The number that the guest's `lab.tier=` takes.
    pub fn number(self) -> u8 {
        match self {
            Self::Guests => 2,
            Self::Cluster => 3,
        }
    }
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// 1 to 9; name, addresses and MACs follow from it.
    pub number: u8,
    /// Emulated igb PFs, 0 to 2, each with 7 VFs.
    pub pfs: u8,
    /// Whether the kernel is told to use the machine's IOMMU.
    pub iommu: bool,
    /// Whether what it writes outlives a restart. Nodes of a cluster always keep theirs.
    pub disk: bool,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors. One is as fast as two where two guests share two real ones, and the emulation of several was seen to lose interrupts: both
    /// processors idle, the timer's vector in service for ever and everything below it pending.
    pub processors: u8,
    /// Appended to the kernel command line.
    pub kernel_arguments: Vec<String>,
}

impl Node {
    /// A guest with two PFs and an IOMMU.
    pub fn new(number: u8) -> Self {
        Self { number, pfs: 2, iommu: true, disk: false, memory_mib: 1280, processors: 1, kernel_arguments: Vec::new() }
    }

    /// The same without an IOMMU: `vfio-pci` cannot work there.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.iommu = false;
        self
    }

    /// The same with a disk, so that what it writes outlives a restart.
    #[must_use]
    pub fn with_disk(mut self) -> Self {
        self.disk = true;
        self
    }

    /// Host name and Kubernetes node name.
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Address on the management network.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, 0, 10 + self.number)
    }

    /// Network of the node's pods, as a prefix of 24 bits.
    pub fn pod_network(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 0)
    }

    /// MAC of the management interface.
    pub fn management_mac(&self) -> MacAddr {
        MacAddr([0x52, 0x54, 0x00, 0x10, 0x00, self.number])
    }

    /// Host side of the management interface.
    pub fn management_tap(&self) -> String {
        format!("m{}", self.number)
    }

    /// The node's PFs in bus order.
    pub fn nics(&self) -> impl Iterator<Item = Nic> + '_ {
        (0..self.pfs).map(|index| Nic { node: self.number, index })
    }
}

/// One emulated PF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nic {
    /// Number of its node.
    pub node: u8,
    /// 0 or 1.
    pub index: u8,
}

impl Nic {
    /// Permanent MAC of the PF.
    pub fn mac(self) -> MacAddr {
        MacAddr([0x52, 0x54, 0x00, 0xaa + self.index, 0x00, self.node])
    }

    /// Host side of the PF, a port of the wire.
    pub fn tap(self) -> String {
        format!("{}{}", if self.index == 0 { 'w' } else { 'x' }, self.node)
    }

    /// QEMU's name of the device, for `device_del` and `device_add`.
    pub fn device_id(self) -> String {
        format!("pf{}", self.index)
    }

    /// QEMU's name of the root port that the PF sits behind.
    pub fn root_port(self) -> String {
        format!("rp{}", self.index)
    }

    /// QEMU's name of the PF's network back end.
    pub fn backend(self) -> String {
        format!("wire{}", self.index)
    }

    /// What udev calls the PF in the guest.
    pub fn netdev(self) -> String {
        format!("enp{}s0", self.index + 1)
    }

    /// PCI address of the PF in the guest.
    pub fn pci_address(self) -> String {
        format!("0000:{:02x}:00.0", self.index + 1)
    }
}

/// A whole lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// What is brought up.
    pub tier: Tier,
    /// The guests; their numbers differ.
    pub nodes: Vec<Node>,
}

/// The host's address on the management network; guests route through it and find the API server there.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);

/// First address of the service network: what pods know as the API server.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Bridge of the management network.
pub const MANAGEMENT_BRIDGE: &str = "mgmt0";

/// Bridge that is the wire between all PFs; it carries tagged frames untouched.
pub const WIRE_BRIDGE: &str = "wire0";

impl Topology {
    /// Guests without Kubernetes.
    pub fn guests(nodes: impl IntoIterator<Item = Node>) -> Self {
        Self { tier: Tier::Guests, nodes: nodes.into_iter().collect() }
    }

    /// One guest with two PFs and an IOMMU.
    pub fn one_guest() -> Self {
        Self::guests([Node::new(1)])
    }

    /// A control plane and the given nodes.
    pub fn cluster(nodes: impl IntoIterator<Item = Node>) -> Self {
        Self { tier: Tier::Cluster, nodes: nodes.into_iter().collect() }
    }

    /// A control plane and two nodes with two PFs each.
    pub fn two_nodes() -> Self {
        Self::cluster([Node::new(1), Node::new(2)])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_addresses_of_two_nodes_never_meet() {
        let nodes = [Node::new(1), Node::new(2)];
        let mut seen = BTreeSet::new();
        for node in &nodes {
            assert!(seen.insert(node.name()) && seen.insert(node.address().to_string()) && seen.insert(node.management_tap()));
            assert!(seen.insert(node.management_mac().to_string()) && seen.insert(node.pod_network().to_string()));
            for nic in node.nics() {
                assert!(seen.insert(nic.mac().to_string()) && seen.insert(nic.tap()));
            }
        }
    }

    #[test]
    fn a_pf_is_named_after_its_bus() {
        let names: Vec<_> = Node::new(1).nics().map(|nic| (nic.netdev(), nic.pci_address())).collect();
        assert_eq!(names, [("enp1s0".to_owned(), "0000:01:00.0".to_owned()), ("enp2s0".to_owned(), "0000:02:00.0".to_owned())]);
    }
}
