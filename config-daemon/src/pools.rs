//! Pure: the VFs that the device plugin may offer, in the public `config.json` form of the Go device plugin.
//!
//! What lives here: which VFs are ready. What does not: writing the file (`store`), and when: before VFs change (so that they leave the pools
//! first) and after (`node_state`).
//!
//! Invariant: a VF is in a pool only if no step of the plan is about it or its PF's VFs, it has the driver asked for, and its PF is ours.

use std::collections::BTreeMap;

use serde::Serialize;
use sriov_host::inventory::{Pf, Vf};
use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;

use crate::desired::{Desired, DesiredPf, VdpaType, VfGroup};
use crate::observed::Observed;
use crate::plan::Plan;
use crate::plan::step::{Driver, Step};

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pools {
    /// One entry a pool that has VFs. A pool without any is left out: an entry without selectors would mean "every device".
    pub resource_list: Vec<Pool>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Last part of the extended resource's name.
    pub resource_name: String,
    /// Tell the kubelet no NUMA node.
    #[serde(skip_serializing_if = "is_false")]
    pub exclude_topology: bool,
    /// A device that fits one of them is in the pool.
    pub selectors: Vec<Selector>,
}

/// Devices of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// `<PF address>#<first>-<last>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub root_devices: Vec<String>,
    /// Addresses of VFs that have no PF on this machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pci_addresses: Vec<String>,
    /// Drivers that the VFs have.
    pub drivers: Vec<String>,
    /// RDMA wanted.
    #[serde(skip_serializing_if = "is_false")]
    pub is_rdma: bool,
    /// `/dev/vhost-net` wanted.
    #[serde(skip_serializing_if = "is_false")]
    pub need_vhost_net: bool,
    /// vDPA device wanted: `vhost` or `virtio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa_type: Option<&'static str>,
    #[serde(skip)]
    vfs: Vec<(PciAddress, VfIndex)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// The VFs that are ready, given what is still to be done.
pub fn pools(desired: &Desired, observed: &Observed, plan: &Plan) -> Pools {
    let mut pools: BTreeMap<&str, Pool> = BTreeMap::new();
    for wish in desired.pfs.values().flatten() {
        let Some(pf) = observed.pf(wish.address).filter(|pf| offers(pf, observed, plan)) else { continue };
        for (position, group) in wish.groups.iter().enumerate() {
            let ready: Vec<&Vf> = pf.vfs.iter().filter(|vf| has(wish, position, vf.index) && is_ready(group, pf, vf, plan)).collect();
            if ready.is_empty() {
                continue;
            }
            let pool = pools.entry(&group.resource_name).or_insert_with(|| Pool { resource_name: group.resource_name.clone(), ..Pool::default() });
            pool.exclude_topology |= group.exclude_topology;
            pool.selectors.push(selector(pf, group, &ready));
        }
    }
    Pools { resource_list: pools.into_values().collect() }
}

impl Pools {
    /// The file's text.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Every VF that is in a pool.
    pub fn vfs(&self) -> Vec<(PciAddress, VfIndex)> {
        self.resource_list.iter().flat_map(|pool| pool.selectors.iter().flat_map(|s| s.vfs.iter().copied())).collect()
    }
}

/// A PF whose VFs, or whose bridge, are about to be made anew offers nothing; one that is not ours (refused from the start) neither.
fn offers(pf: &Pf, observed: &Observed, plan: &Plan) -> bool {
    let bridge = |step: &Step| step.pf() == Some(pf.address) && matches!(step, Step::MakeBridge { .. } | Step::RemoveBridge { .. });
    observed.records.contains_key(&pf.address) && !plan.changes_numvfs(pf.address) && !plan.steps.iter().any(bridge)
}

fn has(wish: &DesiredPf, position: usize, vf: VfIndex) -> bool {
    wish.groups.iter().position(|group| group.contains(vf)) == Some(position)
}

fn is_ready(group: &VfGroup, pf: &Pf, vf: &Vf, plan: &Plan) -> bool {
    let vdpa = vf.facts.vdpa.as_ref().and_then(|vdpa| vdpa.driver.as_deref());
    Driver::of(group.device_type).is(vf.driver.as_deref())
        && group.vdpa.is_none_or(|kind| vdpa == Some(kind.driver()))
        && !plan.steps.iter().any(|step| step.pf() == Some(pf.address) && step.vf() == Some(vf.index))
}

