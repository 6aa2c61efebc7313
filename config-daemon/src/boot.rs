//! I/O: systemd mode: the kept wish is applied at boot, by a unit and without a cluster; and putting that unit in place.
//!
//! What does not live here: keeping the wish (`node_state`), the unit's text (`deploy/systemd`).
//!
//! Invariants: without a kept wish nothing is changed; what came of it is in the Go daemon's result file; the unit is in place only together with
//! the program that it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sriov_host::uevent::{UeventError, UeventSocket};

use crate::apply::apply;
use crate::desired::Desired;
use crate::install::{InstallError, install, label_as_program};
use crate::machine::linux::Linux;
use crate::machine::{Machine as _, ObserveError};
use crate::observed::{Observed, SupportedNics};
use crate::plan::{Plan, plan};
use crate::store::StoreError;

/// Longest wait for PFs whose driver is still being loaded.
const PFS_DEADLINE: Duration = Duration::from_mins(1);

/// The unit, as it is shipped.
const UNIT: &str = include_str!("../../deploy/systemd/sriov-config.service");
const UNIT_NAME: &str = "sriov-config.service";
/// Where the unit's `ExecStart` is.
const PROGRAM: &str = "var/lib/sriov/sriov-network-config-daemon";
const UNITS: &str = "etc/systemd/system";

