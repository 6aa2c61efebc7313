//! I/O: which VFs pods have: the CNI's journals (ours, and the allocation files of the Go CNI) say that somebody has one, device-info files of which
//! pool it came.
//!
//! What does not live here: which pod that is (`pod_resources`), writing device-info files (`device_info`).
//!
//! Invariant: a VF counts as held only while its owner's network namespace is certainly there. What a reboot left behind holds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use sriov_host::pci::PciAddress;

use crate::facts::Held;
use sriov_host::device_id::DeviceId;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The end of a device-info file's name; before it are the pool's stem and the device.
const INFO_SUFFIX: &str = "-device.json";

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Claims {
    cni: PathBuf,
    netns: PathBuf,
    device_info: PathBuf,
}

/// The part of a journal that says who has the VF. The journal's form is the CNI's; everything else in it is skipped.
#[derive(Debug, Deserialize)]
struct Journal {
    owner: Owner,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    #[serde(default)]
    container_id: String,
    netns_path: PathBuf,
    netns_dev: u64,
    netns_inode: u64,
}

impl Claims {
    /// The CNI's folder and the namespaces' are below `root`, the host's file system.
    pub fn new(root: &Path, device_info: &Path) -> Self {
        Self { cni: root.join("var/lib/cni/sriov"), netns: root.join("run/netns"), device_info: device_info.to_owned() }
    }

    /// The folder in which journals come and go.
    pub fn journals(&self) -> PathBuf {
        self.cni.join("v1")
    }

    /// All VFs that pods have.
    pub fn read(&self) -> BTreeMap<PciAddress, Held> {
        let through = self.given();
        let names = |folder: &Path| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let ours = names(&self.journals()).into_iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        let field = names(&self.cni.join("pci")).into_iter().filter_map(|name| name.parse().ok());
        let held = ours.chain(field).filter_map(|address: PciAddress| {
            let by = self.holder(address)?;
            Some((address, Held { by, through: through.get(&address).map(|(_, pool)| pool.clone()) }))
        });
        held.collect()
    }

    /// Who has this VF, in words.
    pub fn holder(&self, address: PciAddress) -> Option<String> {
        let journal = fs::read_to_string(self.journals().join(format!("{address}.json"))).ok();
        if let Some(Journal { owner }) = journal.and_then(|text| serde_json::from_str(&text).ok())
            && self.is_there(&owner.netns_path, Some((owner.netns_dev, owner.netns_inode)))
        {
            let id: String = owner.container_id.chars().take(12).collect();
            return Some(format!("container {id}"));
        }
        let path = fs::read_to_string(self.cni.join(format!("pci/{address}"))).ok()?;
        self.is_there(Path::new(path.trim()), None).then(|| format!("the network namespace {}", path.trim()))
    }

    /// The pool that gave a device last, as in file names, and when.
    pub fn given(&self) -> BTreeMap<PciAddress, (SystemTime, String)> {
        let mut given: BTreeMap<PciAddress, (SystemTime, String)> = BTreeMap::new();
        for entry in fs::read_dir(&self.device_info).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((stem, address)) = split_info_name(&name).and_then(|(stem, id)| Some((stem, id.pci()?))) else { continue };
            let Ok(written) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
            if given.get(&address).is_none_or(|(other, _)| *other < written) {
                given.insert(address, (written, stem.to_owned()));
            }
        }
        given
    }

    /// Whether the namespace is certainly there. Container runtimes name it below /run/netns or, the same folder, /var/run/netns; others are not
    /// seen from here.
    fn is_there(&self, path: &Path, identity: Option<(u64, u64)>) -> bool {
        let path = path.strip_prefix("/var").unwrap_or(path);
        let Ok(name) = path.strip_prefix("/run/netns").or_else(|_| path.strip_prefix("run/netns")) else { return false };
        let path = self.netns.join(name);
        let Ok(metadata) = fs::metadata(&path) else { return false };
        let is_namespace = rustix::fs::statfs(&path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
        is_namespace && identity.is_none_or(|identity| identity == (metadata.dev(), metadata.ino()))
    }
}

/// Pool stem and device of a device-info file's name.
pub fn split_info_name(name: &str) -> Option<(&str, DeviceId)> {
    let (stem, device) = name.strip_suffix(INFO_SUFFIX)?.rsplit_once('-')?;
    Some((stem, device.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use sriov_host::testing::new_netns;

    use super::*;

    #[test]
    fn names_of_device_info_files_are_split_at_the_address() {
        let expected = Some(("example.com-pool-a", "0000:86:02.0".parse().unwrap()));
        assert_eq!(split_info_name("example.com-pool-a-0000:86:02.0-device.json"), expected);
        for name in [".example.com-a-0000:86:02.0-device.json.new", "x-device.json", "a-0000:86:02.0.json"] {
            assert_eq!(split_info_name(name), None, "{name}");
        }
    }

    #[test]
    fn only_a_live_namespace_holds_a_vf() {
        let dir = tempfile::tempdir().unwrap();
        let info = dir.path().join("devinfo");
        let claims = Claims::new(dir.path(), &info);
        for folder in [claims.journals(), dir.path().join("var/lib/cni/sriov/pci"), dir.path().join("run/netns"), info.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        // A namespace file outside of /proc needs a mount; a link to it is followed like one.
        let netns = new_netns().unwrap();
        let id = netns.id().unwrap();
        let held_open = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&netns)));
        std::os::unix::fs::symlink(held_open, dir.path().join("run/netns/live")).unwrap();
        fs::write(dir.path().join("run/netns/ended"), "").unwrap();
        let journal = |vf: &str, name: &str, inode: u64| {
            let owner =
                format!(r#"{{"containerId":"0123456789abcdef","netnsPath":"/var/run/netns/{name}","netnsDev":{},"netnsInode":{inode}}}"#, id.dev);
            fs::write(claims.journals().join(format!("{vf}.json")), format!(r#"{{"version":1,"owner":{owner}}}"#)).unwrap();
        };
        journal("0000:01:10.0", "live", id.ino);
        journal("0000:01:10.2", "live", id.ino + 1);
        journal("0000:01:10.4", "ended", id.ino);
        journal("0000:01:10.6", "gone", id.ino);
        fs::write(claims.journals().join("0000:01:11.0.json"), "{").unwrap();
        fs::write(dir.path().join("var/lib/cni/sriov/pci/0000:01:11.2"), "/run/netns/live").unwrap();
        fs::write(info.join("x.io-a-0000:01:10.0-device.json"), "").unwrap();

        let held = claims.read();
        let by = |address: &str| held.get(&address.parse().unwrap()).map(|held| (held.by.as_str(), held.through.as_deref()));
        assert_eq!(by("0000:01:10.0"), Some(("container 0123456789ab", Some("x.io-a"))));
        assert_eq!(by("0000:01:11.2"), Some(("the network namespace /run/netns/live", None)));
        assert_eq!(held.len(), 2, "{held:?}");
    }
}
