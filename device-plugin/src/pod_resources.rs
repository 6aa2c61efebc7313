//! I/O: which container the kubelet counts a device to: its `PodResourcesLister` on a unix socket. No cluster credentials are needed for it.
//!
//! Invariant: no answer is an error, never an empty list: "no pod has it" must not be mistaken for "nobody could be asked".

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::api::podresources_v1::ListPodResourcesRequest;
use crate::api::podresources_v1::pod_resources_lister_client::PodResourcesListerClient;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A node's whole list can be long.
const LONGEST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The container that has a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The resource by which it has the device.
    pub resource: String,
}

/// The kubelet's answers; one connection that comes back by itself.
#[derive(Clone, Debug)]
pub struct PodResources {
    channel: Channel,
}

impl PodResources {
    /// Asks at this socket; nothing is connected yet. Must be called inside a tokio runtime. `None` when the path cannot be an address.
    pub fn at(socket: &Path) -> Option<Self> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).ok()?;
        Some(Self { channel: endpoint.timeout(ANSWER_WITHIN).connect_timeout(ANSWER_WITHIN).connect_lazy() })
    }

    /// Every device that is counted to a container, by resource and id.
    pub async fn owners(&self) -> Result<BTreeMap<(String, String), Owner>, tonic::Status> {
        let mut client = PodResourcesListerClient::new(self.channel.clone()).max_decoding_message_size(LONGEST_ANSWER_BYTES);
        let answer = client.list(ListPodResourcesRequest {}).await?.into_inner();
        let mut owners = BTreeMap::new();
        for pod in answer.pod_resources {
            for container in pod.containers {
                for devices in container.devices {
                    for id in devices.device_ids {
                        let owner = Owner {
                            namespace: pod.namespace.clone(),
                            pod: pod.name.clone(),
                            container: container.name.clone(),
                            resource: devices.resource_name.clone(),
                        };
                        owners.insert((devices.resource_name.clone(), id), owner);
                    }
                }
            }
        }
        Ok(owners)
    }
}
