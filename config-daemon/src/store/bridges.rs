//! I/O: which Open vSwitch bridges are ours: the Go daemon's file, a JSON map from a bridge's name to what it was asked to be, so that both find each
//! other's bridges after an upgrade and a downgrade.
//!
//! What does not live here: the bridges themselves (`bridges`).
//!
//! Invariant: a file that is not understood is an error and never "no bridges": what is in it may be ours.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use sriov_crds::bridge::OvsBridge;

use super::{Store, StoreError, read, write_changed};

impl Store {
    fn bridges_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/managed-ovs-bridges.json")
    }

    /// The bridges that we made.
    pub fn bridges(&self) -> Result<BTreeMap<String, OvsBridge>, StoreError> {
        let path = self.bridges_file();
        let Some(text) = read(&path)?.filter(|text| !text.trim().is_empty()) else { return Ok(BTreeMap::new()) };
        // The Go daemon writes an empty map as null.
        let kept: Option<BTreeMap<String, OvsBridge>> =
            serde_json::from_str(&text).map_err(|error| StoreError { operation: "understand", path, cause: io::Error::other(error) })?;
        Ok(kept.unwrap_or_default())
    }

    /// Changes what is kept. Callers take turns.
    pub fn change_bridges(&self, change: impl FnOnce(&mut BTreeMap<String, OvsBridge>)) -> Result<(), StoreError> {
        let mut kept = self.bridges()?;
        change(&mut kept);
        let path = self.bridges_file();
        let text = serde_json::to_string(&kept).map_err(|error| StoreError { operation: "encode", path: path.clone(), cause: error.into() })?;
        write_changed(&path, &text).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tests::store;

    #[test]
    fn bridges_of_the_go_daemon_are_ours_and_what_is_not_understood_is_an_error() {
        let (folder, store) = store();
        assert!(store.bridges().unwrap().is_empty());
        let file = folder.path().join("etc/sriov-operator/managed-ovs-bridges.json");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        // As its encoder writes an OVSConfigExt.
        let text = r#"{"br-0000_d8_00.0":{"name":"br-0000_d8_00.0","bridge":{"datapathType":"netdev","externalIDs":{"a":"b"}},
            "uplinks":[{"pciAddress":"0000:d8:00.0","name":"p0","interface":{"type":"dpdk","mtuRequest":9000}}]}}"#;
        fs::write(&file, text).unwrap();
        let kept = store.bridges().unwrap();
        let uplink = kept["br-0000_d8_00.0"].uplinks[0].interface.as_ref().unwrap();
        assert_eq!((uplink.kind.as_deref(), uplink.mtu_request), (Some("dpdk"), Some(9000)));
        store.change_bridges(|kept| kept.values_mut().for_each(|bridge| bridge.bridge = None)).unwrap();
        let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(written["br-0000_d8_00.0"]["uplinks"][0]["interface"]["mtuRequest"], 9000);
        fs::write(&file, "null").unwrap();
        assert!(store.bridges().unwrap().is_empty());
        fs::write(&file, "{half").unwrap();
        assert!(store.bridges().is_err() && store.change_bridges(BTreeMap::clear).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "{half", "it is left for a person to look at");
    }
}
