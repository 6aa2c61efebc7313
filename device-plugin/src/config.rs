//! Pure: the public `config.json` of the Go device plugin (spec of `sriov-network-device-plugin`, README "Configurations"), from text to pools.
//!
//! What does not live here: reading the file (`run`), matching devices (`select`).
//!
//! Invariant: strict, and a bad resource never hides the good ones: each is read on its own, and an error names file, resource and key.
//! Keys are matched without regard to case, as Go's decoder does: the Go operator itself writes `IsRdma` and `NeedVhostNet`.

mod fields;
mod ranged;
mod selector;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;
use sriov_host::pci::PciAddress;

pub use ranged::Ranged;
pub use selector::{Selector, Span};

use crate::pool::{PoolName, Preference};
use fields::Fields;

/// What a config file asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The good resources, in file order, which is the order in which they choose devices.
    pub pools: Vec<PoolSpec>,
    /// One error for each resource that was left out.
    pub errors: Vec<ConfigError>,
}

/// One resource of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Prefix and name.
    pub name: PoolName,
    /// True: the kubelet is told no NUMA node.
    pub exclude_topology: bool,
    /// Which PCI functions can be in it.
    pub device_type: DeviceType,
    /// How several devices for one container go together (`allocationPolicy`, not in the Go plugin).
    pub preference: Option<Preference>,
    /// A device whose PF has no carrier is unhealthy (`carrierPolicy: unhealthy`, not in the Go plugin).
    pub needs_carrier: bool,
    /// These are offered although the host itself uses them (`allowInUse`, not in the Go plugin).
    pub allow_in_use: Vec<PciAddress>,
    /// A device that one of them takes is in the pool.
    pub selectors: Vec<Selector>,
    /// Free keys for the `extra` part of the `_INFO` variable: `*` or a PCI address (of a subfunction that of its parent), then key and value.
    pub additional_info: BTreeMap<String, BTreeMap<String, String>>,
}

/// Which PCI functions a resource is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceType {
    /// Network controllers.
    #[default]
    NetDevice,
    /// Processing accelerators.
    Accelerator,
    /// Subfunctions.
    AuxNetDevice,
}

impl DeviceType {
    /// The word of the format.
    pub fn word(self) -> &'static str {
        match self {
            Self::NetDevice => "netDevice",
            Self::Accelerator => "accelerator",
            Self::AuxNetDevice => "auxNetDevice",
        }
    }
}

/// Where an error is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was given on the command line.
    pub file: String,
    /// The resource's name, or `number N` (from 1) while it has none.
    pub resource: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: resource {}", self.file, self.resource)
    }
}

/// Why a file or one of its resources was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object with a list `resourceList`.
    #[error("{file}: failed to read as a device plugin configuration: {reason}")]
    ReadFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key with a value that it cannot have.
    #[error("{place}: {key}: {given} was given, allowed is {allowed}")]
    ReadKey {
        /// Where.
        place: Place,
        /// The key, with its position (`selectors[1].vendors`).
        key: String,
        /// The value, as JSON.
        given: String,
        /// What may be there.
        allowed: String,
    },
    /// A key that must be there is not.
    #[error("{place}: {key}: missing, allowed is {allowed}")]
    MissKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What may be there.
        allowed: &'static str,
    },
    /// A key that the format does not have. Ignoring it would offer more devices than its writer meant.
    #[error("{place}: {key}: not a key of this format, known here are {known}")]
    RefuseKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The keys that are known at this position.
        known: String,
    },
    /// Two resources with one name; the first stays.
    #[error("{place}: resourceName: {name} was given before, allowed is each prefix and name once")]
    RepeatName {
        /// Where.
        place: Place,
        /// Prefix and name.
        name: PoolName,
    },
}

const DEVICE_TYPES: &str = "netDevice, accelerator or auxNetDevice";
const PREFERENCES: &str = "pack, spread, differentPf, sameNuma or samePcieRoot";
const CARRIER_POLICIES: &str = "ignore or unhealthy";
const RESOURCE_NAME: &str = "a text of letters, digits, _ and -";

/// Reads the text of `file`; `default_prefix` is for resources without `resourcePrefix`. An error is about the file as a whole.
pub fn parse(file: &str, text: &str, default_prefix: &str) -> Result<Config, ConfigError> {
    let refuse = |reason: String| ConfigError::ReadFile { file: file.to_owned(), reason };
    let value: Value = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
    let Value::Object(mut top) = value else {
        return Err(refuse("not a JSON object".to_owned()));
    };
    let key = top.keys().find(|key| key.eq_ignore_ascii_case("resourceList")).cloned();
    let resources = match key.and_then(|key| top.remove(&key)) {
        Some(Value::Array(resources)) => resources,
        // Go encodes an empty list that was never filled as null.
        Some(Value::Null) => Vec::new(),
        Some(_) => return Err(refuse("resourceList is not a list".to_owned())),
        None => return Err(refuse("the key resourceList is missing".to_owned())),
    };
    if let Some(key) = top.keys().next() {
        return Err(refuse(format!("{key:?} is not a key of this format, known here is resourceList")));
    }

    let mut config = Config::default();
    let mut names = BTreeSet::new();
    for (position, value) in resources.into_iter().enumerate() {
        let place = Place { file: file.to_owned(), resource: resource_label(&value, position) };
        match resource(&place, value, default_prefix) {
            Ok(pool) if names.insert(pool.name.clone()) => config.pools.push(pool),
            Ok(pool) => config.errors.push(ConfigError::RepeatName { place, name: pool.name }),
            Err(error) => config.errors.push(error),
        }
    }
    Ok(config)
}

