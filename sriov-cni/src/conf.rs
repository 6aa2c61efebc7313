//! Pure: the network configuration on standard input: wire form in, strict meaning out.
//!
//! Two steps, because they serve two promises. [`NetConf::parse`] takes what every verb needs and forgives the rest, so that DEL works even for
//! a configuration that this version would refuse. [`NetConf::vf_request`] is what ADD and CHECK use: each key is known, of its type, in its
//! range, and each error names the key, what was given and what is allowed.
//!
//! What does not live here: anything that needs the machine.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use sriov_host::guid::Guid;
use sriov_host::mac::MacAddr;
use sriov_host::rate::Mbps;
use sriov_host::vf::VfLinkState;
use sriov_host::vlan::{VlanId, VlanProto, VlanQos};

pub(crate) use crate::conf::requested::device_id;
use crate::conf::requested::{check_infiniband, device_value, requested_guid, requested_mac, requested_trunk, requested_vlan};
use crate::conf::values::{flag, invalid, number, one_of, switch, text};
use crate::log::Level;
use crate::request::is_identifier;
use crate::version::{CniVersion, UnsupportedVersion};
use crate::vlan_set::VlanSet;
use sriov_host::device_id::DeviceId;

mod requested;
mod values;

/// Where state is kept unless `stateDir` says otherwise. The config daemon reads the journals below it.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/cni/sriov";

/// How long a call may wait altogether unless `deadlineSeconds` says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// What each verb needs of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`: the form of results and errors.
    pub version: CniVersion,
    /// `name` of the network.
    pub name: String,
    /// The VF or sub-function: `deviceID`, else `runtimeConfig.deviceID`, else `pciBusID`; `None` when absent or malformed.
    pub device: Option<DeviceId>,
    /// `ipam.type`; `None` without IPAM.
    pub ipam: Option<String>,
    /// `stateDir`, absolute.
    pub state_dir: PathBuf,
    /// `deadlineSeconds`.
    pub deadline: Duration,
    /// `runtimeConfig.CNIDeviceInfoFile`, where the runtime reads what the device is.
    pub device_info_file: Option<PathBuf>,
    /// `logLevel`.
    pub log_level: Level,
    /// `logFile`; `None` is standard error.
    pub log_file: Option<PathBuf>,
    /// `prevResult`, given with CHECK and DEL.
    pub prev_result: Option<Value>,
    /// `cni.dev/valid-attachments`, given with GC.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    wire: Map<String, Value>,
}

/// An attachment that the runtime still knows (GC).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// Container id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface name in the container.
    pub ifname: String,
}

/// What ADD is asked to do with a VF. An absent value means: leave it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfRequest {
    /// The VF or sub-function.
    pub device: DeviceId,
    /// MAC for the VF and its netdev.
    pub mac: Option<MacAddr>,
    /// MTU of the netdev in bytes.
    pub mtu: Option<u32>,
    /// Receive all multicast frames.
    pub allmulti: Option<bool>,
    /// Receive all frames.
    pub promisc: Option<bool>,
    /// Port VLAN; id 0 asks for "no tag", which is not the same as absent.
    pub vlan: Option<VlanRequest>,
    /// Guaranteed transmit rate.
    pub min_tx_rate: Option<Mbps>,
    /// Transmit rate limit.
    pub max_tx_rate: Option<Mbps>,
    /// Drop frames with a foreign source MAC.
    pub spoof_check: Option<bool>,
    /// Let the VF change its MAC and filters.
    pub trust: Option<bool>,
    /// Link state that the VF is shown.
    pub link_state: Option<VfLinkState>,
    /// Tagged VLANs that the PF lets through.
    pub trunk: Option<VlanSet>,
    /// Identifier of an InfiniBand VF's adapter and port.
    pub guid: Option<Guid>,
    /// Whether its RDMA device goes along; absent: where RDMA devices belong to one namespace.
    pub rdma_isolation: Option<bool>,
    /// The network is for programs alone: a VF with a netdev is refused.
    pub vfio_pci_mode: bool,
}

/// A port VLAN. Priority and protocol default to 0 and 802.1q, as in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanRequest {
    /// VLAN id.
    pub id: VlanId,
    /// Priority.
    pub qos: VlanQos,
    /// Tag protocol.
    pub proto: VlanProto,
}

