//! Pure: everything about this machine that a plan is made from, as plain data.
//!
//! What lives here: the types. What does not: reading them from a machine (`machine`) or from the cluster (`node_state`).
//!
//! Invariant: a plan needs nothing but these values and the wish, so a saved observation plans the same anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sriov_crds::bridge::OvsBridge;
use sriov_crds::node_state::Interface;
use sriov_host::driver::is_userspace;
use sriov_host::host_use::HostUse;
use sriov_host::inventory::{EswitchMode, FirmwareSettings, Inventory, Pf, RdmaMode, Vf};
use sriov_host::pci::{DeviceId, PciAddress, VendorId};

use crate::bridges::{Bridges, pf_of};
use crate::guids::Guids;
use crate::kubelet::Held;

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, not a state of one thing")]
pub struct Observed {
    /// PFs and VFs.
    pub inventory: Inventory,
    /// PFs that are there and could not be read, with why; they are not in the inventory.
    #[serde(default)]
    pub faults: BTreeMap<PciAddress, String>,
    /// PFs whose `sriov_drivers_autoprobe` is off.
    #[serde(default)]
    pub autoprobe_off: BTreeSet<PciAddress>,
    /// Whether the driver `vfio-pci` is loaded.
    #[serde(default)]
    pub vfio_pci_loaded: bool,
    /// Whether its module could be loaded by us.
    #[serde(default)]
    pub vfio_pci_loadable: bool,
    /// Whether `vfio-pci` takes devices without an IOMMU (`enable_unsafe_noiommu_mode` of module `vfio`).
    #[serde(default)]
    pub vfio_without_iommu: bool,
    /// Drivers of the vDPA bus that are loaded.
    #[serde(default)]
    pub vdpa_drivers: BTreeSet<String>,
    /// Those that are not, and whose module could be loaded by us.
    #[serde(default)]
    pub vdpa_drivers_loadable: BTreeSet<String>,
    /// GUIDs that an administrator gives InfiniBand VFs.
    #[serde(default)]
    pub guids: Guids,
    /// The mode that our file in `/etc/modprobe.d` gives RDMA devices at the next boot.
    #[serde(default)]
    pub staged_rdma_mode: Option<RdmaMode>,
    /// Whether network namespaces besides the host's are in use (the kernel then refuses to change the RDMA mode).
    #[serde(default)]
    pub has_namespaces: bool,
    /// NICs that may be configured; `None` where nobody restricts them (command line without a cluster).
    #[serde(default)]
    pub supported_nics: Option<SupportedNics>,
    /// Records of the PFs that we configure.
    #[serde(default)]
    pub records: BTreeMap<PciAddress, Record>,
    /// What this program told the firmware of PFs, until it runs with it or is told otherwise.
    #[serde(default)]
    pub staged_firmware: BTreeMap<PciAddress, Staging>,
    /// Vendors whose NICs' firmware is left as it is.
    #[serde(default)]
    pub left_firmware: BTreeSet<VendorId>,
    /// What tells this start of the machine from all others.
    #[serde(default)]
    pub boot_id: String,
    /// VFs that a pod uses, by address, with the pod's side as the CNI wrote it down.
    #[serde(default)]
    pub vfs_in_use: BTreeMap<PciAddress, String>,
    /// The extended resource by which a pod has a VF, by the VF's address, where the kubelet tells it.
    #[serde(default)]
    pub resources: BTreeMap<PciAddress, String>,
    /// Open vSwitch's bridges; `None` where nobody asked for them to be managed.
    #[serde(default)]
    pub bridges: Option<Bridges>,
    /// What tells this machine from all others in its network, from which administrative MACs are made.
    #[serde(default)]
    pub machine_id: String,
}