fn selector(pf: &Pf, group: &VfGroup, ready: &[&Vf]) -> Selector {
    let mut drivers: Vec<String> = ready.iter().filter_map(|vf| vf.driver.clone()).collect();
    drivers.sort();
    drivers.dedup();
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for VfIndex(index) in ready.iter().map(|vf| vf.index) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let lone = pf.facts.lone;
    Selector {
        root_devices: runs.iter().filter(|_| !lone).map(|(first, last)| format!("{}#{first}-{last}", pf.address)).collect(),
        pci_addresses: ready.iter().filter(|_| lone).map(|vf| vf.address.to_string()).collect(),
        drivers,
        is_rdma: group.is_rdma,
        need_vhost_net: group.need_vhost_net,
        vdpa_type: group.vdpa.map(VdpaType::as_str),
        vfs: ready.iter().map(|vf| (pf.address, vf.index)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::apply;
    use crate::machine::Machine;
    use crate::machine::sim::Sim;
    use crate::plan::plan;

    const PF: &str = "0000:01:00.0";

    fn desired(yaml: &str) -> Desired {
        Desired::read(&serde_saphyr::from_str(yaml).unwrap())
    }

    fn two_groups() -> Desired {
        desired(
            "interfaces:
- pciAddress: 0000:01:00.0
  numVfs: 4
  vfGroups:
  - {vfRange: 0-2, resourceName: net, policyName: a, excludeTopology: true}
  - {vfRange: 3-3, resourceName: dpdk, policyName: b, deviceType: vfio-pci, needVhostNet: true}",
        )
    }

    fn json(sim: &Sim, desired: &Desired) -> String {
        let observed = sim.observe().unwrap();
        pools(desired, &observed, &plan(desired, &observed)).to_json().unwrap()
    }

    #[test]
    fn pools_have_the_public_form() {
        let (sim, desired) = (Sim::with_pfs(&[PF]), two_groups());
        assert_eq!(json(&sim, &desired), r#"{"resourceList":[]}"#, "nothing is ready yet");
        apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let expected = r#"{"resourceList":[{"resourceName":"dpdk","selectors":[{"rootDevices":["0000:01:00.0#3-3"],"drivers":["vfio-pci"],"needVhostNet":true}]},{"resourceName":"net","excludeTopology":true,"selectors":[{"rootDevices":["0000:01:00.0#0-2"],"drivers":["igbvf"]}]}]}"#;
        assert_eq!(json(&sim, &desired), expected);
    }

    #[test]
    fn a_vf_that_is_not_ready_is_left_out() {
        let (sim, desired) = (Sim::with_pfs(&[PF]), two_groups());
        sim.fail_once_on("0000:01:00.0 vf 1: bind");
        apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        assert!(json(&sim, &desired).contains(r#""rootDevices":["0000:01:00.0#0-0","0000:01:00.0#2-2"]"#), "{}", json(&sim, &desired));
    }

    #[test]
    fn vfs_leave_their_pool_before_they_are_removed() {
        let (sim, grown) =
            (Sim::with_pfs(&[PF]), desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 5, vfGroups: [{vfRange: 0-4, resourceName: net}]}]"));
        apply(&sim, &plan(&two_groups(), &sim.observe().unwrap()));
        assert_eq!(json(&sim, &grown), r#"{"resourceList":[]}"#);
        let shrunk = desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1, vfGroups: [{vfRange: 0-3, resourceName: net}]}]");
        assert_eq!(json(&sim, &shrunk), r#"{"resourceList":[]}"#, "also those that the range still names");
        assert_eq!(json(&sim, &desired("policyRevision: none")), r#"{"resourceList":[]}"#);
    }

    #[test]
    fn a_change_that_waits_for_pods_keeps_the_pool() {
        let (sim, desired) = (Sim::with_pfs(&[PF]), two_groups());
        apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let before = json(&sim, &desired);
        sim.change(|state| _ = state.vfs_in_use.insert("0000:01:10.2".parse().unwrap(), "pod".to_owned()));
        assert_eq!(json(&sim, &desired), before, "a VF in use stays in its pool");
    }

    #[test]
    fn two_pfs_share_a_pool() {
        let (sim, desired) = (
            Sim::with_pfs(&[PF, "0000:02:00.0"]),
            desired(
                "interfaces:
- {pciAddress: '0000:01:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: net}]}
- {pciAddress: '0000:02:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: net}]}",
            ),
        );
        apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let text = json(&sim, &desired);
        assert_eq!(text.matches("resourceName").count(), 1, "{text}");
        assert_eq!(text.matches("rootDevices").count(), 2, "{text}");
    }

    #[test]
    fn a_vdpa_pool_has_only_vfs_with_their_device() {
        let sim = Sim::with_pfs(&[PF]);
        sim.change(|state| state.inventory.pfs[0].driver = Some("mlx5_core".to_owned()));
        let wanted = desired(
            "interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2, eSwitchMode: switchdev, vfGroups: [{vfRange: 0-1, resourceName: v, vdpaType: vhost}]}]",
        );
        sim.fail_once_on("0000:01:00.0 vf 1: give it a vDPA device");
        apply(&sim, &plan(&wanted, &sim.observe().unwrap()));
        let expected =
            r#"{"resourceList":[{"resourceName":"v","selectors":[{"rootDevices":["0000:01:00.0#0-0"],"drivers":["igbvf"],"vdpaType":"vhost"}]}]}"#;
        assert_eq!(json(&sim, &wanted), expected);
    }

    #[test]
    fn a_nic_of_a_virtual_machine_is_offered_by_its_own_address() {
        let sim = Sim::with_pfs(&[PF]);
        sim.make_vfs(PF.parse().unwrap(), 1);
        sim.change(|state| {
            let pf = &mut state.inventory.pfs[0];
            (pf.facts.lone, pf.totalvfs, pf.vfs[0].address) = (true, 1, pf.address);
            state.inventory.iommu.active = false;
        });
        let wanted =
            desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: r, deviceType: vfio-pci}]}]");
        apply(&sim, &plan(&wanted, &sim.observe().unwrap()));
        assert!(sim.observe().unwrap().vfio_without_iommu && sim.crimes().is_empty(), "{:?}", sim.crimes());
        let expected = r#"{"resourceList":[{"resourceName":"r","selectors":[{"pciAddresses":["0000:01:00.0"],"drivers":["vfio-pci"]}]}]}"#;
        assert_eq!(json(&sim, &wanted), expected);
    }
}
