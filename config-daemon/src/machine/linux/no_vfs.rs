//! Pure: what it means that a PF did not get its VFs: by driver and by the kernel's number, as a table with a source for each row.
//!
//! What lives here: the cures. What does not: asking for VFs (`sriov_host::sriov`), when it is tried again (`node_state::failures`).
//!
//! Invariant: the kernel's own words are always told; a number that is not in the table is told without a cure, never with a guess.

use rustix::io::Errno;
use sriov_host::sriov::SriovError;

use super::answer::refused;
use crate::machine::StepError;

/// What one answer means.
struct Meaning {
    /// Name of the PF's driver; empty for the PCI core, which answers for all of them.
    driver: &'static str,
    errno: Errno,
    /// Whether it is the answer to making VFs, or to removing them.
    making: bool,
    cure: &'static str,
    /// Of Linux 6.12.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads or checks the table"))]
    source: &'static str,
}

const ASSIGNED: &str = "a virtual machine has one of its VFs: stop it, or take the VF from it";

/// The first that fits. `ENOMEM` of the PCI core depends on the command line and is not here ([`no_space`]).
const MEANINGS: [Meaning; 15] = [
    Meaning {
        driver: "ixgbe",
        errno: Errno::PERM,
        making: true,
        cure: "the driver gives 63 VFs at most, 31 while the port has traffic classes (DCB), 15 with more than 4 of them, less those that offloaded macvlans \
               take: lower numVfs, or remove the port's traffic classes",
        source: "intel/ixgbe/ixgbe_sriov.c ixgbe_pci_sriov_enable",
    },
    Meaning {
        driver: "ixgbe",
        errno: Errno::INVAL,
        making: true,
        cure: "the driver has no VFs while an XDP program is on the port: remove it (ip link set <port> xdp off)",
        source: "intel/ixgbe/ixgbe_sriov.c __ixgbe_enable_sriov",
    },
    Meaning { driver: "ixgbe", errno: Errno::PERM, making: false, cure: ASSIGNED, source: "intel/ixgbe/ixgbe_sriov.c ixgbe_disable_sriov" },
    Meaning {
        driver: "i40e",
        errno: Errno::PERM,
        making: true,
        cure: "the NIC's firmware has resources for fewer VFs on this port (the kernel log says how many), or the port is in a self-test (ethtool -t): lower \
               numVfs, or give the port more VFs in the NIC's firmware",
        source: "intel/i40e/i40e_virtchnl_pf.c i40e_pci_sriov_enable (num_req_vfs; __I40E_TESTING)",
    },
    Meaning {
        driver: "i40e",
        errno: Errno::AGAIN,
        making: true,
        cure: "the driver is busy with other VFs of this port; it is tried again",
        source: "intel/i40e/i40e_virtchnl_pf.c i40e_pci_sriov_configure (__I40E_VIRTCHNL_OP_PENDING)",
    },
    Meaning { driver: "i40e", errno: Errno::INVAL, making: false, cure: ASSIGNED, source: "intel/i40e/i40e_virtchnl_pf.c i40e_pci_sriov_configure" },
    Meaning {
        driver: "ice",
        errno: Errno::OPNOTSUPP,
        making: true,
        cure: "the driver is in safe mode, because it found no DDP package in /lib/firmware/intel/ice/ddp, or the NIC's firmware allows fewer VFs on this port \
               (the kernel log says which): install linux-firmware and load the driver anew, or lower numVfs",
        source: "intel/ice/ice_sriov.c ice_check_sriov_allowed, ice_pci_sriov_ena",
    },
    Meaning {
        driver: "ice",
        errno: Errno::NOSPC,
        making: true,
        cure: "the NIC has too few MSI-X interrupts or queues for so many VFs (the kernel log says of which): lower numVfs here or on the NIC's other ports, or \
               take RDMA from the port (devlink dev param set pci/<address> name enable_roce value false cmode runtime)",
        source: "intel/ice/ice_sriov.c ice_set_per_vf_res",
    },
    Meaning { driver: "ice", errno: Errno::BUSY, making: false, cure: ASSIGNED, source: "intel/ice/ice_sriov.c ice_sriov_configure" },
    Meaning {
        driver: "igb",
        errno: Errno::PERM,
        making: true,
        cure: "the driver gives 7 VFs at most, and none where it has no MSI-X interrupts (kernel argument pci=nomsi): lower numVfs, or remove the argument",
        source: "intel/igb/igb_main.c igb_enable_sriov",
    },
    Meaning { driver: "igb", errno: Errno::PERM, making: false, cure: ASSIGNED, source: "intel/igb/igb_main.c igb_disable_sriov" },
    Meaning {
        driver: "qede",
        errno: Errno::INVAL,
        making: true,
        cure: "the NIC's firmware gave this port fewer virtual ports (the kernel log says how many VFs it can start): lower numVfs, or switch off NPAR in the \
               NIC's firmware",
        source: "qlogic/qed/qed_sriov.c qed_sriov_enable (RESC_NUM QED_VPORT)",
    },
    Meaning {
        driver: "mlx5_core",
        errno: Errno::PERM,
        making: true,
        cure: "this function is not the one that has VFs: on a NIC with processors of its own in embedded mode they are made on its own system, and a VF or SF \
               has none",
        source: "mellanox/mlx5/core/sriov.c mlx5_core_sriov_configure (mlx5_core_is_pf)",
    },
    Meaning {
        driver: "",
        errno: Errno::NOENT,
        making: true,
        cure: "the PF has no driver, or one that makes no VFs: load the NIC's own driver for it (a PF of vfio-pci has VFs only when that module was loaded with \
               enable_sriov=1)",
        source: "drivers/pci/iov.c sriov_numvfs_store",
    },
    Meaning {
        driver: "",
        errno: Errno::IO,
        making: true,
        cure: "the NIC tells two different numbers of VFs, which only its firmware can: switch SR-IOV off and on in it, or update it",
        source: "drivers/pci/iov.c sriov_enable (InitialVFs and TotalVFs)",
    },
];

