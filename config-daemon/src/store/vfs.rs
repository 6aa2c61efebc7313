//! I/O: which VFs pods use, by what CNI plugins wrote down: our CNI's journals, and the allocations of the Go plugin, whose pods outlive an upgrade.
//! Also the lock under which a VF is given to a pod.
//!
//! What does not live here: what the kubelet says of pods (`kubelet`). The form of the files is the CNI's.
//!
//! Invariants: files of the CNI are only read, but for locks; an allocation counts until its network namespace has certainly ended.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Deserialize;
use sriov_host::pci::PciAddress;

use super::{Store, StoreError, file_name, list, read};

/// `f_type` of a network namespace's file (`NSFS_MAGIC`, include/uapi/linux/magic.h, v6.12).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// File times and the machine's uptime are both rounded.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// A VF that the CNI gives to nobody, until this is dropped.
#[derive(Debug)]
pub struct VfLock {
    _file: File,
}

/// Folders in which files go away when pods end.
#[derive(Clone, Debug)]
pub struct PodFolders {
    /// The CNI's journals.
    pub journals: PathBuf,
    /// The network namespaces of container runtimes.
    pub namespaces: PathBuf,
}

/// The part of a CNI journal that says who has the VF; everything else in it is skipped.
#[derive(Debug, Deserialize)]
struct Journal {
    vf: PciAddress,
    owner: Owner,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    if_name: String,
    netns_path: PathBuf,
    netns_dev: u64,
    netns_inode: u64,
}

impl Store {
    fn cni_folder(&self) -> PathBuf {
        self.root.join("var/lib/cni/sriov")
    }

    /// Folder of the CNI's journals.
    pub fn journals_folder(&self) -> PathBuf {
        self.cni_folder().join("v1")
    }

    /// The VFs that pods use, with the pod's side in words. A journal counts as long as its owner's network namespace is the one that it names;
    /// when that cannot be told, it counts. Of the Go plugin's allocations those count that no journal tells of.
    pub fn vfs_in_use(&self) -> Result<BTreeMap<PciAddress, String>, StoreError> {
        let mut users = self.go_allocations()?;
        for path in readable(&self.journals_folder())? {
            let name = file_name(&path);
            let Some(address) = name.strip_suffix(".json").and_then(|stem| stem.parse::<PciAddress>().ok()) else { continue };
            let Some(text) = read(&path)? else { continue };
            match serde_json::from_str::<Journal>(&text) {
                Ok(Journal { vf, owner }) => {
                    // Our CNI writes the Go plugin's file too, and the journal knows more.
                    users.remove(&vf);
                    if !self.is_gone(&owner.netns_path, Some((owner.netns_dev, owner.netns_inode))) {
                        let id: String = owner.container_id.chars().take(12).collect();
                        users.insert(vf, format!("container {id}, interface {}", owner.if_name));
                    }
                }
                Err(_) => _ = users.insert(address, format!("unknown, its journal {name} is not readable")),
            }
        }
        Ok(users)
    }

