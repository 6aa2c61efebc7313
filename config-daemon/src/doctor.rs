//! Pure: what keeps this machine from having VFs, or from giving them to userspace drivers, and what to do about each.
//!
//! What lives here: the findings. What does not: reading the machine (`sriov_host::nic`, `machine`).
//!
//! Invariant: each finding has a cure, in words that somebody at the machine can follow.

use std::fmt;

use sriov_host::nic::{Nic, Platform};

use crate::nic_names;
use crate::observed::Observed;
use crate::plan::firmware::{MELLANOX, by_hand_of, words};

/// A number of VFs that most NICs can have, for a command that somebody is to type.
const EXAMPLE_VFS: u16 = 8;

/// Something that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// False for what is in the way of a part of the features only.
    pub blocks: bool,
    /// What it is about.
    pub object: String,
    /// What is so.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.blocks { "problem" } else { "note" };
        write!(f, "{mark}: {}: {}\n  cure: {}", self.object, self.problem, self.cure)
    }
}

/// Everything that is in the way.
pub fn diagnose(observed: &Observed, platform: &Platform) -> Vec<Finding> {
    let mut findings: Vec<Finding> = iommu(observed, platform).into_iter().chain(vfio(observed)).chain(lockdown(platform)).collect();
    if platform.nics.is_empty() {
        let problem = "there is no network function on the PCI bus";
        findings.push(finding(true, "machine", problem, "check that the NIC is seated and switched on in the firmware's setup (lspci shows it)"));
    }
    findings.extend(platform.nics.iter().flat_map(|nic| of_nic(nic, observed)));
    findings.extend(users(observed));
    findings
}

fn finding(blocks: bool, object: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { blocks, object: object.into(), problem: problem.into(), cure: cure.into() }
}

fn iommu(observed: &Observed, platform: &Platform) -> Option<Finding> {
    let iommu = &observed.inventory.iommu;
    if iommu.active {
        return None;
    }
    let said = |problem: String, cure: &str| Some(finding(false, "IOMMU", format!("{problem}; VFs for userspace drivers (vfio-pci) need it"), cure));
    if let Some(off) = iommu.command_line.split_whitespace().find(|word| matches!(*word, "intel_iommu=off" | "amd_iommu=off" | "iommu=off")) {
        return said(format!("it is switched off on the kernel command line ({off})"), &format!("take {off} off the kernel command line and reboot"));
    }
    match platform.iommu_table.as_deref() {
        None => said(
            "the firmware tells of none (no ACPI table DMAR, IVRS or IORT)".to_owned(),
            "switch VT-d (Intel) or AMD-Vi / IOMMU (AMD) on in the firmware's setup; in a virtual machine give it an IOMMU device",
        ),
        Some("DMAR") => said(
            "the firmware has one (ACPI table DMAR) and the kernel does not use it".to_owned(),
            "put  intel_iommu=on iommu=pt  on the kernel command line and reboot",
        ),
        Some(table) => said(
            format!("the firmware has one (ACPI table {table}) and the kernel does not use it"),
            "check the kernel log for IOMMU errors (dmesg | grep -i iommu), and that the kernel is built with the driver of this platform",
        ),
    }
}

fn vfio(observed: &Observed) -> Option<Finding> {
    let cure = "modprobe vfio-pci, and keep it loaded with a file in /etc/modules-load.d; deviceType netdevice does not need it";
    (!observed.vfio_pci_loaded).then(|| finding(false, "driver vfio-pci", "it is not loaded", cure))
}

fn lockdown(platform: &Platform) -> Option<Finding> {
    let mode = platform.lockdown.as_ref()?;
    let problem = format!("the kernel is locked down ({mode}, by secure boot), so firmware tools cannot reach NICs and unsigned modules are refused");
    Some(finding(
        false,
        "kernel",
        problem,
        "make settings of the NIC's firmware (number of VFs, SR-IOV on) in the firmware's setup; VFs themselves are not affected",
    ))
}

