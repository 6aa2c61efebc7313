//! I/O: storage that the machine reaches over the network: NFS mounts, NVMe over fabrics, iSCSI sessions.
//!
//! Invariant: only reads, and what cannot be read is left out: this protects the host's storage where it can be seen, and nothing is decided by
//! its absence alone.

use std::net::IpAddr;

use crate::Host;
use crate::host_use::StoragePeer;

/// The targets that the machine is connected to now.
pub fn peers(host: &Host) -> Vec<StoragePeer> {
    let mounts = host.sysfs().read_opt("/proc/1/mounts").ok().flatten().unwrap_or_default();
    let mut peers: Vec<StoragePeer> = mounts.lines().filter_map(nfs).map(|address| StoragePeer { kind: "NFS server", address }).collect();
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

/// The server of a line of `/proc/mounts`: `SOURCE TARGET nfs4 rw,...,addr=10.0.0.9 0 0`.
fn nfs(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace().skip(2);
    words.next().filter(|kind| kind.starts_with("nfs"))?;
    words.next()?.split(',').find_map(|option| option.strip_prefix("addr="))?.parse().ok()
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
        let mounts =
            "10.0.0.9:/srv /data nfs4 rw,vers=4.2,clientaddr=10.0.0.5,addr=10.0.0.9 0 0\n/dev/sda1 / ext4 rw 0 0\nnfsd /proc/fs/nfsd nfsd rw 0 0\n";
        let tree = SysfsTree::new()
            .file("/proc/1/mounts", mounts)
            .file("/sys/class/nvme/nvme0/address", "0000:04:00.0\n")
            .file("/sys/class/nvme/nvme1/address", "traddr=fd00::7,trsvcid=4420\n")
            .file("/sys/class/iscsi_connection/connection1:0/address", "10.0.0.8\n");
        let found: Vec<_> = peers(&tree.build().unwrap().host()).into_iter().map(|peer| format!("{} {}", peer.kind, peer.address)).collect();
        assert_eq!(found, ["NFS server 10.0.0.9", "NVMe target fd00::7", "iSCSI target 10.0.0.8"]);
        assert_eq!(peers(&SysfsTree::new().build().unwrap().host()), []);
    }
}