fn resource_label(value: &Value, position: usize) -> String {
    let name = value.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case("resourceName")));
    name.and_then(|(_, name)| name.as_str()).map_or_else(|| format!("number {}", position + 1), str::to_owned)
}

fn resource(place: &Place, value: Value, default_prefix: &str) -> Result<PoolSpec, ConfigError> {
    let mut fields = Fields::open(place, String::new(), value)?;
    let resource = fields.text("resourceName", RESOURCE_NAME)?.ok_or_else(|| fields.missing("resourceName", RESOURCE_NAME))?;
    let prefix = fields.text("resourcePrefix", "a DNS name")?.filter(|prefix| !prefix.is_empty());
    let device_type = device_type(&mut fields)?;
    let exclude_topology = fields.flag("excludeTopology")?;
    let preference = preference(&mut fields)?;
    let needs_carrier = match fields.text("carrierPolicy", CARRIER_POLICIES)?.as_deref() {
        None | Some("ignore") => false,
        Some("unhealthy") => true,
        Some(other) => return Err(fields.bad("carrierPolicy", &Value::from(other), CARRIER_POLICIES)),
    };
    let allow_in_use = fields.list("allowInUse", "a list of PCI addresses such as 0000:01:00.0", |text| text.parse().ok())?;
    let additional_info = additional_info(&mut fields)?;
    let selectors = fields.take("selectors").ok_or_else(|| fields.missing("selectors", "one selector object, or a list of them"))?;
    // The Go operator writes this remnant of the Go type; it never had a meaning in the file.
    fields.take("SelectorObjs");
    fields.finish()?;

    let prefix = prefix.unwrap_or_else(|| default_prefix.to_owned());
    let name = PoolName::new(&prefix, &resource).map_err(|error| ConfigError::ReadKey {
        place: place.clone(),
        key: error.key.to_owned(),
        given: format!("{:?}", error.given),
        allowed: error.allowed.to_owned(),
    })?;
    let selectors = match selectors {
        Value::Array(list) => {
            let read = |(i, value)| selector::read(place, format!("selectors[{i}]."), value, device_type);
            list.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?
        }
        object => vec![selector::read(place, "selectors.".to_owned(), object, device_type)?],
    };
    Ok(PoolSpec { name, exclude_topology, device_type, preference, needs_carrier, allow_in_use, selectors, additional_info })
}

fn device_type(fields: &mut Fields<'_>) -> Result<DeviceType, ConfigError> {
    match fields.text("deviceType", DEVICE_TYPES)?.as_deref() {
        None | Some("" | "netDevice") => Ok(DeviceType::NetDevice),
        Some("accelerator") => Ok(DeviceType::Accelerator),
        Some("auxNetDevice") => Ok(DeviceType::AuxNetDevice),
        Some(other) => Err(fields.bad("deviceType", &Value::from(other), DEVICE_TYPES)),
    }
}

fn preference(fields: &mut Fields<'_>) -> Result<Option<Preference>, ConfigError> {
    Ok(Some(match fields.text("allocationPolicy", PREFERENCES)?.as_deref() {
        None => return Ok(None),
        Some("pack") => Preference::Pack,
        Some("spread") => Preference::Spread,
        Some("differentPf") => Preference::DifferentPf,
        Some("sameNuma") => Preference::SameNuma,
        Some("samePcieRoot") => Preference::SamePcieRoot,
        Some(other) => return Err(fields.bad("allocationPolicy", &Value::from(other), PREFERENCES)),
    }))
}

fn additional_info(fields: &mut Fields<'_>) -> Result<BTreeMap<String, BTreeMap<String, String>>, ConfigError> {
    let Some(value) = fields.take("additionalInfo") else {
        return Ok(BTreeMap::new());
    };
    let allowed = "an object of * or PCI addresses, each an object of texts";
    let info: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_value(value.clone()).map_err(|_| fields.bad("additionalInfo", &value, allowed))?;
    let mut canonical = BTreeMap::new();
    for (device, keys) in info {
        let device = match device.parse::<PciAddress>() {
            Ok(address) => address.to_string(),
            Err(_) if device == "*" => device,
            Err(_) => return Err(fields.bad("additionalInfo", &Value::from(device), allowed)),
        };
        canonical.insert(device, keys);
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests;
