//! Pure: one selector of a resource, from JSON.
//!
//! Invariant: a key that has no meaning for the resource's device type is refused, not overlooked: it would offer more devices than meant.

use std::ops::RangeInclusive;

use serde_json::Value;
use sriov_host::inventory::{EswitchMode, LinkType};
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
    /// Vendors of the board.
    pub subsystem_vendors: Vec<VendorId>,
    /// Device ids of the board.
    pub subsystem_devices: Vec<DeviceId>,
    /// The firmware's numbers of slots.
    pub acpi_indexes: Vec<Span>,
    /// NUMA nodes.
    pub numa_nodes: Vec<Span>,
    /// PCI roots (`pci0000:3a`).
    pub pcie_roots: Vec<String>,
    /// Speeds of the PF's link in Mbit/s.
    pub link_speeds: Vec<Span>,
    /// Versions of the PF's firmware; one that ends in `*` stands for all that begin so.
    pub firmware_versions: Vec<String>,
    /// Modes of the PF's eswitch.
    pub eswitch_modes: Vec<EswitchMode>,
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

/// Inclusive bounds.
pub type Span = RangeInclusive<u32>;

/// The keys of the format, and beyond it ours.
const KEYS: [&str; 21] = [
    "vendors",
    "devices",
    "drivers",
    "subsystemVendors",
    "subsystemDevices",
    "numaNodes",
    "pcieRoots",
    "pciAddresses",
    "acpiIndexes",
    "pfNames",
    "rootDevices",
    "linkTypes",
    "linkSpeeds",
    "firmwareVersions",
    "eswitchModes",
    "ddpProfiles",
    "pKeys",
    "isRdma",
    "vdpaType",
    "needVhostNet",
    "auxTypes",
];

/// Whether a key means something for devices of this type.
fn has_meaning(key: &str, device_type: DeviceType) -> bool {
    match key {
        "vendors" | "devices" | "drivers" | "subsystemVendors" | "subsystemDevices" | "numaNodes" | "pcieRoots" => true,
        "pciAddresses" => device_type != DeviceType::AuxNetDevice,
        "pfNames" | "rootDevices" | "linkTypes" | "linkSpeeds" | "firmwareVersions" | "eswitchModes" | "isRdma" | "needVhostNet" => {
            device_type != DeviceType::Accelerator
        }
        "auxTypes" => device_type == DeviceType::AuxNetDevice,
        _ => device_type == DeviceType::NetDevice,
    }
}

const SPANS: &str = "a list of numbers and ranges as texts such as 3 and 10-20";

/// Reads the selector at `path` (`selectors[1].`) of a resource of this type.
pub(super) fn read(place: &Place, path: String, value: Value, device_type: DeviceType) -> Result<Selector, ConfigError> {
    let mut fields = Fields::open(place, path, value)?;
    if let Some(key) = KEYS.into_iter().find(|key| fields.has_value(key) && !has_meaning(key, device_type)) {
        return Err(fields.bad(key, &Value::from("a value"), &format!("nothing with deviceType {}", device_type.word())));
    }
    let selector = Selector {
        vendors: fields.list("vendors", "a list of PCI vendor ids such as 8086", |text| text.parse().ok())?,
        devices: fields.list("devices", "a list of PCI device ids such as 10ca", |text| text.parse().ok())?,
        drivers: fields.list("drivers", "a list of driver names", word)?,
        subsystem_vendors: fields.list("subsystemVendors", "a list of PCI vendor ids such as 1028", |text| text.parse().ok())?,
        subsystem_devices: fields.list("subsystemDevices", "a list of PCI device ids such as 1f9b", |text| text.parse().ok())?,
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
        acpi_indexes: fields.list("acpiIndexes", SPANS, span)?,
        numa_nodes: fields.list("numaNodes", SPANS, span)?,
        pcie_roots: fields.list("pcieRoots", "a list of PCI roots such as pci0000:3a", |text| word(text).filter(|text| text.starts_with("pci")))?,
        link_speeds: fields.list("linkSpeeds", "a list of speeds and ranges in Mbit/s as texts such as 25000-100000", span)?,
        firmware_versions: fields.list("firmwareVersions", "a list of versions, or beginnings of them with * behind", word)?,
        eswitch_modes: fields.list("eswitchModes", "a list of legacy and switchdev", eswitch_mode)?,
        ddp_profiles: fields.list("ddpProfiles", "a list of names of DDP profiles", word)?,
        p_keys: fields.list("pKeys", "a list of partition keys such as 0x8001", |text| p_key(text).then(|| text.to_ascii_lowercase()))?,
    };
    let aux_types = fields.list("auxTypes", "a list of sf", |text| (text == "sf").then_some(()))?;
    if device_type == DeviceType::AuxNetDevice && aux_types.is_empty() {
        return Err(fields.missing("auxTypes", "a list of sf"));
    }
    fields.finish()?;
    Ok(selector)
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

fn span(text: &str) -> Option<Span> {
    // `parse` also takes a sign.
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u32, u32) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

fn eswitch_mode(text: &str) -> Option<EswitchMode> {
    match text {
        "legacy" => Some(EswitchMode::Legacy),
        "switchdev" => Some(EswitchMode::Switchdev),
        _ => None,
    }
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
