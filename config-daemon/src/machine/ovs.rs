//! I/O: the bridges of this machine: a look at Open vSwitch's database, and each step as one transaction of it.
//!
//! What does not live here: what is written (`bridges`), what to do (`plan`).
//!
//! Invariants: a bridge is ours before it is there, and until it is gone, whenever this process ends; a step has worked when `ovs-vswitchd` has carried it
//! out and says of the uplink that nothing is wrong with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sriov_crds::bridge::OvsBridge;
use sriov_host::pci::PciAddress;

use super::StepError;
use crate::bridges::{Bridges, Found, Wanted, correct, found, has_switch, look, make, remove, taken_up};
use crate::ovsdb::{Connection, Ovsdb, OvsdbError};
use crate::store::{Store, StoreError};

/// Longest wait for one step, as in the Go daemon.
const STEP: Duration = Duration::from_secs(15);
/// Longest wait for a look, which must not hold up what is none of Open vSwitch's business.
const LOOK: Duration = Duration::from_secs(5);

/// The way to this machine's bridges.
#[derive(Clone, Debug)]
pub struct Ovs {
    ovsdb: Ovsdb,
    /// PFs are configured side by side, and their bridges are in one file.
    writing: Arc<Mutex<()>>,
}

impl Ovs {
    /// The database whose socket is `socket` below `root`.
    pub fn new(root: &Path, socket: &str) -> Self {
        Self { ovsdb: Ovsdb::new(root, socket), writing: Arc::default() }
    }

    /// The database.
    pub fn ovsdb(&self) -> &Ovsdb {
        &self.ovsdb
    }

    /// What there is. Never fails: what is not known is a fault inside, and no reason to leave anything else undone.
    pub(super) fn look(&self, store: &Store) -> Bridges {
        let kept = match store.bridges() {
            Ok(kept) => kept,
            Err(error) => return Bridges { fault: Some(error.to_string()), ..Bridges::default() },
        };
        match self.ovsdb.open(LOOK).and_then(|mut connection| connection.transact(look())) {
            Ok(answers) => Bridges { kept, found: found(&answers), fault: None },
            Err(error) => Bridges { kept, fault: Some(error.to_string()), ..Bridges::default() },
        }
    }

    /// Makes a bridge.
    pub(super) fn make(&self, store: &Store, pf: PciAddress, wanted: &Wanted, netdev: &str) -> Result<(), StepError> {
        let mut connection = self.ovsdb.open(STEP).map_err(refused)?;
        self.keep(store, |kept| _ = kept.insert(wanted.name.clone(), wanted.record(pf, netdev)))?;
        change(&mut connection, make(wanted, netdev))?;
        uplink_works(&mut connection, &wanted.name, netdev)
    }

    /// Corrects the settings of a bridge that is ours.
    pub(super) fn correct(&self, store: &Store, pf: PciAddress, wanted: &Wanted, netdev: &str) -> Result<(), StepError> {
        let mut connection = self.ovsdb.open(STEP).map_err(refused)?;
        let kept = store.bridges().map_err(refused_by_store)?.remove(&wanted.name);
        let there = bridges_there(&mut connection)?.remove(&wanted.name);
        let (Some(kept), Some(there)) = (kept, there) else {
            return Err(StepError::refused("it is not there any more; it is made anew"));
        };
        change(&mut connection, correct(wanted, netdev, &kept, &there))?;
        // Last, because until then the older record says which settings were ours.
        self.keep(store, |kept| _ = kept.insert(wanted.name.clone(), wanted.record(pf, netdev)))?;
        uplink_works(&mut connection, &wanted.name, netdev)
    }

    /// Removes a bridge that is ours, and forgets it.
    pub(super) fn remove(&self, store: &Store, name: &str) -> Result<(), StepError> {
        if store.bridges().map_err(refused_by_store)?.contains_key(name) {
            let mut connection = self.ovsdb.open(STEP).map_err(refused)?;
            if let Some(there) = bridges_there(&mut connection)?.remove(name) {
                change(&mut connection, remove(&there))?;
            }
        }
        self.keep(store, |kept| _ = kept.remove(name))
    }

