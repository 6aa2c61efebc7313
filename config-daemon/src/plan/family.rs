//! Pure: what drivers of PFs do differently, as a table with a source for each row.
//!
//! What lives here: facts about drivers. What does not: the order of steps that follows from them (`order`).
//!
//! Invariant: a driver that is not listed is treated with the most care: its PF's traffic is taken to be cut, its VFs are configured one by one.

use sriov_host::inventory::Pf;

/// What the order of steps on a PF depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Name of the PF's driver; empty for all that are not listed.
    pub driver: &'static str,
    /// When its eswitch changes its mode.
    pub eswitch: Eswitch,
    /// What the PF's own traffic feels when VFs are made or removed.
    pub traffic: Traffic,
    /// Whether several of its VFs may be configured at the same time.
    pub parallel_vfs: bool,
    /// Driver parameters for switchdev mode, set before the mode where the driver has them.
    pub steering: Option<&'static str>,
    /// Where this is from.
    pub source: &'static str,
}

/// When an eswitch changes its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eswitch {
    /// Once there are VFs, which must have no driver then.
    AfterVfs,
    /// Only as long as there are no VFs.
    BeforeVfs,
    /// The driver has no eswitch that can be switched.
    Missing,
}

/// What happens to the traffic of a PF whose number of VFs changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Nothing.
    Flows,
    /// The driver stops and starts the port: the link is lost for seconds.
    Stops,
}

/// Of `drivers/net/ethernet` of Linux 6.12. Each row was compared with the functions that its source names.
pub const FAMILIES: [Family; 7] = [
    Family {
        driver: "mlx5_core",
        eswitch: Eswitch::AfterVfs,
        traffic: Traffic::Flows,
        parallel_vfs: true,
        steering: Some("smfs"),
        source: "mellanox/mlx5/core/sriov.c mlx5_sriov_enable; eswitch_offloads.c mlx5_devlink_eswitch_mode_set; Documentation/networking/device_drivers/ethernet/mellanox/mlx5/switchdev.rst",
    },
    Family {
        driver: "ice",
        eswitch: Eswitch::BeforeVfs,
        traffic: Traffic::Flows,
        parallel_vfs: true,
        steering: None,
        source: "intel/ice/ice_eswitch.c ice_eswitch_mode_set (EOPNOTSUPP while there are VFs); ice_sriov.c ice_ena_vfs",
    },
    Family {
        driver: "i40e",
        eswitch: Eswitch::Missing,
        traffic: Traffic::Stops,
        parallel_vfs: true,
        steering: None,
        source: "intel/i40e/i40e_virtchnl_pf.c i40e_pci_sriov_configure (resets the PF when it enters or leaves VEB mode)",
    },
    Family {
        driver: "ixgbe",
        eswitch: Eswitch::Missing,
        traffic: Traffic::Stops,
        parallel_vfs: false,
        steering: None,
        source: "intel/ixgbe/ixgbe_sriov.c ixgbe_pci_sriov_enable, ixgbe_sriov_reinit (closes and opens the port)",
    },
    Family {
        driver: "igb",
        eswitch: Eswitch::Missing,
        traffic: Traffic::Stops,
        parallel_vfs: false,
        steering: None,
        source: "intel/igb/igb_main.c igb_enable_sriov, igb_sriov_reinit (closes and opens the port)",
    },
    Family {
        driver: "bnxt_en",
        eswitch: Eswitch::AfterVfs,
        traffic: Traffic::Flows,
        parallel_vfs: true,
        steering: None,
        source: "broadcom/bnxt/bnxt_sriov.c bnxt_sriov_configure (ignores the write while the PF is down); bnxt_vfr.c bnxt_dl_eswitch_mode_set (before 6.4 EPERM without VFs; since then the mode may come first and outlives them, so that setting it after them is right for both)",
    },
    Family {
        driver: "qede",
        eswitch: Eswitch::Missing,
        traffic: Traffic::Flows,
        parallel_vfs: true,
        steering: None,
        source: "qlogic/qede/qede_main.c qede_sriov_configure; qlogic/qed/qed_sriov.c qed_sriov_enable",
    },
];

/// All other drivers.
const OTHER: Family = Family {
    driver: "",
    eswitch: Eswitch::AfterVfs,
    traffic: Traffic::Stops,
    parallel_vfs: false,
    steering: None,
    source: "nothing is known, so the way that spec and kernel documentation describe as the usual one, with care",
};

impl Family {
    /// The row of a PF's driver.
    pub fn of(pf: &Pf) -> &'static Self {
        Self::named(pf.driver.as_deref().unwrap_or_default())
    }

    /// The row of a driver.
    pub fn named(driver: &str) -> &'static Self {
        FAMILIES.iter().find(|family| family.driver == driver).unwrap_or(&OTHER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_has_one_row_with_a_source_and_unknown_ones_are_treated_with_care() {
        for family in &FAMILIES {
            assert_eq!(FAMILIES.iter().filter(|other| other.driver == family.driver).count(), 1, "{}", family.driver);
            assert!(family.source.contains(".c "), "{} names no function", family.driver);
            assert_eq!(Family::named(family.driver), family);
        }
        let unknown = Family::named("octeontx2");
        assert_eq!((unknown.traffic, unknown.parallel_vfs), (Traffic::Stops, false));
    }
}
