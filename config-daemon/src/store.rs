//! I/O: the files that outlive this process: records of the PFs that we configure, the last wish, the device plugin's pools; and, only read, the
//! CNI's journals, which say which VFs pods use.
//!
//! What does not live here: what the files mean for a plan.
//!
//! Invariant: a file is replaced whole (written beside, synced, renamed, folder synced), so that a reader and a power cut see the old or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Deserialize;
use sriov_crds::node_state::{Interface, SYNC_FAILED, SYNC_SUCCEEDED, SriovNetworkNodeStateSpec};
use sriov_host::pci::PciAddress;

use crate::desired::Desired;
use crate::observed::{Record, SupportedNics};
use crate::pools::Pools;
use crate::udev;

/// `f_type` of a network namespace's file (`NSFS_MAGIC`, include/uapi/linux/magic.h, v6.12).
const NSFS_MAGIC: i64 = 0x6e73_6673;

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

/// A VF that the CNI gives to nobody, until this is dropped.
#[derive(Debug)]
pub struct VfLock {
    _file: Option<File>,
}

/// Folders in which files go away when pods end.
#[derive(Clone, Debug)]
pub struct PodFolders {
    /// The CNI's journals.
    pub journals: PathBuf,
    /// The network namespaces of container runtimes.
    pub namespaces: PathBuf,
}

