//! I/O: the files in the Go plugin's form: `<container>-<interface>` and `pci/<PCI address>`. What they mean is `go_plugin`'s.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::{StateError, Store, failed, read_whole, whole, write_private};
use crate::journal::Owner;
use sriov_host::device_id::DeviceId;

/// A record in the Go plugin's form.
#[derive(Clone, Debug)]
pub(crate) struct GoRecord {
    /// Its file name: container, `-`, interface.
    pub(crate) name: String,
    /// Its content.
    pub(crate) conf: Value,
    /// When it was written.
    pub(crate) written: SystemTime,
}

impl Store {
    /// A record of the Go plugin by its file name; `None` where there is none or it can't be read as one: the Go plugin writes in place, and half
    /// a record tells nothing.
    pub(crate) fn go_record(&self, name: &str) -> Result<Option<GoRecord>, StateError> {
        let path = self.root.join(name);
        let read = || {
            let file = File::open(&path)?;
            Ok::<_, io::Error>((whole(&file)?, file.metadata()?.modified()?))
        };
        match read() {
            Ok((bytes, written)) => Ok(serde_json::from_slice(&bytes).ok().map(|conf| GoRecord { name: name.to_owned(), conf, written })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Each record in the Go plugin's form, in order of name.
    pub(crate) fn go_records(&self) -> Result<Vec<GoRecord>, StateError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.root)(error)),
        };
        let files = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let mut names: Vec<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect();
        names.sort_unstable();
        Ok(names.iter().filter_map(|name| self.go_record(name).ok().flatten()).collect())
    }

    /// The path of the network namespace that has a VF, as the Go plugin records it.
    pub(crate) fn go_allocation(&self, vf: DeviceId) -> Result<Option<PathBuf>, StateError> {
        let path = self.root.join("pci").join(vf.to_string());
        match read_whole(&path).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other)) {
            Ok(text) => Ok(Some(PathBuf::from(text.trim()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes both records. They need not survive a power cut: our own journal does.
    pub(crate) fn write_go_records(&self, vf: DeviceId, owner: &Owner, conf: &Value) -> Result<(), StateError> {
        let record = self.root.join(go_name(owner));
        let temporary = self.root.join(format!(".{vf}.tmp"));
        for (path, bytes) in [(record, conf.to_string().into_bytes()), (self.root.join("pci").join(vf.to_string()), path_bytes(&owner.netns_path))] {
            write_private(&temporary, &bytes)?;
            self.with_folders(|| fs::rename(&temporary, &path).map_err(failed("rename", &temporary)))?;
        }
        Ok(())
    }

    /// Removes both records, the second unless the VF belongs to another namespace by now.
    pub(crate) fn remove_go_records(&self, vf: DeviceId, owner: &Owner) -> Result<(), StateError> {
        let mut paths = vec![self.root.join(go_name(owner))];
        if self.go_allocation(vf)?.is_some_and(|path| path == owner.netns_path) {
            paths.push(self.root.join("pci").join(vf.to_string()));
        }
        for path in paths {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes a container's record alone, when its VF has gone to somebody else.
    pub(crate) fn remove_go_record(&self, container_id: &str, if_name: &str) -> Result<(), StateError> {
        let path = self.root.join(format!("{container_id}-{if_name}"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

fn go_name(owner: &Owner) -> String {
    format!("{}-{}", owner.container_id, owner.if_name)
}

fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().to_vec()
}
