//! Pure: the Open vSwitch bridges of PFs: what a node state wants, what was kept, what the database has, how they differ, and the operations that make
//! them agree.
//!
//! What does not live here: when something is done (`plan`), speaking to the database (`ovsdb`), the file of kept bridges (`store`), doing it
//! (`machine`).
//!
//! Invariants: only bridges that were kept as ours are compared or changed; of those only what a policy set counts, the rest is the administrator's.

mod operations;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sriov_crds::bridge::{Bridges as Told, OvsBridge, OvsBridgeConfig, OvsInterface, OvsUplink};
use sriov_host::inventory::Pf;
use sriov_host::pci::PciAddress;

use crate::ovsdb::notation;
pub use operations::{correct, followed, has_switch, look, make, remove, taken_up};

/// The bridges of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridges {
    /// Those that we made, by name, as they were asked for.
    #[serde(default)]
    pub kept: BTreeMap<String, OvsBridge>,
    /// All that the database has, by name.
    #[serde(default)]
    pub found: BTreeMap<String, Found>,
    /// Why the database, or what was kept, could not be read; nothing is known of bridges then.
    #[serde(default)]
    pub fault: Option<String>,
}

/// A bridge of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its row.
    #[serde(default)]
    pub uuid: String,
    /// `datapath_type`; none is `system`.
    #[serde(default)]
    pub datapath_type: Option<String>,
    /// `fail_mode`.
    #[serde(default)]
    pub fail_mode: Option<String>,
    /// `external_ids`.
    #[serde(default)]
    pub external_ids: BTreeMap<String, String>,
    /// `other_config`.
    #[serde(default)]
    pub other_config: BTreeMap<String, String>,
    /// The interfaces of its ports.
    #[serde(default)]
    pub interfaces: Vec<FoundInterface>,
}

/// An interface of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundInterface {
    /// Its name.
    pub name: String,
    /// The row of its port.
    #[serde(default)]
    pub port: String,
    /// `type`; none is `system`.
    #[serde(default)]
    pub kind: Option<String>,
    /// `options`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `external_ids`.
    #[serde(default)]
    pub external_ids: BTreeMap<String, String>,
    /// `other_config`.
    #[serde(default)]
    pub other_config: BTreeMap<String, String>,
    /// `mtu_request`, bytes.
    #[serde(default)]
    pub mtu_request: Option<i64>,
    /// What `ovs-vswitchd` says is wrong with it.
    #[serde(default)]
    pub error: Option<String>,
    /// The number that `ovs-vswitchd` gave it; none before it looked, -1 when it could not use it.
    #[serde(default)]
    pub ofport: Option<i64>,
}

/// A bridge that a node state wants, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub bridge: OvsBridgeConfig,
    /// Those of its uplink.
    pub interface: OvsInterface,
}

/// How a bridge differs from what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It does not.
    Nothing,
    /// By settings that are changed while traffic flows.
    Settings,
    /// By what only another bridge has.
    Whole,
}

impl Bridges {
    /// The bridges that we made for a PF.
    pub fn of(&self, pf: PciAddress) -> impl Iterator<Item = &String> {
        self.kept.iter().filter(move |(_, kept)| pf_of(kept) == Some(pf)).map(|(name, _)| name)
    }

    /// The bridge that has an interface of this name.
    pub fn with_interface(&self, name: &str) -> Option<(&String, &Found)> {
        self.found.iter().find(|(_, found)| found.interface(name).is_some())
    }

    /// Whether a netdev is in a bridge that we made.
    pub fn holds(&self, netdev: &str) -> bool {
        self.with_interface(netdev).is_some_and(|(name, _)| self.kept.contains_key(name))
    }

    /// The names by which a change in the database is known to matter: of bridges that are or should be ours, and of what is or should be in them.
    pub fn names<'a>(&'a self, wanted: impl Iterator<Item = (PciAddress, &'a Wanted)>, pfs: &'a [Pf]) -> BTreeSet<String> {
        let kept = self.kept.iter().map(|(name, kept)| (pf_of(kept), name));
        let bridges: Vec<_> = kept.chain(wanted.map(|(pf, wanted)| (Some(pf), &wanted.name))).collect();
        let uplinks = self.kept.values().flat_map(|kept| &kept.uplinks).filter_map(|uplink| uplink.name.as_ref());
        let of_bridge = |pf: &&Pf| bridges.iter().any(|(of, _)| *of == Some(pf.address));
        let netdevs = pfs.iter().filter(of_bridge).filter_map(|pf| pf.netdev.as_ref()).map(|netdev| &netdev.name);
        bridges.iter().map(|(_, name)| *name).chain(uplinks).chain(netdevs).cloned().collect()
    }