/// The part of a CNI journal that says who has the VF. The journal's form is the CNI's; everything else in it is skipped.
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
    /// Files below `root` (`/`, or where the host's folders are mounted); the pools' file is named whole, because both containers of the node pod
    /// have it at the same path.
    pub fn new(root: impl Into<PathBuf>, pools: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), pools: pools.into() }
    }

    fn records_folder(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/pci")
    }

    /// Folder of the CNI's journals.
    pub fn journals_folder(&self) -> PathBuf {
        self.root.join("var/lib/cni/sriov/v1")
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

    fn wish_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/node-state.json")
    }

    fn nics_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/sriov-supported-nics-ids.yaml")
    }

    fn reboot_file(&self) -> PathBuf {
        self.root.join("etc/sriov-operator/reboot.json")
    }

    /// Keeps the last rendered wish, so that what this machine should be is known when no API server is (`apply -f` takes the file as it is).
    pub fn keep_wish(&self, spec: &SriovNetworkNodeStateSpec) -> Result<(), StoreError> {
        let wish = serde_json::json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "spec": spec });
        write_changed(&self.wish_file(), &wish.to_string()).map(drop)
    }

    /// The wish that was kept; `None` when there is none, or none that can be understood.
    pub fn kept_wish(&self) -> Result<Option<SriovNetworkNodeStateSpec>, StoreError> {
        #[derive(Deserialize)]
        struct Kept {
            spec: SriovNetworkNodeStateSpec,
        }
        Ok(read(&self.wish_file())?.and_then(|text| serde_json::from_str::<Kept>(&text).ok()).map(|kept| kept.spec))
    }

    /// Keeps the entries of `supported-nic-ids`: one `vendor PF VF` a line, in the Go daemon's file (which is no YAML, whatever it is called).
    pub fn keep_nics(&self, entries: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let lines: Vec<String> = entries.values().map(|entry| format!("{entry}\n")).collect();
        write_changed(&self.nics_file(), &lines.concat()).map(drop)
    }

    /// The NICs that were kept.
    pub fn kept_nics(&self) -> Result<Option<SupportedNics>, StoreError> {
        let Some(text) = read(&self.nics_file())? else { return Ok(None) };
        let entries: BTreeMap<String, String> = text.lines().enumerate().map(|(n, line)| (format!("line {n}"), line.to_owned())).collect();
        Ok(Some(SupportedNics::read(&entries)))
    }

    /// Writes the result of applying the wish at boot, in the Go daemon's file and form.
    pub fn keep_result(&self, error: &str) -> Result<(), StoreError> {
        let path = self.root.join("etc/sriov-operator/sriov-interface-result.yaml");
        let status = if error.is_empty() { SYNC_SUCCEEDED } else { SYNC_FAILED };
        let text = serde_json::json!({ "syncStatus": status, "lastSyncError": error }).to_string();
        // JSON is YAML.
        write_changed(&path, &format!("{text}\n")).map(drop)
    }

    /// Switches the unit of systemd mode on or off: it looks for this file.
    pub fn set_systemd_mode(&self, on: bool) -> Result<(), StoreError> {
        let path = self.root.join("etc/sriov-operator/systemd-mode");
        if on { write_changed(&path, "").map(drop) } else { delete(path) }
    }

    /// Makes the udev rules of ours be these. With the wish incomplete (an entry that is not understood) none is taken away.
    pub fn write_rules(&self, desired: &Desired) -> Result<(), StoreError> {
        if !desired.rendered {
            return Ok(());
        }
        let (folder, wanted) = (self.root.join("etc/udev/rules.d"), udev::rules(desired));
        let ours = |name: &str| name.starts_with(udev::PREFIX) && name.ends_with(udev::SUFFIX);
        let complete = desired.unreadable.is_empty() && desired.pfs.values().all(Result::is_ok);
        for path in list(&folder)?.into_iter().filter(|path| complete && ours(&file_name(path)) && !wanted.contains_key(&file_name(path))) {
            delete(path)?;
        }
        for (name, text) in wanted {
            write_changed(&folder.join(name), &text)?;
        }
        Ok(())
    }

    /// Remembers that the machine is rebooted, for which cause, in which boot.
    pub fn keep_reboot(&self, cause: &str, boot: &str) -> Result<(), StoreError> {
        write_changed(&self.reboot_file(), &serde_json::json!({ "cause": cause, "boot": boot }).to_string()).map(drop)
    }

    /// Whether the machine was rebooted for this cause already: then another reboot would not help either.
    pub fn was_rebooted_for(&self, cause: &str, boot: &str) -> Result<bool, StoreError> {
        #[derive(Deserialize)]
        struct Kept {
            cause: String,
            boot: String,
        }
        let kept = read(&self.reboot_file())?.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        Ok(kept.is_some_and(|kept| kept.cause == cause && kept.boot != boot))
    }

    /// The machine is as asked: a later reboot is a new matter.
    pub fn forget_reboot(&self) -> Result<(), StoreError> {
        delete(self.reboot_file())
    }

    /// Writes the pools unless they are written already; answers whether they were.
    pub fn write_pools(&self, pools: &Pools) -> Result<bool, StoreError> {
        let text = pools.to_json().map_err(|error| StoreError { operation: "encode", path: self.pools.clone(), cause: error.into() })?;
        write_changed(&self.pools, &text)
    }

    /// The VFs that pods use, with the pod's side in words. A journal counts as long as its owner's network namespace is the one that it names;
    /// when that cannot be told, it counts.
    pub fn vfs_in_use(&self) -> Result<BTreeMap<PciAddress, String>, StoreError> {
        let mut users = BTreeMap::new();
        for path in list(&self.journals_folder())? {
            let name = file_name(&path);
            let Some(address) = name.strip_suffix(".json").and_then(|stem| stem.parse::<PciAddress>().ok()) else { continue };
            let Some(text) = read(&path)? else { continue };
            match serde_json::from_str::<Journal>(&text) {
                Ok(journal) if self.is_gone(&journal.owner) => {}
                Ok(Journal { vf, owner }) => {
                    let id: String = owner.container_id.chars().take(12).collect();
                    users.insert(vf, format!("container {id}, interface {}", owner.if_name));
                }
                Err(_) => _ = users.insert(address, format!("unknown, its journal {name} is not readable")),
            }
        }
        Ok(users)
    }

    /// Takes the lock under which the CNI gives a VF to a pod or takes it back; `None` while a call of the CNI holds it. Where the lock's file is
    /// not there and cannot be made, the CNI has never had the VF: the journals alone are looked at then.
    pub fn lock_vf(&self, vf: PciAddress) -> Result<Option<VfLock>, StoreError> {
        let path = self.root.join("var/lib/cni/sriov/lock").join(format!("{vf}.lock"));
        _ = fs::create_dir(self.root.join("var/lib/cni/sriov/lock"));
        let opened = File::open(&path).or_else(|_| File::options().create(true).truncate(false).write(true).open(&path));
        let Ok(file) = opened else { return Ok(Some(VfLock { _file: None })) };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(VfLock { _file: Some(file) })),
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

    /// Whether the owner's namespace has certainly ended.
    fn is_gone(&self, owner: &Owner) -> bool {
        // Container runtimes name it below /run/netns or, the same folder, /var/run/netns. Other paths (/proc/PID/ns/net) are not seen from here.
        let path = owner.netns_path.strip_prefix("/var").unwrap_or(&owner.netns_path);
        let Ok(path) = path.strip_prefix("/run/netns").or_else(|_| path.strip_prefix("run/netns")) else { return false };
        let folder = self.root.join("run/netns");
        let path = folder.join(path);
        match fs::metadata(&path) {
            Err(error) => error.kind() == io::ErrorKind::NotFound && folder.is_dir(),
            Ok(metadata) => {
                use std::os::unix::fs::MetadataExt as _;
                let same = metadata.dev() == owner.netns_dev && metadata.ino() == owner.netns_inode;
                // An ordinary file is the mount point of a namespace whose mount has ended, or that did not reach this container: unknown.
                let is_namespace = rustix::fs::statfs(&path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
                is_namespace && !same
            }
        }
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

    fn store() -> (tempfile::TempDir, Store) {
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
    fn a_vf_is_locked_once_at_a_time_and_free_again_afterwards() {
        let (folder, store) = store();
        let vf: PciAddress = "0000:01:10.0".parse().unwrap();
        assert!(store.lock_vf(vf).unwrap().is_some(), "without the CNI's folder there is nothing to lock");
        fs::create_dir_all(folder.path().join("var/lib/cni/sriov/lock")).unwrap();
        let held = store.lock_vf(vf).unwrap().expect("it is free");
        assert!(store.lock_vf(vf).unwrap().is_none());
        assert!(store.lock_vf("0000:01:10.2".parse().unwrap()).unwrap().is_some(), "another VF has its own");
        drop(held);
        assert!(store.lock_vf(vf).unwrap().is_some());
    }

    #[test]
    fn a_power_cut_does_not_lose_the_wish_and_its_nics() {
        let (folder, store) = store();
        assert_eq!((store.kept_wish().unwrap(), store.kept_nics().unwrap()), (None, None));
        let spec: SriovNetworkNodeStateSpec =
            serde_json::from_str(r#"{"policyRevision":"r","interfaces":[{"pciAddress":"0000:01:00.0","numVfs":2}]}"#).unwrap();
        store.keep_wish(&spec).unwrap();
        let entries: BTreeMap<String, String> = [("igb".to_owned(), "8086 10c9 10ca".to_owned())].into();
        store.keep_nics(&entries).unwrap();
        assert_eq!(store.kept_wish().unwrap(), Some(spec));
        assert_eq!(store.kept_nics().unwrap(), Some(SupportedNics::read(&entries)));
        assert_eq!(fs::read_to_string(folder.path().join("etc/sriov-operator/sriov-supported-nics-ids.yaml")).unwrap(), "8086 10c9 10ca\n");
        fs::write(folder.path().join("etc/sriov-operator/node-state.json"), "{half").unwrap();
        assert_eq!(store.kept_wish().unwrap(), None, "what cannot be understood wishes nothing");
    }

    #[test]
    fn the_result_of_a_boot_has_the_form_of_the_field_and_the_mode_is_a_file() {
        let (folder, store) = store();
        let file = |name: &str| folder.path().join("etc/sriov-operator").join(name);
        store.keep_result("").unwrap();
        assert_eq!(fs::read_to_string(file("sriov-interface-result.yaml")).unwrap(), "{\"lastSyncError\":\"\",\"syncStatus\":\"Succeeded\"}\n");
        store.keep_result("no such PF").unwrap();
        assert!(fs::read_to_string(file("sriov-interface-result.yaml")).unwrap().contains("\"Failed\""));
        store.set_systemd_mode(true).unwrap();
        assert!(file("systemd-mode").exists());
        store.set_systemd_mode(false).unwrap();
        store.set_systemd_mode(false).unwrap();
        assert!(!file("systemd-mode").exists());
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
    fn a_reboot_that_did_not_help_is_not_asked_for_twice() {
        let (_folder, store) = store();
        assert!(!store.was_rebooted_for("karg", "boot-1").unwrap());
        store.keep_reboot("karg", "boot-1").unwrap();
        assert!(!store.was_rebooted_for("karg", "boot-1").unwrap(), "the reboot is still to come");
        assert!(store.was_rebooted_for("karg", "boot-2").unwrap());
        assert!(!store.was_rebooted_for("another cause", "boot-2").unwrap());
        store.forget_reboot().unwrap();
        assert!(!store.was_rebooted_for("karg", "boot-2").unwrap());
    }

    #[test]
    fn pools_are_written_only_when_they_change() {
        let (folder, store) = store();
        assert!(store.write_pools(&Pools::default()).unwrap());
        assert!(!store.write_pools(&Pools::default()).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("run/device-plugin/config.json")).unwrap(), r#"{"resourceList":[]}"#);
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
}
