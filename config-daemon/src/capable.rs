//! I/O: the detector for clusters without node-feature-discovery: labels its own node once the machine has a network function that can have VFs.
//!
//! What lives here: looking and labelling. What does not: what the label means (the operator), and holding the program to its own node and this one
//! label, which is an admission policy of the chart.
//!
//! Invariant: a label is only ever added. One that is there, whatever it says, was somebody's choice, and a NIC that is pulled out leaves it.

use std::io;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sriov_crds::keys::CAPABLE_LABEL;
use sriov_host::Host;
use sriov_host::discover::is_pf;
use sriov_host::pci::PciAddress;
use sriov_host::sysfs::{Sysfs, SysfsError};
use sriov_host::uevent::{UeventError, UeventSocket};
use tracing::info;

/// How long nothing is asked when no device comes.
const REST: Duration = Duration::from_hours(1);

/// Why the node was not looked at or not labelled.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The machine.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Its events.
    #[error(transparent)]
    Uevent(#[from] UeventError),
    /// The API server.
    #[error("failed to {verb} node {node}: {cause}")]
    Request {
        /// What was asked for.
        verb: &'static str,
        /// The node's name.
        node: String,
        /// What kube said.
        cause: kube::Error,
    },
    /// The thread that waits ended.
    #[error("failed to wait for devices: {0}")]
    Wait(io::Error),
}

/// The PCI addresses of network functions that can have VFs, in order; none on a machine without PCI.
pub fn capable(files: &Sysfs) -> Result<Vec<PciAddress>, SysfsError> {
    let names = files.list_opt("/sys/bus/pci/devices")?.unwrap_or_default();
    let mut found: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).filter(|address| is_pf(files, *address)).collect();
    found.sort_unstable();
    Ok(found)
}

/// Labels `node` once this machine is capable, now or when a device comes; then nothing is left to do. Returns only with an error.
pub async fn run(client: Client, node: &str, host: Host) -> Result<(), LabelError> {
    let nodes: Api<Node> = Api::all(client);
    let found = loop {
        // Opened before the look, so that a device that comes in between is heard of.
        let events = UeventSocket::open()?;
        let found = capable(host.sysfs())?;
        if !found.is_empty() {
            break found;
        }
        let waited = tokio::task::spawn_blocking(move || events.next(Instant::now() + REST)).await;
        match waited.map_err(|error| LabelError::Wait(io::Error::other(error)))? {
            // More devices came than could be told one by one.
            Ok(_) | Err(UeventError::Overrun) => {}
            Err(error) => return Err(error.into()),
        }
    };
    label(&nodes, node, &found).await?;
    std::future::pending().await
}

async fn label(nodes: &Api<Node>, node: &str, found: &[PciAddress]) -> Result<(), LabelError> {
    let failed = |verb: &'static str| move |cause: kube::Error| LabelError::Request { verb, node: node.to_owned(), cause };
    let present = nodes.get_metadata(node).await.map_err(failed("read"))?;
    if present.labels().contains_key(CAPABLE_LABEL) {
        return Ok(());
    }
    let patch = json!({ "metadata": { "labels": { CAPABLE_LABEL: "true" } } });
    nodes.patch_metadata(node, &PatchParams::default(), &Patch::Merge(patch)).await.map_err(failed("label"))?;
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    info!("node {node} is labelled {CAPABLE_LABEL}=true: {} can have VFs", found.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_network_functions_that_can_have_vfs_count() {
        let root = tempfile::tempdir().unwrap();
        let files = Sysfs::new(root.path());
        assert!(capable(&files).unwrap().is_empty(), "a machine without PCI");
        for (address, class, total) in [
            ("0000:00:1f.2", "0x010601", None),
            ("0000:01:00.0", "0x020000", Some("7")),
            ("0000:02:00.0", "0x020000", Some("0")),
            ("0000:03:00.0", "0x010802", Some("31")),
            ("0000:04:00.0", "0x020700", Some("16")),
            ("0000:05:00.0", "0x020000", None),
        ] {
            let folder = root.path().join("sys/bus/pci/devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("class"), format!("{class}\n")).unwrap();
            if let Some(total) = total {
                fs::write(folder.join("sriov_totalvfs"), format!("{total}\n")).unwrap();
            }
        }
        let found: Vec<String> = capable(&files).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0000:01:00.0", "0000:04:00.0"]);
    }
}
