//! Pure: one selector of a resource, from JSON.
//!
//! Invariant: a key that has no meaning for the resource's device type is refused, not overlooked: it would offer more devices than meant.

use serde_json::Value;
use sriov_host::inventory::LinkType;
use sriov_host::pci::{DeviceId, PciAddress, VendorId};

use super::fields::Fields;
use super::{ConfigError, DeviceType, Place, Ranged};
use crate::pool::{Needs, VdpaType};

/// One selector: its keys are ANDed, the values of a key are ORed, an empty key takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// PCI vendors.
    pub vendors: Vec<VendorId>,
    /// PCI device ids.
    pub devices: Vec<DeviceId>,
    /// Names of bound drivers.
    pub drivers: Vec<String>,
    /// PCI addresses of the devices themselves.
    pub pci_addresses: Vec<PciAddress>,
    /// The firmware's numbers of slots.
    pub acpi_indexes: Vec<String>,
    /// PFs by name, each with VF indexes.
    pub pf_names: Vec<Ranged<String>>,
    /// PFs by PCI address, each with VF indexes.
    pub root_devices: Vec<Ranged<PciAddress>>,
    /// Link layers.
    pub link_types: Vec<LinkType>,
    /// Names of the DDP profile that the PF has loaded.
    pub ddp_profiles: Vec<String>,
    /// First partition keys of the RDMA device, as sysfs writes them.
    pub p_keys: Vec<String>,
    /// What goes with each device. RDMA and vDPA also select: a device without is not taken.
    pub needs: Needs,
}

/// The keys that select by what only a network controller has.
const NETWORK_KEYS: [&str; 9] = ["acpiIndexes", "pfNames", "rootDevices", "linkTypes", "ddpProfiles", "pKeys", "isRdma", "vdpaType", "needVhostNet"];

const ONLY_NETWORK: &str = "only with deviceType netDevice";

/// Reads the selector at `path` (`selectors[1].`) of a resource of this type.
pub(super) fn read(place: &Place, path: String, value: Value, device_type: DeviceType) -> Result<Selector, ConfigError> {
    let base = path.clone();
    let mut fields = Fields::open(place, path, value)?;
    let given: Vec<&str> = NETWORK_KEYS.into_iter().filter(|key| fields.has_value(key)).collect();
    let selector = Selector {
        vendors: fields.list("vendors", "a list of PCI vendor ids such as 8086", |text| text.parse().ok())?,
        devices: fields.list("devices", "a list of PCI device ids such as 10ca", |text| text.parse().ok())?,
        drivers: fields.list("drivers", "a list of driver names", word)?,
        pci_addresses: fields.list("pciAddresses", "a list of PCI addresses such as 0000:01:10.0", |text| text.parse().ok())?,
        pf_names: fields
            .list("pfNames", "a list of PF names, each alone or with VF indexes such as ens1f0#0-3,5", |text| Ranged::parse(text, word))?,
        root_devices: fields.list(
            "rootDevices",
            "a list of PCI addresses of PFs, each alone or with VF indexes such as 0000:01:00.0#0-3,5",
            |text| Ranged::parse(text, |address| address.parse().ok()),
        )?,
        link_types: fields.list("linkTypes", "a list of ether and infiniband", link_type)?,
        needs: needs(&mut fields)?,
        acpi_indexes: fields
            .list("acpiIndexes", "a list of numbers as texts", |text| word(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())))?,
        ddp_profiles: fields.list("ddpProfiles", "a list of names of DDP profiles", word)?,
        p_keys: fields.list("pKeys", "a list of partition keys such as 0x8001", |text| p_key(text).then(|| text.to_ascii_lowercase()))?,
    };
    if !fields.list("auxTypes", "a list of texts", word)?.is_empty() {
        return Err(fields.bad("auxTypes", &Value::from("a non-empty list"), "only with deviceType auxNetDevice"));
    }
    fields.finish()?;
    match given.first() {
        Some(key) if device_type == DeviceType::Accelerator => Err(ConfigError::ReadKey {
            place: place.clone(),
            key: format!("{base}{key}"),
            given: "a value".to_owned(),
            allowed: ONLY_NETWORK.to_owned(),
        }),
        _ => Ok(selector),
    }
}

fn needs(fields: &mut Fields<'_>) -> Result<Needs, ConfigError> {
    let vhost_net = fields.flag("needVhostNet")?;
    let rdma = fields.flag("isRdma")?;
    let vdpa = match fields.text("vdpaType", "vhost or virtio")?.as_deref() {
        None | Some("") => None,
        Some(kind) if rdma => return Err(fields.bad("vdpaType", &Value::from(kind), "only without isRdma in the same selector")),
        Some("vhost") => Some(VdpaType::Vhost),
        Some("virtio") => Some(VdpaType::Virtio),
        Some(kind) => return Err(fields.bad("vdpaType", &Value::from(kind), "vhost or virtio")),
    };
    Ok(Needs { rdma, vdpa, vhost_net })
}

fn word(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn p_key(text: &str) -> bool {
    text.strip_prefix("0x").is_some_and(|digits| (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn link_type(text: &str) -> Option<LinkType> {
    match text {
        "ether" => Some(LinkType::Ether),
        "infiniband" => Some(LinkType::Infiniband),
        _ => None,
    }
}
