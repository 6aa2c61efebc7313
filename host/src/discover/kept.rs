//! I/O: looks that begin with what the last one found: only the PFs that events named are read again, with their VFs.
//!
//! What lives here: which PFs an event concerns, and reading those. What does not: events (`changes`), reading all (`discover`).
//!
//! Invariants: after any changes that the kernel announced, a look that begins with the last one finds what a whole look finds; where that is not
//! certain (faults, virtual machines, links of unknown origin, errors) the look is a whole one. What the host does with its links (addresses, routes,
//! storage) is read at each look. Some changes are never announced (`sriov_drivers_autoprobe`, the eswitch mode of some drivers, the boot loader's
//! configuration, settings of firmware), so that what is kept has an age at which it ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::answers::{Answers, Kernel};
use super::changes::Changes;
use super::reader::Reader;
use super::{DiscoverError, NetFacts, Survey, ask, is_pf, may_be_off, whole};
use crate::inventory::{Inventory, Pf};
use crate::netlink::Link;
use crate::pci::PciAddress;
use crate::{Host, pci_device, vdpa};

/// Age at which what is kept is not believed any more.
const OLDEST: Duration = Duration::from_mins(10);

/// What the last look found, from which the next one begins.
#[derive(Debug, Default)]
pub struct KeptSurvey {
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    facts: NetFacts,
    inventory: Inventory,
    since: Instant,
}

/// What a look found, and how much of it was read for that.
#[derive(Debug)]
pub struct Look {
    /// The machine now.
    pub survey: Survey,
    /// What was read; the rest is as an earlier look found it.
    pub read: Read,
}

/// What a look read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// All of the machine.
    Everything,
    /// These PFs with their VFs, among them such as are gone.
    Pfs(BTreeSet<PciAddress>),
}

/// What events named, as far as it is known.
#[derive(Default)]
struct Named {
    functions: BTreeSet<PciAddress>,
    links: BTreeSet<u32>,
    /// Hardware switches: a representor of one function changes what is said of the others of its switch.
    switches: BTreeSet<String>,
}

impl KeptSurvey {
    /// Looks at what changed; at everything the first time, when `changes` says so, or when less is not certain to be right. `changes` must hold all that
    /// was announced since the last look, and be taken before this is called.
    pub fn look(&mut self, host: &Host, changes: &Changes) -> Result<Look, DiscoverError> {
        self.look_with(host, &Kernel::open()?, changes)
    }

    /// As [`KeptSurvey::look`], with netlink's part given.
    pub fn look_with(&mut self, host: &Host, answers: &impl Answers, changes: &Changes) -> Result<Look, DiscoverError> {
        // Only a look that ends well leaves something to begin with.
        let kept = self.kept.take().filter(|kept| !changes.is_everything() && kept.since.elapsed() < OLDEST);
        if let Some(mut kept) = kept
            && let Some((pfs, faults)) = kept.look_again(host, answers, changes)?
        {
            let survey = Survey { inventory: kept.inventory.clone(), faults };
            self.kept = Some(kept).filter(|_| survey.faults.is_empty());
            return Ok(Look { survey, read: Read::Pfs(pfs) });
        }
        let since = Instant::now();
        let (facts, survey) = whole(host, answers)?;
        let is_plain = survey.faults.is_empty() && survey.inventory.pfs.iter().all(|pf| !pf.facts.lone);
        self.kept = is_plain.then(|| Kept { facts, inventory: survey.inventory.clone(), since });
        Ok(Look { survey, read: Read::Everything })
    }
}

type Again = (BTreeSet<PciAddress>, Vec<(PciAddress, DiscoverError)>);

