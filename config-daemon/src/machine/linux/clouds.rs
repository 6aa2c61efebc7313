//! I/O: asks the cloud of a virtual machine which network each of its NICs is in, once for the same NICs.
//!
//! What does not live here: what the answers mean (`networks`), how a cloud is known and spoken to (`sriov_host::cloud`).
//!
//! Invariant: a cloud that does not answer stops nothing; policies that name no network go on.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use sriov_host::Host;
use sriov_host::cloud::{self, Cloud, Metadata, MetadataError};
use sriov_host::mac::MacAddr;
use sriov_host::pci::PciAddress;

use super::Linux;
use crate::networks::{FOLDER, META_DATA, NETWORK_DATA, Networks, NetworksError};
use crate::observed::Observed;

/// What the cloud told of this machine's networks.
#[derive(Debug, Default)]
pub(super) struct Told {
    networks: Networks,
    /// The NICs there were when it was asked last.
    nics: BTreeSet<PciAddress>,
}

/// What the cloud does not tell as it should.
#[derive(Debug, thiserror::Error)]
enum CloudError {
    /// It does not answer.
    #[error(transparent)]
    Ask(#[from] MetadataError),
    /// It answers something else.
    #[error(transparent)]
    Read(#[from] NetworksError),
    /// It has no such answer.
    #[error("the cloud has neither a config drive that is mounted nor {0} at its metadata service")]
    Missing(&'static str),
}

impl Linux {
    /// Says of each NIC of a virtual machine which network of the cloud it is in. The cloud is asked again when there are other NICs.
    pub(super) fn name_networks(&self, observed: &mut Observed) {
        let lone: BTreeSet<PciAddress> = observed.inventory.pfs.iter().filter(|pf| pf.facts.lone).map(|pf| pf.address).collect();
        let Some(cloud) = cloud::of(&self.host).filter(|_| !lone.is_empty()) else { return };
        let mut told = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if told.nics != lone {
            match ask(&self.host, cloud, Metadata::default()) {
                Ok(networks) => *told = Told { networks, nics: lone },
                // Policies that name no network go on.
                Err(error) => tracing::warn!("{error}; it is asked again at the next look"),
            }
        }
        for pf in observed.inventory.pfs.iter_mut().filter(|pf| pf.facts.lone) {
            let kept = observed.records.get(&pf.address).and_then(|record| record.net_filter.clone());
            pf.facts.net_filter = told.networks.of(pf).cloned().or(kept);
        }
    }
}

/// Asks the cloud: OpenStack's config drive where one is mounted, else the metadata service.
fn ask(host: &Host, cloud: Cloud, metadata: Metadata) -> Result<Networks, CloudError> {
    match cloud {
        Cloud::OpenStack => {
            let read = |name: &'static str| -> Result<String, CloudError> {
                let path = format!("{FOLDER}/{name}");
                match cloud::config_drive(host, &path) {
                    Some(text) => Ok(text),
                    None => metadata.get(&format!("/{path}"), &[])?.ok_or(CloudError::Missing(name)),
                }
            };
            Ok(Networks::of_openstack(&read(META_DATA)?, &read(NETWORK_DATA)?)?)
        }
        Cloud::Aws => ask_aws(metadata),
    }
}

fn ask_aws(metadata: Metadata) -> Result<Networks, CloudError> {
    const MACS: &str = "/latest/meta-data/network/interfaces/macs/";
    let token = metadata.token()?;
    let headers: Vec<(&str, &str)> = token.iter().map(|token| ("X-aws-ec2-metadata-token", token.as_str())).collect();
    let mut subnets = Vec::new();
    for entry in metadata.get(MACS, &headers)?.unwrap_or_default().lines().map(|line| line.trim().trim_end_matches('/')) {
        let Ok(mac) = entry.parse::<MacAddr>() else { continue };
        if let Some(subnet) = metadata.get(&format!("{MACS}{entry}/subnet-id"), &headers)? {
            subnets.push((mac, subnet));
        }
    }
    Ok(Networks::of_aws(subnets))
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
        assert_eq!(ask(&host, Cloud::OpenStack, asked).unwrap().shown(), OPENSTACK);
        let nobody = service(&[], false);
        assert!(ask(&host, Cloud::OpenStack, nobody).unwrap_err().to_string().contains("meta_data.json"));
        let drive = root.path().join("var/config/openstack/2018-08-27");
        std::fs::create_dir_all(&drive).unwrap();
        std::fs::write(drive.join(META_DATA), META).unwrap();
        std::fs::write(drive.join(NETWORK_DATA), DATA).unwrap();
        assert_eq!(ask(&host, Cloud::OpenStack, nobody).unwrap().shown(), OPENSTACK, "nobody is asked");
        std::fs::write(drive.join(NETWORK_DATA), "{").unwrap();
        assert!(ask(&host, Cloud::OpenStack, nobody).unwrap_err().to_string().starts_with("network_data.json of the cloud is not understood"));
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
        assert_eq!(ask(&host, Cloud::Aws, service(answers, true)).unwrap().shown(), expected);
        let without: &[(&str, &str)] = answers.split_first().unwrap().1;
        assert_eq!(ask(&host, Cloud::Aws, service(without, false)).unwrap().shown(), expected, "the first version, without tokens");
        let closed = Metadata::at(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        assert!(ask(&host, Cloud::Aws, closed).unwrap_err().to_string().contains("does not answer PUT"));
    }
}
