//! I/O: the records of the Go plugin (sriov-cni 1b7acc5b, `pkg/utils/pci_allocator.go` and `pkg/config/config.go`): read, so that pods from before
//! an upgrade are detached cleanly, and written beside our journals, so that the Go plugin can detach our pods after a downgrade.
//!
//! `<stateDir>/<container>-<interface>` holds the configuration with what was there before, `<stateDir>/pci/<PCI address>` the path of the network
//! namespace that has the VF. Files and their names are `state`'s.
//!
//! Invariant: a journal that is marked as having records and has none any more was ended by the Go plugin; nothing is restored from it.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use sriov_host::mac::MacAddr;
use sriov_host::netns::NetNs;
use sriov_host::rate::Mbps;
use sriov_host::vf::{VfAttributes, VfIndex, VfLinkState, VfSetting, VfVlan};
use sriov_host::vlan::VlanProto;

use crate::Context;
use crate::conf::device_id;
use crate::device::locate;
use crate::errors::Error;
use crate::journal::{ATTEMPT_GO, Applied, Journal, Original, OriginalNetdev, Owner, Phase, VERSION};
use crate::restore::boot_id;
use crate::state::{GoRecord, Store};
use sriov_host::device_id::DeviceId;

/// File times and the machine's uptime are both rounded.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The attachment that the Go plugin recorded for this container and interface, in our form. `None` also where the VF has meanwhile been given to
/// somebody else, or is gone.
pub(crate) fn attachment(ctx: &Context<'_>, store: &Store, container_id: &str, if_name: &str) -> Result<Option<Journal>, Error> {
    let Some(record) = store.go_record(&format!("{container_id}-{if_name}"))? else { return Ok(None) };
    let Some(vf) = device_of(&record.conf) else { return Ok(None) };
    let Ok(location) = locate(ctx.host, vf) else { return Ok(None) };
    let allocation = store.go_allocation(vf)?;
    let given_now = ctx.request.netns.clone();
    // The path of ADD is in the other file; without it (the Go plugin wrote it later than 2.8) it is the one of the call.
    let netns_path = match (allocation, given_now) {
        (Some(path), Some(now)) if path != now && same_namespace(&path, &now) == Some(false) => return Ok(None),
        (Some(path), _) => path,
        (None, now) => now.unwrap_or_default(),
    };
    let id = NetNs::open(&netns_path).and_then(|netns| netns.id()).ok();
    let owner = Owner {
        container_id: container_id.to_owned(),
        if_name: if_name.to_owned(),
        netns_path,
        netns_dev: id.map_or(0, |id| id.dev),
        netns_inode: id.map_or(0, |id| id.ino),
    };
    let original = original(&record.conf);
    let userspace_driver = if original.netdev.is_some() { None } else { location.driver.clone() };
    Ok(Some(Journal {
        version: VERSION,
        phase: Phase::Attached,
        attempt: ATTEMPT_GO.to_owned(),
        boot_id: if from_before_boot(ctx, &record) { String::new() } else { boot_id(ctx.host) },
        network: text(&record.conf, "name").to_owned(),
        owner,
        vf,
        pf: location.pf,
        index: location.index,
        kernel_driver: location.driver.filter(|_| userspace_driver.is_none()),
        userspace_driver,
        applied: applied(&record.conf, original.attributes.as_ref()),
        original,
        rdma: Vec::new(),
        // The Go plugin keeps its type alone, without which no plugin finds its addresses.
        ipam: None,
        go_records: false,
        device_info: None,
        result: None,
    }))
}

/// The device of a record.
pub(crate) fn device_of(conf: &Value) -> Option<DeviceId> {
    device_id(text(conf, "deviceID")).filter(|id| id.pci().is_some())
}

/// Whether the Go plugin ended this attachment (a downgrade and an upgrade later).
pub(crate) fn ended(store: &Store, journal: &Journal) -> Result<bool, Error> {
    let complete = journal.go_records && journal.phase == Phase::Attached;
    Ok(complete && store.go_allocation(journal.vf)?.is_none_or(|path| path != journal.owner.netns_path))
}

