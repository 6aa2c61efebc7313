//! Pure but for [`look`]: which network of its cloud each NIC of a virtual machine is in, as policies select it (`nicSelector.netFilter`).
//!
//! What lives here: what the clouds tell, in the Go operator's form `openstack/NetworkID:<network>` and `aws/NetworkID:<subnet without "subnet-">`.
//! What does not: which NICs there are (`sriov_host::discover`), asking (`sriov_host::cloud`).
//!
//! Invariant: a NIC that the cloud does not name has no network, and is not selected by one.

use std::collections::BTreeMap;

use serde::Deserialize;
use sriov_host::Host;
use sriov_host::cloud::{self, Cloud, Metadata, MetadataError};
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

/// What the cloud does not tell as it should.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// It does not answer.
    #[error(transparent)]
    Ask(#[from] MetadataError),
    /// It answers something else.
    #[error("{what} of the cloud is not understood: {reason}")]
    Read {
        /// The document.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// It has no such answer.
    #[error("the cloud has neither a config drive that is mounted nor {0} at its metadata service")]
    Missing(&'static str),
}

const FOLDER: &str = "openstack/2018-08-27";
const NETWORK_DATA: &str = "network_data.json";
const META_DATA: &str = "meta_data.json";

/// Asks the cloud: OpenStack's config drive where one is mounted, else the metadata service.
pub fn look(host: &Host, cloud: Cloud, metadata: Metadata) -> Result<Networks, NetworksError> {
    match cloud {
        Cloud::OpenStack => {
            let read = |name: &'static str| -> Result<String, NetworksError> {
                let path = format!("{FOLDER}/{name}");
                match cloud::config_drive(host, &path) {
                    Some(text) => Ok(text),
                    None => metadata.get(&format!("/{path}"), &[])?.ok_or(NetworksError::Missing(name)),
                }
            };
            openstack(&read(META_DATA)?, &read(NETWORK_DATA)?)
        }
        Cloud::Aws => aws(metadata),
    }
}

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

fn openstack(meta_data: &str, network_data: &str) -> Result<Networks, NetworksError> {
    let bad = |what| move |error: serde_json::Error| NetworksError::Read { what, reason: error.to_string() };
    let meta: MetaData = serde_json::from_str(meta_data).map_err(bad(META_DATA))?;
    let data: NetworkData = serde_json::from_str(network_data).map_err(bad(NETWORK_DATA))?;
    let mut networks = Networks::default();
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

fn aws(metadata: Metadata) -> Result<Networks, NetworksError> {
    const MACS: &str = "/latest/meta-data/network/interfaces/macs/";
    let token = metadata.token()?;
    let headers: Vec<(&str, &str)> = token.iter().map(|token| ("X-aws-ec2-metadata-token", token.as_str())).collect();
    let mut networks = Networks::default();
    for entry in metadata.get(MACS, &headers)?.unwrap_or_default().lines().map(|line| line.trim().trim_end_matches('/')) {
        let Ok(mac) = entry.parse::<MacAddr>() else { continue };
        if let Some(subnet) = metadata.get(&format!("{MACS}{entry}/subnet-id"), &headers)? {
            networks.by_mac.insert(mac, format!("aws/NetworkID:{}", subnet.trim().trim_start_matches("subnet-")));
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A metadata service that answers these paths, as often as asked, until the test ends.
    fn service(answers: &'static [(&'static str, &'static str)], wants_token: bool) -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines: Vec<String> = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let asked = lines[0].split(' ').take(2).collect::<Vec<_>>().join(" ");
                let allowed = !wants_token || asked.starts_with("PUT") || lines.iter().any(|line| line == "X-aws-ec2-metadata-token: secret");
                let body = answers.iter().find(|(path, _)| *path == asked).map(|(_, body)| body).filter(|_| allowed);
                let answer = match body {
                    Some(body) => format!("HTTP/1.0 200 OK\r\n\r\n{body}"),
                    None if allowed => "HTTP/1.0 404 Not Found\r\n\r\n".to_owned(),
                    None => "HTTP/1.0 401 Unauthorized\r\n\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Metadata::at(address)
    }

    const META: &str = r#"{"uuid": "x", "devices": [{"type": "nic", "bus": "pci", "mac": "fa:16:3e:00:00:02", "address": "0000:00:06.0", "tags": ["a"]}, {"type": "disk", "address": "0:0:1:0"}]}"#;
    const DATA: &str = r#"{"links": [{"id": "tap1", "ethernet_mac_address": "fa:16:3e:00:00:01", "type": "ovs"}, {"id": "tap2", "ethernet_mac_address": "fa:16:3e:00:00:02", "type": "hw_veb"}],
        "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tap1", "network_id": "da5bb487-5193-4a65-a3df-4a0055a8c0d7"}, {"id": "network1", "link": "tap2", "network_id": "e48c7670"}], "services": []}"#;

    fn shown(networks: &Networks) -> Vec<String> {
        let macs = networks.by_mac.iter().map(|(mac, network)| format!("{mac} {network}"));
        macs.chain(networks.by_address.iter().map(|(address, network)| format!("{address} {network}"))).collect()
    }

    const OPENSTACK: [&str; 3] = [
        "fa:16:3e:00:00:01 openstack/NetworkID:da5bb487-5193-4a65-a3df-4a0055a8c0d7",
        "fa:16:3e:00:00:02 openstack/NetworkID:e48c7670",
        "0000:00:06.0 openstack/NetworkID:e48c7670",
    ];

    #[test]
    fn openstack_is_read_from_its_config_drive_and_else_asked() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let asked = service(&[("GET /openstack/2018-08-27/meta_data.json", META), ("GET /openstack/2018-08-27/network_data.json", DATA)], false);
        assert_eq!(shown(&look(&host, Cloud::OpenStack, asked).unwrap()), OPENSTACK);
        let nobody = service(&[], false);
        assert!(look(&host, Cloud::OpenStack, nobody).unwrap_err().to_string().contains("meta_data.json"));
        let drive = root.path().join("var/config/openstack/2018-08-27");
        std::fs::create_dir_all(&drive).unwrap();
        std::fs::write(drive.join(META_DATA), META).unwrap();
        std::fs::write(drive.join(NETWORK_DATA), DATA).unwrap();
        assert_eq!(shown(&look(&host, Cloud::OpenStack, nobody).unwrap()), OPENSTACK, "nobody is asked");
        std::fs::write(drive.join(NETWORK_DATA), "{").unwrap();
        assert!(look(&host, Cloud::OpenStack, nobody).unwrap_err().to_string().starts_with("network_data.json of the cloud is not understood"));
    }

    #[test]
    fn amazon_is_asked_with_a_token_where_it_wants_one() {
        let answers: &[(&str, &str)] = &[
            ("PUT /latest/api/token", "secret"),
            ("GET /latest/meta-data/network/interfaces/macs/", "0e:1a:95:aa:12:a1/\n0e:92:d3:ee:52:1b/"),
            ("GET /latest/meta-data/network/interfaces/macs/0e:1a:95:aa:12:a1/subnet-id", "subnet-0aa1"),
            ("GET /latest/meta-data/network/interfaces/macs/0e:92:d3:ee:52:1b/subnet-id", "subnet-0bb2\n"),
        ];
        let expected = ["0e:1a:95:aa:12:a1 aws/NetworkID:0aa1", "0e:92:d3:ee:52:1b aws/NetworkID:0bb2"];
        let host = Host::at("/nowhere");
        assert_eq!(shown(&look(&host, Cloud::Aws, service(answers, true)).unwrap()), expected);
        let without: &[(&str, &str)] = answers.split_first().unwrap().1;
        assert_eq!(shown(&look(&host, Cloud::Aws, service(without, false)).unwrap()), expected, "the first version, without tokens");
        let closed = Metadata::at(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        assert!(look(&host, Cloud::Aws, closed).unwrap_err().to_string().contains("does not answer PUT"));
    }
}