impl Kept {
    /// `None` when only a whole look can tell.
    fn look_again(&mut self, host: &Host, answers: &impl Answers, changes: &Changes) -> Result<Option<Again>, DiscoverError> {
        let mut named = Named { functions: changes.functions().collect(), links: changes.links().collect(), ..Named::default() };
        for ifindex in changes.links() {
            if !self.read_link(answers, ifindex, &mut named)? {
                return Ok(None);
            }
        }
        let pfs = self.pfs_of(host, &named)?;
        self.facts.network = answers.network(host)?;
        if changes.rdma_mode() {
            self.facts.rdma_mode = answers.rdma_mode();
            self.inventory.kernel.rdma_mode = self.facts.rdma_mode;
        }
        let mut faults = Vec::new();
        for pf in &pfs {
            self.forget(*pf);
            if !is_pf(host.sysfs(), *pf) && !may_be_off(host, *pf) {
                self.facts.firmware_settings.remove(pf);
            } else {
                faults.extend(ask(host, answers, *pf, &mut self.facts).map(|error| (*pf, error)));
            }
        }
        self.inventory.pfs.retain(|pf| !pfs.contains(&pf.address));
        let elsewhere = self.inventory.pfs.iter().flat_map(vdpa_names).collect();
        let reader = Reader::new(host, &self.facts, vdpa::by_function_but(host, &elsewhere)?);
        for pf in &mut self.inventory.pfs {
            reader.read_uses_again(pf);
        }
        for address in &pfs {
            if faults.iter().any(|(faulty, _)| faulty == address) {
                continue;
            }
            match reader.pf(*address) {
                Ok(found) => self.inventory.pfs.extend(found),
                Err(error) => faults.push((*address, error)),
            }
        }
        self.inventory.pfs.sort_by_key(|pf| pf.address);
        Ok(Some((pfs, faults)))
    }

    /// Reads a link and adds what it belongs, and belonged, to; false when it is of hardware that it does not name.
    fn read_link(&mut self, answers: &impl Answers, ifindex: u32, named: &mut Named) -> Result<bool, DiscoverError> {
        let place = self.facts.links.binary_search_by_key(&ifindex, |link| link.netdev.ifindex);
        let now = answers.link(ifindex)?;
        for link in place.ok().map(|place| &self.facts.links[place]).into_iter().chain(&now) {
            // Kernels before 5.14 name the parent of no link.
            if link.parent_device.is_none() && link.stack.kind.is_none() {
                return Ok(false);
            }
            named.functions.extend(link.parent);
            named.switches.extend(link.stack.switch_id.clone());
        }
        match (place, now) {
            (Ok(place), Some(link)) => self.facts.links[place] = link,
            (Ok(place), None) => drop(self.facts.links.remove(place)),
            (Err(place), Some(link)) => self.facts.links.insert(place, link),
            (Err(_), None) => {}
        }
        Ok(true)
    }

    /// The PFs that what was named belongs to, or belonged to at the last look.
    fn pfs_of(&self, host: &Host, named: &Named) -> Result<BTreeSet<PciAddress>, DiscoverError> {
        let mut pfs = BTreeSet::new();
        for function in &named.functions {
            let pf = host.sysfs().read_link_name(format!("{}/physfn", pci_device(*function)))?.and_then(|name| name.parse().ok());
            pfs.extend(pf.or_else(|| (is_pf(host.sysfs(), *function) || may_be_off(host, *function)).then_some(*function)));
        }
        pfs.extend(self.inventory.pfs.iter().filter(|pf| self.concerns(pf, named)).map(|pf| pf.address));
        Ok(pfs)
    }

    fn concerns(&self, pf: &Pf, named: &Named) -> bool {
        let mut functions = std::iter::once(pf.address).chain(pf.vfs.iter().map(|vf| vf.address));
        let mut netdevs = pf.netdev.iter().chain(pf.vfs.iter().filter_map(|vf| vf.netdev.as_ref()));
        let of_switch = |link: &Link| link.stack.switch_id.as_ref().is_some_and(|id| named.switches.contains(id));
        functions.any(|function| named.functions.contains(&function))
            || netdevs.any(|netdev| named.links.contains(&netdev.ifindex))
            || pf.netdev.as_ref().and_then(|netdev| self.link(netdev.ifindex)).is_some_and(of_switch)
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        let place = self.facts.links.binary_search_by_key(&ifindex, |link| link.netdev.ifindex).ok()?;
        self.facts.links.get(place)
    }

    /// Drops what netlink said of a PF.
    fn forget(&mut self, pf: PciAddress) {
        self.facts.eswitch_modes.remove(&pf);
        self.facts.firmware.remove(&pf);
        let known = self.inventory.pfs.iter().find(|known| known.address == pf);
        if let Some(netdev) = known.and_then(|known| known.netdev.as_ref()) {
            self.facts.vf_attributes.remove(&netdev.ifindex);
        }
    }
}

/// The names of the vDPA devices of a PF and its VFs.
fn vdpa_names(pf: &Pf) -> impl Iterator<Item = String> {
    let facts = std::iter::once(&pf.facts).chain(pf.vfs.iter().map(|vf| &vf.facts));
    facts.filter_map(|facts| facts.vdpa.as_ref().map(|vdpa| vdpa.name.clone()))
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
