//! Pure: selectors x facts -> the devices of each pool.
//!
//! Devices are VFs, PFs that have no VFs, and functions without SR-IOV; never one that the host itself uses, unless its pool allows just that.
//!
//! Invariant: a device is in at most one pool: pools choose in file order, and within a pool its selectors in order. A device that a pod got from
//! another pool is never healthy.

use std::collections::{BTreeMap, BTreeSet};

use sriov_host::function::{ACCELERATOR_CLASS, Function, NETWORK_CLASS};
use sriov_host::host_use::HostUse;
use sriov_host::inventory::LinkType;
use sriov_host::netlink::Link;
use sriov_host::pci::PciAddress;

use crate::config::{DeviceType, PoolSpec, Ranged, Selector};
use crate::facts::Facts;
use crate::pool::{Device, Health, Place, Pool};

/// A device that a pool can have.
struct Candidate<'a> {
    address: PciAddress,
    function: &'a Function,
    /// Of a VF: its PF, if that is on this machine.
    pf: Option<&'a Function>,
    /// The names of the PF's netdev.
    pf_names: &'a [&'a str],
    /// The link layer: of its own netdev, or of its PF's while its own is in a pod or it has none.
    link_type: Option<LinkType>,
    /// Its own netdev is used by the host.
    host_use: Option<&'a HostUse>,
    ddp_profile: Option<&'a str>,
}

/// How a selector and a device go together.
#[derive(PartialEq, Eq)]
enum Match {
    No,
    /// All keys agree.
    Full,
    /// All keys agree but those that tell a state (driver, RDMA, vDPA), and the selector names this very device (by address, or by PF and VF
    /// index). The pool counts on it, so it is shown as unhealthy rather than not at all.
    NamedOnly,
}

/// The devices of each pool, one result for each spec in the same order; a pool that matches nothing is there without devices.
pub fn select(specs: &[PoolSpec], facts: &Facts) -> Vec<Pool> {
    let links = facts.link_of_each();
    let pf_names: BTreeMap<PciAddress, Vec<&str>> = pfs(facts).into_iter().map(|pf| (pf, facts.names(pf, &links))).collect();
    let candidates: Vec<Candidate<'_>> = facts.functions.keys().filter_map(|address| candidate(*address, facts, &links, &pf_names)).collect();
    let mut pools: Vec<Pool> = specs.iter().map(empty).collect();
    let mut taken = BTreeSet::new();
    // Full matches of all pools come first: a device that is right for one pool is not held back by another that only waits for it.
    for wanted in [Match::Full, Match::NamedOnly] {
        for (spec, pool) in specs.iter().zip(&mut pools) {
            for selector in &spec.selectors {
                for candidate in &candidates {
                    if !taken.contains(&candidate.address) && candidate.is_for(spec) && candidate.compare(selector) == wanted {
                        taken.insert(candidate.address);
                        pool.devices.insert(candidate.address, device(candidate, spec, selector, facts, &links));
                    }
                }
            }
        }
    }
    pools
}

/// The functions that some selector takes and that are not offered because the host uses them, with the use.
pub fn withheld(specs: &[PoolSpec], facts: &Facts) -> BTreeMap<PciAddress, HostUse> {
    let links = facts.link_of_each();
    let pf_names: BTreeMap<PciAddress, Vec<&str>> = pfs(facts).into_iter().map(|pf| (pf, facts.names(pf, &links))).collect();
    let candidates = facts.functions.keys().filter_map(|address| candidate(*address, facts, &links, &pf_names));
    let used = candidates.filter_map(|candidate| Some((candidate.host_use?.clone(), candidate)));
    let wanted = |candidate: &Candidate<'_>| {
        let refused = |spec: &&PoolSpec| candidate.has_class_of(spec) && !spec.allow_in_use.contains(&candidate.address);
        specs.iter().filter(refused).flat_map(|spec| &spec.selectors).any(|selector| candidate.compare(selector) != Match::No)
    };
    used.filter(|(_, candidate)| wanted(candidate)).map(|(reason, candidate)| (candidate.address, reason)).collect()
}

fn empty(spec: &PoolSpec) -> Pool {
    Pool { preference: spec.preference, has_device_info: spec.device_type == DeviceType::NetDevice, ..Pool::empty(spec.name.clone()) }
}

fn pfs(facts: &Facts) -> BTreeSet<PciAddress> {
    facts.functions.values().filter_map(|function| function.vf_of.map(|(pf, _)| pf)).collect()
}

fn candidate<'a>(
    address: PciAddress,
    facts: &'a Facts,
    links: &BTreeMap<PciAddress, &'a Link>,
    pf_names: &'a BTreeMap<PciAddress, Vec<&'a str>>,
) -> Option<Candidate<'a>> {
    let function = facts.functions.get(&address)?;
    // A PF that has VFs is their ground.
    if function.numvfs > 0 || pf_names.contains_key(&address) {
        return None;
    }
    let pf = function.vf_of.map(|(pf, _)| pf);
    let own = links.get(&address);
    Some(Candidate {
        address,
        function,
        pf: pf.and_then(|pf| facts.functions.get(&pf)),
        pf_names: pf.and_then(|pf| pf_names.get(&pf)).map(Vec::as_slice).unwrap_or_default(),
        link_type: own.or_else(|| links.get(&pf?)).map(|link| link.netdev.link_type),
        host_use: own.and_then(|link| facts.uses.get(&link.netdev.ifindex)),
        ddp_profile: facts.ddp_profiles.get(&pf.unwrap_or(address)).map(String::as_str),
    })
}

