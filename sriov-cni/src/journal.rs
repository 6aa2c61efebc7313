//! Pure: what is remembered of an attachment between ADD and DEL, one file a VF. Written before the first change of the machine.
//!
//! What does not live here: reading and writing the files (`state`), and the records of the Go plugin.
//!
//! Invariant: `original` is what was there before any write, `applied` is all that may have been written. Together they bring the VF back from
//! any point at which the process may have died, whatever `phase` says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sriov_host::mac::MacAddr;
use sriov_host::pci::PciAddress;
use sriov_host::vf::{VfAttributes, VfIndex, VfSetting};

use crate::result::CniResult;
use crate::vlan_set::VlanSet;
use serde_json::Value;
use sriov_host::device_id::DeviceId;

/// The version of the form below. A file of another version is not touched.
pub const VERSION: u32 = 1;

/// [`Journal::attempt`] of one that is made from a record of the Go plugin.
pub(crate) const ATTEMPT_GO: &str = "go";
/// [`Journal::attempt`] of one that is made up for a VF whose own is lost.
pub(crate) const ATTEMPT_LOST: &str = "lost";

/// One attachment of one VF.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// [`VERSION`].
    pub version: u32,
    /// How far ADD is known to have come.
    pub phase: Phase,
    /// Tells two runs of ADD by the same owner apart.
    pub attempt: String,
    /// `/proc/sys/kernel/random/boot_id` at ADD: after a reboot a VF is as fresh as its driver makes it, and inode numbers mean nothing.
    pub boot_id: String,
    /// `name` of the network, for GC.
    pub network: String,
    /// Whose attachment it is.
    pub owner: Owner,
    /// The VF or sub-function.
    pub vf: DeviceId,
    /// Its PF, which is known by its address because names change; `None` in a virtual machine that was given the VF alone.
    pub pf: Option<PciAddress>,
    /// Its index on the PF.
    pub index: VfIndex,
    /// The driver that hands it to a program; `None` for a VF with a netdev.
    pub userspace_driver: Option<String>,
    /// The kernel driver at ADD (for quirks); `None` for a userspace VF.
    #[serde(default)]
    pub kernel_driver: Option<String>,
    /// What was there.
    pub original: Original,
    /// What may have been changed.
    pub applied: Applied,
    /// RDMA devices that may have been moved along. Known only after the VF has its settings, so that the journal is written once more for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rdma: Vec<RdmaRecord>,
    /// `ipam` of the configuration: what has to get the addresses back, also when the network has another by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Value>,
    /// Beside it stand records in the Go plugin's form; when they are gone, the Go plugin has detached the container.
    #[serde(default, skip_serializing_if = "is_false")]
    pub go_records: bool,
    /// The device-info file that this ADD writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info: Option<PathBuf>,
    /// The result of a complete ADD, given again to a repeated ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<CniResult>,
}

/// How far an ADD is known to have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The journal is written; anything between "nothing" and "all but the result" may have happened.
    Prepared,
    /// The attachment is complete.
    Attached,
}

/// Whose an attachment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_NETNS` at ADD.
    pub netns_path: PathBuf,
    /// Device number of the namespace behind that path.
    pub netns_dev: u64,
    /// Inode number of it. Together they tell a living namespace from a new one under an old path.
    pub netns_inode: u64,
}

/// What was there before the first write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Original {
    /// The VF's netdev; `None` for a userspace VF.
    pub netdev: Option<OriginalNetdev>,
    /// What the PF reported of the VF; `None` when nothing was asked of the PF.
    pub attributes: Option<VfAttributes>,
    /// The trunk, if one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<VlanSet>,
}

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaRecord {
    /// Its number in the RDMA core, which neither a move nor a rename changes.
    pub index: u32,
    /// Its name in the host.
    pub name: String,
}

/// A VF's netdev in the host's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OriginalNetdev {
    /// Name.
    pub name: String,
    /// The device that it belongs to, where that is not the VF itself (`virtio3` of a vDPA device).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Alternative names.
    pub alt_names: Vec<String>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Set to receive all frames.
    #[serde(default, skip_serializing_if = "is_false")]
    pub promisc: bool,
    /// Set to receive all multicast frames.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allmulti: bool,
}

/// What ADD may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Through the PF.
    pub settings: Vec<VfSetting>,
    /// The netdev's hardware address.
    pub mac: Option<MacAddr>,
    /// The netdev's MTU in bytes.
    pub mtu: Option<u32>,
    /// The trunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<VlanSet>,
}

impl Journal {
    /// Whether `original` has the netdev's alternative names: the Go plugin records none.
    pub(crate) fn knows_alt_names(&self) -> bool {
        self.attempt != ATTEMPT_GO && self.attempt != ATTEMPT_LOST
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Owner {
    /// Whether it is the same attachment: an identifier names a container for ever, a namespace path does not.
    pub fn is(&self, container_id: &str, if_name: &str) -> bool {
        self.container_id == container_id && self.if_name == if_name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The config daemon reads `owner` and `vf` with a parser of its own, so that the spelling is a contract.
    #[test]
    fn the_form_on_disk_is_the_contract() {
        let golden = include_str!("../testdata/journal/v1.json");
        let journal: Journal = serde_json::from_str(golden).unwrap();
        assert_eq!(journal.owner.netns_inode, 4_026_532_500);
        assert!(journal.owner.is("c0ffee", "net1") && !journal.owner.is("c0ffee", "net2"));
        assert_eq!(serde_json::to_value(&journal).unwrap(), serde_json::from_str::<Value>(golden).unwrap());
    }
    #[test]
    fn what_few_devices_need_comes_back_too() {
        let mut journal: Journal = serde_json::from_str(include_str!("../testdata/journal/v1.json")).unwrap();
        journal.vf = "mlx5_core.sf.4".parse().unwrap();
        journal.rdma = vec![RdmaRecord { index: 7, name: "mlx5_7".to_owned() }];
        journal.ipam = Some(serde_json::json!({"type": "host-local"}));
        journal.original.trunk = Some(VlanSet::default());
        journal.applied.trunk = Some("1-10,20".parse().unwrap());
        let guid = "c2:11:22:33:44:55:66:77".parse().unwrap();
        journal.applied.settings = vec![VfSetting::NodeGuid(guid), VfSetting::PortGuid(guid)];
        let text = serde_json::to_string(&journal).unwrap();
        assert_eq!(serde_json::from_str::<Journal>(&text).unwrap(), journal);
        assert!(text.contains(r#""trunk":"1-10,20""#) && text.contains(r#""rdma":[{"index":7,"name":"mlx5_7"}]"#), "{text}");
    }
}