/// What `/etc/sriov-operator/pci/<address>` holds: the wish that the PF was configured for, in the field's own form (a node state's
/// `spec.interfaces[]` entry), and two keys of ours, which the Go operator ignores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The wish.
    #[serde(flatten)]
    pub interface: Interface,
    /// MTU of the PF before we first touched it, in bytes; absent in a record of the Go operator.
    #[serde(rename = "originalMtu", default, skip_serializing_if = "Option::is_none")]
    pub original_mtu: Option<u32>,
    /// The network of the cloud that a NIC of a virtual machine is in: while userspace has the NIC, nothing else tells it.
    #[serde(rename = "netFilter", default, skip_serializing_if = "Option::is_none")]
    pub net_filter: Option<String>,
    /// Eswitch mode of the PF before we first touched it; absent in a record of the Go operator, which knew legacy alone.
    #[serde(rename = "originalEswitchMode", default, skip_serializing_if = "Option::is_none")]
    pub original_eswitch_mode: Option<EswitchMode>,
}

/// What `/etc/sriov-operator/firmware/<address>` holds: what this program told a PF's firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// The start of the machine in which it was told.
    pub boot: String,
    /// What it was told before.
    pub before: FirmwareSettings,
    /// What it was told.
    pub wanted: FirmwareSettings,
}

/// The content of the ConfigMap `supported-nic-ids`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportedNics {
    /// Vendor and device of each PF that may be configured.
    pub pfs: BTreeSet<(VendorId, DeviceId)>,
    /// Entries that are not three identifiers, one message each.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

impl SupportedNics {
    /// Reads the ConfigMap's data: each value is `"<vendor> <PF device> <VF device>"`. An entry that is not, is set aside and reported.
    pub fn read<'a>(data: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut nics = Self::default();
        for (key, value) in data {
            let ids: Vec<&str> = value.split_whitespace().collect();
            match ids.as_slice() {
                [vendor, pf, vf] if vf.parse::<DeviceId>().is_ok() => match (vendor.parse(), pf.parse()) {
                    (Ok(vendor), Ok(pf)) => _ = nics.pfs.insert((vendor, pf)),
                    _ => nics.set_aside(key, value),
                },
                _ => nics.set_aside(key, value),
            }
        }
        nics
    }

    /// Whether PFs of this kind may be configured.
    pub fn contains(&self, vendor: VendorId, device: DeviceId) -> bool {
        self.pfs.contains(&(vendor, device))
    }

    fn set_aside(&mut self, key: &str, value: &str) {
        self.unreadable.push(format!(
            "entry {key} of ConfigMap supported-nic-ids is {value:?}: expected \"<vendor> <PF device> <VF device>\" as in \"8086 10c9 10ca\""
        ));
    }
}

impl Observed {
    /// The PF at this address.
    pub fn pf(&self, address: PciAddress) -> Option<&Pf> {
        self.inventory.pfs.iter().find(|pf| pf.address == address)
    }

    /// Adds what the kubelet says of devices. It names pods as people do, so its words replace those of a journal.
    pub fn add_held(&mut self, held: BTreeMap<PciAddress, Held>) {
        for (vf, Held { by, resource }) in held {
            let user = match self.vfs_in_use.get(&vf) {
                Some(journal) if !journal.starts_with(&by) => format!("{by}, {journal}"),
                _ => by,
            };
            self.vfs_in_use.insert(vf, user);
            self.resources.insert(vf, resource);
        }
    }

    /// Adds the bridges. That a PF is a port of one of ours is no use of the host's own.
    pub fn add_bridges(&mut self, bridges: Bridges) {
        for pf in &mut self.inventory.pfs {
            if pf.netdev.as_ref().is_some_and(|netdev| bridges.holds(&netdev.name)) {
                pf.facts.uses.retain(|used| !is_port_of_a_switch(used));
            }
        }
        self.bridges = Some(bridges);
    }

    /// Bridges are not looked after now. That a PF is a port of a switch is no use of the host's own where a bridge of it was kept as ours: Open vSwitch
    /// remembers its ports over a reboot and takes them before anybody is there who looks after bridges.
    pub fn leave_bridges(&mut self, kept: &BTreeMap<String, OvsBridge>) {
        let ours: BTreeSet<PciAddress> = kept.values().filter_map(pf_of).collect();
        for pf in self.inventory.pfs.iter_mut().filter(|pf| ours.contains(&pf.address)) {
            pf.facts.uses.retain(|used| !is_port_of_a_switch(used));
        }
    }