fn device(candidate: &Candidate<'_>, spec: &PoolSpec, selector: &Selector, facts: &Facts, links: &BTreeMap<PciAddress, &Link>) -> Device {
    let info = &spec.additional_info;
    let mut extra: BTreeMap<String, String> = info.get("*").cloned().unwrap_or_default();
    extra.extend(info.get(&candidate.address.to_string()).cloned().unwrap_or_default());
    let function = candidate.function;
    Device {
        driver: function.driver.clone(),
        numa_node: function.numa_node.filter(|_| !spec.exclude_topology),
        health: health(candidate, spec, selector, facts, links),
        needs: selector.needs,
        place: Place { numa_node: function.numa_node, root: candidate.pf.unwrap_or(function).root.clone(), pf: function.vf_of.map(|(pf, _)| pf) },
        extra,
    }
}

fn health(candidate: &Candidate<'_>, spec: &PoolSpec, selector: &Selector, facts: &Facts, links: &BTreeMap<PciAddress, &Link>) -> Health {
    let other_pool = facts.held.get(&candidate.address).and_then(|held| held.through.as_ref()).filter(|through| **through != spec.name.stem());
    let pf = candidate.function.vf_of.map_or(candidate.address, |(pf, _)| pf);
    let own_driver = match candidate.function.driver.as_deref() {
        None => return Health::Unbound,
        Some(bound) if !drives(selector, bound) => {
            return Health::OtherDriver { bound: bound.to_owned(), expected: selector.drivers.clone() };
        }
        Some(bound) => bound,
    };
    if is_vfio(own_driver) && !candidate.function.has_group {
        Health::MissGroup
    } else if selector.needs.rdma && !candidate.has_rdma() {
        Health::MissRdma
    } else if let Some(wanted) = selector.needs.vdpa.filter(|wanted| !candidate.has_vdpa(wanted.driver())) {
        Health::MissVdpa(wanted)
    } else if selector.needs.vhost_net && !facts.vhost_net {
        Health::MissVhostNet
    } else if let Some(pool) = other_pool {
        Health::HeldThrough { pool: pool.clone() }
    } else if let Some(reporter) = facts.sick.get(&pf) {
        Health::SickPf { pf, reporter: reporter.clone() }
    } else if spec.needs_carrier && links.get(&pf).is_some_and(|link| !link.netdev.carrier) {
        Health::NoCarrier { pf }
    } else {
        Health::Healthy
    }
}

/// `vfio-pci`, and its variants for one family of devices (`mlx5_vfio_pci`).
pub fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("_vfio_pci")
}

fn drives(selector: &Selector, driver: &str) -> bool {
    any(&selector.drivers, |wanted| wanted == driver)
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
    fn is_for(&self, spec: &PoolSpec) -> bool {
        self.has_class_of(spec) && (self.host_use.is_none() || spec.allow_in_use.contains(&self.address))
    }

    fn has_class_of(&self, spec: &PoolSpec) -> bool {
        let class = match spec.device_type {
            DeviceType::NetDevice => NETWORK_CLASS,
            DeviceType::Accelerator => ACCELERATOR_CLASS,
        };
        self.function.class == class
    }

    fn compare(&self, selector: &Selector) -> Match {
        let function = self.function;
        let agrees = any(&selector.vendors, |vendor| *vendor == function.vendor)
            && any(&selector.devices, |device| *device == function.device)
            && any(&selector.pci_addresses, |address| *address == self.address)
            && any(&selector.acpi_indexes, |index| function.acpi_index.as_ref() == Some(index))
            && any(&selector.pf_names, |ranged| self.is_vf_in(ranged) && self.pf_names.iter().any(|name| name.eq_ignore_ascii_case(&ranged.pf)))
            && any(&selector.root_devices, |ranged| self.is_vf_in(ranged) && function.vf_of.is_some_and(|(pf, _)| pf == ranged.pf))
            && any(&selector.link_types, |wanted| self.link_type == Some(*wanted))
            && any(&selector.ddp_profiles, |profile| self.ddp_profile == Some(profile))
            && any(&selector.p_keys, |key| function.pkey.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(key)));
        if !agrees {
            return Match::No;
        }
        let ready = function.driver.as_deref().is_some_and(|driver| drives(selector, driver))
            && (!selector.needs.rdma || self.has_rdma())
            && selector.needs.vdpa.is_none_or(|wanted| self.has_vdpa(wanted.driver()));
        if ready {
            Match::Full
        } else if names_devices(selector) {
            Match::NamedOnly
        } else {
            Match::No
        }
    }

    /// A whole PF is never meant by its own name or address in `pfNames` and `rootDevices`, as in the field.
    fn is_vf_in<T>(&self, ranged: &Ranged<T>) -> bool {
        self.function.vf_of.is_some_and(|(_, index)| ranged.holds(index))
    }

    /// Where RDMA devices belong to one namespace only, that of a VF in a pod is not seen. Its netdev is away too then, and its PF, which stays,
    /// shows what kind of device it is.
    fn has_rdma(&self) -> bool {
        let is_away = self.function.netdevs.is_empty() && self.function.driver.as_deref().is_some_and(|driver| !is_vfio(driver));
        !self.function.rdma.is_empty() || is_away && self.pf.is_some_and(|pf| !pf.rdma.is_empty() && pf.driver == self.function.driver)
    }

    fn has_vdpa(&self, driver: &str) -> bool {
        self.function.vdpa.as_ref().is_some_and(|vdpa| vdpa.driver.as_deref() == Some(driver))
    }
}

#[cfg(test)]
mod tests;
