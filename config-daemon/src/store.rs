//! I/O: the files that outlive this process: records of the PFs that we configure, the device plugin's pools, udev rules; in rooms of their own what
//! is remembered of the cluster (`kept`), of bridges (`bridges`) and of firmware (`firmware`), and, only read, which VFs pods use (`vfs`).
//!
//! What does not live here: what the files mean for a plan.
//!
//! Invariant: a file is replaced whole (written beside, synced, renamed, folder synced), so that a reader and a power cut see the old or the new one.

mod bridges;
mod firmware;
mod kept;
mod vfs;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sriov_crds::node_state::Interface;
use sriov_host::pci::PciAddress;
pub use vfs::{PodFolders, VfLock};

use crate::desired::Desired;
use crate::observed::Record;
use crate::pools::Pools;
use crate::udev;

/// The folders.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pools: PathBuf,
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {path}: {cause}")]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl StoreError {
    /// The system's number of its answer.
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}

impl Store {
    /// Files below `root` (`/`, or where the host's folders are mounted); the pools' file is named whole, because both containers of the node pod
    /// have it at the same path.
    pub fn new(root: impl Into<PathBuf>, pools: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), pools: pools.into() }
    }

    fn records_folder(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/pci")
    }

    /// The records, by PF. A record that cannot be understood still says that the PF is ours.
    pub fn records(&self) -> Result<BTreeMap<PciAddress, Record>, StoreError> {
        let mut records = BTreeMap::new();
        for path in list(&self.records_folder())? {
            let Some(address) = file_name(&path).parse::<PciAddress>().ok() else { continue };
            let Some(text) = read(&path)? else { continue };
            let unknown = || Record { interface: Interface { pci_address: address.to_string(), ..Interface::default() }, ..Record::default() };
            records.insert(address, serde_json::from_str(&text).unwrap_or_else(|_| unknown()));
        }
        Ok(records)
    }

    /// Writes a PF's record.
    pub fn write_record(&self, pf: PciAddress, record: &Record) -> Result<(), StoreError> {
        let path = self.records_folder().join(pf.to_string());
        let text = serde_json::to_string(record).map_err(|error| StoreError { operation: "encode", path: path.clone(), cause: error.into() })?;
        replace(&path, &text)
    }

    /// Deletes a PF's record; it is no error when there is none.
    pub fn delete_record(&self, pf: PciAddress) -> Result<(), StoreError> {
        delete(self.records_folder().join(pf.to_string()))
    }

    /// Makes the udev rules of ours be these. With the wish incomplete (an entry that is not understood) none is taken away.
    pub fn write_rules(&self, desired: &Desired) -> Result<(), StoreError> {
        if !desired.rendered {
            return Ok(());
        }
        let (folder, wanted) = (self.root.join("etc/udev/rules.d"), udev::rules(desired));
        let complete = desired.unreadable.is_empty() && desired.pfs.values().all(Result::is_ok);
        for path in list(&folder)?.into_iter().filter(|path| complete && udev::is_ours(&file_name(path)) && !wanted.contains_key(&file_name(path))) {
            delete(path)?;
        }
        for (name, text) in wanted {
            write_changed(&folder.join(name), &text)?;
        }
        Ok(())
    }

    /// Writes the pools unless they are written already; answers whether they were.
    pub fn write_pools(&self, pools: &Pools) -> Result<bool, StoreError> {
        let text = pools.to_json().map_err(|error| StoreError { operation: "encode", path: self.pools.clone(), cause: error.into() })?;
        write_changed(&self.pools, &text)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |cause| StoreError { operation: "list", path: folder.to_owned(), cause };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(failed(cause)),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StoreError { operation: "read", path: path.to_owned(), cause }),
    }
}

fn delete(path: PathBuf) -> Result<(), StoreError> {
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(StoreError { operation: "delete", path, cause }),
        Ok(()) => sync_folder(&path),
        Err(_) => Ok(()),
    }
}

fn write_changed(path: &Path, text: &str) -> Result<bool, StoreError> {
    if read(path)?.as_deref() == Some(text) {
        return Ok(false);
    }
    replace(path, text).map(|()| true)
}

fn replace(path: &Path, text: &str) -> Result<(), StoreError> {
    // The leading dot keeps the name from being a PCI address, should this process die before the rename.
    let temporary = path.with_file_name(format!(".{}.new", file_name(path)));
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|cause| StoreError { operation: "replace", path: path.to_owned(), cause })?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|cause| StoreError {
        operation: "sync the folder of",
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    pub(super) fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), folder.path().join("run/device-plugin/config.json"));
        (folder, store)
    }

    fn record(text: &str) -> Record {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn records_are_kept_replaced_and_deleted() {
        let (folder, store) = store();
        let pf: PciAddress = "0000:01:00.0".parse().unwrap();
        assert!(store.records().unwrap().is_empty(), "no folder yet");
        store.write_record(pf, &record(r#"{"pciAddress":"0000:01:00.0","numVfs":2}"#)).unwrap();
        let newer = record(r#"{"pciAddress":"0000:01:00.0","numVfs":4,"originalMtu":1500}"#);
        store.write_record(pf, &newer).unwrap();
        let pci = folder.path().join("etc/sriov-operator/pci");
        fs::write(pci.join(".0000:02:00.0.new"), "half").unwrap();
        fs::write(pci.join("0000:03:00.0"), "not JSON").unwrap();
        let records = store.records().unwrap();
        assert_eq!(records.len(), 2, "a half-written file is none, an unreadable one still says whose the PF is");
        assert_eq!(records[&pf], newer);
        store.delete_record(pf).unwrap();
        store.delete_record(pf).unwrap();
        assert!(!store.records().unwrap().contains_key(&pf));
    }

    #[test]
    fn rules_are_written_once_and_leave_with_their_pf_and_others_stay() {
        let (folder, store) = store();
        let rules = folder.path().join("etc/udev/rules.d");
        let wish = |text: &str| Desired::read(&serde_json::from_str(text).unwrap());
        let wanted = wish(r#"{"policyRevision":"r","interfaces":[{"pciAddress":"0000:01:00.0","numVfs":2}]}"#);
        store.write_rules(&wanted).unwrap();
        fs::write(rules.join("99-other.rules"), "").unwrap();
        let file = rules.join("10-nm-disable-0000:01:00.0.rules");
        let written = fs::metadata(&file).unwrap().ino();
        store.write_rules(&wanted).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), written, "an unchanged rule is not written");
        store.write_rules(&Desired::default()).unwrap();
        assert!(file.exists(), "a wish that is not known yet takes nothing away");
        store.write_rules(&wish(r#"{"policyRevision":"r"}"#)).unwrap();
        assert!(!file.exists() && rules.join("99-other.rules").exists());
    }

    #[test]
    fn pools_are_written_only_when_they_change() {
        let (folder, store) = store();
        assert!(store.write_pools(&Pools::default()).unwrap());
        assert!(!store.write_pools(&Pools::default()).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("run/device-plugin/config.json")).unwrap(), r#"{"resourceList":[]}"#);
    }
}
