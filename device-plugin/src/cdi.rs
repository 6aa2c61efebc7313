//! I/O: specs of the Container Device Interface (version 0.6), one file a pool, for `--use-cdi`.
//!
//! What does not live here: naming the devices to the kubelet (`server`).
//!
//! **Guarantees.** A file is replaced whole. Each device in it has device nodes (runtimes refuse a device that changes nothing) and one variable; a
//! device without nodes needs no CDI and is not in it. A file stays while a pod may be started again with it: it is removed only when its pool is
//! gone and no pod has a device of it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::allocate::Granted;
use crate::pool::PoolName;
use sriov_host::device_id::DeviceId;

/// The field's beginning of the file names.
const FILE_PREFIX: &str = "sriov-dp-";
const FILE_SUFFIX: &str = ".json";

/// A spec that could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {cause}", path.display())]
pub struct CdiError {
    verb: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// The qualified name of a device: what the kubelet hands to the runtime.
pub fn device_name(pool: &PoolName, address: &DeviceId) -> String {
    format!("{}={address}", pool.cdi_kind())
}

/// The spec of a pool; `None` when no device has nodes.
pub fn spec(pool: &PoolName, devices: &[Granted]) -> Option<Value> {
    let device = |granted: &Granted| {
        let node = |node: &crate::allocate::Node| json!({ "path": node.container, "hostPath": node.host, "permissions": "rw" });
        let nodes: Vec<Value> = granted.nodes.iter().map(node).collect();
        // Each device says its part by a name of its own: the field's variable holds all devices, and the last device's edit would win.
        let name = granted.address.to_string().replace([':', '.'], "_");
        let env = format!("SRIOV_DEVICE_{name}={pool}");
        json!({ "name": granted.address, "containerEdits": { "deviceNodes": nodes, "env": [env] } })
    };
    let devices: Vec<Value> = devices.iter().filter(|granted| !granted.nodes.is_empty()).map(device).collect();
    (!devices.is_empty()).then(|| json!({ "cdiVersion": "0.6.0", "kind": pool.cdi_kind(), "devices": devices }))
}

/// Writes the pool's spec into `folder`, which is made if it is not there, unless it is there already. Without devices that have nodes the file
/// stays as it is: pods may be using it.
pub fn write(folder: &Path, pool: &PoolName, devices: &[Granted]) -> Result<(), CdiError> {
    let Some(spec) = spec(pool, devices) else { return Ok(()) };
    let text = format!("{spec:#}\n");
    let target = folder.join(format!("{FILE_PREFIX}{}{FILE_SUFFIX}", pool.stem()));
    if fs::read_to_string(&target).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let fail = |verb, path: &Path| {
        let path = path.to_owned();
        move |cause| CdiError { verb, path, cause }
    };
    // Runtimes read only files that end in .json or .yaml.
    let fresh = folder.join(format!(".{FILE_PREFIX}{}.new", pool.stem()));
    fs::create_dir_all(folder).map_err(fail("create folder", folder))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh).map_err(fail("create", &fresh))?;
    file.write_all(text.as_bytes()).map_err(fail("write", &fresh))?;
    fs::rename(&fresh, &target).map_err(fail("rename to", &target))
}

/// Whether the pool's spec has these devices, as far as they have nodes, just as they are.
pub fn holds(folder: &Path, pool: &PoolName, devices: &[Granted]) -> bool {
    let Some(wanted) = spec(pool, devices) else { return true };
    let text = fs::read_to_string(folder.join(format!("{FILE_PREFIX}{}{FILE_SUFFIX}", pool.stem()))).unwrap_or_default();
    let there: Value = serde_json::from_str(&text).unwrap_or_default();
    let list = |spec: &Value| spec["devices"].as_array().cloned().unwrap_or_default();
    let known = list(&there);
    list(&wanted).iter().all(|device| known.contains(device))
}

/// Removes the specs of pools that `keep` does not know by their stem.
pub fn sweep(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<(), CdiError> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(stem) = name.strip_prefix(FILE_PREFIX).and_then(|rest| rest.strip_suffix(FILE_SUFFIX)) else { continue };
        if !keep(stem) {
            fs::remove_file(entry.path()).map_err(|cause| CdiError { verb: "remove", path: entry.path(), cause })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::Node;

    fn granted(address: &str, nodes: &[&str]) -> Granted {
        let nodes = nodes.iter().map(|path| Node { host: (*path).to_owned(), container: (*path).to_owned() }).collect();
        Granted { address: address.parse().unwrap(), nodes, rdma: Vec::new(), vdpa: None }
    }

    #[test]
    fn a_device_without_nodes_is_in_no_spec_and_no_file_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cdi");
        let pool = PoolName::new("x.io", "a").unwrap();
        write(&folder, &pool, &[granted("0000:01:10.0", &[])]).unwrap();
        assert!(!folder.exists());
        write(&folder, &pool, &[granted("0000:01:10.0", &[]), granted("0000:01:10.2", &["/dev/vfio/9"])]).unwrap();
        let path = folder.join("sriov-dp-x.io-a.json");
        let value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((value["devices"].as_array().unwrap().len(), &value["devices"][0]["name"]), (1, &json!("0000:01:10.2")));
        assert!(holds(&folder, &pool, &[granted("0000:01:10.0", &[]), granted("0000:01:10.2", &["/dev/vfio/9"])]));
        assert!(!holds(&folder, &pool, &[granted("0000:01:10.2", &["/dev/vfio/10"])]));
        write(&folder, &pool, &[]).unwrap();
        assert!(path.exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn only_specs_of_this_plugin_whose_pool_is_not_known_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["sriov-dp-x.io-a.json", "sriov-dp-x.io-b.json", "other.json"] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        sweep(dir.path(), |stem| stem == "x.io-a").unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other.json", "sriov-dp-x.io-a.json"]);
        sweep(&dir.path().join("none"), |_| false).unwrap();
    }
}
