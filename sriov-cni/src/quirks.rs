//! Pure: what single drivers do differently, as data with its source. Everything else treats all drivers alike.

/// In which order the MAC of a VF and that of its netdev are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacOrder {
    /// The administrative MAC through the PF, then the netdev: what most drivers expect; many copy the first to the second by themselves.
    AdminFirst,
    /// The netdev while the VF has no administrative MAC, then the administrative one.
    NetdevFirst,
}

/// A driver that needs other treatment.
struct Quirk {
    driver: &'static str,
    mac_order: MacOrder,
}

const QUIRKS: [Quirk; 1] = [
    // Seen on Linux 6.12 with an emulated 82576: an administrative MAC reaches an existing igbvf netdev only after it went up and down once
    // (unicast is lost silently until then), and once it is set, the netdev refuses any address with EADDRNOTAVAIL unless the VF is trusted.
    Quirk { driver: "igbvf", mac_order: MacOrder::NetdevFirst },
];

/// The order for VFs that `driver` drives.
pub fn mac_order(driver: Option<&str>) -> MacOrder {
    QUIRKS.iter().find(|quirk| Some(quirk.driver) == driver).map_or(MacOrder::AdminFirst, |quirk| quirk.mac_order)
}

/// Whether a refusal passes by itself: iavf answers `EBUSY`, others `EAGAIN`, while a VF resets after a change through its PF (sriov-cni #213).
pub fn is_passing(errno: i32) -> bool {
    [rustix::io::Errno::BUSY, rustix::io::Errno::AGAIN].iter().any(|passing| passing.raw_os_error() == errno)
}

/// Whether the driver hands the device to a program instead of the kernel: such a VF has no netdev, and only its PF can configure it.
pub fn is_userspace(driver: &str) -> bool {
    matches!(driver, "vfio-pci" | "uio_pci_generic" | "igb_uio")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_drivers_are_special() {
        assert_eq!(mac_order(Some("igbvf")), MacOrder::NetdevFirst);
        assert_eq!(mac_order(Some("iavf")), MacOrder::AdminFirst);
        assert_eq!(mac_order(None), MacOrder::AdminFirst);
        assert!(is_userspace("vfio-pci") && !is_userspace("iavf"));
    }
}