fn of_nic(nic: &Nic, observed: &Observed) -> Vec<Finding> {
    let name = observed.pf(nic.address).and_then(|pf| pf.netdev.as_ref()).map_or(String::new(), |netdev| format!(" ({})", netdev.name));
    let model = nic_names::name(nic.vendor, nic.device).map_or(String::new(), |model| format!(" {model}"));
    let object = format!("NIC {} {}:{}{model}{name}", nic.address, nic.vendor, nic.device);
    let mut findings = Vec::new();
    let told = observed.pf(nic.address).map(|pf| &pf.facts.firmware_settings).filter(|told| told.is_offered());
    match nic.totalvfs {
        None if nic.driver.as_deref().is_some_and(|driver| driver.starts_with("virtio")) => {}
        None | Some(0) if told.is_some() => {
            let cure = "name it in a policy: its firmware is then told to allow the VFs, and the node is rebooted for that, once";
            findings.push(finding(false, &object, format!("SR-IOV is off in its firmware ({})", told.map(words).unwrap_or_default()), cure));
        }
        None | Some(0) if nic.vendor == MELLANOX => {
            let problem = "it has no VFs to give: SR-IOV is off in its firmware, which this kernel cannot change (Linux 6.18 and later can)";
            findings.push(finding(true, &object, problem, by_hand_of(nic.vendor, nic.address, EXAMPLE_VFS)));
        }
        None => {
            let cure = "if it can do SR-IOV, switch that on in the NIC's or the machine's firmware setup; in a virtual machine it cannot have VFs of its own";
            findings.push(finding(false, &object, "it shows no SR-IOV capability", cure));
        }
        Some(0) => {
            findings.push(finding(
                true,
                &object,
                "its firmware allows no VFs (sriov_totalvfs is 0)",
                "raise the number of VFs in the NIC's firmware setup, then reboot",
            ));
        }
        Some(total) => {
            let other = told.filter(|told| told.enable_sriov == Some(false) || told.total_vfs.is_some_and(|told| told != u32::from(total)));
            findings.extend(other.map(|told| {
                let problem = format!("its firmware is told {} for its next start, and runs with {total} VFs at most", words(told));
                finding(false, &object, problem, "reboot; a node whose policies need it is drained and rebooted by itself")
            }));
        }
    }
    if nic.totalvfs.is_some() && nic.driver.is_none() {
        findings.push(finding(
            true,
            &object,
            "it has no driver, so it cannot have VFs",
            "load its kernel driver (modprobe), or install the package with the module",
        ));
    }
    if nic.totalvfs.is_some_and(|total| total > 0) && nic.vf_space == Some(false) {
        let cure = "switch \"SR-IOV support\" and \"Above 4G decoding\" on in the firmware's setup, or put  pci=realloc  on the kernel command line, then reboot";
        findings.push(finding(
            true,
            &object,
            "the firmware left no address space (MMIO) for its VFs: making them fails with \"not enough MMIO resources\"",
            cure,
        ));
    }
    if let Some(nics) = observed.supported_nics.as_ref().filter(|_| nic.totalvfs.is_some_and(|total| total > 0))
        && !nics.contains(nic.vendor, nic.device)
    {
        let vf = observed.pf(nic.address).and_then(|pf| pf.vf_device).map_or_else(|| "<VF device>".to_owned(), |id| id.to_string());
        let cure = format!("add the entry  my-nic: \"{} {} {vf}\"  to the ConfigMap supported-nic-ids", nic.vendor, nic.device);
        findings.push(finding(true, &object, "it is not in the list of supported NICs that this machine was last told", cure));
    }
    if let Some(fault) = observed.faults.get(&nic.address) {
        findings.push(finding(true, &object, format!("it could not be read: {fault}"), "look into the kernel log (dmesg) for errors of its driver"));
    }
    findings
}

