//! Pure: what is not done to a PF, and why, in words that say what to do about it.
//!
//! What lives here: the reasons and the checks of a PF that is asked for. What does not: checks of the wish alone (`desired`).
//!
//! Invariant: a refusal belongs to one PF (or to one unreadable entry) and never takes a step away from another PF.

use sriov_crds::conditions::node;
use sriov_host::inventory::{EswitchMode, LinkType, Pf};
use sriov_host::pci::PciAddress;

use crate::desired::{DesiredPf, DeviceType};
use crate::observed::Observed;
use crate::plan::family::{Eswitch, Family};
use crate::plan::step::{VFIO_PCI, mode_word};
use crate::plan::{firmware, iommu};

/// Why something is not done. The text form is stable: it is used in conditions and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An entry of the spec that is not understood.
    InvalidSpec,
    /// A feature of the API that this version does not have.
    Unsupported,
    /// No SR-IOV capable function at this address.
    PfNotFound,
    /// The PF is there and could not be read.
    PfUnreadable,
    /// The PF has no driver, so it cannot have VFs.
    PfWithoutDriver,
    /// The NIC is not listed in `supported-nic-ids`.
    UnsupportedNic,
    /// More VFs than `sriov_totalvfs`.
    TooManyVfs,
    /// An externally managed PF has fewer VFs than asked for.
    TooFewVfs,
    /// An MTU beyond what the driver takes, or beyond that of an externally managed PF.
    InvalidMtu,
    /// The PF has the other link layer.
    LinkTypeMismatch,
    /// The PF is in another eswitch mode.
    EswitchModeMismatch,
    /// `vfio-pci` without an active IOMMU.
    IommuInactive,
    /// `vfio-pci` is not loaded.
    DriverNotLoaded,
    /// The file with the GUIDs of InfiniBand VFs is not understood, or has too few.
    InvalidGuids,
    /// The host uses the PF, and what is asked would stop its traffic.
    PfInUse,
    /// Open vSwitch does not answer, or has not done what its database says.
    BridgeUnavailable,
    /// Somebody else has a bridge of that name, or the PF in another bridge.
    BridgeConflict,
    /// More VFs than the NIC's firmware allows, which is told so for its next start.
    FirmwareTold,
    /// The machine was started anew for what the NIC's firmware was told, and it runs as before.
    FirmwareNotTaken,
    /// Something takes effect only at the next boot, or before the first network namespace is made.
    RebootRequired,
    /// VFs that would have to change are in use.
    VfsInUse,
}

impl Reason {
    /// The reason in the form of a condition's reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => node::INVALID_SPEC,
            Self::Unsupported => node::UNSUPPORTED_SETTING,
            Self::PfNotFound => "PfNotFound",
            Self::PfUnreadable => "PfUnreadable",
            Self::PfWithoutDriver => "PfWithoutDriver",
            Self::UnsupportedNic => node::UNSUPPORTED_NIC,
            Self::TooManyVfs => node::TOO_MANY_VFS,
            Self::TooFewVfs => "TooFewVfs",
            Self::InvalidMtu => "InvalidMtu",
            Self::LinkTypeMismatch => "LinkTypeMismatch",
            Self::EswitchModeMismatch => "EswitchModeMismatch",
            Self::IommuInactive => node::IOMMU_INACTIVE,
            Self::DriverNotLoaded => "DriverNotLoaded",
            Self::InvalidGuids => "InvalidGuids",
            Self::PfInUse => "PfInUse",
            Self::BridgeUnavailable => "BridgeUnavailable",
            Self::BridgeConflict => "BridgeConflict",
            Self::FirmwareNotTaken => "FirmwareNotTaken",
            Self::RebootRequired | Self::FirmwareTold => "RebootRequired",
            Self::VfsInUse => node::WAITING_FOR_VFS_IN_USE,
        }
    }
}

/// Something that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The PF; `None` when the spec's entry has no readable address.
    pub pf: Option<PciAddress>,
    /// The PF's name as far as known, or empty.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// Object, what was asked, what is allowed, what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal of a PF; `said` continues the sentence that begins with the PF.
    pub(crate) fn of(pf: PciAddress, name: &str, reason: Reason, said: &str) -> Self {
        let label = if name.is_empty() { format!("PF {pf}") } else { format!("PF {pf} ({name})") };
        Self { pf: Some(pf), name: name.to_owned(), reason, message: format!("{label}: {said}") }
    }
}