    /// Who uses a VF, if anyone does: a pod, by the CNI's journal; the host itself, by what is on the VF's netdev; or somebody unknown, when a
    /// kernel driver has the VF and its netdev is not in the namespace where the PF's is, so it was moved away.
    pub fn user_of(&self, pf: &Pf, vf: &Vf) -> Option<User> {
        if let Some(user) = self.vfs_in_use.get(&vf.address) {
            return Some(User::Pod(user.clone()));
        }
        if let Some(first) = vf.facts.uses.first() {
            return Some(User::Host(first.to_string()));
        }
        let moved = vf.driver.as_deref().is_some_and(|driver| !is_userspace(driver)) && vf.netdev.is_none() && (pf.netdev.is_some() || pf.facts.lone);
        moved.then_some(User::Unknown)
    }
}

fn is_port_of_a_switch(used: &HostUse) -> bool {
    matches!(used, HostUse::Upper { kind, .. } if kind == "openvswitch")
}

/// Who uses a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A pod, as the CNI wrote it down.
    Pod(String),
    /// The host, for this.
    Host(String),
    /// Somebody in another network namespace, of whom no journal tells.
    Unknown,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => f.write_str(pod),
            Self::Host(what) => write!(f, "the host: {what}"),
            Self::Unknown => f.write_str("another network namespace"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn nics_are_listed_by_vendor_and_pf_device() {
        let data: BTreeMap<String, String> =
            [("igb", "8086 10c9 10ca"), ("short", "8086 10c9"), ("words", "intel igb igbvf"), ("spaces", "  15b3\t101d  101e ")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        let nics = SupportedNics::read(&data);
        assert!(nics.contains(VendorId(0x8086), DeviceId(0x10c9)));
        assert!(nics.contains(VendorId(0x15b3), DeviceId(0x101d)));
        assert!(!nics.contains(VendorId(0x8086), DeviceId(0x10ca)), "a VF's id does not list its PF");
        assert_eq!(nics.unreadable.len(), 2, "{:?}", nics.unreadable);
        assert!(nics.unreadable[0].starts_with("entry short of ConfigMap supported-nic-ids"));
    }

    #[test]
    fn the_whole_default_list_of_the_field_is_shipped() {
        let chart = include_str!("../../deploy/chart/templates/supported-nic-ids.yaml");
        let entries: BTreeMap<String, String> = chart
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_once(": \""))
            .map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned()))
            .collect();
        let nics = SupportedNics::read(&entries);
        assert_eq!((entries.len(), nics.pfs.len(), nics.unreadable.len()), (48, 48, 0), "{:?}", nics.unreadable);
        // As the Go operator's list has them: Intel, NVIDIA, Broadcom, QLogic, virtio, Marvell, Amazon.
        for (vendor, count) in [(0x8086, 25), (0x15b3, 12), (0x14e4, 2), (0x1077, 1), (0x1af4, 2), (0x177d, 5), (0x1d0f, 1)] {
            assert_eq!(nics.pfs.iter().filter(|(of, _)| of.0 == vendor).count(), count, "{vendor:04x}");
        }
        let mut vfs: Vec<&str> = entries.values().filter_map(|entry| entry.split(' ').nth(2)).collect();
        vfs.sort_unstable();
        vfs.dedup();
        let field = [
            "1000", "1014", "1016", "1018", "101a", "101c", "101e", "1041", "10ca", "154c", "1565", "1664", "16dc", "1806", "1889", "b103", "b203",
            "b603", "b903", "ba03", "ec20",
        ];
        assert_eq!(vfs, field);
    }

    #[test]
    fn a_record_keeps_the_form_of_the_field() {
        let text = r#"{"pciAddress":"0000:01:00.0","name":"enp1s0","numVfs":2,"vfGroups":[{"resourceName":"a","vfRange":"0-1"}]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.original_mtu, None);
        let ours = Record { original_mtu: Some(1500), ..record };
        let written: serde_json::Value = serde_json::to_value(&ours).unwrap();
        assert_eq!(written["pciAddress"], "0000:01:00.0");
        assert_eq!(written["originalMtu"], 1500);
        assert_eq!(serde_json::from_value::<Record>(written).unwrap(), ours);
    }
}
