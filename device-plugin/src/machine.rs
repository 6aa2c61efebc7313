//! I/O: keeps [`Facts`] true: all of it once, then only what changed.
//!
//! Invariant: one change of a device reads that device and nothing else of the bus. What could not be read is left out and logged; what was lost
//! among events is found by the next whole look.

use std::collections::{BTreeMap, BTreeSet};

use sriov_host::Host;
use sriov_host::discover::DiscoverError;
use sriov_host::function::{self, ACCELERATOR_CLASS, NETWORK_CLASS};
use sriov_host::host_use::HostNetwork;
use sriov_host::netlink::devlink::Devlink;
use sriov_host::netlink::{Link, NetChange, NetlinkError, Route};
use sriov_host::pci::PciAddress;
use sriov_host::storage;

use crate::claims::Claims;
use crate::facts::Facts;

const CLASSES: [u8; 2] = [NETWORK_CLASS, ACCELERATOR_CLASS];

/// The machine and what is known of it.
#[derive(Debug)]
pub struct Machine {
    host: Host,
    claims: Claims,
    facts: Facts,
    /// Whether some selector asks for DDP profiles: reading them takes time.
    pub wants_ddp: bool,
}

/// What changed since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    /// Look at everything.
    pub everything: bool,
    /// These functions.
    pub functions: BTreeSet<PciAddress>,
    /// Links, addresses, routes.
    pub net: Vec<NetChange>,
    /// Which VFs pods have.
    pub claims: bool,
    /// The health that drivers report of PFs.
    pub reporters: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.functions.is_empty() && self.net.is_empty() && !self.claims && !self.reporters
    }
}

impl Machine {
    /// Looks at the whole machine.
    pub fn look(host: Host, claims: Claims) -> Result<Self, DiscoverError> {
        let mut machine = Self { host, claims, facts: Facts::default(), wants_ddp: false };
        machine.look_again()?;
        Ok(machine)
    }

    /// What is known.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Looks at what changed; whether that made a difference.
    pub fn refresh(&mut self, changes: Changes) -> Result<bool, DiscoverError> {
        if changes.everything {
            self.look_again()?;
            return Ok(true);
        }
        let mut differs = false;
        for address in &changes.functions {
            differs |= self.look_at(*address);
        }
        differs |= self.follow(changes.net)?;
        if changes.claims || !changes.functions.is_empty() {
            let held = self.claims.read();
            differs |= held != self.facts.held;
            self.facts.held = held;
        }
        if changes.reporters {
            let sick = self.sick();
            differs |= sick != self.facts.sick;
            self.facts.sick = sick;
        }
        let vhost_net = vhost_net(&self.host);
        differs |= vhost_net != self.facts.vhost_net;
        self.facts.vhost_net = vhost_net;
        Ok(differs)
    }

    fn look_again(&mut self) -> Result<(), DiscoverError> {
        let function::Scan { functions, faults } = function::scan(&self.host, &CLASSES)?;
        for (device, error) in &faults {
            tracing::warn!(%device, %error, "left out a device");
        }
        self.facts.functions = functions;
        let route = Route::open()?;
        self.facts.links = route.links()?.into_iter().map(|link| (link.netdev.ifindex, link)).collect();
        self.look_at_uses(&route)?;
        self.facts.held = self.claims.read();
        self.facts.vhost_net = vhost_net(&self.host);
        self.facts.sick = self.sick();
        self.facts.ddp_profiles = if self.wants_ddp { self.ddp_profiles() } else { BTreeMap::new() };
        Ok(())
    }

    fn look_at(&mut self, address: PciAddress) -> bool {
        let found = match function::read(&self.host, address, &CLASSES) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(device = %address, %error, "left out a device");
                None
            }
        };
        let before = match found.clone() {
            Some(function) => self.facts.functions.insert(address, function),
            None => self.facts.functions.remove(&address),
        };
        before != found
    }

    fn follow(&mut self, changes: Vec<NetChange>) -> Result<bool, NetlinkError> {
        let (mut differs, mut addressing) = (false, false);
        for change in changes {
            differs |= match change {
                NetChange::Link(link) => {
                    let before = self.facts.links.get(&link.netdev.ifindex);
                    let differs = before != Some(&*link);
                    self.facts.links.insert(link.netdev.ifindex, *link);
                    differs
                }
                NetChange::LinkGone(ifindex) => self.facts.links.remove(&ifindex).is_some(),
                NetChange::Addressing => {
                    addressing = true;
                    false
                }
            };
        }
        if differs || addressing {
            let before = std::mem::take(&mut self.facts.uses);
            self.look_at_uses(&Route::open()?)?;
            differs |= before != self.facts.uses;
        }
        Ok(differs)
    }

    /// Only links of hardware that something points at are looked at closely, so that it stays a matter of as many steps as there are links.
    fn look_at_uses(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let network = HostNetwork { addresses: route.all_addresses()?, routes: route.routes_out()?, storage: storage::peers(&self.host) };
        let links: Vec<Link> = self.facts.links.values().cloned().collect();
        let of_routes = network.routes.iter().flat_map(|route| route.ifindexes.iter().copied());
        let below = links.iter().filter_map(|link| link.stack.lower);
        let pointed_at: BTreeSet<u32> = network.addresses.iter().map(|(index, _)| *index).chain(of_routes).chain(below).collect();
        let may_be_used = links.iter().filter(|link| link.stack.master.is_some() || pointed_at.contains(&link.netdev.ifindex));
        let used = may_be_used.filter_map(|link| Some((link.netdev.ifindex, network.uses_of(link.netdev.ifindex, &links).into_iter().next()?)));
        self.facts.uses = used.collect();
        Ok(())
    }

    /// PFs, and functions that could be one.
    fn physical(&self) -> impl Iterator<Item = PciAddress> {
        self.facts.functions.iter().filter(|(_, function)| function.vf_of.is_none() && function.class == NETWORK_CLASS).map(|(address, _)| *address)
    }

    fn sick(&self) -> BTreeMap<PciAddress, String> {
        let Ok(devlink) = Devlink::open() else { return BTreeMap::new() };
        let reporter = |pf: PciAddress| match devlink.faulty_reporter(&pf.into()) {
            Ok(reporter) => Some((pf, reporter?)),
            Err(error) => {
                tracing::debug!(%pf, %error, "the health reporters of a PF are not known");
                None
            }
        };
        self.physical().filter_map(reporter).collect()
    }

    fn ddp_profiles(&self) -> BTreeMap<PciAddress, String> {
        let Ok(devlink) = Devlink::open() else { return BTreeMap::new() };
        let profile = |pf: PciAddress| match devlink.running_version(&pf.into(), "fw.app.name") {
            Ok(profile) => Some((pf, profile?)),
            Err(error) => {
                tracing::warn!(%pf, %error, "the DDP profile of a PF is not known");
                None
            }
        };
        self.physical().filter_map(profile).collect()
    }
}

fn vhost_net(host: &Host) -> bool {
    function::misc(host, "vhost-net") && function::misc(host, "tun")
}
