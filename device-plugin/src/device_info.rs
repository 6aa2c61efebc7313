//! I/O: device-info files, by which Multus learns what the kubelet gave to a container (network-plumbing "device-info" specification 1.1).
//!
//! A file is written at allocation and removed when the kubelet no longer counts the device to any container, never at start or stop as such:
//! running pods keep theirs.
//!
//! Invariant: a reader finds a whole file or none.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use std::time::{Duration, SystemTime};

use crate::allocate::Granted;
use crate::claims::split_info_name;
use crate::pool::PoolName;

/// A file younger than this may belong to an allocation that the kubelet has not counted yet.
const YOUNG: Duration = Duration::from_mins(1);

/// A device-info file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {cause}", path.display())]
pub struct DeviceInfoError {
    verb: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// Writes the file of one device below `folder`, which is made if it is not there.
pub fn write(folder: &Path, pool: &PoolName, granted: &Granted) -> Result<(), DeviceInfoError> {
    let id = granted.address.to_string();
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
    file.write_all(render(granted).as_bytes()).map_err(fail("write", &fresh))?;
    fs::rename(&fresh, &target).map_err(fail("rename to", &target))
}

/// Removes the files of devices that no container has: those of which `has` knows nothing by pool and device. Files that are young stay.
pub fn sweep(folder: &Path, has: impl Fn(&str, &str) -> bool) -> Result<usize, DeviceInfoError> {
    let mut removed = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((stem, address)) = split_info_name(&name) else { continue };
        let written = entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        let is_young = SystemTime::now().duration_since(written).is_ok_and(|age| age < YOUNG);
        if !is_young && !has(stem, &address.to_string()) {
            fs::remove_file(entry.path()).map_err(|cause| DeviceInfoError { verb: "remove", path: entry.path(), cause })?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The content of a device's file.
pub fn render(granted: &Granted) -> String {
    // Written out because the order of keys is the field's. No part can hold a quote: they are names of the kernel.
    let id = &granted.address;
    if let Some((kind, parent, path)) = &granted.vdpa {
        let path = path.as_ref().map(|path| format!(r#""path":"{path}","#)).unwrap_or_default();
        let driver = kind.word();
        return format!(
            r#"{{"type":"vdpa","version":"1.1.0","vdpa":{{"parent-device":"{parent}","driver":"{driver}",{path}"pci-address":"{id}"}}}}"#
        );
    }
    let rdma = if granted.rdma.is_empty() { String::new() } else { format!(r#","rdma-device":"{}""#, granted.rdma.join(",")) };
    format!(r#"{{"type":"pci","version":"1.1.0","pci":{{"pci-address":"{id}"{rdma}}}}}"#)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn granted() -> Granted {
        Granted { address: "0000:86:02.0".parse().unwrap(), nodes: Vec::new(), rdma: Vec::new(), vdpa: None }
    }

    #[test]
    fn only_files_of_devices_that_no_container_has_are_swept_and_no_young_ones() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - YOUNG * 2;
        let make = |name: &str, time: SystemTime| {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
        };
        make("x.io-a-0000:01:10.0-device.json", old);
        make("x.io-a-0000:01:10.2-device.json", old);
        make("x.io-b-0000:01:10.0-device.json", old);
        make("x.io-a-0000:01:10.4-device.json", SystemTime::now());
        make("foreign.json", old);
        assert_eq!(sweep(dir.path(), |pool, device| (pool, device) == ("x.io-a", "0000:01:10.0")).unwrap(), 2);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["foreign.json", "x.io-a-0000:01:10.0-device.json", "x.io-a-0000:01:10.4-device.json"]);
    }

    #[test]
    fn the_file_has_the_fields_name_mode_and_content_also_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("devinfo/dp");
        let pool = PoolName::new("example.com", "pool_a").unwrap();
        for _ in 0..2 {
            write(&folder, &pool, &granted()).unwrap();
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
        let error = write(&folder, &pool, &granted()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("failed to create folder {}", folder.display())), "{error}");
    }
}
