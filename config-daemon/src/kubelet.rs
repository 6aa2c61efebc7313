//! I/O: which devices the kubelet counts to which pod: its `PodResourcesLister` on a unix socket. It knows pods that no CNI plugin tells of: those that
//! have a VF through `vfio-pci` and no network attachment, and those whose attachment has not begun yet.
//!
//! What does not live here: what follows for a plan (`observed`).
//!
//! Invariant: no answer is an error, never an empty list; only a machine without a kubelet has no pods: no socket, or one that outlived a reboot.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sriov_host::pci::PciAddress;
use tonic::transport::Endpoint;

use crate::api::podresources_v1::pod_resources_lister_client::PodResourcesListerClient;
use crate::api::podresources_v1::{ListPodResourcesRequest, PodResources};

/// Where kubelets have their files, unless their `--root-dir` says otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/kubelet";
/// The socket, below that folder.
const SOCKET: &str = "pod-resources/kubelet.sock";
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A node's whole list can be long.
const LONGEST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A device that a pod has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The pod, in words.
    pub by: String,
    /// The extended resource, with its prefix, by which it has the device.
    pub resource: String,
}

/// The kubelet of this machine.
#[derive(Clone, Debug)]
pub struct Kubelet {
    socket: PathBuf,
    /// Whether there must be one.
    expected: bool,
}

/// Why the kubelet's answer is not known.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// It is there and does not answer.
    #[error("failed to ask the kubelet at {socket} which pods have VFs: {reason}; nothing that could take a VF from a pod is done until it answers")]
    Ask {
        /// The socket.
        socket: PathBuf,
        /// What was said.
        reason: String,
    },
    /// This program was told that there is one.
    #[error(
        "there is no kubelet at {socket}, which alone knows which pods have VFs; nothing that could take a VF from a pod is done: when the kubelet runs with \
         --root-dir, the chart's value operator.kubeletPath must name that folder"
    )]
    Find {
        /// The socket.
        socket: PathBuf,
    },
}

impl Kubelet {
    /// The kubelet whose folder is `folder` on the machine below `root`.
    pub fn at(root: &Path, folder: &str) -> Self {
        Self { socket: root.join(folder.trim_start_matches('/')).join(SOCKET), expected: false }
    }

    /// The same kubelet, which is known to be there: to miss it is an error. Pods know that.
    #[must_use]
    pub fn expected(self) -> Self {
        Self { expected: true, ..self }
    }

    /// Every device with a PCI address that is counted to a container. Blocks; must not be called on a thread that runs tasks.
    pub fn devices(&self) -> Result<BTreeMap<PciAddress, Held>, KubeletError> {
        match self.socket.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.expected => return Err(KubeletError::Find { socket: self.socket.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Ok(socket) if is_of_an_earlier_boot(&self.socket, &socket) => return Ok(BTreeMap::new()),
            // Looking needs no root. Without it nothing can be done either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => return Ok(BTreeMap::new()),
            _ => {}
        }
        let failed = |reason: String| KubeletError::Ask { socket: self.socket.clone(), reason };
        // It is asked a few times a change; a connection that is kept would need a task that runs while the daemon is idle.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(error.to_string()))?;
        runtime.block_on(self.list()).map(|pods| devices(&pods)).map_err(failed)
    }

    async fn list(&self) -> Result<Vec<PodResources>, String> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket.display())).map_err(|error| error.to_string())?;
        let channel = endpoint.timeout(ANSWER_WITHIN).connect_timeout(ANSWER_WITHIN).connect_lazy();
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(LONGEST_ANSWER_BYTES);
        let answer = tokio::time::timeout(ANSWER_WITHIN, client.list(ListPodResourcesRequest {})).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner().pod_resources),
            Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
            Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
        }
    }
}

/// At boot the socket of the last kubelet is still on the disk, and nobody listens. A socket that somebody listens on is never judged by its age: clocks
/// that were wrong at boot are set right later.
fn is_of_an_earlier_boot(path: &Path, socket: &std::fs::Metadata) -> bool {
    let is_left = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    let running = Duration::from_secs(rustix::system::sysinfo().uptime.try_into().unwrap_or(0));
    let age = socket.modified().ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    age.is_some_and(|age| age > running) && is_left()
}

/// Device ids of this product's plugin and of the Go one are PCI addresses; other devices are none of ours.
fn devices(pods: &[PodResources]) -> BTreeMap<PciAddress, Held> {
    let mut held = BTreeMap::new();
    for pod in pods {
        for container in &pod.containers {
            for devices in &container.devices {
                for address in devices.device_ids.iter().filter_map(|id| id.parse().ok()) {
                    let by = format!("pod {}/{}", pod.namespace, pod.name);
                    held.insert(address, Held { by, resource: devices.resource_name.clone() });
                }
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::podresources_v1::{ContainerDevices, ContainerResources};

    #[test]
    fn vfs_are_found_by_their_addresses_and_other_devices_are_left_out() {
        let devices_of = |resource: &str, ids: &[&str]| ContainerDevices {
            resource_name: resource.to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..ContainerDevices::default()
        };
        let containers = vec![ContainerResources {
            name: "app".to_owned(),
            devices: vec![devices_of("openshift.io/dpdk", &["0000:01:10.0", "0000:01:10.2"]), devices_of("nvidia.com/gpu", &["GPU-1"])],
            ..ContainerResources::default()
        }];
        let held = devices(&[PodResources { name: "web".to_owned(), namespace: "red".to_owned(), containers }]);
        let seen: Vec<_> = held.iter().map(|(vf, held)| format!("{vf} {} {}", held.by, held.resource)).collect();
        assert_eq!(seen, ["0000:01:10.0 pod red/web openshift.io/dpdk", "0000:01:10.2 pod red/web openshift.io/dpdk"]);
    }

    fn left_by_a_kubelet(root: &Path) -> PathBuf {
        let socket = root.join("data/kubelet").join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        socket
    }

    #[test]
    fn a_machine_without_a_kubelet_has_no_pods_and_a_kubelet_that_is_silent_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::at(root.path(), "/data/kubelet");
        assert_eq!(kubelet.devices().unwrap(), BTreeMap::new());
        left_by_a_kubelet(root.path());
        let error = kubelet.devices().unwrap_err().to_string();
        assert!(error.contains("data/kubelet/pod-resources/kubelet.sock") && error.contains("until it answers"), "{error}");
    }

    #[test]
    fn in_a_pod_a_kubelet_that_is_nowhere_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let error = Kubelet::at(root.path(), DEFAULT_FOLDER).expected().devices().unwrap_err().to_string();
        assert!(error.contains("var/lib/kubelet/pod-resources/kubelet.sock") && error.contains("operator.kubeletPath"), "{error}");
    }

    /// A kubelet leaves its socket on the disk, where the boot unit finds it after a reboot, before any kubelet runs.
    #[test]
    fn a_socket_that_is_older_than_this_boot_is_nobodys() {
        let root = tempfile::tempdir().unwrap();
        let socket = left_by_a_kubelet(root.path());
        let long_ago = rustix::fs::Timespec { tv_sec: 86_400, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
        rustix::fs::utimensat(rustix::fs::CWD, &socket, &times, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(Kubelet::at(root.path(), "/data/kubelet").devices().unwrap(), BTreeMap::new());

        std::fs::remove_file(&socket).unwrap();
        let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        rustix::fs::utimensat(rustix::fs::CWD, &socket, &times, rustix::fs::AtFlags::empty()).unwrap();
        assert!(Kubelet::at(root.path(), "/data/kubelet").devices().is_err(), "somebody listens, however old it looks");
        drop(silent);
    }
}
