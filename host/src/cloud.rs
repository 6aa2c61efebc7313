//! I/O: machines of clouds: which cloud it is, by the firmware's tables, and what the cloud tells its machine about networks.
//!
//! What lives here: reading. What the texts mean is the caller's business.
//!
//! Invariant: a machine of bare metal asks nobody: without a known name in its tables it is in no cloud.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::Host;

/// A cloud whose virtual machines see VFs and no PFs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// OpenStack's Nova.
    OpenStack,
    /// Amazon EC2; its machines of bare metal have PFs and are none of it.
    Aws,
}

/// The cloud, as `/sys/class/dmi/id` names it.
pub fn of(host: &Host) -> Option<Cloud> {
    let text = |name: &str| host.sysfs().read_opt(format!("/sys/class/dmi/id/{name}")).ok().flatten().unwrap_or_default();
    let (vendor, product) = (text("sys_vendor"), text("product_name"));
    if vendor == "Amazon EC2" && !product.contains("metal") {
        return Some(Cloud::Aws);
    }
    let nova = matches!(product.as_str(), "OpenStack Nova" | "OpenStack Compute") || text("chassis_asset_tag") == "OpenStack Nova";
    nova.then_some(Cloud::OpenStack)
}

/// Where a config drive is mounted, by habit: the Go operator's place, cloud-init's, and that of images without either.
const CONFIG_DRIVES: [&str; 3] = ["/var/config", "/mnt/config", "/media/configdrive"];

/// A file of a config drive that is mounted, by its path on the drive; `None` when none is mounted that has it.
pub fn config_drive(host: &Host, path: &str) -> Option<String> {
    CONFIG_DRIVES.iter().find_map(|folder| host.sysfs().read_opt(format!("{folder}/{path}")).ok().flatten())
}

/// A question to the metadata service that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("the metadata service does not answer {method} http://{address}{path}: {cause}")]
pub struct MetadataError {
    method: &'static str,
    address: SocketAddr,
    path: String,
    cause: io::Error,
}

/// The service that tells a virtual machine about itself.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    address: SocketAddr,
}

/// Longest wait for each of its answers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is taken, in bytes.
const LIMIT: u64 = 4 << 20;

impl Default for Metadata {
    /// Where all clouds have it.
    fn default() -> Self {
        Self { address: SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), 80)) }
    }
}

impl Metadata {
    /// Another place, for tests.
    pub fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// The text at this path; `None` when there is none (404).
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Option<String>, MetadataError> {
        self.ask("GET", path, headers)
    }

    /// A token for the questions that follow, where the service wants one (version 2 of Amazon's); `None` where it has none.
    pub fn token(&self) -> Result<Option<String>, MetadataError> {
        self.ask("PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")])
    }

    fn ask(&self, method: &'static str, path: &str, headers: &[(&str, &str)]) -> Result<Option<String>, MetadataError> {
        self.exchange(method, path, headers).map_err(|cause| MetadataError { method, address: self.address, path: path.to_owned(), cause })
    }

    /// HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Option<String>> {
        let mut stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let headers: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if method == "PUT" { "Content-Length: 0\r\n" } else { "" };
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {}\r\n{length}{}\r\n", self.address.ip(), headers.concat())?;
        let mut answer = String::new();
        stream.take(LIMIT).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer is not HTTP"))?;
        match head.split_whitespace().nth(1) {
            Some("200") => Ok(Some(body.to_owned())),
            Some("403" | "404" | "405") => Ok(None),
            _ => Err(io::Error::other(format!("it says {:?}", head.lines().next().unwrap_or_default()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    #[test]
    fn a_machine_is_in_the_cloud_that_its_firmware_names_and_bare_metal_in_none() {
        let of = |files: &[(&str, &str)]| {
            let tree = files.iter().fold(SysfsTree::new(), |tree, (name, text)| tree.file(&format!("/sys/class/dmi/id/{name}"), text));
            super::of(&tree.build().unwrap().host())
        };
        assert_eq!(of(&[("sys_vendor", "OpenStack Foundation"), ("product_name", "OpenStack Nova")]), Some(Cloud::OpenStack));
        assert_eq!(of(&[("sys_vendor", "Red Hat"), ("product_name", "OpenStack Compute")]), Some(Cloud::OpenStack));
        assert_eq!(of(&[("product_name", "KVM"), ("chassis_asset_tag", "OpenStack Nova")]), Some(Cloud::OpenStack));
        assert_eq!(of(&[("sys_vendor", "Amazon EC2"), ("product_name", "c5n.18xlarge")]), Some(Cloud::Aws));
        assert_eq!(of(&[("sys_vendor", "Amazon EC2"), ("product_name", "c5n.metal")]), None, "it has PFs");
        assert_eq!(of(&[("sys_vendor", "Dell Inc."), ("product_name", "PowerEdge R740")]), None);
        assert_eq!(of(&[]), None);
    }
}
