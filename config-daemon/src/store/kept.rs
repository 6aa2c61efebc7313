//! I/O: what this node remembers of its cluster and of itself: the last wish, the list of supported NICs, the last reboot, the result of a boot.
//!
//! What does not live here: files of PFs and pools (`store`), of pods (`vfs`).
//!
//! Invariant: what cannot be understood was never kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sriov_crds::node_state::{SYNC_FAILED, SYNC_SUCCEEDED, SriovNetworkNodeStateSpec};

use sriov_host::inventory::RdmaMode;

use super::{Store, StoreError, delete, read, write_changed};
use crate::guids::Guids;
use crate::observed::SupportedNics;

impl Store {
    fn wish_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/node-state.json")
    }

    fn nics_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/sriov-supported-nics-ids.yaml")
    }

    fn reboot_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/reboot.json")
    }

    /// Keeps the last rendered wish, so that what this machine should be is known when no API server is (`apply -f` takes the file as it is).
    pub fn keep_wish(&self, spec: &SriovNetworkNodeStateSpec) -> Result<(), StoreError> {
        let wish = serde_json::json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "spec": spec });
        write_changed(&self.wish_file(), &wish.to_string()).map(drop)
    }

    /// The wish that was kept; `None` when there is none, or none that can be understood.
    pub fn kept_wish(&self) -> Result<Option<SriovNetworkNodeStateSpec>, StoreError> {
        #[derive(Deserialize)]
        struct Kept {
            spec: SriovNetworkNodeStateSpec,
        }
        Ok(read(&self.wish_file())?.and_then(|text| serde_json::from_str::<Kept>(&text).ok()).map(|kept| kept.spec))
    }

    /// Keeps the entries of `supported-nic-ids`: one `vendor PF VF` a line, in the Go daemon's file (which is no YAML, whatever it is called).
    pub fn keep_nics(&self, entries: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let lines: Vec<String> = entries.values().map(|entry| format!("{entry}\n")).collect();
        write_changed(&self.nics_file(), &lines.concat()).map(drop)
    }

    /// The NICs that were kept.
    pub fn kept_nics(&self) -> Result<Option<SupportedNics>, StoreError> {
        let Some(text) = read(&self.nics_file())? else { return Ok(None) };
        let entries: BTreeMap<String, String> = text.lines().enumerate().map(|(n, line)| (format!("line {n}"), line.to_owned())).collect();
        Ok(Some(SupportedNics::read(&entries)))
    }

    /// Writes the result of applying the wish at boot, in the Go daemon's file and form.
    pub fn keep_result(&self, error: &str) -> Result<(), StoreError> {
        let path = self.root.join("etc/sriov-operator/sriov-interface-result.yaml");
        let status = if error.is_empty() { SYNC_SUCCEEDED } else { SYNC_FAILED };
        let text = serde_json::json!({ "syncStatus": status, "lastSyncError": error }).to_string();
        // JSON is YAML.
        write_changed(&path, &format!("{text}\n")).map(drop)
    }

    /// Switches the unit of systemd mode on or off: it looks for this file.
    pub fn set_systemd_mode(&self, on: bool) -> Result<(), StoreError> {
        let path = self.root.join("etc/sriov-operator/systemd-mode");
        if on { write_changed(&path, "").map(drop) } else { delete(path) }
    }

    /// Remembers that the machine is rebooted, for which cause, in which boot.
    pub fn keep_reboot(&self, cause: &str, boot: &str) -> Result<(), StoreError> {
        write_changed(&self.reboot_file(), &serde_json::json!({ "cause": cause, "boot": boot }).to_string()).map(drop)
    }

    fn rdma_file(&self) -> PathBuf {
        self.root.join("etc/modprobe.d/sriov_network_operator_modules_config.conf")
    }

    /// Says in the Go daemon's file what mode `ib_core` gives RDMA devices when it is loaded; `None` says nothing any more.
    pub fn stage_rdma_mode(&self, mode: Option<RdmaMode>) -> Result<(), StoreError> {
        match mode {
            None => delete(self.rdma_file()),
            Some(mode) => {
                let text = format!("options ib_core netns_mode={}\n", u8::from(mode == RdmaMode::Shared));
                write_changed(&self.rdma_file(), &text).map(drop)
            }
        }
    }

    /// What that file says.
    pub fn staged_rdma_mode(&self) -> Result<Option<RdmaMode>, StoreError> {
        let text = read(&self.rdma_file())?.unwrap_or_default();
        let word = text.lines().filter(|line| line.starts_with("options ib_core ")).find_map(|line| line.split("netns_mode=").nth(1));
        Ok(match word.and_then(|word| word.split_whitespace().next()) {
            Some("1") => Some(RdmaMode::Shared),
            Some("0") => Some(RdmaMode::Exclusive),
            _ => None,
        })
    }

    /// What the administrator's file says of the GUIDs of InfiniBand VFs; nothing when there is none.
    pub fn guids(&self) -> Result<Guids, StoreError> {
        Ok(read(&self.root.join("etc/sriov-operator/infiniband/guids"))?.map(|text| Guids::read(&text)).unwrap_or_default())
    }

    /// Whether the machine was rebooted for this cause already: then another reboot would not help either.
    pub fn was_rebooted_for(&self, cause: &str, boot: &str) -> Result<bool, StoreError> {
        #[derive(Deserialize)]
        struct Kept {
            cause: String,
            boot: String,
        }
        let kept = read(&self.reboot_file())?.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        Ok(kept.is_some_and(|kept| kept.cause == cause && kept.boot != boot))
    }

    /// The machine is as asked: a later reboot is a new matter.
    pub fn forget_reboot(&self) -> Result<(), StoreError> {
        delete(self.reboot_file())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tests::store;

    #[test]
    fn a_power_cut_does_not_lose_the_wish_and_its_nics() {
        let (folder, store) = store();
        assert_eq!((store.kept_wish().unwrap(), store.kept_nics().unwrap()), (None, None));
        let spec: SriovNetworkNodeStateSpec =
            serde_json::from_str(r#"{"policyRevision":"r","interfaces":[{"pciAddress":"0000:01:00.0","numVfs":2}]}"#).unwrap();
        store.keep_wish(&spec).unwrap();
        let entries: BTreeMap<String, String> = [("igb".to_owned(), "8086 10c9 10ca".to_owned())].into();
        store.keep_nics(&entries).unwrap();
        assert_eq!(store.kept_wish().unwrap(), Some(spec));
        assert_eq!(store.kept_nics().unwrap(), Some(SupportedNics::read(&entries)));
        assert_eq!(fs::read_to_string(folder.path().join("etc/sriov-operator/sriov-supported-nics-ids.yaml")).unwrap(), "8086 10c9 10ca\n");
        fs::write(folder.path().join("etc/sriov-operator/node-state.json"), "{half").unwrap();
        assert_eq!(store.kept_wish().unwrap(), None, "what cannot be understood wishes nothing");
    }

    #[test]
    fn the_result_of_a_boot_has_the_form_of_the_field_and_the_mode_is_a_file() {
        let (folder, store) = store();
        let file = |name: &str| folder.path().join("etc/sriov-operator").join(name);
        store.keep_result("").unwrap();
        assert_eq!(fs::read_to_string(file("sriov-interface-result.yaml")).unwrap(), "{\"lastSyncError\":\"\",\"syncStatus\":\"Succeeded\"}\n");
        store.keep_result("no such PF").unwrap();
        assert!(fs::read_to_string(file("sriov-interface-result.yaml")).unwrap().contains("\"Failed\""));
        store.set_systemd_mode(true).unwrap();
        assert!(file("systemd-mode").exists());
        store.set_systemd_mode(false).unwrap();
        store.set_systemd_mode(false).unwrap();
        assert!(!file("systemd-mode").exists());
    }

    #[test]
    fn the_mode_of_rdma_devices_is_staged_in_the_fields_file_and_taken_back() {
        let (folder, store) = store();
        assert_eq!(store.staged_rdma_mode().unwrap(), None);
        for (mode, text) in [(RdmaMode::Exclusive, "options ib_core netns_mode=0\n"), (RdmaMode::Shared, "options ib_core netns_mode=1\n")] {
            store.stage_rdma_mode(Some(mode)).unwrap();
            let path = folder.path().join("etc/modprobe.d/sriov_network_operator_modules_config.conf");
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            assert_eq!(store.staged_rdma_mode().unwrap(), Some(mode));
        }
        store.stage_rdma_mode(None).unwrap();
        store.stage_rdma_mode(None).unwrap();
        assert_eq!(store.staged_rdma_mode().unwrap(), None);
    }

    #[test]
    fn a_reboot_that_did_not_help_is_not_asked_for_twice() {
        let (_folder, store) = store();
        assert!(!store.was_rebooted_for("karg", "boot-1").unwrap());
        store.keep_reboot("karg", "boot-1").unwrap();
        assert!(!store.was_rebooted_for("karg", "boot-1").unwrap(), "the reboot is still to come");
        assert!(store.was_rebooted_for("karg", "boot-2").unwrap());
        assert!(!store.was_rebooted_for("another cause", "boot-2").unwrap());
        store.forget_reboot().unwrap();
        assert!(!store.was_rebooted_for("karg", "boot-2").unwrap());
    }
}
