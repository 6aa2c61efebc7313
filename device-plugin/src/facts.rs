//! Pure: what is known of the machine, as one value: functions, links, what the host uses, which VFs pods have. Selecting reads nothing else.
//!
//! What does not live here: filling it (`machine`), choosing from it (`select`).

use std::collections::BTreeMap;

use sriov_host::device_id::SfName;
use sriov_host::function::Function;
use sriov_host::host_use::HostUse;
use sriov_host::inventory::Netdev;
use sriov_host::netlink::Link;
use sriov_host::netlink::route::uplink;
use sriov_host::pci::PciAddress;

/// What is known of the machine.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// PCI functions that pools can be about.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Subfunctions, each told as a VF of its parent; only if some pool is about them.
    pub subfunctions: BTreeMap<SfName, Function>,
    /// Links of the host's namespace, by index.
    pub links: BTreeMap<u32, Link>,
    /// Links that the host itself uses, by index.
    pub uses: BTreeMap<u32, HostUse>,
    /// The machine has `/dev/vhost-net` and `/dev/net/tun`.
    pub vhost_net: bool,
    /// VFs that pods have.
    pub held: BTreeMap<PciAddress, Held>,
    /// The DDP profile that a PF has loaded.
    pub ddp_profiles: BTreeMap<PciAddress, String>,
    /// The version of a PF's firmware, if some selector asks.
    pub firmware: BTreeMap<PciAddress, String>,
    /// The speed of a PF's link in Mbit/s, if some selector asks; none while it is down.
    pub link_speeds: BTreeMap<PciAddress, u32>,
    /// The health reporter of a PF that is in the error state.
    pub sick: BTreeMap<PciAddress, String>,
}

/// Who has a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The container, in words.
    pub by: String,
    /// The pool that gave it, as in file names, when that is known.
    pub through: Option<String>,
}

impl Facts {
    /// The link of each function: of several the one through which it is configured. Links of kernels that tell no parent (before 5.14) are found
    /// by their names in sysfs.
    pub fn link_of_each(&self) -> BTreeMap<PciAddress, &Link> {
        let mut all: BTreeMap<PciAddress, Vec<&Link>> = BTreeMap::new();
        for link in self.links.values() {
            if let Some(parent) = link.parent {
                all.entry(parent).or_default().push(link);
            }
        }
        let named: BTreeMap<&str, &Link> =
            self.links.values().filter(|link| link.parent.is_none()).map(|link| (link.netdev.name.as_str(), link)).collect();
        for (address, function) in &self.functions {
            if !all.contains_key(address) {
                let links: Vec<&Link> = function.netdevs.iter().filter_map(|name| named.get(name.as_str()).copied()).collect();
                if !links.is_empty() {
                    all.insert(*address, links);
                }
            }
        }
        all.into_iter().filter_map(|(address, links)| Some((address, uplink(links.into_iter())?))).collect()
    }

    /// The link of a subfunction, found by its name in sysfs: a link names a parent only on the PCI bus.
    pub fn link_of_subfunction(&self, function: &Function) -> Option<&Link> {
        self.links.values().find(|link| function.netdevs.contains(&link.netdev.name))
    }

    /// The names of a function's netdev: of its link with the alternative ones, or, when the link is not seen, those in sysfs.
    pub fn names<'a>(&'a self, address: PciAddress, links: &BTreeMap<PciAddress, &'a Link>) -> Vec<&'a str> {
        let of_link = |netdev: &'a Netdev| std::iter::once(&netdev.name).chain(&netdev.alt_names).map(String::as_str).collect();
        match links.get(&address) {
            Some(link) => of_link(&link.netdev),
            None => self.functions.get(&address).map(|function| function.netdevs.iter().map(String::as_str).collect()).unwrap_or_default(),
        }
    }
}