/// What it means that the PF with this driver did not get `to` VFs.
pub(super) fn no_vfs(error: &SriovError, driver: Option<&str>, to: u16, command_line: &str) -> StepError {
    let (said, driver) = (error.to_string(), driver.unwrap_or_default());
    if let SriovError::Fewer { .. } = error {
        return StepError::NoVfs { said, cure: fewer(driver), errno: None };
    }
    let Some(errno) = error.errno().map(Errno::from_raw_os_error) else { return refused(error) };
    if errno == Errno::NOMEM {
        return StepError::NoVfs { said, cure: no_space(command_line), errno: error.errno() };
    }
    let fits = |row: &&Meaning| row.errno == errno && row.making == (to > 0) && (row.driver.is_empty() || row.driver == driver);
    match MEANINGS.iter().find(fits) {
        Some(row) => StepError::NoVfs { said, cure: row.cure, errno: error.errno() },
        None => refused(error),
    }
}

/// A driver that took the number and made another one of it: `broadcom/bnxt/bnxt_sriov.c` `bnxt_sriov_configure` and `bnxt_sriov_enable`.
fn fewer(driver: &str) -> &'static str {
    if driver == "bnxt_en" {
        "the driver makes none while the port is down or its firmware is reset, and fewer where the NIC has too few rings for all (the kernel log says \
         which): set the port up, lower numVfs, or lower the port's own channels (ethtool -L)"
    } else {
        "the driver made another number of VFs than it was told; the kernel log may say why: lower numVfs"
    }
}

