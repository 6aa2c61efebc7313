//! I/O (reads committed cases, a temporary folder), tier 1: what one program writes, the next one reads, through the real parsers of both.
//!
//! The seams are those of ARCHITECTURE.md. Producers are fed with their own golden cases, so a change of a producer's output is seen by its consumer.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sriov_cni::conf::NetConf;
use sriov_cni::journal::{Applied, Journal, Original, Owner, Phase, VERSION};
use sriov_cni::state::Store as CniStore;
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::observed::Observed;
use sriov_config_daemon::plan::plan;
use sriov_config_daemon::pools::pools;
use sriov_config_daemon::store::Store;
use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;
use sriov_tests::lab::artifacts::workspace;

fn yaml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("read {}", path.display()))
}

#[test]
fn the_device_plugin_reads_what_the_daemon_writes() {
    let case = workspace().join("config-daemon/testdata/plan/already_right");
    let desired = Desired::read(&yaml(&case.join("desired.yaml")).unwrap());
    let observed: Observed = yaml(&case.join("observed.yaml")).unwrap();
    let written = pools(&desired, &observed, &plan(&desired, &observed));
    assert_eq!(written.vfs().len(), 2, "the case has two VFs that are ready");
    let read = sriov_device_plugin::config::parse("config.json", &written.to_json().unwrap(), "example.com").unwrap();
    assert!(read.errors.is_empty(), "{:?}", read.errors);
    let names: Vec<_> = read.pools.iter().map(|pool| format!("{:?}", pool.name)).collect();
    assert_eq!(names.len(), written.resource_list.len(), "{names:?}");
}

/// The configuration of every NAD of type `sriov` that the operator's golden cases hold; of a list, its first plugin.
fn sriov_nads() -> Result<BTreeMap<PathBuf, Value>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(workspace().join("operator/testdata/network"))? {
        let path = entry?.path().join("expected.yaml");
        let expected: Value = yaml(&path)?;
        let Some(text) = expected["nad"]["spec"]["config"].as_str() else { continue };
        let conf: Value = serde_json::from_str(text)?;
        let mut plugin = conf.get("plugins").and_then(|all| all.get(0)).unwrap_or(&conf).clone();
        // As libcni does for each plugin of a list.
        plugin["name"] = conf["name"].clone();
        plugin["cniVersion"] = conf["cniVersion"].clone();
        if plugin["type"] == "sriov" {
            found.insert(path, plugin);
        }
    }
    Ok(found)
}

#[test]
fn the_cni_reads_the_nads_that_the_operator_writes() {
    let nads = sriov_nads().unwrap();
    assert!(nads.len() >= 5, "only {} golden NADs are of type sriov", nads.len());
    for (path, mut plugin) in nads {
        // As Multus does for a NAD with a resource.
        plugin["deviceID"] = json!("0000:01:10.0");
        plugin["pciBusID"] = json!("0000:01:10.0");
        let conf = NetConf::parse(plugin.to_string().as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        conf.vf_request(None).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn the_daemon_knows_from_the_cnis_journal_that_a_vf_is_in_use() {
    let root = tempfile::tempdir().unwrap();
    let state = CniStore::at(&root.path().join("var/lib/cni/sriov"));
    state.create().unwrap();
    let vf: PciAddress = "0000:01:10.0".parse().unwrap();
    // A namespace that lives: this process's own.
    let namespace = fs::metadata("/proc/self/ns/net").unwrap();
    let owner = Owner {
        container_id: "0123456789abcdef".to_owned(),
        if_name: "net1".to_owned(),
        netns_path: "/proc/self/ns/net".into(),
        netns_dev: namespace.dev(),
        netns_inode: namespace.ino(),
    };
    let journal = Journal {
        version: VERSION,
        phase: Phase::Attached,
        attempt: "1".to_owned(),
        boot_id: "boot".to_owned(),
        network: "net".to_owned(),
        owner,
        vf: vf.into(),
        pf: "0000:01:00.0".parse().ok(),
        index: VfIndex(0),
        userspace_driver: None,
        kernel_driver: Some("igbvf".to_owned()),
        original: Original::default(),
        applied: Applied::default(),
        rdma: Vec::new(),
        ipam: None,
        go_records: false,
        device_info: None,
        result: None,
    };
    state.write(&journal).unwrap();
    let daemon = Store::new(root.path(), root.path().join("config.json"));
    let users = daemon.vfs_in_use().unwrap();
    assert_eq!(users.get(&vf).map(String::as_str), Some("container 0123456789ab, interface net1"));
    state.remove(vf.into()).unwrap();
    assert!(daemon.vfs_in_use().unwrap().is_empty());
}