    fn keep(&self, store: &Store, change: impl FnOnce(&mut BTreeMap<String, OvsBridge>)) -> Result<(), StepError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        store.change_bridges(change).map_err(refused_by_store)
    }
}

fn bridges_there(connection: &mut Connection) -> Result<BTreeMap<String, Found>, StepError> {
    connection.transact(look()).map(|answers| found(&answers)).map_err(refused)
}

/// One change, and the wait until `ovs-vswitchd` has carried it out.
fn change(connection: &mut Connection, operations: Vec<serde_json::Value>) -> Result<(), StepError> {
    let answers = connection.transact(operations).map_err(refused)?;
    let Some(wanted) = has_switch(&answers) else {
        return Err(StepError::refused("Open vSwitch's database has no switch: start openvswitch-switch, which makes it (ovs-vsctl init)"));
    };
    let mut seen = None;
    loop {
        let left = u64::try_from(connection.left().as_millis()).unwrap_or(u64::MAX);
        let late = || {
            let said =
                format!("Open vSwitch's database has taken the change, and ovs-vswitchd has not carried it out within {STEP:?}: is it running?");
            StepError::refused(said)
        };
        // A little less than what is left, so that it is the database that says so.
        let answers = match connection.transact(taken_up(seen, left.saturating_sub(500).max(1))) {
            Ok(answers) => answers,
            Err(error) if error.is_timed_out() => return Err(late()),
            Err(error) => return Err(refused(error)),
        };
        seen = answers.last().and_then(|answer| answer["rows"].get(0)?["cur_cfg"].as_i64());
        if seen.is_none_or(|seen| seen >= wanted) {
            return Ok(());
        }
    }
}

fn uplink_works(connection: &mut Connection, bridge: &str, netdev: &str) -> Result<(), StepError> {
    let error = bridges_there(connection)?.get(bridge).and_then(|found| found.interface(netdev)?.error.clone());
    error.map_or(Ok(()), |error| Err(StepError::refused(format!("Open vSwitch cannot use {netdev}: {error}"))))
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn refused(error: OvsdbError) -> StepError {
    StepError::refused(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn refused_by_store(error: StoreError) -> StepError {
    StepError::Refused { said: error.to_string(), errno: error.errno() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Desired;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;
    use crate::ovsdb::DEFAULT_SOCKET;
    use crate::plan::plan;

    /// B20 of the field: the daemon of a cloud's node, where nobody can have bridges, did not start with the gate on.
    #[test]
    fn b20_a_machine_without_open_vswitch_is_never_held_up_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let (store, ovs) = (Store::new(folder.path(), folder.path().join("pools.json")), Ovs::new(folder.path(), DEFAULT_SOCKET));
        let bridges = ovs.look(&store);
        assert!(bridges.fault.as_ref().unwrap().contains("db.sock"), "{bridges:?}");
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        sim.change(|state| {
            let pf = &mut state.inventory.pfs[0];
            (pf.facts.lone, pf.numvfs, pf.totalvfs) = (true, 1, 1);
        });
        let mut observed = sim.observe().unwrap();
        let wish = Desired::read(&serde_saphyr::from_str("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1}]").unwrap());
        let without = plan(&wish, &observed);
        observed.add_bridges(bridges);
        assert_eq!(plan(&wish, &observed), without, "nobody asks for a bridge");
    }

    #[test]
    fn a_step_names_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, ovs) = (Store::new(folder.path(), folder.path().join("pools.json")), Ovs::new(folder.path(), DEFAULT_SOCKET));
        let wanted = Wanted { name: "br-0000_01_00.0".to_owned(), ..Wanted::default() };
        let pf = "0000:01:00.0".parse().unwrap();
        let said = ovs.make(&store, pf, &wanted, "ens1f0").unwrap_err().to_string();
        assert!(said.contains("failed to reach Open vSwitch's database"), "{said}");
        assert!(store.bridges().unwrap().is_empty(), "what was not begun is not ours");
        ovs.remove(&store, "br-of-somebody").unwrap();
    }
}