/// The kernel answers with ENOMEM where the firmware gave the bridge above a PF too little space for its VFs (drivers/pci/iov.c sriov_enable).
fn no_space(command_line: &str) -> &'static str {
    let asked = command_line.split_whitespace().filter_map(|word| word.strip_prefix("pci=")).any(|values| values.split(',').any(|v| v == "realloc"));
    if asked {
        "the PCI bridge above the PF has too little space for its VFs although the kernel was told pci=realloc: enable SR-IOV and memory above 4G in the \
         machine's firmware, or ask for fewer VFs"
    } else {
        "the PCI bridge above the PF has too little space for its VFs: enable SR-IOV and memory above 4G in the machine's firmware, or put  pci=realloc  on \
         the kernel command line and reboot"
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;

    use sriov_host::sysfs::SysfsError;

    use super::*;
    use crate::machine::Cure;
    use crate::plan::family::FAMILIES;

    fn answer(driver: &str, errno: Errno, to: u16, command_line: &str) -> StepError {
        let cause = SysfsError::Write { path: "/sys/x".into(), text: to.to_string(), cause: io::Error::from_raw_os_error(errno.raw_os_error()) };
        let error = SriovError::SetNumvfs { pf: "0000:01:00.0".parse().unwrap(), given: to, had: "0".to_owned(), allowed: "64".to_owned(), cause };
        no_vfs(&error, Some(driver), to, command_line)
    }

    #[test]
    fn b2_missing_memory_space_is_never_told_without_its_cure() {
        let said = answer("igb", Errno::NOMEM, 8, "quiet pci=noaer").to_string();
        assert!(said.contains("cannot give PF 0000:01:00.0 8 VFs") && said.contains("put  pci=realloc  on"), "{said}");
        let said = answer("igb", Errno::NOMEM, 8, "quiet pci=noaer,realloc").to_string();
        assert!(said.contains("although the kernel was told pci=realloc"), "{said}");
        assert!(matches!(answer("igb", Errno::BUSY, 8, ""), StepError::Refused { .. }));
    }

    #[test]
    fn a_limit_of_the_driver_is_told_with_the_kernels_words_and_its_cure() {
        for (driver, errno, to, word) in [
            ("ixgbe", Errno::PERM, 64, "63 VFs at most"),
            ("ixgbe", Errno::PERM, 0, "virtual machine"),
            ("i40e", Errno::PERM, 64, "fewer VFs on this port"),
            ("ice", Errno::OPNOTSUPP, 8, "DDP package"),
            ("ice", Errno::NOSPC, 8, "MSI-X"),
            ("qede", Errno::INVAL, 8, "virtual ports"),
            ("vfio-pci", Errno::NOENT, 8, "enable_sriov=1"),
        ] {
            let error = answer(driver, errno, to, "");
            let said = error.to_string();
            assert!(said.contains(word) && said.contains("cannot give PF 0000:01:00.0"), "{driver} {errno}: {said}");
            assert_eq!(error.cure(), Cure::Change, "{driver} {errno}: time does not cure it");
        }
        assert_eq!(answer("i40e", Errno::AGAIN, 8, "").cure(), Cure::Time);
        assert!(matches!(answer("mlx5_core", Errno::INVAL, 8, ""), StepError::Refused { .. }), "nothing is guessed");
    }

    #[test]
    fn a_driver_that_makes_fewer_vfs_than_it_was_told_is_no_success() {
        let error = SriovError::Fewer { pf: "0000:01:00.0".parse().unwrap(), given: 8, got: "0".to_owned() };
        let told = no_vfs(&error, Some("bnxt_en"), 8, "");
        assert!(told.to_string().contains("set the port up") && told.to_string().contains("took 8 VFs and has 0"), "{told}");
        assert_eq!(told.cure(), Cure::Change);
    }

    #[test]
    fn each_row_is_of_a_driver_that_is_known_and_no_two_fit_the_same_answer() {
        let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.driver).chain([""]).collect();
        let mut seen = BTreeSet::new();
        for row in &MEANINGS {
            assert!(known.contains(row.driver) && row.source.contains(".c ") && !row.cure.is_empty(), "{} {}", row.driver, row.errno);
            assert!(seen.insert((row.driver, row.errno.raw_os_error(), row.making)), "{} {}", row.driver, row.errno);
        }
    }
}