/// The PF asked for, if everything about it can be done.
pub(crate) fn check<'a>(wish: &DesiredPf, observed: &'a Observed) -> Result<&'a Pf, Refusal> {
    if let Some(fault) = observed.faults.get(&wish.address) {
        return Err(Refusal::of(wish.address, &wish.name, Reason::PfUnreadable, &format!("it could not be read ({fault}); it is tried again")));
    }
    let Some(pf) = observed.pf(wish.address) else {
        let said = "this machine has no SR-IOV capable network function at this address: the NIC is gone, or SR-IOV is off in its firmware or in the machine's";
        return Err(Refusal::of(wish.address, &wish.name, Reason::PfNotFound, said));
    };
    let name = pf.netdev.as_ref().map_or(wish.name.as_str(), |n| n.name.as_str());
    let refuse = |reason, said: String| Err(Refusal::of(wish.address, name, reason, &said));
    if let Some(said) = not_listed(pf, observed) {
        return refuse(Reason::UnsupportedNic, said);
    }
    // A NIC of a virtual machine may have lost its driver to a step that was not finished; a PF without a driver has no VFs.
    if pf.driver.is_none() && !pf.facts.lone {
        return refuse(Reason::PfWithoutDriver, "no driver is bound, so it cannot have VFs: load its kernel driver".to_owned());
    }
    if let Some((reason, said)) = beyond_lone(wish, pf)
        .or_else(|| wrong_count(wish, pf, observed))
        .or_else(|| wrong_link(wish, pf))
        .or_else(|| no_vfio(wish, pf, observed))
        .or_else(|| no_vdpa(wish, observed))
        .or_else(|| no_guids(wish, pf, observed))
        .or_else(|| no_space(wish, pf, observed))
        .or_else(|| firmware::lacking(wish, pf, observed))
    {
        return refuse(reason, said);
    }
    Ok(pf)
}

fn not_listed(pf: &Pf, observed: &Observed) -> Option<String> {
    let nics = observed.supported_nics.as_ref()?;
    if nics.contains(pf.vendor, pf.device) {
        return None;
    }
    let vf = pf.vf_device.map_or_else(|| "<VF device>".to_owned(), |id| id.to_string());
    Some(format!(
        "NIC {}:{} is not in the ConfigMap supported-nic-ids, which names the NICs that may be configured: add the entry  my-nic: \"{} {} {vf}\"  to it \
         (any key; the value is \"<vendor> <PF device> <VF device>\"); it takes effect without a restart",
        pf.vendor, pf.device, pf.vendor, pf.device
    ))
}

/// Of a VF without its PF only driver and MTU can be set.
fn beyond_lone(wish: &DesiredPf, pf: &Pf) -> Option<(Reason, String)> {
    let asked = match () {
        () if !pf.facts.lone => return None,
        () if wish.numvfs != 1 => format!("{} VFs", wish.numvfs),
        () if wish.eswitch_mode != EswitchMode::Legacy => "eSwitchMode switchdev".to_owned(),
        () => return None,
    };
    let said =
        format!("{} asks for {asked}, and this is a NIC of a virtual machine, which is one VF: set numVfs to 1 and no eSwitchMode", wish.policies());
    Some((Reason::Unsupported, said))
}