/// What the Go plugin needs to detach this attachment: the configuration with its own spelling of what was there.
pub(crate) fn record(ctx: &Context<'_>, journal: &Journal) -> Value {
    let mut conf: Map<String, Value> = ctx.conf.wire().clone();
    // Go's decoder does not tell `mac` from `MAC`, and these would be taken for its own.
    for key in ["mac", "mtu", "prevResult", "stateDir"] {
        conf.remove(key);
    }
    let attributes = journal.original.attributes.as_ref();
    let netdev = journal.original.netdev.as_ref();
    let mac = |mac: Option<MacAddr>| mac.map(|mac| mac.to_string()).unwrap_or_default();
    let number = |of: fn(&VfAttributes) -> u32| attributes.map(of).unwrap_or_default();
    let state = json!({
        "HostIFName": netdev.map(|n| n.name.as_str()).unwrap_or_default(),
        "SpoofChk": attributes.and_then(|a| a.spoof_check).unwrap_or_default(),
        "Trust": attributes.and_then(|a| a.trust).unwrap_or_default(),
        "AdminMAC": mac(attributes.map(|a| a.mac)),
        "EffectiveMAC": mac(netdev.and_then(|n| n.mac)),
        "Vlan": number(|a| a.vlan.id.get().into()),
        "VlanQoS": number(|a| a.vlan.qos.get().into()),
        "VlanProto": number(|a| a.vlan.proto.ethertype().into()),
        "MinTxRate": number(|a| a.min_tx_rate.0),
        "MaxTxRate": number(|a| a.max_tx_rate.0),
        "LinkState": number(|a| a.link_state.map_or(0, |state| state as u32)),
        "MTU": netdev.map(|n| n.mtu).unwrap_or_default(),
    });
    let pf = journal.pf.and_then(|pf| ctx.host.sysfs().list_opt(format!("/sys/bus/pci/devices/{pf}/net")).ok().flatten());
    conf.insert("OrigVfState".to_owned(), state);
    conf.insert("Master".to_owned(), pf.and_then(|names| names.into_iter().next()).unwrap_or_default().into());
    conf.insert("MAC".to_owned(), mac(journal.applied.mac.or_else(|| mac_of(&journal.applied.settings))).into());
    conf.insert("MTU".to_owned(), json!(netdev.map(|n| n.mtu)));
    conf.insert("VFID".to_owned(), journal.index.0.into());
    conf.insert("deviceID".to_owned(), journal.vf.to_string().into());
    Value::Object(conf)
}

fn mac_of(settings: &[VfSetting]) -> Option<MacAddr> {
    settings.iter().find_map(|setting| if let VfSetting::Mac(mac) = setting { Some(*mac) } else { None })
}

fn same_namespace(a: &std::path::Path, b: &std::path::Path) -> Option<bool> {
    let id = |path| NetNs::open(path).and_then(|netns| netns.id()).ok();
    Some(id(a)? == id(b)?)
}

/// VFs are fresh after a boot, so that there is nothing to restore.
fn from_before_boot(ctx: &Context<'_>, record: &GoRecord) -> bool {
    let uptime = ctx.host.sysfs().read_opt("/proc/uptime").ok().flatten();
    let seconds = uptime.as_deref().and_then(|text| text.split('.').next()?.parse().ok()).map(Duration::from_secs);
    seconds.and_then(|up| SystemTime::now().checked_sub(up)).is_some_and(|boot| record.written + CLOCK_SLACK < boot)
}

