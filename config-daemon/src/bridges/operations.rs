//! Pure: operations of OVSDB (RFC 7047, 5.2) on the tables of Open vSwitch (ovs-vswitchd.conf.db(5)).
//!
//! What lives here: what is written into a transaction. What does not: sending it (`ovsdb`).
//!
//! Invariants: each change is one transaction, which does nothing at all when the bridge was made or removed by somebody else in the meantime; each
//! change raises `next_cfg`, which `ovs-vswitchd` copies to `cur_cfg` when it has carried it out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sriov_crds::bridge::{OvsBridge, OvsInterface};

use super::{Found, Wanted, normal};
use crate::ovsdb::notation::{map, named, nothing, texts};

const BRIDGE: [&str; 6] = ["name", "datapath_type", "fail_mode", "external_ids", "other_config", "ports"];
const INTERFACE: [&str; 8] = ["name", "type", "options", "external_ids", "other_config", "mtu_request", "error", "ofport"];

/// Everything that [`super::found`] reads.
pub fn look() -> Vec<Value> {
    let select = |table: &str, columns: &[&str]| {
        let columns: Vec<&str> = ["_uuid"].iter().chain(columns).copied().collect();
        json!({ "op": "select", "table": table, "where": [], "columns": columns })
    };
    vec![select("Bridge", &BRIDGE), select("Port", &["interfaces"]), select("Interface", &INTERFACE)]
}

/// Of what [`super::found`] reads what somebody else may change, as monitor requests. A port is one of ours by the bridge that lists it, and tells nothing
/// else; what is there already is not told.
pub fn followed() -> Value {
    let changes = |columns: &[&str]| json!([{ "columns": columns, "select": { "initial": false } }]);
    json!({ "Bridge": changes(&BRIDGE), "Interface": changes(&INTERFACE) })
}

/// Makes the bridge with its own port, as `ovs-vsctl add-br` does, and with its uplink.
pub fn make(wanted: &Wanted, netdev: &str) -> Vec<Value> {
    let mut operations = vec![wait_for(&wanted.name, &json!([]))];
    operations.extend(port("uplink", &interface_row(netdev, &wanted.interface)));
    operations.extend(port("own", &json!({ "name": wanted.name, "type": "internal" })));
    let mut row = json!({
        "name": wanted.name,
        "external_ids": map(&wanted.bridge.external_ids),
        "other_config": map(&wanted.bridge.other_config),
        "ports": ["set", [named("uplink_port"), named("own_port")]],
    });
    row["fail_mode"] = wanted.bridge.fail_mode.as_ref().map_or_else(nothing, |mode| json!(mode));
    row["datapath_type"] = json!(wanted.bridge.datapath_type.as_deref().unwrap_or_default());
    operations.push(json!({ "op": "insert", "table": "Bridge", "uuid-name": "bridge", "row": row }));
    operations.extend(finish(&json!([["bridges", "insert", ["set", [named("bridge")]]]])));
    operations
}

