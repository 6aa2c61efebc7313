//! Pure: selectors x facts -> the devices of each pool.
//!
//! Devices are VFs, PFs that have no VFs, functions without SR-IOV, and subfunctions; never one that the host itself uses, unless its pool allows just that.
//!
//! Invariant: a device is in at most one pool: pools choose in file order, and within a pool its selectors in order. A device that a pod got from
//! another pool is never healthy.

use std::collections::{BTreeMap, BTreeSet};

use sriov_host::function::{ACCELERATOR_CLASS, Function, NETWORK_CLASS};
use sriov_host::host_use::HostUse;
use sriov_host::inventory::{EswitchMode, LinkType};
use sriov_host::netlink::Link;
use sriov_host::pci::PciAddress;

use crate::config::{DeviceType, PoolSpec, Ranged, Selector, Span};
use crate::facts::Facts;
use crate::pool::{Device, Health, Place, Pool};
use sriov_host::device_id::DeviceId;

/// A device that a pool can have.
struct Candidate<'a> {
    id: DeviceId,
    function: &'a Function,
    /// Of a VF: its PF, if that is on this machine.
    pf: Option<&'a Function>,
    /// The names of the PF's netdev.
    pf_names: &'a [&'a str],
    /// The link layer: of its own netdev, or of its PF's while its own is in a pod or it has none.
    link_type: Option<LinkType>,
    /// Its own netdev is used by the host.
    host_use: Option<&'a HostUse>,
    /// What is known of its PF, or of itself if it is no VF.
    of_pf: OfPf<'a>,
}

/// What is known of a PF beyond its function.
struct OfPf<'a> {
    ddp_profile: Option<&'a str>,
    firmware: Option<&'a str>,
    link_speed: Option<u32>,
    eswitch_mode: EswitchMode,
    root: Option<&'a str>,
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
    let ground = Ground::of(facts);
    let candidates = ground.candidates();
    let mut pools: Vec<Pool> = specs.iter().map(empty).collect();
    let mut taken = BTreeSet::new();
    // Full matches of all pools come first: a device that is right for one pool is not held back by another that only waits for it.
    for wanted in [Match::Full, Match::NamedOnly] {
        for (spec, pool) in specs.iter().zip(&mut pools) {
            for selector in &spec.selectors {
                for candidate in &candidates {
                    if !taken.contains(&candidate.id) && candidate.is_for(spec) && candidate.compare(selector) == wanted {
                        taken.insert(candidate.id);
                        pool.devices.insert(candidate.id, device(candidate, spec, selector, &ground));
                    }
                }
            }
        }
    }
    pools
}

/// The functions that some selector takes and that are not offered because the host uses them, with the use.
pub fn withheld(specs: &[PoolSpec], facts: &Facts) -> BTreeMap<DeviceId, HostUse> {
    let ground = Ground::of(facts);
    let used = ground.candidates().into_iter().filter_map(|candidate| Some((candidate.host_use?.clone(), candidate)));
    let wanted = |candidate: &Candidate<'_>| {
        let refused = |spec: &&PoolSpec| candidate.has_type_of(spec) && !candidate.is_allowed(spec);
        specs.iter().filter(refused).flat_map(|spec| &spec.selectors).any(|selector| candidate.compare(selector) != Match::No)
    };
    used.filter(|(_, candidate)| wanted(candidate)).map(|(reason, candidate)| (candidate.id, reason)).collect()
}

fn empty(spec: &PoolSpec) -> Pool {
    Pool { preference: spec.preference, has_device_info: spec.device_type == DeviceType::NetDevice, ..Pool::empty(spec.name.clone()) }
}

/// The facts, joined once for all candidates.
struct Ground<'a> {
    facts: &'a Facts,
    links: BTreeMap<PciAddress, &'a Link>,
    /// PFs that have VFs.
    divided: BTreeSet<PciAddress>,
    /// The names of these PFs, and of the parents of subfunctions.
    pf_names: BTreeMap<PciAddress, Vec<&'a str>>,
}