/// A configuration that can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// Not JSON, or not an object. CNI error code 6.
    #[error("failed to decode the network configuration: {0}")]
    Decode(serde_json::Error),
    /// CNI error code 1.
    #[error(transparent)]
    Version(#[from] UnsupportedVersion),
    /// CNI error code 2.
    #[error("unknown key {key:?} with value {value}{}", hint.as_ref().map(|k| format!(": did you mean {k:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The known key that differs only in case, '-' and '_'.
        hint: Option<&'static str>,
    },
    /// CNI error code 7.
    #[error("{key} is {given}: allowed is {allowed}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        given: String,
        /// What it may be.
        allowed: String,
    },
    /// CNI error code 7.
    #[error("{key} is missing: {hint}")]
    Missing {
        /// The key.
        key: &'static str,
        /// The likely cause.
        hint: &'static str,
    },
}

/// Keys that mean something here.
const OWN_KEYS: [&str; 21] = [
    "vlan",
    "vlanQoS",
    "vlanProto",
    "mac",
    "mtu",
    "min_tx_rate",
    "max_tx_rate",
    "spoofchk",
    "trust",
    "link_state",
    "allmulti",
    "promisc",
    "vlanTrunk",
    "pkey",
    "rdmaIsolation",
    "ibKubernetesEnabled",
    "vfioPciMode",
    "deadlineSeconds",
    "logLevel",
    "logFile",
    "stateDir",
];
/// Keys of CNI itself and those that libcni and Multus put into each configuration; `cni.dev/*` too.
const CARRIED_KEYS: [&str; 14] = [
    "cniVersion",
    "name",
    "type",
    "ipam",
    "dns",
    "capabilities",
    "runtimeConfig",
    "args",
    "prevResult",
    "deviceID",
    "pciBusID",
    "resourceName",
    "disableCheck",
    "disableGC",
];

impl NetConf {
    /// The configuration as it was given.
    pub(crate) fn wire(&self) -> &Map<String, Value> {
        &self.wire
    }

    /// Reads what every verb needs.
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfError> {
        let wire: Map<String, Value> = serde_json::from_slice(stdin).map_err(ConfError::Decode)?;
        let version = text(&wire, "cniVersion")?.unwrap_or_default().parse()?;
        let name = text(&wire, "name")?.ok_or(ConfError::Missing { key: "name", hint: "each network has a name" })?;
        if !is_identifier(name) {
            return Err(invalid("name", &wire["name"], "a letter or digit, then letters, digits, '_', '.' and '-'"));
        }
        let state_dir = match text(&wire, "stateDir")? {
            None => PathBuf::from(DEFAULT_STATE_DIR),
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            Some(_) => return Err(invalid("stateDir", &wire["stateDir"], "an absolute path")),
        };
        let valid_attachments = match wire.get("cni.dev/valid-attachments") {
            None | Some(Value::Null) => None,
            Some(value) => {
                Some(Vec::deserialize(value).map_err(|_| invalid("cni.dev/valid-attachments", value, "a list of {\"containerID\", \"ifname\"}"))?)
            }
        };
        Ok(Self {
            version,
            name: name.to_owned(),
            device: device_value(&wire).and_then(|(_, id)| device_id(id.as_str()?)),
            ipam: ipam_type(&wire)?,
            state_dir,
            deadline: number(&wire, "deadlineSeconds", DEADLINE_SECONDS).ok().flatten().map_or(DEFAULT_DEADLINE, |s| Duration::from_secs(s.into())),
            device_info_file: device_info_file(&wire).ok().flatten(),
            log_level: text(&wire, "logLevel").ok().flatten().and_then(Level::parse).unwrap_or_default(),
            // A relative one is refused by ADD; for no verb does it name a file in whatever folder the runtime runs it.
            log_file: text(&wire, "logFile").ok().flatten().map(PathBuf::from).filter(|path| path.is_absolute()),
            prev_result: wire.get("prevResult").filter(|v| !v.is_null()).cloned(),
            valid_attachments,
            wire,
        })
    }