    /// What a status says of them: of bridges that we made what we set, as it is now.
    pub fn told(&self) -> Option<Told> {
        let ovs: Vec<_> = self.kept.iter().filter_map(|(name, kept)| Some(told(kept, self.found.get(name)?))).collect();
        (!ovs.is_empty()).then_some(Told { ovs })
    }
}

/// The PF of a bridge that was kept; by the bridge's name where there is no uplink that can be read.
pub fn pf_of(kept: &OvsBridge) -> Option<PciAddress> {
    let named = || kept.name.strip_prefix("br-")?.replace('_', ":").parse().ok();
    kept.uplinks.first().and_then(|uplink| uplink.pci_address.parse().ok()).or_else(named)
}

fn told(kept: &OvsBridge, found: &Found) -> OvsBridge {
    let set = |asked: Option<&String>, is: &Option<String>| asked.filter(|text| !text.is_empty()).and(is.clone());
    let of = |asked: &BTreeMap<String, String>, is: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        is.iter().filter(|(key, _)| asked.contains_key(*key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let bridge = kept.bridge.as_ref().map(|asked| OvsBridgeConfig {
        datapath_type: set(asked.datapath_type.as_ref(), &found.datapath_type),
        fail_mode: set(asked.fail_mode.as_ref(), &found.fail_mode),
        external_ids: of(&asked.external_ids, &found.external_ids),
        other_config: of(&asked.other_config, &found.other_config),
    });
    let uplink = |uplink: &OvsUplink| {
        let is = found.interface(uplink.name.as_deref()?)?;
        let interface = uplink.interface.as_ref().map(|asked| OvsInterface {
            kind: set(asked.kind.as_ref(), &is.kind),
            options: of(&asked.options, &is.options),
            external_ids: of(&asked.external_ids, &is.external_ids),
            other_config: of(&asked.other_config, &is.other_config),
            mtu_request: asked.mtu_request.and(is.mtu_request),
        });
        Some(OvsUplink { interface, ..uplink.clone() })
    };
    OvsBridge { name: kept.name.clone(), bridge, uplinks: kept.uplinks.iter().filter_map(uplink).collect() }
}

impl Found {
    /// Its interface of this name.
    pub fn interface(&self, name: &str) -> Option<&FoundInterface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// Whether the kernel forwards for it, so that representors are ports by their names.
    pub fn is_in_kernel(&self) -> bool {
        is_system(self.datapath_type.as_deref())
    }
}

fn is_system(kind: Option<&str>) -> bool {
    matches!(kind, None | Some("" | "system"))
}

/// Reads the answers to [`look`].
pub fn found(answers: &[Value]) -> BTreeMap<String, Found> {
    let by_uuid =
        |at: usize| -> BTreeMap<&str, &Value> { rows(answers, at).iter().filter_map(|row| Some((notation::uuid(&row["_uuid"])?, row))).collect() };
    let (ports, interfaces) = (by_uuid(1), by_uuid(2));
    let bridge = |row: &Value| {
        let of_port = |port: &str| {
            let row = ports.get(port)?;
            let found = notation::uuids(&row["interfaces"]).into_iter().filter_map(|uuid| interfaces.get(uuid));
            Some(found.map(|row| interface(row, port)).collect::<Vec<_>>())
        };
        let found = Found {
            uuid: notation::uuid(&row["_uuid"])?.to_owned(),
            datapath_type: notation::text(&row["datapath_type"]),
            fail_mode: notation::text(&row["fail_mode"]),
            external_ids: notation::pairs(&row["external_ids"]),
            other_config: notation::pairs(&row["other_config"]),
            interfaces: notation::uuids(&row["ports"]).into_iter().filter_map(of_port).flatten().collect(),
        };
        Some((notation::text(&row["name"])?, found))
    };
    rows(answers, 0).iter().filter_map(bridge).collect()
}

fn interface(row: &Value, port: &str) -> FoundInterface {
    FoundInterface {
        name: notation::text(&row["name"]).unwrap_or_default(),
        port: port.to_owned(),
        kind: notation::text(&row["type"]),
        options: notation::pairs(&row["options"]),
        external_ids: notation::pairs(&row["external_ids"]),
        other_config: notation::pairs(&row["other_config"]),
        mtu_request: notation::number(&row["mtu_request"]),
        error: notation::text(&row["error"]),
        ofport: notation::number(&row["ofport"]),
    }
}

impl Wanted {
    /// What an entry of a node state wants, and of which PF; why it cannot be had otherwise.
    pub fn read(entry: &OvsBridge) -> Result<(PciAddress, Self), String> {
        let [uplink] = entry.uplinks.as_slice() else {
            return Err(format!("it has {} uplinks: expected one", entry.uplinks.len()));
        };
        let address = uplink.pci_address.as_str();
        let pf = address.parse().map_err(|_| format!("its uplink has the pciAddress {address:?}: expected domain:bus:device.function"))?;
        let entry = normal(entry);
        let (bridge, interface) = (entry.bridge.unwrap_or_default(), entry.uplinks.into_iter().next().and_then(|uplink| uplink.interface));
        match bridge.fail_mode.as_deref() {
            None | Some("secure" | "standalone") => {}
            Some(other) => return Err(format!("its failMode is {other:?}: expected secure or standalone")),
        }
        if entry.name.is_empty() {
            return Err("it has no name".to_owned());
        }
        Ok((pf, Self { name: entry.name, bridge, interface: interface.unwrap_or_default() }))
    }

    /// What is kept of it, in the Go operator's form.
    pub fn record(&self, pf: PciAddress, netdev: &str) -> OvsBridge {
        let uplink = OvsUplink { pci_address: pf.to_string(), name: Some(netdev.to_owned()), interface: Some(self.interface.clone()) };
        OvsBridge { name: self.name.clone(), bridge: Some(self.bridge.clone()), uplinks: vec![uplink] }
    }

    /// How a bridge that was kept as `kept` differs from this one with this uplink.
    pub fn difference(&self, pf: PciAddress, netdev: &str, kept: &OvsBridge, found: &Found) -> Difference {
        let kept = normal(kept);
        let (before, uplink) = (kept.bridge.clone().unwrap_or_default(), kept.uplinks.first().and_then(|uplink| uplink.interface.clone()));
        let uplink = uplink.unwrap_or_default();
        let other = |asked: &Option<String>, was: &Option<String>, is: &Option<String>| match (asked, was) {
            (None, None) => false,
            _ => asked.clone().filter(|text| text != "system") != is.clone().filter(|text| text != "system"),
        };
        let interface = found.interface(netdev);
        let another = interface
            .is_some_and(|is| other(&self.interface.kind, &uplink.kind, &is.kind) || differ(&self.interface.options, &uplink.options, &is.options));
        let (asked, was) = (&self.bridge, &before);
        if another
            || other(&asked.datapath_type, &was.datapath_type, &found.datapath_type)
            || other(&asked.fail_mode, &was.fail_mode, &found.fail_mode)
        {
            return Difference::Whole;
        }
        let settings = differ(&asked.external_ids, &was.external_ids, &found.external_ids)
            || differ(&asked.other_config, &was.other_config, &found.other_config)
            || interface.is_none_or(|is| {
                let mtu = (self.interface.mtu_request, uplink.mtu_request) != (None, None) && self.interface.mtu_request != is.mtu_request;
                mtu || differ(&self.interface.external_ids, &uplink.external_ids, &is.external_ids)
                    || differ(&self.interface.other_config, &uplink.other_config, &is.other_config)
            });
        if settings || kept != normal(&self.record(pf, netdev)) { Difference::Settings } else { Difference::Nothing }
    }
}

/// Whether a map has not what was asked, or still what was asked before.
fn differ(asked: &BTreeMap<String, String>, was: &BTreeMap<String, String>, is: &BTreeMap<String, String>) -> bool {
    asked.iter().any(|(key, value)| is.get(key) != Some(value)) || was.keys().any(|key| !asked.contains_key(key) && is.contains_key(key))
}

/// Empty texts and objects count as absent: the Go operator writes them.
fn normal(entry: &OvsBridge) -> OvsBridge {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let mut entry = entry.clone();
    let bridge = entry.bridge.get_or_insert_default();
    (bridge.datapath_type, bridge.fail_mode) = (given(bridge.datapath_type.take()), given(bridge.fail_mode.take()));
    for uplink in &mut entry.uplinks {
        let interface = uplink.interface.get_or_insert_default();
        interface.kind = given(interface.kind.take());
    }
    entry
}

fn rows(answers: &[Value], at: usize) -> &[Value] {
    answers.get(at).and_then(|answer| answer.get("rows")).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