fn wrong_count(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<(Reason, String)> {
    if wish.numvfs > pf.totalvfs && !firmware::can_help(wish, pf, observed) {
        return Some((Reason::TooManyVfs, firmware::too_many(wish, pf, observed)));
    }
    if wish.externally_managed && wish.numvfs > pf.numvfs {
        let said = format!(
            "{} asks for {} VFs on an externally managed PF, which has {}: create them first, or remove externallyManaged",
            wish.policies(),
            wish.numvfs,
            pf.numvfs
        );
        return Some((Reason::TooFewVfs, said));
    }
    None
}

fn wrong_link(wish: &DesiredPf, pf: &Pf) -> Option<(Reason, String)> {
    if wish.eswitch_mode == EswitchMode::Switchdev && Family::of(pf).eswitch == Eswitch::Missing {
        let driver = pf.driver.as_deref().unwrap_or_default();
        let said =
            format!("{} asks for eSwitchMode switchdev, and driver {driver} has no eswitch: remove eSwitchMode from the policy", wish.policies());
        return Some((Reason::Unsupported, said));
    }
    if wish.externally_managed && pf.eswitch_mode != wish.eswitch_mode {
        let (asked, found) = (mode_word(wish.eswitch_mode), mode_word(pf.eswitch_mode));
        let said = format!(
            "{} asks for eSwitchMode {asked} on an externally managed PF, which is in {found}: change it there, or say eSwitchMode: {found}",
            wish.policies()
        );
        return Some((Reason::EswitchModeMismatch, said));
    }
    let netdev = pf.netdev.as_ref()?;
    if let Some(wanted) = wish.link_type
        && wanted != netdev.link_type
    {
        let name = |link_type| match link_type {
            LinkType::Ether => "ETH",
            LinkType::Infiniband => "IB",
            LinkType::Other => "neither ETH nor IB",
        };
        let said = format!(
            "{} asks for linkType {}, the port is {}; the kernel has no way to change that: remove linkType, or {}",
            wish.policies(),
            name(wanted),
            name(netdev.link_type),
            firmware::other_link(wanted, pf)
        );
        return Some((Reason::LinkTypeMismatch, said));
    }
    let mtu = wish.largest_mtu()?;
    if let Some(limit) = netdev.max_mtu.filter(|limit| mtu > *limit) {
        return Some((Reason::InvalidMtu, format!("{} asks for MTU {mtu}, the driver takes at most {limit}: lower mtu", wish.policies())));
    }
    if wish.externally_managed && mtu > netdev.mtu {
        let said =
            format!("{} asks for MTU {mtu} on an externally managed PF, whose MTU is {}: raise it there, or lower mtu", wish.policies(), netdev.mtu);
        return Some((Reason::InvalidMtu, said));
    }
    None
}

/// Told only where the next boot cures it; otherwise the attempt is made, and the kernel's answer told with its cure.
fn no_space(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<(Reason, String)> {
    let comes = || iommu::realloc_comes_with_the_next_boot(&observed.inventory.kernel, &observed.inventory.iommu.command_line);
    if wish.numvfs == 0 || pf.numvfs > 0 || pf.facts.vf_space != Some(false) || !comes() {
        return None;
    }
    let said = format!(
        "{} asks for VFs, for which the firmware left no address space; the boot loader's configuration has pci=realloc and the running kernel was \
         started without: this node is drained and rebooted for it, once",
        wish.policies()
    );
    Some((Reason::RebootRequired, said))
}

fn no_vdpa(wish: &DesiredPf, observed: &Observed) -> Option<(Reason, String)> {
    let missing = |driver: &str| !observed.vdpa_drivers.contains(driver) && !observed.vdpa_drivers_loadable.contains(driver);
    let group = wish.groups.iter().find(|group| group.vdpa.is_some_and(|kind| missing(kind.driver())))?;
    let (kind, driver) = (group.vdpa?.as_str(), group.vdpa?.driver());
    let said = format!(
        "policy {:?} asks for vdpaType {kind}, and its driver {driver} is neither loaded nor among the modules of the running kernel that this program can \
         see: run  modprobe {driver}  and list it in /etc/modules-load.d",
        group.policy_name
    );
    Some((Reason::DriverNotLoaded, said))
}

/// The administrator's GUIDs, where the port is InfiniBand: a file that is not understood, or too few.
fn no_guids(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<(Reason, String)> {
    const FILE: &str = "/etc/sriov-operator/infiniband/guids";
    pf.netdev.as_ref().filter(|netdev| netdev.link_type == LinkType::Infiniband && wish.numvfs > 0)?;
    if let Some(fault) = &observed.guids.fault {
        return Some((Reason::InvalidGuids, format!("{FILE} is not understood ({fault}): correct it, or delete it for GUIDs that are made up")));
    }
    let count = observed.guids.of(pf)?.count();
    let said =
        format!("{} asks for {} VFs, and {FILE} has {count} GUIDs for them: add GUIDs, or set numVfs to {count}", wish.policies(), wish.numvfs);
    (count < u64::from(wish.numvfs)).then_some((Reason::InvalidGuids, said))
}

fn no_vfio(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<(Reason, String)> {
    let group = wish.groups.iter().find(|g| g.device_type == DeviceType::VfioPci)?;
    let kernel = &observed.inventory.kernel;
    // A virtual machine has no IOMMU to switch on; its NICs are taken without.
    let active = observed.inventory.iommu.active || pf.facts.lone;
    if !active && iommu::comes_with_the_next_boot(kernel, &observed.inventory.iommu.command_line) {
        let said = format!(
            "policy {:?} asks for {VFIO_PCI}, which needs an IOMMU; the boot loader's configuration switches it on and the running kernel was started \
             without: this node is drained and rebooted for it, once",
            group.policy_name
        );
        return Some((Reason::RebootRequired, said));
    }
    if !active {
        let said = format!(
            "policy {:?} asks for {VFIO_PCI}, which needs an IOMMU, and none is active on this machine: {}",
            group.policy_name,
            iommu::cure(&observed.inventory.iommu.command_line)
        );
        return Some((Reason::IommuInactive, said));
    }
    if !observed.vfio_pci_loaded && !observed.vfio_pci_loadable {
        let said = format!(
            "policy {:?} asks for {VFIO_PCI}, and that driver is neither loaded nor among the modules of the running kernel that this program can see: run  modprobe vfio-pci  and list it in \
             /etc/modules-load.d",
            group.policy_name
        );
        return Some((Reason::DriverNotLoaded, said));
    }
    None
}
