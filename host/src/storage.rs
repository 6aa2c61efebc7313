//! I/O: storage that the machine reaches over the network: NFS servers, NVMe over fabrics, iSCSI sessions.
//!
//! Invariant: only reads, and what cannot be read is left out: this protects the host's storage where it can be seen, and nothing is decided by
//! its absence alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Host;
use crate::host_use::StoragePeer;
use crate::sysfs::Sysfs;

/// The targets that the machine is connected to now.
pub fn peers(host: &Host) -> Vec<StoragePeer> {
    let servers = nfs_servers(host);
    let mut peers: Vec<StoragePeer> = servers.lines().filter_map(nfs).map(|address| StoragePeer { kind: "NFS server", address }).collect();
    for controller in list(host, "/sys/class/nvme") {
        let text = host.sysfs().read_opt(format!("/sys/class/nvme/{controller}/address")).ok().flatten();
        peers.extend(text.as_deref().and_then(nvme).map(|address| StoragePeer { kind: "NVMe target", address }));
    }
    for connection in list(host, "/sys/class/iscsi_connection") {
        let text = host.sysfs().read_opt(format!("/sys/class/iscsi_connection/{connection}/address")).ok().flatten();
        peers.extend(text.and_then(|text| text.parse().ok()).map(|address| StoragePeer { kind: "iSCSI target", address }));
    }
    peers
}

fn list(host: &Host, folder: &str) -> Vec<String> {
    host.sysfs().list_opt(folder).ok().flatten().unwrap_or_default()
}

/// The NFS servers of this network namespace. Mounts would say the same only where the mounts of the whole machine are seen, which a container's are
/// not. Below a root without `/proc` this process's own is read: it shows the namespace that the process is in.
fn nfs_servers(host: &Host) -> String {
    const SERVERS: &str = "/proc/fs/nfsfs/servers";
    let sysfs = if host.sysfs().exists("/proc") { host.sysfs().clone() } else { Sysfs::new("/") };
    sysfs.read_opt(SERVERS).ok().flatten().unwrap_or_default()
}

/// The server of a line `v4 0a000009  801   3 nfs.example`: version, address in hexadecimal, port, uses, name (fs/nfs/client.c, v6.12).
fn nfs(line: &str) -> Option<IpAddr> {
    let address = line.split_whitespace().nth(1)?;
    match address.len() {
        8 => u32::from_str_radix(address, 16).ok().map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        32 => u128::from_str_radix(address, 16).ok().map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        _ => None,
    }
}

/// The target of a controller's address: `traddr=10.0.0.9,trsvcid=4420,...`; a PCI address for local disks.
fn nvme(text: &str) -> Option<IpAddr> {
    text.split(',').find_map(|field| field.trim().strip_prefix("traddr="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    #[test]
    fn connected_targets_are_found_and_local_disks_are_not() {
        let servers = "NV SERVER   PORT USE HOSTNAME\nv4 0a000009  801   3 nfs.example\nv4 fd000000000000000000000000000007  801   1 six\n";
        let tree = SysfsTree::new()
            .file("/proc/fs/nfsfs/servers", servers)
            .file("/sys/class/nvme/nvme0/address", "0000:04:00.0\n")
            .file("/sys/class/nvme/nvme1/address", "traddr=fd00::8,trsvcid=4420\n")
            .file("/sys/class/iscsi_connection/connection1:0/address", "10.0.0.8\n");
        let found: Vec<_> = peers(&tree.build().unwrap().host()).into_iter().map(|peer| format!("{} {}", peer.kind, peer.address)).collect();
        assert_eq!(found, ["NFS server 10.0.0.9", "NFS server fd00::7", "NVMe target fd00::8", "iSCSI target 10.0.0.8"]);
        assert_eq!(peers(&SysfsTree::new().build().unwrap().host()), []);
    }
}
