//! Pure: what single drivers do differently, as data with its source. Everything else treats all drivers alike.

/// In which order the MAC of a VF and that of its netdev are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacOrder {
    /// The administrative MAC through the PF, then the netdev: what most drivers expect; many copy the first to the second by themselves.
    AdminFirst,
    /// The netdev while the VF has no administrative MAC, then the administrative one.
    NetdevFirst,
}

/// The language of a driver's `trunk` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrunkWords {
    /// `add 2,4-5`, `rem 4`.
    List,
    /// `add 4 5`: one range a write.
    Ranges,
}

/// A driver that needs other treatment.
struct Quirk {
    /// The driver of the VF, for `trunk` that of the PF.
    driver: &'static str,
    mac_order: MacOrder,
    /// A VF takes GUIDs over when its driver probes it, so that it has to be bound anew.
    guid_at_probe: bool,
    trunk: TrunkWords,
}

const ORDINARY: Quirk = Quirk { driver: "", mac_order: MacOrder::AdminFirst, guid_at_probe: false, trunk: TrunkWords::List };

const QUIRKS: [Quirk; 2] = [
    // Seen on Linux 6.12 with an emulated 82576: an administrative MAC reaches an existing igbvf netdev only after it went up and down once
    // (unicast is lost silently until then), and once it is set, the netdev refuses any address with EADDRNOTAVAIL unless the VF is trusted.
    Quirk { driver: "igbvf", mac_order: MacOrder::NetdevFirst, ..ORDINARY },
    // ib-sriov-cni binds a VF anew after setting its GUIDs (`RebindVf` in `pkg/types/types.go`); the Go operator does the same for VFs that it makes.
    // `MLNX_OFED`'s `trunk_store` (`mlx5/core/sriov_sysfs.c`) reads a verb and exactly two numbers; the list is what `kcompat_vfd.c` of the out-of-tree
    // i40e, ice and ixgbe reads (`bitmap_parselist`), as i40e's README tells.
    Quirk { driver: "mlx5_core", guid_at_probe: true, trunk: TrunkWords::Ranges, ..ORDINARY },
];

/// Drivers that hand a device to a program instead of the kernel: such a VF has no netdev, and only its PF can configure it. The list is that of the
/// Go plugin.
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

fn of(driver: Option<&str>) -> &'static Quirk {
    QUIRKS.iter().find(|quirk| Some(quirk.driver) == driver).unwrap_or(&ORDINARY)
}

/// The order for VFs that `driver` drives.
pub fn mac_order(driver: Option<&str>) -> MacOrder {
    of(driver).mac_order
}

/// Whether VFs that `driver` drives have to be bound anew for new GUIDs.
pub fn guid_at_probe(driver: Option<&str>) -> bool {
    of(driver).guid_at_probe
}

/// The language of the `trunk` files of PFs that `driver` drives.
pub fn trunk_words(driver: Option<&str>) -> TrunkWords {
    of(driver).trunk
}

/// Whether a refusal passes by itself: iavf answers `EBUSY`, others `EAGAIN`, while a VF resets after a change through its PF (sriov-cni #213).
pub fn is_passing(errno: i32) -> bool {
    [rustix::io::Errno::BUSY, rustix::io::Errno::AGAIN].iter().any(|passing| passing.raw_os_error() == errno)
}

/// Whether the driver hands the device to a program instead of the kernel.
pub fn is_userspace(driver: &str) -> bool {
    USERSPACE.contains(&driver)
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
        assert!(guid_at_probe(Some("mlx5_core")) && !guid_at_probe(Some("igbvf")) && !guid_at_probe(Some("")));
        assert_eq!((trunk_words(Some("mlx5_core")), trunk_words(Some("i40e"))), (TrunkWords::Ranges, TrunkWords::List));
    }
}