    /// Takes the lock under which the CNI gives a VF to a pod or takes it back; `None` while a call of the CNI holds it. The file is made where the CNI
    /// has not made it yet: a VF that nobody ever had may be asked for at this moment.
    pub fn lock_vf(&self, vf: PciAddress) -> Result<Option<VfLock>, StoreError> {
        let folder = self.cni_folder().join("lock");
        let path = folder.join(format!("{vf}.lock"));
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let opened = open().or_else(|cause| {
            if cause.kind() != io::ErrorKind::NotFound {
                return Err(cause);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            open()
        });
        let file = opened.map_err(|cause| StoreError { operation: "open the CNI's lock", path: path.clone(), cause })?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(VfLock { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(StoreError { operation: "lock", path, cause: errno.into() }),
        }
    }

    /// The folders in which files go away when pods end.
    pub fn pod_folders(&self) -> PodFolders {
        PodFolders { journals: self.journals_folder(), namespaces: self.root.join("run/netns") }
    }

    /// Whether container runtimes have made network namespaces on this machine.
    pub fn has_namespaces(&self) -> bool {
        list(&self.root.join("run/netns")).is_ok_and(|names| !names.is_empty())
    }

    /// What the Go plugin wrote (sriov-cni 1b7acc5b, `pkg/utils/pci_allocator.go`): `pci/<PCI address of the VF>` holds the path of the network
    /// namespace that has it.
    fn go_allocations(&self) -> Result<BTreeMap<PciAddress, String>, StoreError> {
        let mut users = BTreeMap::new();
        for path in readable(&self.cni_folder().join("pci"))? {
            let Ok(vf) = file_name(&path).parse::<PciAddress>() else { continue };
            let Some(text) = read(&path)? else { continue };
            let namespace = PathBuf::from(text.trim());
            // Of those that are seen nothing but themselves counts: clocks jump, above all at boot.
            let may_be_old = below_netns(&namespace).is_none();
            let has_ended = self.is_gone(&namespace, None) || (may_be_old && is_from_before_boot(&path));
            if !has_ended {
                let name = namespace.file_name().map_or_else(|| text.trim().to_owned(), |name| name.to_string_lossy().into_owned());
                users.insert(vf, format!("the pod with network namespace {name}, attached by the Go plugin"));
            }
        }
        Ok(users)
    }

    /// Whether a network namespace has certainly ended; `id` is its device and inode where they were written down.
    fn is_gone(&self, netns: &Path, id: Option<(u64, u64)>) -> bool {
        let Some(path) = below_netns(netns) else { return false };
        let folder = self.root.join("run/netns");
        let path = folder.join(path);
        match fs::metadata(&path) {
            Err(error) => error.kind() == io::ErrorKind::NotFound && folder.is_dir(),
            Ok(metadata) => {
                let same = id.is_none_or(|(device, inode)| metadata.dev() == device && metadata.ino() == inode);
                // An ordinary file is the mount point of a namespace whose mount has ended, or that did not reach this container: unknown.
                let is_namespace = rustix::fs::statfs(&path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
                is_namespace && !same
            }
        }
    }
}

/// Container runtimes name namespaces below /run/netns or, the same folder, /var/run/netns. Other paths (/proc/PID/ns/net) are not seen from here.
fn below_netns(netns: &Path) -> Option<&Path> {
    let path = netns.strip_prefix("/var").unwrap_or(netns);
    path.strip_prefix("/run/netns").or_else(|_| path.strip_prefix("run/netns")).ok()
}

/// Network namespaces do not outlive a boot.
fn is_from_before_boot(path: &Path) -> bool {
    let uptime = u64::try_from(rustix::system::sysinfo().uptime).unwrap_or_default();
    let written = fs::metadata(path).and_then(|metadata| metadata.modified());
    let boot = SystemTime::now().checked_sub(Duration::from_secs(uptime));
    written.is_ok_and(|written| boot.is_some_and(|boot| written + CLOCK_SLACK < boot))
}

/// Looking needs no root. Without it the CNI's files are not seen, and nothing can be done either.
fn readable(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match list(folder) {
        Err(error) if error.cause.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => Ok(Vec::new()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn a_vf_is_locked_once_at_a_time_and_free_again_afterwards() {
        let (folder, store) = store();
        let vf: PciAddress = "0000:01:10.0".parse().unwrap();
        let held = store.lock_vf(vf).unwrap().expect("nobody ever had it, so the lock's file is made");
        assert!(store.lock_vf(vf).unwrap().is_none());
        assert!(folder.path().join("var/lib/cni/sriov/lock/0000:01:10.0.lock").exists(), "where the CNI looks for it");
        assert!(store.lock_vf("0000:01:10.2".parse().unwrap()).unwrap().is_some(), "another VF has its own");
        drop(held);
        assert!(store.lock_vf(vf).unwrap().is_some());
    }

    #[test]
    fn a_lock_that_cannot_be_taken_is_never_done_without() {
        let (folder, store) = store();
        fs::create_dir_all(folder.path().join("var/lib/cni")).unwrap();
        fs::write(folder.path().join("var/lib/cni/sriov"), "a file where the folder should be").unwrap();
        let error = store.lock_vf("0000:01:10.0".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("open the CNI's lock") && error.contains("0000:01:10.0.lock"), "{error}");
    }

    #[test]
    fn a_vf_is_in_use_while_its_owners_namespace_may_be_there() {
        let (folder, store) = store();
        let journals = store.journals_folder();
        fs::create_dir_all(&journals).unwrap();
        fs::create_dir_all(folder.path().join("run/netns")).unwrap();
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let journal = |vf: &str, path: &str, inode: u64| {
            let owner =
                format!(r#"{{"containerId":"0123456789abcdef","ifName":"net1","netnsPath":"{path}","netnsDev":{},"netnsInode":{inode}}}"#, own.dev());
            fs::write(journals.join(format!("{vf}.json")), format!(r#"{{"version":1,"phase":"added","owner":{owner},"vf":"{vf}","later":[]}}"#))
                .unwrap();
        };
        fs::write(folder.path().join("run/netns/plain"), "").unwrap();
        journal("0000:01:10.0", "/var/run/netns/gone", own.ino());
        journal("0000:01:10.2", "/run/netns/plain", own.ino());
        journal("0000:01:10.4", "/proc/1/ns/net", own.ino());
        fs::write(journals.join("0000:01:10.6.json"), "{").unwrap();
        fs::write(journals.join("0000:01:11.0.lock"), "").unwrap();
        let users = store.vfs_in_use().unwrap();
        let seen: Vec<_> = users.iter().map(|(vf, user)| format!("{vf} {user}")).collect();
        let expected = [
            "0000:01:10.2 container 0123456789ab, interface net1",
            "0000:01:10.4 container 0123456789ab, interface net1",
            "0000:01:10.6 unknown, its journal 0000:01:10.6.json is not readable",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_vf_of_a_pod_from_before_the_upgrade_is_in_use_until_its_namespace_ends() {
        let (folder, store) = store();
        let allocations = folder.path().join("var/lib/cni/sriov/pci");
        fs::create_dir_all(&allocations).unwrap();
        fs::create_dir_all(folder.path().join("run/netns")).unwrap();
        fs::write(folder.path().join("run/netns/cni-1"), "").unwrap();
        let old = |vf: &str, path: &str| {
            fs::write(allocations.join(vf), path).unwrap();
            let file = File::options().write(true).open(allocations.join(vf)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        };
        // The clock was set after this pod was started.
        old("0000:01:10.0", "/var/run/netns/cni-1");
        fs::write(allocations.join("0000:01:10.2"), "/var/run/netns/cni-2").unwrap();
        fs::write(allocations.join("0000:01:10.4"), "/proc/7/ns/net").unwrap();
        old("0000:01:10.6", "/proc/8/ns/net");
        fs::write(allocations.join("not-a-vf"), "/var/run/netns/cni-1").unwrap();
        let seen: Vec<_> = store.vfs_in_use().unwrap().iter().map(|(vf, user)| format!("{vf} {user}")).collect();
        let expected = [
            "0000:01:10.0 the pod with network namespace cni-1, attached by the Go plugin",
            "0000:01:10.4 the pod with network namespace net, attached by the Go plugin",
        ];
        assert_eq!(seen, expected, "of the others one's namespace has ended, and one is from before the boot");
        fs::remove_file(folder.path().join("run/netns/cni-1")).unwrap();
        assert_eq!(store.vfs_in_use().unwrap().len(), 1);
    }
}
