//! I/O: keeps [`Facts`] true: all of it once, then only what changed.
//!
//! Invariant: one change of a device reads that device and nothing else of the bus. What could not be read is left out and logged; what was lost
//! among events is found by the next whole look.

use std::collections::{BTreeMap, BTreeSet};

use sriov_host::Host;
use sriov_host::auxiliary;
use sriov_host::device_id::SfName;
use sriov_host::discover::DiscoverError;
use sriov_host::function::{self, ACCELERATOR_CLASS, NETWORK_CLASS};
use sriov_host::host_use::HostNetwork;
use sriov_host::netlink::devlink::Devlink;
use sriov_host::netlink::{Link, NetChange, NetlinkError, Route};
use sriov_host::pci::PciAddress;
use sriov_host::storage;

use crate::claims::Claims;
use crate::config::{DeviceType, PoolSpec, Selector};
use crate::facts::Facts;

/// A question to devlink about a PF.
type Ask = fn(&Devlink, PciAddress) -> Result<Option<String>, NetlinkError>;

const CLASSES: [u8; 2] = [NETWORK_CLASS, ACCELERATOR_CLASS];

/// The machine and what is known of it.
#[derive(Debug)]
pub struct Machine {
    host: Host,
    claims: Claims,
    facts: Facts,
    wants: Wants,
}

/// What is looked at only if some pool asks for it: it takes time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent questions")]
pub struct Wants {
    /// DDP profiles of PFs.
    pub ddp: bool,
    /// Firmware versions of PFs.
    pub firmware: bool,
    /// Link speeds of PFs.
    pub speed: bool,
    /// Subfunctions.
    pub subfunctions: bool,
}

impl Wants {
    /// What these pools ask for.
    pub fn of(pools: &[PoolSpec]) -> Self {
        let any = |asks: &dyn Fn(&Selector) -> bool| pools.iter().flat_map(|pool| &pool.selectors).any(asks);
        Self {
            ddp: any(&|selector| !selector.ddp_profiles.is_empty()),
            firmware: any(&|selector| !selector.firmware_versions.is_empty()),
            speed: any(&|selector| !selector.link_speeds.is_empty()),
            subfunctions: pools.iter().any(|pool| pool.device_type == DeviceType::AuxNetDevice),
        }
    }
}

/// What changed since the last look.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Look at everything.
    pub everything: bool,
    /// These functions.
    pub functions: BTreeSet<PciAddress>,
    /// These subfunctions.
    pub subfunctions: BTreeSet<SfName>,
    /// Links, addresses, routes.
    pub net: Vec<NetChange>,
    /// Which VFs pods have.
    pub claims: bool,
    /// The health that drivers report of PFs.
    pub reporters: bool,
}

impl Changes {
    /// Adds what changed later.
    pub fn add(&mut self, later: Self) {
        self.everything |= later.everything;
        self.functions.extend(later.functions);
        self.subfunctions.extend(later.subfunctions);
        self.net.extend(later.net);
        self.claims |= later.claims;
        self.reporters |= later.reporters;
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.functions.is_empty() && self.subfunctions.is_empty() && self.net.is_empty() && !self.claims && !self.reporters
    }
}

impl Machine {
    /// Looks at the whole machine.
    pub fn look(host: Host, claims: Claims, wants: Wants) -> Result<Self, DiscoverError> {
        let mut machine = Self { host, claims, facts: Facts::default(), wants };
        machine.look_again()?;
        Ok(machine)
    }

    /// What is known.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Looks at what changed, and at everything when more is asked for than before; whether that made a difference.
    pub fn refresh(&mut self, changes: Changes, wants: Wants) -> Result<bool, DiscoverError> {
        let asked = std::mem::replace(&mut self.wants, wants);
        if changes.everything || asked != wants {
            self.look_again()?;
            return Ok(true);
        }
        let mut differs = false;
        for address in &changes.functions {
            differs |= self.look_at(*address);
        }
        for name in changes.subfunctions.into_iter().filter(|_| wants.subfunctions) {
            differs |= self.look_at_subfunction(name);
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
        self.facts.ddp_profiles = if self.wants.ddp { self.of_firmware("the DDP profile", ddp_profile) } else { BTreeMap::new() };
        self.facts.firmware = if self.wants.firmware { self.of_firmware("the firmware", firmware) } else { BTreeMap::new() };
        self.facts.link_speeds = if self.wants.speed { self.link_speeds() } else { BTreeMap::new() };
        self.facts.subfunctions = BTreeMap::new();
        if self.wants.subfunctions {
            let auxiliary::Scan { subfunctions, faults } = auxiliary::scan(&self.host)?;
            for (device, error) in &faults {
                tracing::warn!(%device, %error, "left out a subfunction");
            }
            self.facts.subfunctions = subfunctions;
        }
        Ok(())
    }

    fn look_at_subfunction(&mut self, name: SfName) -> bool {
        let found = auxiliary::read(&self.host, name).unwrap_or_else(|error| {
            tracing::warn!(device = %name, %error, "left out a subfunction");
            None
        });
        let before = match found.clone() {
            Some(function) => self.facts.subfunctions.insert(name, function),
            None => self.facts.subfunctions.remove(&name),
        };
        before != found
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
            if self.wants.speed {
                self.facts.link_speeds = self.link_speeds();
            }
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

    fn of_firmware(&self, what: &str, ask: Ask) -> BTreeMap<PciAddress, String> {
        let Ok(devlink) = Devlink::open() else { return BTreeMap::new() };
        let told = |pf: PciAddress| match ask(&devlink, pf) {
            Ok(text) => Some((pf, text?)),
            Err(error) => {
                tracing::warn!(%pf, %error, "{what} of a PF is not known");
                None
            }
        };
        self.physical().filter_map(told).collect()
    }

    fn link_speeds(&self) -> BTreeMap<PciAddress, u32> {
        let links = self.facts.link_of_each();
        let speed = |pf: PciAddress| Some((pf, function::link_speed(&self.host, pf, &links.get(&pf)?.netdev.name)?));
        self.physical().filter_map(speed).collect()
    }
}

fn ddp_profile(devlink: &Devlink, pf: PciAddress) -> Result<Option<String>, NetlinkError> {
    devlink.running_version(&pf.into(), "fw.app.name")
}

fn firmware(devlink: &Devlink, pf: PciAddress) -> Result<Option<String>, NetlinkError> {
    devlink.firmware(&pf.into())
}

fn vhost_net(host: &Host) -> bool {
    function::misc(host, "vhost-net") && function::misc(host, "tun")
}
