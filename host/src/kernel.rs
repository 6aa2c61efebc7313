//! I/O: facts about the running machine as a whole: the kernel's command line, the IOMMU, what the machine is called.
//!
//! Invariant: only reads.

use crate::Host;
use crate::inventory::Iommu;
use crate::sysfs::{Sysfs, SysfsError};

/// The kernel's command line. Below a root without `/proc` (a container that mounts only `/sys` of its host) this process's own `/proc` is
/// read: there is one kernel, and its command line is in every `/proc`.
pub fn command_line(host: &Host) -> Result<String, SysfsError> {
    match host.sysfs().read_opt("/proc/cmdline")? {
        Some(line) => Ok(line),
        None => Sysfs::new("/").read("/proc/cmdline"),
    }
}

/// Which boot of the machine this is: another text after each. Without `/proc` below the root this process's own is read, as for the command line.
pub fn boot_id(host: &Host) -> Result<String, SysfsError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    match host.sysfs().read_opt(PATH)? {
        Some(id) => Ok(id),
        None => Sysfs::new("/").read(PATH),
    }
}

/// Whether an IOMMU translates, and the command line to tell what is missing on it. Both folders must have an entry: with the IOMMU
/// switched off in firmware or on the command line the kernel leaves one or both empty.
pub fn iommu(host: &Host) -> Result<Iommu, SysfsError> {
    let filled = |path| host.sysfs().list_opt(path).map(|names| names.is_some_and(|names| !names.is_empty()));
    let active = filled("/sys/class/iommu")? && filled("/sys/kernel/iommu_groups")?;
    Ok(Iommu { active, command_line: command_line(host)? })
}

/// The kernel's lockdown (`/sys/kernel/security/lockdown`, `[none] integrity confidentiality`); `None` without it.
pub fn lockdown(host: &Host) -> Option<String> {
    let text = host.sysfs().read_opt("/sys/kernel/security/lockdown").ok().flatten()?;
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']').map(str::to_owned));
    chosen.filter(|word| word != "none")
}

/// The machine's identifier by its firmware (SMBIOS); `None` where there is none, or without the right to read it. Virtual machines may share it.
pub fn system_uuid(host: &Host) -> Option<String> {
    host.sysfs().read_opt("/sys/class/dmi/id/product_uuid").ok().flatten()
}

/// The machine's name (`uname -n`), as this process sees it: the host's, unless the process has a UTS namespace of its own.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    #[test]
    fn a_machine_without_firmware_identifier_has_none() {
        let tree = SysfsTree::new();
        assert_eq!(system_uuid(&tree.clone().build().unwrap().host()), None);
        let fake = tree.file("/sys/class/dmi/id/product_uuid", "4c4c4544-0044\n").build().unwrap();
        assert_eq!(system_uuid(&fake.host()).as_deref(), Some("4c4c4544-0044"));
    }

    #[test]
    fn lockdown_is_what_the_brackets_hold() {
        for (text, expected) in [("[none] integrity confidentiality", None), ("none [integrity] confidentiality", Some("integrity"))] {
            let fake = SysfsTree::new().file("/sys/kernel/security/lockdown", text).build().unwrap();
            assert_eq!(lockdown(&fake.host()).as_deref(), expected);
        }
        assert_eq!(lockdown(&SysfsTree::new().build().unwrap().host()), None);
    }

    #[test]
    fn an_iommu_without_groups_is_not_active() {
        let tree = SysfsTree::new().file("/proc/cmdline", "quiet intel_iommu=off\n").dir("/sys/class/iommu/dmar0").dir("/sys/kernel/iommu_groups");
        let fake = tree.clone().build().unwrap();
        assert_eq!(iommu(&fake.host()).unwrap(), Iommu { active: false, command_line: "quiet intel_iommu=off".to_owned() });
        let fake = tree.dir("/sys/kernel/iommu_groups/0").build().unwrap();
        assert!(iommu(&fake.host()).unwrap().active);
    }
}
