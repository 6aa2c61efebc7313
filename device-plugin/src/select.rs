//! Pure: selectors x inventory -> the devices of each pool.
//!
//! Devices are VFs, and PFs that have no VFs and are not up on the host. What a VF's PF can have in other pools plays no role.
//!
//! Invariant: a device is in at most one pool: pools choose in file order, and within a pool its selectors in order.

use std::collections::{BTreeMap, BTreeSet};

use sriov_host::inventory::{Inventory, LinkType, Netdev, Pf, Vf};
use sriov_host::pci::{DeviceId, PciAddress, VendorId};

use crate::config::{PoolSpec, Ranged, Selector};
use crate::pool::{Device, Health, Pool};

/// Drivers that give a device to user space by a character device of their own, which `allocate` does not serve yet.
const UIO_DRIVERS: [&str; 3] = ["uio", "igb_uio", "uio_pci_generic"];

/// A device that a pool can have.
struct Candidate<'a> {
    pf: &'a Pf,
    /// `None` for the PF itself.
    vf: Option<&'a Vf>,
}

/// How a selector and a device go together.
#[derive(PartialEq, Eq)]
enum Match {
    No,
    /// All keys agree.
    Full,
    /// All keys but `drivers` agree, and the selector names this very device (by address, or by PF and VF index). The pool counts on it,
    /// so it is shown as unhealthy rather than not at all.
    NamedOnly,
}

/// The devices of each pool, one result for each spec in the same order; a pool that matches nothing is there without devices.
pub fn select(specs: &[PoolSpec], inventory: &Inventory) -> Vec<Pool> {
    let candidates: Vec<Candidate<'_>> = inventory.pfs.iter().flat_map(candidates_of).collect();
    let mut pools: Vec<Pool> = specs.iter().map(|spec| Pool::empty(spec.name.clone())).collect();
    let mut taken = BTreeSet::new();
    // Full matches of all pools come first: a device that is right for one pool is not held back by another that only waits for it.
    for wanted in [Match::Full, Match::NamedOnly] {
        for (spec, pool) in specs.iter().zip(&mut pools) {
            for selector in &spec.selectors {
                for candidate in &candidates {
                    if !taken.contains(&candidate.address()) && candidate.compare(selector) == wanted {
                        taken.insert(candidate.address());
                        pool.devices.insert(candidate.address(), device(candidate, spec, selector));
                    }
                }
            }
        }
    }
    pools
}

fn candidates_of(pf: &Pf) -> Vec<Candidate<'_>> {
    // A PF that is up carries the host's own traffic, or may do so any moment.
    let free = pf.numvfs == 0 && pf.vfs.is_empty() && !pf.netdev.as_ref().is_some_and(|netdev| netdev.admin_up);
    let whole = free.then_some(Candidate { pf, vf: None });
    whole.into_iter().chain(pf.vfs.iter().map(|vf| Candidate { pf, vf: Some(vf) })).collect()
}

fn device(candidate: &Candidate<'_>, spec: &PoolSpec, selector: &Selector) -> Device {
    let info = &spec.additional_info;
    let mut extra: BTreeMap<String, String> = info.get("*").cloned().unwrap_or_default();
    extra.extend(info.get(&candidate.address().to_string()).cloned().unwrap_or_default());
    Device {
        driver: candidate.driver().map(str::to_owned),
        numa_node: candidate.numa_node().filter(|_| !spec.exclude_topology),
        health: health(candidate.driver(), selector),
        need_vhost_net: selector.need_vhost_net,
        extra,
    }
}

fn health(driver: Option<&str>, selector: &Selector) -> Health {
    match driver {
        None => Health::Unbound,
        Some(bound) if !drives(selector, bound) => Health::OtherDriver { bound: bound.to_owned(), expected: selector.drivers.clone() },
        Some(bound) if UIO_DRIVERS.contains(&bound) => Health::UnsupportedDriver { bound: bound.to_owned() },
        Some(_) => Health::Healthy,
    }
}

fn drives(selector: &Selector, driver: &str) -> bool {
    selector.drivers.is_empty() || selector.drivers.iter().any(|wanted| wanted == driver)
}

/// Whether the selector means certain devices, not a kind of device.
fn names_devices(selector: &Selector) -> bool {
    !selector.pci_addresses.is_empty()
        || selector.pf_names.iter().any(|ranged| ranged.indexes.is_some())
        || selector.root_devices.iter().any(|ranged| ranged.indexes.is_some())
}

/// An empty key takes everything.
fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(is)
}

impl Candidate<'_> {
    fn address(&self) -> PciAddress {
        self.vf.map_or(self.pf.address, |vf| vf.address)
    }

    fn vendor(&self) -> VendorId {
        self.vf.map_or(self.pf.vendor, |vf| vf.vendor)
    }

    fn device(&self) -> DeviceId {
        self.vf.map_or(self.pf.device, |vf| vf.device)
    }

    fn driver(&self) -> Option<&str> {
        self.vf.map_or(self.pf.driver.as_deref(), |vf| vf.driver.as_deref())
    }

    fn numa_node(&self) -> Option<u16> {
        self.vf.map_or(self.pf.numa_node, |vf| vf.numa_node)
    }

    /// The link layer: of its own netdev, or of its PF's while its own is in a pod or it has none.
    fn link_type(&self) -> Option<LinkType> {
        let own: Option<&Netdev> = self.vf.and_then(|vf| vf.netdev.as_ref());
        own.or(self.pf.netdev.as_ref()).map(|netdev| netdev.link_type)
    }

    fn compare(&self, selector: &Selector) -> Match {
        let agrees = any(&selector.vendors, |vendor| *vendor == self.vendor())
            && any(&selector.devices, |device| *device == self.device())
            && any(&selector.pci_addresses, |address| *address == self.address())
            && any(&selector.pf_names, |ranged| self.is_vf_in(ranged) && self.pf_has_name(&ranged.pf))
            && any(&selector.root_devices, |ranged| self.is_vf_in(ranged) && ranged.pf == self.pf.address)
            && any(&selector.link_types, |wanted| self.link_type() == Some(*wanted));
        if !agrees {
            Match::No
        } else if self.driver().is_some_and(|driver| drives(selector, driver)) {
            Match::Full
        } else if names_devices(selector) {
            Match::NamedOnly
        } else {
            Match::No
        }
    }

    /// A whole PF is never meant by its own name or address in `pfNames` and `rootDevices`, as in the field.
    fn is_vf_in<T>(&self, ranged: &Ranged<T>) -> bool {
        self.vf.is_some_and(|vf| ranged.holds(vf.index))
    }

    fn pf_has_name(&self, name: &str) -> bool {
        self.pf.names().any(|own| own.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests;