impl<'a> Ground<'a> {
    fn of(facts: &'a Facts) -> Self {
        let links = facts.link_of_each();
        let parent = |function: &Function| function.vf_of.map(|(pf, _)| pf);
        let divided: BTreeSet<PciAddress> = facts.functions.values().filter_map(parent).collect();
        let parents = divided.iter().copied().chain(facts.subfunctions.values().filter_map(parent));
        let pf_names = parents.map(|pf| (pf, facts.names(pf, &links))).collect();
        Self { facts, links, divided, pf_names }
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let functions = self.facts.functions.iter();
        // A PF that has VFs is their ground.
        let undivided = functions.filter(|(address, function)| function.numvfs == 0 && !self.divided.contains(address));
        let of_pci = undivided.map(|(address, function)| {
            let link = self.links.get(address).copied();
            self.candidate(DeviceId::Pci(*address), function.vf_of.map_or(*address, |(pf, _)| pf), function, link)
        });
        let of_aux = self.facts.subfunctions.iter().filter_map(|(name, function)| {
            let (pf, _) = function.vf_of?;
            Some(self.candidate(DeviceId::Sf(*name), pf, function, self.facts.link_of_subfunction(function)))
        });
        of_pci.chain(of_aux).collect()
    }

    /// `pf` is the function itself if it is no VF.
    fn candidate(&self, id: DeviceId, pf: PciAddress, function: &'a Function, own: Option<&'a Link>) -> Candidate<'_> {
        let link_of_pf = self.links.get(&pf).copied();
        let pf_function = function.vf_of.and_then(|_| self.facts.functions.get(&pf));
        let is_switch = link_of_pf.is_some_and(|link| link.stack.switch_id.is_some());
        Candidate {
            id,
            function,
            pf: pf_function,
            pf_names: function.vf_of.and_then(|_| self.pf_names.get(&pf)).map(Vec::as_slice).unwrap_or_default(),
            link_type: own.or(link_of_pf).map(|link| link.netdev.link_type),
            host_use: own.and_then(|link| self.facts.uses.get(&link.netdev.ifindex)),
            of_pf: OfPf {
                ddp_profile: self.facts.ddp_profiles.get(&pf).map(String::as_str),
                firmware: self.facts.firmware.get(&pf).map(String::as_str),
                link_speed: self.facts.link_speeds.get(&pf).copied(),
                eswitch_mode: if is_switch { EswitchMode::Switchdev } else { EswitchMode::Legacy },
                root: pf_function.unwrap_or(function).root.as_deref(),
            },
        }
    }
}

fn device(candidate: &Candidate<'_>, spec: &PoolSpec, selector: &Selector, ground: &Ground<'_>) -> Device {
    let info = &spec.additional_info;
    let function = candidate.function;
    let mut extra: BTreeMap<String, String> = info.get("*").cloned().unwrap_or_default();
    let named = candidate.id.pci().or(function.vf_of.map(|(pf, _)| pf)).map(|address| address.to_string());
    extra.extend(named.and_then(|named| info.get(&named)).cloned().unwrap_or_default());
    Device {
        driver: function.driver.clone(),
        numa_node: function.numa_node.filter(|_| !spec.exclude_topology),
        health: health(candidate, spec, selector, ground),
        needs: selector.needs,
        place: Place { numa_node: function.numa_node, root: candidate.of_pf.root.map(str::to_owned), pf: function.vf_of.map(|(pf, _)| pf) },
        extra,
    }
}