    /// The strict reading, for ADD and CHECK. `args_mac` is the MAC of CNI_ARGS; it wins over `mac` and loses against `runtimeConfig.mac`,
    /// as in the field (sriov-cni 1b7acc5b `pkg/config/config.go`).
    pub fn vf_request(&self, args_mac: Option<&str>) -> Result<VfRequest, ConfError> {
        let wire = &self.wire;
        for (key, value) in wire {
            if !is_known(key) {
                return Err(ConfError::UnknownKey { key: key.clone(), value: value.to_string(), hint: nearest(key) });
            }
        }
        let device = match (self.device, device_value(wire)) {
            (Some(device), _) => device,
            (None, Some((key, given))) => {
                return Err(invalid(
                    key,
                    given,
                    "the PCI address of a VF, for example 0000:3b:02.1, or the name of a sub-function, for example mlx5_core.sf.4",
                ));
            }
            (None, None) => return Err(ConfError::Missing { key: "deviceID", hint: NO_DEVICE }),
        };
        check_the_rest(wire)?;
        check_infiniband(wire)?;
        let rate = |key| Ok::<_, ConfError>(number(wire, key, 0..=u32::MAX)?.map(Mbps));
        Ok(VfRequest {
            device,
            mac: requested_mac(wire, args_mac)?,
            mtu: number(wire, "mtu", 68..=65535)?,
            allmulti: switch(wire, "allmulti")?,
            promisc: switch(wire, "promisc")?,
            vlan: requested_vlan(wire)?,
            min_tx_rate: rate("min_tx_rate")?,
            max_tx_rate: rate("max_tx_rate")?,
            spoof_check: switch(wire, "spoofchk")?,
            trust: switch(wire, "trust")?,
            link_state: one_of(
                wire,
                "link_state",
                &[("auto", VfLinkState::Auto), ("enable", VfLinkState::Enable), ("disable", VfLinkState::Disable)],
            )?,
            trunk: requested_trunk(wire)?,
            guid: requested_guid(wire)?,
            rdma_isolation: flag(wire, "rdmaIsolation")?,
            vfio_pci_mode: flag(wire, "vfioPciMode")? == Some(true),
        })
    }
}

/// What is not about the VF: of its type and in its range, too.
fn check_the_rest(wire: &Map<String, Value>) -> Result<(), ConfError> {
    if text(wire, "logLevel")?.is_some_and(|level| Level::parse(level).is_none()) {
        return Err(invalid("logLevel", &wire["logLevel"], "panic, error, warning, info or debug"));
    }
    if text(wire, "logFile")?.is_some_and(|path| !path.starts_with('/')) {
        return Err(invalid("logFile", &wire["logFile"], "an absolute path"));
    }
    number(wire, "deadlineSeconds", DEADLINE_SECONDS)?;
    for key in ["capabilities", "runtimeConfig", "args", "dns", "prevResult"] {
        if let Some(given) = wire.get(key).filter(|value| !value.is_null() && !value.is_object()) {
            return Err(invalid(key, given, "an object"));
        }
    }
    device_info_file(wire)?;
    Ok(())
}

const DEADLINE_SECONDS: std::ops::RangeInclusive<u32> = 1..=300;

/// Multus leaves the key out when the kubelet's answer holds no device of the network's resource.
const NO_DEVICE: &str = "the VF's PCI address is put here by Multus when the pod has a device of the network's resource; \
                         does the pod request the resource that the network's k8s.v1.cni.cncf.io/resourceName names?";

fn is_known(key: &str) -> bool {
    OWN_KEYS.contains(&key) || CARRIED_KEYS.contains(&key) || key.starts_with("cni.dev/")
}

/// A known key with the same letters: the typos that were seen in the field are `max-tx-rate`, `VLAN`, `spoofChk`.
fn nearest(key: &str) -> Option<&'static str> {
    let letters = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<String>();
    OWN_KEYS.into_iter().chain(CARRIED_KEYS).find(|known| letters(known) == letters(key))
}

/// The file that tells the runtime what the device is (device-info specification 1.1.0). Its folder is not ours to choose: no `..`.
fn device_info_file(wire: &Map<String, Value>) -> Result<Option<PathBuf>, ConfError> {
    let Some(value) = wire.get("runtimeConfig").and_then(|r| r.get("CNIDeviceInfoFile")).filter(|v| !v.is_null()) else { return Ok(None) };
    let path = value.as_str().map(Path::new).filter(|path| path.is_absolute() && !path.components().any(|c| c == Component::ParentDir));
    path.map(|path| Some(path.to_owned())).ok_or_else(|| invalid("runtimeConfig.CNIDeviceInfoFile", value, "an absolute path without \"..\""))
}

/// The type of the delegated plugin; `{}` and a missing key both mean "no IPAM". A path in the place of a name must not choose the program.
fn ipam_type(wire: &Map<String, Value>) -> Result<Option<String>, ConfError> {
    const ALLOWED: &str = "an object whose \"type\" is the name of a plugin on CNI_PATH";
    let Some(ipam) = wire.get("ipam").filter(|v| !v.is_null()) else { return Ok(None) };
    let wrong = || invalid("ipam", ipam, ALLOWED);
    match ipam.as_object().ok_or_else(wrong)?.get("type") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(_) => plugin_of(ipam).map(Some).ok_or_else(wrong),
    }
}

/// The plugin that an `ipam` object names; `None` where it names none, or something else than a plugin.
pub(crate) fn plugin_of(ipam: &Value) -> Option<String> {
    let name = ipam.get("type")?.as_str().filter(|name| !name.is_empty() && !name.contains('/') && *name != "." && *name != "..");
    name.map(str::to_owned)
}

#[cfg(test)]
mod tests;