fn original(conf: &Value) -> Original {
    let state = &conf["OrigVfState"];
    let number = |key: &str| state[key].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    let small = |key: &str| u16::try_from(number(key)).unwrap_or_default();
    let vlan = VfVlan {
        id: small("Vlan").try_into().unwrap_or_default(),
        qos: u8::try_from(number("VlanQoS")).unwrap_or_default().try_into().unwrap_or_default(),
        proto: VlanProto::from_ethertype(small("VlanProto")).unwrap_or_default(),
    };
    let attributes = VfAttributes {
        index: VfIndex(u16::try_from(conf["VFID"].as_u64().unwrap_or_default()).unwrap_or_default()),
        mac: text(state, "AdminMAC").parse().unwrap_or_default(),
        vlan,
        min_tx_rate: Mbps(number("MinTxRate")),
        max_tx_rate: Mbps(number("MaxTxRate")),
        spoof_check: state["SpoofChk"].as_bool(),
        trust: state["Trust"].as_bool(),
        link_state: match number("LinkState") {
            0 => Some(VfLinkState::Auto),
            1 => Some(VfLinkState::Enable),
            2 => Some(VfLinkState::Disable),
            _ => None,
        },
        node_guid: None,
        port_guid: None,
    };
    let name = text(state, "HostIFName");
    let netdev = (!name.is_empty()).then(|| OriginalNetdev {
        name: name.to_owned(),
        device: None,
        alt_names: Vec::new(),
        mac: text(state, "EffectiveMAC").parse().ok(),
        mtu: number("MTU"),
        up: false,
        promisc: false,
        allmulti: false,
    });
    Original { netdev, attributes: Some(attributes), trunk: None }
}

/// What the Go plugin sets for this configuration. Only the kind counts: the values to go back to are the original ones.
fn applied(conf: &Value, original: Option<&VfAttributes>) -> Applied {
    let mac: Option<MacAddr> = text(conf, "MAC").parse().ok();
    let given = |key: &str| !conf[key].is_null() && conf[key].as_str() != Some("");
    let settings = original.into_iter().flat_map(|original| {
        [
            mac.map(VfSetting::Mac),
            given("vlan").then_some(VfSetting::Vlan(original.vlan)),
            (given("min_tx_rate") || given("max_tx_rate")).then_some(VfSetting::Rate { min: original.min_tx_rate, max: original.max_tx_rate }),
            given("spoofchk").then(|| original.spoof_check.map(VfSetting::SpoofCheck)).flatten(),
            given("link_state").then(|| original.link_state.map(VfSetting::LinkState)).flatten(),
            given("trust").then(|| original.trust.map(VfSetting::Trust)).flatten(),
        ]
    });
    Applied { settings: settings.flatten().collect(), mac, mtu: None, trunk: None }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached() -> Value {
        serde_json::from_str(include_str!("../testdata/go_plugin/cached.json")).unwrap()
    }

    #[test]
    fn what_was_there_and_what_was_set_are_read_from_the_go_form() {
        let Original { netdev, attributes, trunk: _ } = original(&cached());
        let netdev = netdev.unwrap();
        assert_eq!((netdev.name.as_str(), netdev.mtu, netdev.mac.unwrap().to_string()), ("ens1f0v3", 1500, "02:00:00:00:00:09".to_owned()));
        let attributes = attributes.unwrap();
        assert_eq!((attributes.index, attributes.spoof_check, attributes.trust), (VfIndex(3), Some(true), Some(false)));
        let settings: Vec<_> = applied(&cached(), Some(&attributes)).settings.iter().map(ToString::to_string).collect();
        assert_eq!(settings, ["vlan 0 qos 0 proto 802.1q", "trust off"], "what was not configured is not taken back");
        assert_eq!(device_of(&cached()), "0000:86:02.3".parse().ok());
    }

    #[test]
    fn a_userspace_vf_has_no_netdev_and_odd_records_no_device() {
        let mut conf = cached();
        conf["OrigVfState"]["HostIFName"] = "".into();
        assert_eq!(original(&conf).netdev, None);
        assert_eq!(device_of(&json!({"deviceID": 5})), None);
        assert!(applied(&json!({}), None).settings.is_empty());
    }
}