/// Gives a bridge that was kept as `kept` the settings that are wanted, and its uplink when it has lost it.
pub fn correct(wanted: &Wanted, netdev: &str, kept: &OvsBridge, found: &Found) -> Vec<Value> {
    let kept = normal(kept);
    let (before, uplink) = (kept.bridge.unwrap_or_default(), kept.uplinks.into_iter().next().unwrap_or_default());
    let interface_before = uplink.interface.unwrap_or_default();
    let mut operations = vec![wait_for(&wanted.name, &json!([{ "name": wanted.name }]))];
    let mut mutations = map_mutations("external_ids", &wanted.bridge.external_ids, &before.external_ids);
    mutations.extend(map_mutations("other_config", &wanted.bridge.other_config, &before.other_config));
    // An uplink that had another name was the same PF.
    let renamed = uplink.name.filter(|name| name != netdev).and_then(|name| found.interface(&name));
    if let Some(old) = renamed {
        mutations.push(json!(["ports", "delete", ["set", [["uuid", old.port]]]]));
    }
    let mut own = map_mutations("external_ids", &wanted.interface.external_ids, &interface_before.external_ids);
    own.extend(map_mutations("other_config", &wanted.interface.other_config, &interface_before.other_config));
    if found.interface(netdev).is_none() {
        operations.extend(port("uplink", &interface_row(netdev, &wanted.interface)));
        mutations.push(json!(["ports", "insert", ["set", [named("uplink_port")]]]));
    } else {
        if !own.is_empty() {
            operations.push(json!({ "op": "mutate", "table": "Interface", "where": [["name", "==", netdev]], "mutations": own }));
        }
        if (wanted.interface.mtu_request, interface_before.mtu_request) != (None, None) {
            let row = json!({ "mtu_request": mtu(&wanted.interface) });
            operations.push(json!({ "op": "update", "table": "Interface", "where": [["name", "==", netdev]], "row": row }));
        }
    }
    if !mutations.is_empty() {
        operations.push(json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", wanted.name]], "mutations": mutations }));
    }
    operations.extend(finish(&json!([])));
    operations
}

/// Removes a bridge with its ports: rows that nothing refers to go by themselves.
pub fn remove(found: &Found) -> Vec<Value> {
    finish(&json!([["bridges", "delete", ["set", [["uuid", found.uuid]]]]])).into()
}

/// Waits until `cur_cfg` is another number than `seen`, then reads it.
pub fn taken_up(seen: Option<i64>, milliseconds: u64) -> Vec<Value> {
    let wait = |seen: i64| {
        json!({ "op": "wait", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"], "until": "!=", "rows": [{ "cur_cfg": seen }],
                "timeout": milliseconds })
    };
    let select = json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"] });
    seen.map(wait).into_iter().chain([select]).collect()
}

/// The number that `ovs-vswitchd` copies when it has carried a change out, from the answers to the change; `None` when the database was never
/// initialized, so that there is nothing that a bridge could be added to.
pub fn has_switch(answers: &[Value]) -> Option<i64> {
    answers.last()?["rows"].get(0)?["next_cfg"].as_i64()
}

/// Nothing is done unless the rows of bridges of this name are these.
fn wait_for(bridge: &str, rows: &Value) -> Value {
    json!({ "op": "wait", "table": "Bridge", "where": [["name", "==", bridge]], "columns": ["name"], "until": "==", "rows": rows, "timeout": 0 })
}

/// The changes of the switch itself, the last of them told.
fn finish(mutations: &Value) -> [Value; 2] {
    let mut mutations = mutations.as_array().cloned().unwrap_or_default();
    mutations.push(json!(["next_cfg", "+=", 1]));
    [
        json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": mutations }),
        json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"] }),
    ]
}

/// An interface, and a port of it that has its name and the row name `<name>_port`.
fn port(name: &str, interface: &Value) -> [Value; 2] {
    let row = json!({ "name": interface["name"], "interfaces": named(name) });
    [
        json!({ "op": "insert", "table": "Interface", "uuid-name": name, "row": interface }),
        json!({ "op": "insert", "table": "Port", "uuid-name": format!("{name}_port"), "row": row }),
    ]
}

fn interface_row(netdev: &str, wanted: &OvsInterface) -> Value {
    json!({
        "name": netdev,
        "type": wanted.kind.as_deref().unwrap_or_default(),
        "options": map(&wanted.options),
        "external_ids": map(&wanted.external_ids),
        "other_config": map(&wanted.other_config),
        "mtu_request": mtu(wanted),
    })
}

fn mtu(wanted: &OvsInterface) -> Value {
    wanted.mtu_request.map_or_else(nothing, |mtu| json!(mtu))
}

/// Keys that were asked for and keys that are, taken out and put in anew: the database leaves a key that is there as it is.
fn map_mutations(column: &str, wanted: &BTreeMap<String, String>, before: &BTreeMap<String, String>) -> Vec<Value> {
    let keys: BTreeSet<&String> = wanted.keys().chain(before.keys()).collect();
    let mut mutations = Vec::new();
    if !keys.is_empty() {
        mutations.push(json!([column, "delete", texts(keys.into_iter())]));
    }
    if !wanted.is_empty() {
        mutations.push(json!([column, "insert", map(wanted)]));
    }
    mutations
}
