//! I/O: device-info files, by which Multus learns what the kubelet gave to a container (network-plumbing "device-info" specification 1.1).
//!
//! A file is written at allocation, and never removed: Multus reads it only after an allocation of that device, which wrote it anew, and the
//! folder is on a file system that a reboot empties. (The Go plugin removes the files of running pods when it starts and stops.)
//!
//! Invariant: a reader finds a whole file or none.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sriov_host::pci::PciAddress;

use crate::pool::PoolName;

/// A device-info file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {cause}", path.display())]
pub struct DeviceInfoError {
    verb: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// Writes the file of one device below `folder`, which is made if it is not there.
pub fn write(folder: &Path, pool: &PoolName, address: PciAddress) -> Result<(), DeviceInfoError> {
    let id = address.to_string();
    let target = folder.join(pool.device_info_name(&id));
    let fresh = folder.join(format!(".{}.new", pool.device_info_name(&id)));
    let fail = |verb, path: &Path| {
        let path = path.to_owned();
        move |cause| DeviceInfoError { verb, path, cause }
    };
    fs::create_dir_all(folder).map_err(fail("create folder", folder))?;
    // What an earlier instance left half done is read-only: it can be removed, but not opened again.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("remove", &fresh)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&fresh).map_err(fail("create", &fresh))?;
    file.write_all(render(&id).as_bytes()).map_err(fail("write", &fresh))?;
    fs::rename(&fresh, &target).map_err(fail("rename to", &target))
}

fn render(id: &str) -> String {
    // Written out because the order of keys is the field's.
    format!(r#"{{"type":"pci","version":"1.1.0","pci":{{"pci-address":"{id}"}}}}"#)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_has_the_fields_name_mode_and_content_also_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("devinfo/dp");
        let pool = PoolName::new("example.com", "pool_a").unwrap();
        for _ in 0..2 {
            write(&folder, &pool, "0000:86:02.0".parse().unwrap()).unwrap();
        }
        let path = folder.join("example.com-pool_a-0000:86:02.0-device.json");
        let expected = r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:86:02.0"}}"#;
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn an_error_names_verb_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("file");
        fs::write(&folder, "").unwrap();
        let pool = PoolName::new("example.com", "a").unwrap();
        let error = write(&folder, &pool, "0000:86:02.0".parse().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("failed to create folder {}", folder.display())), "{error}");
    }
}
