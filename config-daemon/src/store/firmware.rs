//! I/O: what this program told the firmware of PFs, `/etc/sriov-operator/firmware/<address>`.
//!
//! What does not live here: when it is told (`plan`), telling it (`machine`).
//!
//! Invariant: a file is there before firmware is told anything, and until firmware runs with it or is told otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sriov_host::pci::PciAddress;

use super::{Store, StoreError, delete, file_name, list, read, write_changed};
use crate::observed::Staging;

impl Store {
    fn firmware_folder(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/firmware")
    }

    /// What was told, by PF. What cannot be understood was told nobody knows what, and is left to be told anew.
    pub fn staged_firmware(&self) -> Result<BTreeMap<PciAddress, Staging>, StoreError> {
        let mut staged = BTreeMap::new();
        for path in list(&self.firmware_folder())? {
            let Ok(address) = file_name(&path).parse::<PciAddress>() else { continue };
            staged.extend(read(&path)?.and_then(|text| serde_json::from_str(&text).ok()).map(|staging| (address, staging)));
        }
        Ok(staged)
    }

    /// Writes down what a PF's firmware is about to be told.
    pub fn write_staging(&self, pf: PciAddress, staging: &Staging) -> Result<(), StoreError> {
        let path = self.firmware_folder().join(pf.to_string());
        let text = serde_json::to_string(staging).map_err(|error| StoreError { operation: "encode", path: path.clone(), cause: error.into() })?;
        write_changed(&path, &text).map(drop)
    }

    /// Forgets it; it is no error when there is nothing.
    pub fn delete_staging(&self, pf: PciAddress) -> Result<(), StoreError> {
        delete(self.firmware_folder().join(pf.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sriov_host::inventory::FirmwareSettings;

    use super::*;
    use crate::store::tests::store;

    #[test]
    fn what_firmware_was_told_outlives_the_process_and_is_forgotten_once() {
        let (folder, store) = store();
        let pf: PciAddress = "0000:03:00.0".parse().unwrap();
        assert!(store.staged_firmware().unwrap().is_empty(), "no folder yet");
        let settings = |total| FirmwareSettings { enable_sriov: Some(true), total_vfs: Some(total) };
        let staging = Staging { boot: "b".to_owned(), before: settings(8), wanted: settings(32) };
        store.write_staging(pf, &staging).unwrap();
        let files = folder.path().join("etc/sriov-operator/firmware");
        fs::write(files.join("0000:04:00.0"), "{half").unwrap();
        fs::write(files.join(".0000:05:00.0.new"), "{}").unwrap();
        assert_eq!(store.staged_firmware().unwrap(), [(pf, staging)].into());
        assert!(store.records().unwrap().is_empty(), "it does not make the PF ours");
        store.delete_staging(pf).unwrap();
        store.delete_staging(pf).unwrap();
        assert!(store.staged_firmware().unwrap().is_empty());
    }
}