fn health(candidate: &Candidate<'_>, spec: &PoolSpec, selector: &Selector, ground: &Ground<'_>) -> Health {
    let facts = ground.facts;
    let held = candidate.id.pci().and_then(|address| facts.held.get(&address));
    let other_pool = held.and_then(|held| held.through.as_ref()).filter(|through| **through != spec.name.stem());
    let own_driver = match candidate.function.driver.as_deref() {
        None => return Health::Unbound,
        Some(bound) if !candidate.is_driven_for(selector) => {
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
    } else {
        candidate.function.vf_of.map(|(pf, _)| pf).or(candidate.id.pci()).map_or(Health::Healthy, |pf| health_of_pf(pf, spec, ground))
    }
}

fn health_of_pf(pf: PciAddress, spec: &PoolSpec, ground: &Ground<'_>) -> Health {
    if let Some(reporter) = ground.facts.sick.get(&pf) {
        Health::SickPf { pf, reporter: reporter.clone() }
    } else if spec.needs_carrier && ground.links.get(&pf).is_some_and(|link| !link.netdev.carrier) {
        Health::NoCarrier { pf }
    } else {
        Health::Healthy
    }
}

/// `vfio-pci`, and its variants for one family of devices (`mlx5_vfio_pci`).
pub fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("_vfio_pci")
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

/// Whether a version is the one asked for, or one of those that begin so.
fn is_version(wanted: &str, own: &str) -> bool {
    wanted.strip_suffix('*').map_or(own == wanted, |beginning| own.starts_with(beginning))
}

impl Candidate<'_> {
    fn is_for(&self, spec: &PoolSpec) -> bool {
        self.has_type_of(spec) && (self.host_use.is_none() || self.is_allowed(spec))
    }

    /// Its pool names it, or of a subfunction its parent, as one that it may have though the host uses it.
    fn is_allowed(&self, spec: &PoolSpec) -> bool {
        let named = self.id.pci().or(self.function.vf_of.map(|(pf, _)| pf));
        named.is_some_and(|address| spec.allow_in_use.contains(&address))
    }

    fn has_type_of(&self, spec: &PoolSpec) -> bool {
        let is_sf = matches!(self.id, DeviceId::Sf(_));
        match spec.device_type {
            DeviceType::NetDevice => !is_sf && self.function.class == NETWORK_CLASS,
            DeviceType::Accelerator => !is_sf && self.function.class == ACCELERATOR_CLASS,
            DeviceType::AuxNetDevice => is_sf,
        }
    }

    /// A subfunction has a driver of its own (`mlx5_core.sf`); that of its parent (`mlx5_core`) means it too.
    fn is_driven_for(&self, selector: &Selector) -> bool {
        let own = self.function.driver.as_deref();
        let parents = self.pf.filter(|_| matches!(self.id, DeviceId::Sf(_))).and_then(|pf| pf.driver.as_deref());
        own.is_some() && any(&selector.drivers, |wanted| own == Some(wanted) || parents == Some(wanted))
    }

    fn compare(&self, selector: &Selector) -> Match {
        let function = self.function;
        let pf = &self.of_pf;
        let within = |spans: &[Span], number: Option<u32>| any(spans, |span| number.is_some_and(|number| span.contains(&number)));
        let agrees = any(&selector.vendors, |vendor| *vendor == function.vendor)
            && any(&selector.devices, |device| *device == function.device)
            && any(&selector.subsystem_vendors, |vendor| function.subsystem.is_some_and(|(own, _)| own == *vendor))
            && any(&selector.subsystem_devices, |device| function.subsystem.is_some_and(|(_, own)| own == *device))
            && any(&selector.pci_addresses, |address| self.id.pci() == Some(*address))
            && within(&selector.acpi_indexes, function.acpi_index.as_ref().and_then(|index| index.parse().ok()))
            && within(&selector.numa_nodes, function.numa_node.map(u32::from))
            && within(&selector.link_speeds, pf.link_speed)
            && any(&selector.pcie_roots, |root| pf.root == Some(root))
            && any(&selector.eswitch_modes, |mode| *mode == pf.eswitch_mode)
            && any(&selector.firmware_versions, |version| pf.firmware.is_some_and(|own| is_version(version, own)))
            && any(&selector.pf_names, |ranged| self.is_vf_in(ranged) && self.pf_names.iter().any(|name| name.eq_ignore_ascii_case(&ranged.pf)))
            && any(&selector.root_devices, |ranged| self.is_vf_in(ranged) && function.vf_of.is_some_and(|(pf, _)| pf == ranged.pf))
            && any(&selector.link_types, |wanted| self.link_type == Some(*wanted))
            && any(&selector.ddp_profiles, |profile| pf.ddp_profile == Some(profile))
            && any(&selector.p_keys, |key| function.pkey.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(key)));
        if !agrees {
            return Match::No;
        }
        let ready = self.is_driven_for(selector)
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
        let is_sf = matches!(self.id, DeviceId::Sf(_));
        !self.function.rdma.is_empty() || is_away && self.pf.is_some_and(|pf| !pf.rdma.is_empty() && (is_sf || pf.driver == self.function.driver))
    }

    fn has_vdpa(&self, driver: &str) -> bool {
        self.function.vdpa.as_ref().is_some_and(|vdpa| vdpa.driver.as_deref() == Some(driver))
    }
}

#[cfg(test)]
mod tests;