fn users(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pf in &observed.inventory.pfs {
        if !pf.facts.uses.is_empty() {
            let uses: Vec<String> = pf.facts.uses.iter().map(ToString::to_string).collect();
            let problem = format!("the host itself uses it: {}; what would stop that traffic is refused", uses.join("; "));
            let cure = "take another PF for VFs, or make them before the host's network starts and say externallyManaged: true";
            findings.push(finding(false, format!("PF {}", pf.address), problem, cure));
        }
        let used: Vec<String> = pf.vfs.iter().filter_map(|vf| Some(format!("{} ({})", vf.address, observed.user_of(pf, vf)?))).collect();
        if !used.is_empty() {
            let problem = format!("VFs are in use: {}; their number and drivers cannot change meanwhile", used.join(", "));
            findings.push(finding(false, format!("PF {}", pf.address), problem, "nothing, or delete the pods that use them"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use sriov_host::host_use::HostUse;
    use sriov_host::inventory::FirmwareSettings;

    use super::*;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;
    use crate::observed::SupportedNics;

    fn nic(totalvfs: Option<u16>, driver: Option<&str>, vf_space: Option<bool>) -> Platform {
        let (vendor, device) = ("8086".parse().unwrap(), "10c9".parse().unwrap());
        let nic = Nic { address: "0000:01:00.0".parse().unwrap(), vendor, device, driver: driver.map(str::to_owned), totalvfs, vf_space };
        Platform { nics: vec![nic], ..Platform::default() }
    }

    fn problems(observed: &Observed, platform: &Platform) -> Vec<String> {
        diagnose(observed, platform).iter().map(ToString::to_string).collect()
    }

    fn well() -> Observed {
        Sim::with_pfs(&["0000:01:00.0"]).observe().unwrap()
    }

    #[test]
    fn a_machine_with_which_all_is_well_has_no_findings() {
        assert_eq!(problems(&well(), &nic(Some(7), Some("igb"), Some(true))), Vec::<String>::new());
    }

    #[test]
    fn each_obstacle_is_named_with_its_cure() {
        let expect = |observed: &Observed, platform: &Platform, problem: &str, cure: &str| {
            let said = problems(observed, platform);
            assert!(said.iter().any(|text| text.contains(problem) && text.contains(cure)), "{problem:?} with {cure:?} is not in {said:#?}");
        };
        let good = nic(Some(7), Some("igb"), Some(true));
        let mut without = well();
        without.inventory.iommu.active = false;
        without.inventory.iommu.command_line = "quiet".to_owned();
        expect(&without, &good, "the firmware tells of none", "VT-d");
        expect(&without, &Platform { iommu_table: Some("DMAR".to_owned()), ..good.clone() }, "the kernel does not use it", "intel_iommu=on");
        without.inventory.iommu.command_line = "quiet intel_iommu=off".to_owned();
        expect(&without, &good, "switched off on the kernel command line", "take intel_iommu=off off");
        expect(&Observed { vfio_pci_loaded: false, ..well() }, &good, "it is not loaded", "modprobe vfio-pci");
        expect(&well(), &Platform { lockdown: Some("integrity".to_owned()), ..good.clone() }, "locked down (integrity", "firmware's setup");
        expect(&well(), &nic(Some(7), None, None), "it has no driver", "load its kernel driver");
        expect(&well(), &nic(Some(0), Some("ixgbe"), None), "sriov_totalvfs is 0", "raise the number");
        let mut mellanox = nic(None, Some("mlx5_core"), None);
        mellanox.nics[0].vendor = MELLANOX;
        expect(&well(), &mellanox, "SR-IOV is off in its firmware, which this kernel", "mstconfig -d 0000:01:00.0 set SRIOV_EN=1 NUM_OF_VFS=8");
        let told = |enable_sriov, total_vfs| {
            let mut told = well();
            told.inventory.pfs[0].facts.firmware_settings = FirmwareSettings { enable_sriov, total_vfs };
            told
        };
        expect(&told(Some(false), Some(8)), &mellanox, "off in its firmware (total_vfs 8, enable_sriov false)", "name it in a policy");
        expect(&told(Some(true), Some(32)), &good, "told total_vfs 32, enable_sriov true for its next start, and runs with 7", "reboot");
        expect(&well(), &nic(None, Some("e1000e"), None), "no SR-IOV capability", "switch that on");
        expect(&well(), &nic(Some(7), Some("igb"), Some(false)), "no address space", "pci=realloc");
        let listed = Observed { supported_nics: Some(SupportedNics::default()), ..well() };
        expect(&listed, &good, "not in the list of supported NICs", "my-nic: \"8086 10c9 10ca\"");
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        sim.make_vfs("0000:01:00.0".parse().unwrap(), 1);
        sim.change(|state| _ = state.vfs_in_use.insert("0000:01:10.0".parse().unwrap(), "container abc".to_owned()));
        expect(&sim.observe().unwrap(), &good, "VFs are in use: 0000:01:10.0 (container abc)", "delete the pods");
        expect(&well(), &Platform::default(), "no network function", "seated");
        let mut used = well();
        used.inventory.pfs[0].facts.uses.push(HostUse::DefaultRoute { link: "eth0".to_owned(), family: "IPv4".to_owned() });
        expect(&used, &good, "the host itself uses it", "externallyManaged");
    }

    #[test]
    fn a_virtual_machine_s_own_nic_is_no_finding() {
        assert_eq!(problems(&well(), &nic(None, Some("virtio-pci"), None)), Vec::<String>::new());
    }
}
