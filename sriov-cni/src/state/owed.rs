//! I/O: addresses that IPAM still has to be asked back for, one file an attachment in `owed/`.
//!
//! Between the moment at which a VF is free again and IPAM's answer only this file knows of the addresses: without it a DEL that dies in between
//! would leave them given away for ever if the runtime asks for GC next. The file is the attachment's journal under another name, so that the
//! VF's own journal is gone for whoever gets the VF next.
//!
//! What does not live here: asking IPAM (`ipam`, `gc`).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use super::{StateError, Store, decode, failed, write_synced};
use crate::device_info;
use crate::journal::Journal;

impl Store {
    /// Forgets an attachment as [`Store::forget`] does, but that its owner's addresses are owed.
    pub(crate) fn owe(&self, journal: &Journal) -> Result<(), StateError> {
        device_info::remove(journal.device_info.as_deref());
        let (from, folder) = (self.journal(journal.vf), self.owed());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("create", &folder))?;
        let to = self.owed_by(&journal.owner.container_id, &journal.owner.if_name);
        // One that the Go plugin made has no journal: what its records told goes there before they go.
        if !from.exists() {
            let bytes = serde_json::to_vec_pretty(journal).map_err(|cause| StateError::Journal { path: to.clone(), cause })?;
            write_synced(&to, &bytes)?;
        }
        self.remove_go_records(journal.vf, &journal.owner)?;
        // After a power cut it may have the one name or the other: GC asks IPAM in both cases.
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rename", &from)(error)),
            _ => Ok(()),
        }
    }

    /// IPAM has the addresses of this attachment back, or never gave any.
    pub fn settled(&self, container_id: &str, if_name: &str) -> Result<(), StateError> {
        let path = self.owed_by(container_id, if_name);
        match fs::remove_file(&path) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Attachments in `network` whose addresses IPAM was not asked back for. A file that can't be read is left out: nobody can act on it.
    pub fn owing(&self, network: &str) -> Result<Vec<Journal>, StateError> {
        let folder = self.owed();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &folder)(error)),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort_unstable();
        let read = |path: &PathBuf| decode(path, &fs::read(path).ok()?).ok();
        Ok(paths.iter().filter_map(read).filter(|journal: &Journal| journal.network == network).collect())
    }

    fn owed(&self) -> PathBuf {
        self.journals.with_file_name("owed")
    }

    /// Container ids and interface names have no '/'.
    fn owed_by(&self, container_id: &str, if_name: &str) -> PathBuf {
        self.owed().join(format!("{container_id}-{if_name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Owner;

    #[test]
    fn addresses_are_owed_from_the_journals_end_until_ipam_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("state"));
        let journal: Journal = serde_json::from_str(include_str!("../../testdata/journal/v1.json")).unwrap();
        let Owner { container_id, if_name, .. } = &journal.owner;
        store.settled(container_id, if_name).unwrap();
        assert_eq!(store.owing(&journal.network).unwrap(), []);
        store.create().unwrap();
        store.write(&journal).unwrap();
        store.owe(&journal).unwrap();
        store.owe(&journal).unwrap();
        assert!(!store.has(journal.vf));
        assert_eq!(store.owing(&journal.network).unwrap(), std::slice::from_ref(&journal));
        assert_eq!(store.owing("another").unwrap(), []);
        store.settled(container_id, if_name).unwrap();
        assert_eq!(store.owing(&journal.network).unwrap(), []);
    }
    #[test]
    fn addresses_that_the_go_plugin_gave_are_owed_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("state"));
        let journal: Journal = serde_json::from_str(include_str!("../../testdata/journal/v1.json")).unwrap();
        store.create().unwrap();
        store.write_go_records(journal.vf, &journal.owner, &serde_json::json!({"name": journal.network})).unwrap();
        store.owe(&journal).unwrap();
        assert_eq!(store.owing(&journal.network).unwrap(), std::slice::from_ref(&journal));
        assert!(store.go_records().unwrap().is_empty());
        // A DEL that is repeated finds neither journal nor record and owes nothing twice.
        store.settled(&journal.owner.container_id, &journal.owner.if_name).unwrap();
        assert_eq!(store.owing(&journal.network).unwrap(), []);
    }
}
