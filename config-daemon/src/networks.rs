//! Pure: which network of its cloud each NIC of a virtual machine is in, as policies select it (`nicSelector.netFilter`).
//!
//! What lives here: what the clouds' documents tell, in the Go operator's form `openstack/NetworkID:<network>` and `aws/NetworkID:<subnet without
//! "subnet-">`. What does not: which NICs there are (`sriov_host::discover`), asking the cloud (`machine::linux::clouds`).
//!
//! Invariant: a NIC that the cloud does not name has no network, and is not selected by one.

use std::collections::BTreeMap;

use serde::Deserialize;
use sriov_host::inventory::Pf;
use sriov_host::mac::MacAddr;
use sriov_host::pci::PciAddress;

/// What a cloud tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    by_mac: BTreeMap<MacAddr, String>,
    /// Of NICs that are handed through to the machine, whose MAC may not be read while userspace has them.
    by_address: BTreeMap<PciAddress, String>,
}

impl Networks {
    /// The network of a NIC.
    pub fn of(&self, pf: &Pf) -> Option<&String> {
        let by_mac = pf.netdev.as_ref().and_then(|netdev| self.by_mac.get(&netdev.mac?));
        by_mac.or_else(|| self.by_address.get(&pf.address))
    }
}

/// A document of the cloud.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// It says something else than its kind does.
    #[error("{what} of the cloud is not understood: {reason}")]
    Read {
        /// The document.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
}

/// Folder of OpenStack's documents, on its config drive and at its metadata service.
pub(crate) const FOLDER: &str = "openstack/2018-08-27";
/// OpenStack's document of links and networks.
pub(crate) const NETWORK_DATA: &str = "network_data.json";
/// OpenStack's document of the machine and its devices.
pub(crate) const META_DATA: &str = "meta_data.json";

#[derive(Deserialize)]
struct MetaData {
    #[serde(default)]
    devices: Vec<MetaDevice>,
}

#[derive(Deserialize)]
struct MetaDevice {
    mac: Option<String>,
    address: Option<String>,
}

#[derive(Deserialize)]
struct NetworkData {
    #[serde(default)]
    links: Vec<NetworkLink>,
    #[serde(default)]
    networks: Vec<Network>,
}

#[derive(Deserialize)]
struct NetworkLink {
    id: String,
    ethernet_mac_address: Option<String>,
}

#[derive(Deserialize)]
struct Network {
    link: String,
    network_id: Option<String>,
}

impl Networks {
    /// What OpenStack's two documents (JSON) tell.
    pub fn of_openstack(meta_data: &str, network_data: &str) -> Result<Self, NetworksError> {
        let bad = |what| move |error: serde_json::Error| NetworksError::Read { what, reason: error.to_string() };
        let meta: MetaData = serde_json::from_str(meta_data).map_err(bad(META_DATA))?;
        let data: NetworkData = serde_json::from_str(network_data).map_err(bad(NETWORK_DATA))?;
        let mut networks = Self::default();
        for link in &data.links {
            let network = data.networks.iter().find(|network| network.link == link.id).and_then(|network| network.network_id.as_ref());
            let mac = link.ethernet_mac_address.as_deref().and_then(|mac| mac.parse::<MacAddr>().ok());
            if let (Some(mac), Some(network)) = (mac, network) {
                networks.by_mac.insert(mac, format!("openstack/NetworkID:{network}"));
            }
        }
        for device in &meta.devices {
            let mac = device.mac.as_deref().and_then(|mac| mac.parse::<MacAddr>().ok());
            let address = device.address.as_deref().and_then(|address| address.parse().ok());
            if let (Some(network), Some(address)) = (mac.and_then(|mac| networks.by_mac.get(&mac)), address) {
                networks.by_address.insert(address, network.clone());
            }
        }
        Ok(networks)
    }

    /// What Amazon tells: the subnet (`subnet-...`) of each NIC.
    pub fn of_aws(subnets: impl IntoIterator<Item = (MacAddr, String)>) -> Self {
        let network = |subnet: String| format!("aws/NetworkID:{}", subnet.trim().trim_start_matches("subnet-"));
        Self { by_mac: subnets.into_iter().map(|(mac, subnet)| (mac, network(subnet))).collect(), ..Self::default() }
    }
}

#[cfg(test)]
impl Networks {
    /// All of it, one line a NIC.
    pub(crate) fn shown(&self) -> Vec<String> {
        let macs = self.by_mac.iter().map(|(mac, network)| format!("{mac} {network}"));
        macs.chain(self.by_address.iter().map(|(address, network)| format!("{address} {network}"))).collect()
    }
}