/// Why the kept wish could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The machine.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// What was kept, or the result.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Events.
    #[error(transparent)]
    Listen(#[from] UeventError),
    /// The program.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The unit.
    #[error("failed to put the unit {path} in place: {cause}")]
    Unit {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What came of the kept wish.
#[derive(Debug)]
pub struct Restored {
    /// Steps done.
    pub done: usize,
    /// Steps that failed, with why.
    pub failures: Vec<String>,
    /// What is left.
    pub residual: Plan,
}

/// Applies the kept wish; `None` when there is none.
pub fn restore(machine: &Linux) -> Result<Option<Restored>, BootError> {
    let Some(wish) = machine.store().kept_wish()?.map(|spec| Desired::read(&spec)).filter(|wish| wish.rendered) else { return Ok(None) };
    let nics = machine.store().kept_nics()?;
    // Open vSwitch may not run yet, and remembers its bridges over a reboot; the daemon looks after them. Their PFs get their VFs all the same: nothing
    // has gone through a bridge yet, and Open vSwitch takes up a netdev that a change of the eswitch mode took away for a moment.
    let wish = Desired { bridges: BTreeMap::new(), unreadable_bridges: Vec::new(), ..wish };
    let machine = &machine.without_bridges();
    let observed = wait_for_pfs(machine, &wish, nics.as_ref())?;
    machine.store().write_rules(&wish)?;
    let outcome = apply(machine, &plan(&wish, &observed));
    let residual = plan(&wish, &look(machine, nics.as_ref())?);
    let restored = Restored { done: outcome.done, failures: outcome.lines(), residual };
    machine.store().keep_result(&restored.failure())?;
    Ok(Some(restored))
}

impl Restored {
    /// What went wrong, empty when nothing did.
    pub fn failure(&self) -> String {
        let left = self.residual.steps.iter().map(|step| format!("left to do: {step}"));
        let refused = self.residual.refusals.iter().map(|refusal| refusal.message.clone());
        let all: Vec<String> = self.failures.iter().cloned().chain(left).chain(refused).collect();
        all.join("; ")
    }
}

fn look(machine: &Linux, nics: Option<&SupportedNics>) -> Result<Observed, BootError> {
    Ok(Observed { supported_nics: nics.cloned(), ..machine.observe()? })
}

/// At boot drivers may still be loading. A PF that does not come is a refusal of the plan, not of the boot.
fn wait_for_pfs(machine: &Linux, wish: &Desired, nics: Option<&SupportedNics>) -> Result<Observed, BootError> {
    let events = UeventSocket::open()?;
    let all_there = || -> Result<Option<Observed>, BootError> {
        let observed = look(machine, nics)?;
        let there = wish.pfs.keys().all(|pf| observed.pf(*pf).is_some_and(|pf| pf.driver.is_some()));
        Ok(there.then_some(observed))
    };
    match events.wait_until(Instant::now() + PFS_DEADLINE, all_there)? {
        Some(observed) => Ok(observed),
        None => look(machine, nics),
    }
}

/// Puts program and unit in place, below `root`; answers whether anything changed. Systemd reads the unit at the next boot, which is when it is for.
pub fn install_unit(program: &Path, root: &Path) -> Result<bool, BootError> {
    let installed = root.join(PROGRAM);
    let copied = install(program, &installed)?;
    if let Err(cause) = label_as_program(&installed) {
        // The daemon works without the unit.
        tracing::warn!("{} keeps its SELinux label, with which systemd may not run it at boot: {cause}", installed.display());
    }
    let unit = root.join(UNITS).join(UNIT_NAME);
    let failed = |cause| BootError::Unit { path: unit.clone(), cause };
    let same = fs::read_to_string(&unit).is_ok_and(|text| text == UNIT);
    if !same {
        let folder = root.join(UNITS);
        let temporary = folder.join(format!(".{UNIT_NAME}.new"));
        fs::create_dir_all(&folder).and_then(|()| fs::write(&temporary, UNIT)).and_then(|()| fs::rename(&temporary, &unit)).map_err(failed)?;
    }
    // What `systemctl enable` makes of WantedBy.
    let wants = root.join(UNITS).join("multi-user.target.wants");
    fs::create_dir_all(&wants).map_err(failed)?;
    let linked = match symlink(format!("/{UNITS}/{UNIT_NAME}"), wants.join(UNIT_NAME)) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => false,
        Err(cause) => return Err(failed(cause)),
        Ok(()) => true,
    };
    Ok(copied || !same || linked)
}

#[cfg(test)]
mod tests {
    use sriov_host::inventory::RdmaMode;
    use sriov_host::testing::{SysfsTree, igb_pf, new_netns};

    use super::*;
    use crate::machine::sim::Sim;
    use crate::plan::step::Step;
    use crate::store::Store;
    use sriov_host::host_use::HostUse;

    #[test]
    fn the_unit_runs_the_program_that_is_installed_with_it() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("daemon");
        fs::write(&program, "program").unwrap();
        assert!(install_unit(&program, root.path()).unwrap());
        assert!(!install_unit(&program, root.path()).unwrap(), "nothing changed");
        let unit = fs::read_to_string(root.path().join("etc/systemd/system/sriov-config.service")).unwrap();
        let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
        assert!(root.path().join(started.split(' ').next().unwrap()).is_file(), "{started}");
        let link = fs::read_link(root.path().join("etc/systemd/system/multi-user.target.wants/sriov-config.service")).unwrap();
        assert_eq!(link, Path::new("/etc/systemd/system/sriov-config.service"));
    }

    #[test]
    fn where_files_have_selinux_labels_the_program_has_one_that_systemd_may_run() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("daemon");
        fs::write(&program, "program").unwrap();
        assert!(install_unit(&program, root.path()).unwrap());
        let installed = root.path().join(PROGRAM);
        let label = |path: &Path| {
            let mut label = [0; 64];
            rustix::fs::getxattr(path, "security.selinux", &mut label).ok().map(|length| String::from_utf8(label[..length].to_vec()).unwrap())
        };
        assert_eq!(label(&installed), None, "no labels on this machine");
        let set = |path: &Path, label: &str| rustix::fs::setxattr(path, "security.selinux", label.as_bytes(), rustix::fs::XattrFlags::empty());
        set(installed.parent().unwrap(), "system_u:object_r:var_lib_t:s0\0").unwrap();
        set(&installed, "system_u:object_r:var_lib_t:s0\0").unwrap();
        assert!(!install_unit(&program, root.path()).unwrap());
        assert_eq!(label(&installed).unwrap(), "system_u:object_r:bin_t:s0\0");
    }

    #[test]
    fn without_a_kept_wish_nothing_is_changed_at_boot() {
        let root = tempfile::tempdir().unwrap();
        let machine = Linux::new(root.path(), Store::new(root.path(), root.path().join("pools.json")));
        assert!(restore(&machine).unwrap().is_none());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_port_that_open_vswitch_took_before_us_gets_its_vfs_only_where_the_bridge_is_ours() {
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        sim.change(|state| {
            let pf = &mut state.inventory.pfs[0];
            (pf.driver, pf.totalvfs) = (Some("mlx5_core".to_owned()), 8);
            pf.facts.uses.push(HostUse::Upper { link: "ovs-system".to_owned(), kind: "openvswitch".to_owned() });
        });
        let spec = "interfaces: [{pciAddress: '0000:01:00.0', name: ens1f0, numVfs: 2, eSwitchMode: switchdev}]";
        let wish = Desired::read(&serde_saphyr::from_str(spec).unwrap());
        let mut observed = sim.observe().unwrap();
        observed.leave_bridges(&BTreeMap::new());
        let said = plan(&wish, &observed).to_string();
        assert!(said.contains("PfInUse"), "somebody else's bridge: {said}");
        let kept = r#"{"br-0000_01_00.0":{"name":"br-0000_01_00.0","uplinks":[{"pciAddress":"0000:01:00.0","name":"ens1f0"}]}}"#;
        observed.leave_bridges(&serde_json::from_str(kept).unwrap());
        let planned = plan(&wish, &observed);
        assert!(planned.refusals.is_empty() && planned.steps.iter().any(|step| matches!(step, Step::SetEswitchMode { .. })), "{planned}");
    }

    #[test]
    fn b7_the_wish_at_boot_never_depends_on_programs_or_folders_of_the_host() {
        // No shell, no scripts, no /etc: only what the kernel shows.
        let fake = igb_pf(SysfsTree::new(), 0).build().unwrap();
        let machine = Linux::new(fake.path(), Store::new(fake.path(), fake.path().join("pools.json")));
        let spec = serde_json::json!({ "policyRevision": "r1", "interfaces": [{ "pciAddress": "0000:01:00.0", "numVfs": 0 }] });
        machine.store().keep_wish(&serde_json::from_value(spec).unwrap()).unwrap();
        let restored = new_netns().unwrap().run_in(|| restore(&machine)).unwrap().unwrap().unwrap();
        assert_eq!((restored.done, restored.failure().as_str()), (1, ""));
        assert!(fake.path().join("etc/sriov-operator/pci/0000:01:00.0").is_file());
        machine.perform(&Step::StageRdmaMode { mode: Some(RdmaMode::Exclusive) }).unwrap();
        assert_eq!(machine.store().staged_rdma_mode().unwrap(), Some(RdmaMode::Exclusive));
    }
}
