//! I/O: the plugin's files: one journal and one lock a VF, below `stateDir`.
//!
//! `v1/<PCI address>.json` is a journal, `lock/<PCI address>.lock` what its users hold an flock on; `owed/<container>-<interface>.json` is an
//! attachment whose addresses IPAM was not asked back for yet; `<container>-<interface>` and `pci/<PCI address>` are records in the Go plugin's
//! form. Nothing here decides what any of them means.
//!
//! Invariant: a reader sees an old journal or a new one, never half of one, and no power cut takes away a journal before the machine is changed.
//! That an attachment is complete or has ended may be lost in one: its journal is then of an earlier boot, and nothing is restored from it.

mod go_records;
mod lock;
mod owed;

pub(crate) use go_records::GoRecord;
pub use lock::Lock;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::device_info;
use crate::journal::{Journal, Phase, VERSION};
use serde_json::Value;
use sriov_host::device_id::DeviceId;

/// The plugin's files.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    journals: PathBuf,
    locks: PathBuf,
}

/// State that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("failed to {operation} {path}: {cause}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// Another call works on the same VF.
    #[error("VF {vf} is locked by another call for more than {} s", waited.as_secs())]
    Locked {
        /// The VF.
        vf: DeviceId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A journal that can't be read.
    #[error("failed to read the journal {path}: {cause}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// A journal of a newer or older form.
    #[error("the journal {path} has version {found}: this plugin reads version {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl Store {
    /// The files below `state_dir`; nothing is read or made.
    pub fn at(state_dir: &Path) -> Self {
        Self { root: state_dir.to_owned(), journals: state_dir.join("v1"), locks: state_dir.join("lock") }
    }

    /// Makes the folders, readable by root alone, where they are missing.
    pub fn create(&self) -> Result<(), StateError> {
        for dir in [&self.journals, &self.locks, &self.root.join("pci")] {
            // Mostly they are there: one system call each.
            match DirBuilder::new().mode(0o700).create(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                _ => DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?,
            }
        }
        Ok(())
    }

    /// Makes the folders when one is missed, and not before each call looks for them.
    fn with_folders(&self, write: impl Fn() -> Result<(), StateError>) -> Result<(), StateError> {
        match write() {
            Err(StateError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                self.create()?;
                write()
            }
            written => written,
        }
    }

    /// Tells whether a journal could be written now.
    pub fn probe(&self) -> Result<(), StateError> {
        self.create()?;
        let path = self.journals.join(".probe");
        write_synced(&path, b"")?;
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// The journal of a VF; `None` when it has none.
    pub fn read(&self, vf: DeviceId) -> Result<Option<Journal>, StateError> {
        let path = self.journal(vf);
        match read_whole(&path) {
            Ok(bytes) => decode(&path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes a VF's journal, so that the first of an attachment is on disk when this returns.
    pub fn write(&self, journal: &Journal) -> Result<(), StateError> {
        let path = self.journal(journal.vf);
        let bytes = serde_json::to_vec_pretty(journal).map_err(|cause| StateError::Journal { path: path.clone(), cause })?;
        // The lock is held, so that one name is enough; the leading dot keeps it from readers of the folder.
        let temporary = self.journals.join(format!(".{}.tmp", journal.vf));
        self.with_folders(|| write_synced(&temporary, &bytes))?;
        fs::rename(&temporary, &path).map_err(failed("rename", &temporary))?;
        match journal.phase {
            Phase::Prepared => File::open(&self.journals).and_then(|dir| dir.sync_all()).map_err(failed("sync", &self.journals)),
            // It replaces one that is on disk.
            Phase::Attached => Ok(()),
        }
    }

    /// Removes a VF's journal; none is fine.
    pub fn remove(&self, vf: DeviceId) -> Result<(), StateError> {
        let path = self.journal(vf);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes all that is remembered of an attachment. The journal goes last: what is left when this is interrupted says that it has ended.
    pub(crate) fn forget(&self, journal: &Journal) -> Result<(), StateError> {
        device_info::remove(journal.device_info.as_deref());
        self.remove_go_records(journal.vf, &journal.owner)?;
        self.remove(journal.vf)
    }

    /// Writes a file that another program reads, with the folder that it is in.
    pub(crate) fn publish(path: &Path, content: &Value) -> Result<(), StateError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        fs::write(path, content.to_string()).map_err(failed("write", path))
    }

    /// Renames a journal that can't be read, so that it stops no pod and a person can still look at it.
    pub fn set_aside(&self, vf: DeviceId) -> Result<PathBuf, StateError> {
        let path = self.journal(vf);
        let aside = self.journals.join(format!("{vf}.unreadable"));
        fs::rename(&path, &aside).map_err(failed("rename", &path))?;
        Ok(aside)
    }

    /// Each journal, or why one can't be read, in order of address.
    pub fn all(&self) -> Result<Vec<Result<Journal, StateError>>, StateError> {
        let entries = match fs::read_dir(&self.journals) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.journals)(error)),
        };
        let mut vfs: Vec<DeviceId> =
            entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect();
        vfs.sort_unstable();
        Ok(vfs.into_iter().filter_map(|vf| self.read(vf).transpose()).collect())
    }

    /// Whether there ever was an attachment.
    pub(crate) fn exists(&self) -> bool {
        self.locks.exists()
    }

    /// Whether a VF has a journal, readable or not.
    pub fn has(&self, vf: DeviceId) -> bool {
        self.journal(vf).exists()
    }

    fn journal(&self, vf: DeviceId) -> PathBuf {
        self.journals.join(format!("{vf}.json"))
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Journal, StateError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u64,
    }
    let journal = |cause| StateError::Journal { path: path.to_owned(), cause };
    let Versioned { version } = serde_json::from_slice(bytes).map_err(journal)?;
    if version != u64::from(VERSION) {
        return Err(StateError::Version { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(bytes).map_err(journal)
}

/// Files here are shorter.
const USUAL_BYTES: usize = 4096;

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    whole(&File::open(path)?)
}

/// All of a file, without asking for its size first.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).map_err(failed("create", path))?;
    file.write_all(bytes).map_err(failed("write", path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).map_err(failed("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |cause| StateError::File { operation, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    fn journal() -> Journal {
        serde_json::from_str(include_str!("../testdata/journal/v1.json")).unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("state"));
        (dir, store)
    }

    #[test]
    fn a_journal_comes_back_and_goes() {
        let (_dir, store) = store();
        assert_eq!(store.read(journal().vf).unwrap(), None);
        assert!(store.all().unwrap().is_empty(), "no folder is no journal");
        store.create().unwrap();
        store.write(&journal()).unwrap();
        assert_eq!(store.read(journal().vf).unwrap(), Some(journal()));
        assert_eq!(store.all().unwrap().len(), 1);
        store.remove(journal().vf).unwrap();
        store.remove(journal().vf).unwrap();
        assert!(!store.has(journal().vf));
    }

    #[test]
    fn folders_that_somebody_removed_are_made_again() {
        let (dir, store) = store();
        let root = dir.path().join("state");
        drop(store.lock(journal().vf, Instant::now()).unwrap());
        for folder in ["v1", "pci"] {
            fs::remove_dir(root.join(folder)).unwrap();
        }
        store.write(&journal()).unwrap();
        fs::remove_dir(root.join("pci")).unwrap();
        store.write_go_records(journal().vf, &journal().owner, &serde_json::json!({})).unwrap();
        assert!(root.join("pci").join(journal().vf.to_string()).is_file() && store.has(journal().vf));
        assert_eq!(fs::metadata(root.join("pci")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_root_can_look_and_nothing_temporary_stays() {
        let (dir, store) = store();
        store.probe().unwrap();
        store.write(&journal()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("state")), 0o700);
        assert_eq!(mode(&store.journals), 0o700);
        assert_eq!(mode(&store.journal(journal().vf)), 0o600);
        assert_eq!(fs::read_dir(&store.journals).unwrap().count(), 1);
    }

    #[test]
    fn a_journal_that_is_cut_off_or_of_another_version_is_an_error_and_can_be_set_aside() {
        let (_dir, store) = store();
        store.create().unwrap();
        store.write(&journal()).unwrap();
        let path = store.journal(journal().vf);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(matches!(store.read(journal().vf), Err(StateError::Version { found: 2, .. })));
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(matches!(store.read(journal().vf), Err(StateError::Journal { .. })));
        assert!(matches!(store.all().unwrap()[..], [Err(_)]));
        assert!(store.set_aside(journal().vf).unwrap().exists());
        assert_eq!(store.read(journal().vf).unwrap(), None);
    }

    #[test]
    fn a_lock_is_waited_for_until_the_deadline_and_no_longer() {
        let (_dir, store) = store();
        store.create().unwrap();
        let vf = journal().vf;
        let held = store.lock(vf, Instant::now()).unwrap();
        let refused = store.lock(vf, Instant::now() + Duration::from_millis(20));
        assert!(matches!(refused, Err(StateError::Locked { .. })));
        let other = store.clone();
        let waiting = std::thread::spawn(move || other.lock(vf, Instant::now() + Duration::from_secs(20)).map(drop));
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
