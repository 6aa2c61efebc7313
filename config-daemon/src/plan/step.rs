//! Pure: one change of the machine, and the line that an operator reads about it.
//!
//! What lives here: the list of all changes that this program can make. What does not: when to make them (`order`), how (`machine`).
//!
//! Invariant: a step names a VF by its PF's address and its index, never by something that an earlier step creates.

use std::fmt;

use sriov_host::driver::is_userspace;
use sriov_host::guid::Guid;
use sriov_host::inventory::{EswitchMode, FirmwareSettings, RdmaMode};
use sriov_host::mac::MacAddr;
use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;

use crate::bridges::Wanted;
use crate::desired::{DeviceType, VdpaType};
use crate::observed::Record;
use crate::plan::firmware::words;

/// The driver that a VF is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Whatever kernel driver claims the device (`drivers_probe` without an override).
    KernelDefault,
    /// `vfio-pci`, by `driver_override`.
    VfioPci,
}

/// The name under which the kernel knows the VFIO driver.
pub const VFIO_PCI: &str = "vfio-pci";

impl Driver {
    /// The driver for a group's kind.
    pub fn of(device_type: DeviceType) -> Self {
        match device_type {
            DeviceType::Netdevice => Self::KernelDefault,
            DeviceType::VfioPci => Self::VfioPci,
        }
    }

    /// Whether a VF bound to `driver` needs no binding for this wish.
    pub fn is(self, driver: Option<&str>) -> bool {
        match self {
            Self::KernelDefault => driver.is_some_and(|driver| !is_userspace(driver)),
            Self::VfioPci => driver == Some(VFIO_PCI),
        }
    }
}

/// One change of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the record that says "this PF is configured by us", with the wish that it is configured for.
    RecordOwnership {
        /// The PF.
        pf: PciAddress,
        /// What to write.
        record: Box<Record>,
    },
    /// Whether the kernel binds a driver to new VFs by itself (`sriov_drivers_autoprobe`).
    SetAutoprobe {
        /// The PF.
        pf: PciAddress,
        /// The switch.
        on: bool,
    },
    /// Load a kernel module, with those that it needs.
    LoadModule {
        /// Its name.
        module: String,
    },
    /// Let `vfio-pci` have devices without an IOMMU, on a virtual machine that has none.
    AllowNoIommu,
    /// Set whether RDMA devices belong to one network namespace or are shared by all.
    SetRdmaMode {
        /// The mode.
        mode: RdmaMode,
    },
    /// Write, or with `None` delete, the file of ours by which RDMA devices have a mode from the next boot on.
    StageRdmaMode {
        /// The mode.
        mode: Option<RdmaMode>,
    },
    /// Set the mode of the PF's embedded switch.
    SetEswitchMode {
        /// The PF.
        pf: PciAddress,
        /// The mode.
        mode: EswitchMode,
    },
    /// Let the PF's hardware take over flows (`hw-tc-offload`).
    EnableOffload {
        /// The PF.
        pf: PciAddress,
    },
    /// Set how the driver steers flows (devlink's `flow_steering_mode`), where it has a choice.
    SetSteering {
        /// The PF.
        pf: PciAddress,
        /// `smfs` or `dmfs`.
        mode: &'static str,
    },
    /// Write `sriov_numvfs`. One of the two numbers is 0: the kernel refuses any other change with EBUSY.
    SetNumVfs {
        /// The PF.
        pf: PciAddress,
        /// VFs there are.
        from: u16,
        /// VFs there will be.
        to: u16,
    },
    /// Set the PF's netdev administratively up.
    SetPfUp {
        /// The PF.
        pf: PciAddress,
    },
    /// Set the MTU of the PF's netdev.
    SetPfMtu {
        /// The PF.
        pf: PciAddress,
        /// Bytes now.
        from: u32,
        /// Bytes wanted.
        to: u32,
    },
    /// Set the MAC that the PF holds for a VF (`ip link set PF vf N mac M`).
    SetAdminMac {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
        /// The address.
        mac: MacAddr,
    },
    /// Set the GUIDs that the PF holds for an InfiniBand VF (`ip link set PF vf N node_guid G`, `port_guid G`), and take the VF from its kernel driver,
    /// which reads them when it is bound.
    SetVfGuid {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
        /// Of node and port.
        guid: Guid,
    },
    /// Give a VF a vDPA device, or the one that it has another driver.
    MakeVdpa {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
        /// How it is used.
        kind: VdpaType,
    },
    /// Remove the vDPA device of a VF.
    RemoveVdpa {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
    },
    /// Name the representors of all VFs of a PF, where nobody uses them yet.
    NameRepresentors {
        /// The PF.
        pf: PciAddress,
        /// What the names begin with; an underscore and the VF's index follow.
        base: String,
    },
    /// Bind a VF to a driver, after unbinding it from the one it has.
    BindDriver {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
        /// The driver.
        driver: Driver,
    },
    /// Set the MTU of a VF's netdev.
    SetVfMtu {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: VfIndex,
        /// Bytes wanted.
        mtu: u32,
    },
    /// Make an Open vSwitch bridge with the PF as its uplink.
    MakeBridge {
        /// The PF.
        pf: PciAddress,
        /// The bridge.
        wanted: Box<Wanted>,
        /// The PF's netdev.
        netdev: String,
    },
    /// Give a bridge of ours the settings that are wanted, and its uplink when it has lost it, while traffic flows.
    CorrectBridge {
        /// The PF.
        pf: PciAddress,
        /// The bridge.
        wanted: Box<Wanted>,
        /// The PF's netdev.
        netdev: String,
    },
    /// Remove a bridge of ours.
    RemoveBridge {
        /// The PF, as far as it is known.
        pf: Option<PciAddress>,
        /// The bridge.
        name: String,
    },
    /// Tell a PF's firmware what to allow from its next start on, and remember what it was told before.
    StageFirmware {
        /// The PF.
        pf: PciAddress,
        /// What it is told.
        settings: FirmwareSettings,
        /// What it was told before.
        before: FirmwareSettings,
    },
    /// Tell a PF's firmware what it runs with, because telling another function of its card may have changed that for its next start; and remember
    /// that, because it may itself change that for others.
    KeepFirmware {
        /// The PF.
        pf: PciAddress,
        /// What it is told.
        settings: FirmwareSettings,
    },
    /// Forget what a PF's firmware was told before, after telling it these settings again.
    UnstageFirmware {
        /// The PF.
        pf: PciAddress,
        /// What it is told; nothing when it keeps what it has.
        settings: FirmwareSettings,
    },
    /// Delete the record of a PF.
    Forget {
        /// The PF.
        pf: PciAddress,
    },
}

impl Step {
    /// The PF that the step changes, or whose VF it changes; `None` for a step of the whole machine.
    pub fn pf(&self) -> Option<PciAddress> {
        match self {
            Self::LoadModule { .. } | Self::AllowNoIommu | Self::SetRdmaMode { .. } | Self::StageRdmaMode { .. } => None,
            Self::RecordOwnership { pf, .. }
            | Self::SetAutoprobe { pf, .. }
            | Self::SetNumVfs { pf, .. }
            | Self::SetEswitchMode { pf, .. }
            | Self::EnableOffload { pf }
            | Self::SetSteering { pf, .. }
            | Self::SetPfUp { pf }
            | Self::SetPfMtu { pf, .. }
            | Self::SetAdminMac { pf, .. }
            | Self::SetVfGuid { pf, .. }
            | Self::MakeVdpa { pf, .. }
            | Self::RemoveVdpa { pf, .. }
            | Self::NameRepresentors { pf, .. }
            | Self::BindDriver { pf, .. }
            | Self::SetVfMtu { pf, .. }
            | Self::MakeBridge { pf, .. }
            | Self::CorrectBridge { pf, .. }
            | Self::StageFirmware { pf, .. }
            | Self::KeepFirmware { pf, .. }
            | Self::UnstageFirmware { pf, .. }
            | Self::Forget { pf } => Some(*pf),
            Self::RemoveBridge { pf, .. } => *pf,
        }
    }

    /// What kind of step it is, in one stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LoadModule { .. } => "LoadModule",
            Self::AllowNoIommu => "AllowNoIommu",
            Self::SetRdmaMode { .. } => "SetRdmaMode",
            Self::StageRdmaMode { .. } => "StageRdmaMode",
            Self::RecordOwnership { .. } => "RecordOwnership",
            Self::SetAutoprobe { .. } => "SetAutoprobe",
            Self::SetNumVfs { .. } => "SetNumVfs",
            Self::SetEswitchMode { .. } => "SetEswitchMode",
            Self::EnableOffload { .. } => "EnableOffload",
            Self::SetSteering { .. } => "SetSteering",
            Self::SetPfUp { .. } => "SetPfUp",
            Self::SetPfMtu { .. } => "SetPfMtu",
            Self::SetAdminMac { .. } => "SetAdminMac",
            Self::SetVfGuid { .. } => "SetVfGuid",
            Self::MakeVdpa { .. } => "MakeVdpa",
            Self::RemoveVdpa { .. } => "RemoveVdpa",
            Self::NameRepresentors { .. } => "NameRepresentors",
            Self::BindDriver { .. } => "BindDriver",
            Self::SetVfMtu { .. } => "SetVfMtu",
            Self::MakeBridge { .. } => "MakeBridge",
            Self::CorrectBridge { .. } => "CorrectBridge",
            Self::RemoveBridge { .. } => "RemoveBridge",
            Self::StageFirmware { .. } => "StageFirmware",
            Self::KeepFirmware { .. } => "KeepFirmware",
            Self::UnstageFirmware { .. } => "UnstageFirmware",
            Self::Forget { .. } => "Forget",
        }
    }

    /// The VF that the step changes; `None` for a step of the whole PF.
    pub fn vf(&self) -> Option<VfIndex> {
        match self {
            Self::SetAdminMac { vf, .. }
            | Self::SetVfGuid { vf, .. }
            | Self::MakeVdpa { vf, .. }
            | Self::RemoveVdpa { vf, .. }
            | Self::BindDriver { vf, .. }
            | Self::SetVfMtu { vf, .. } => Some(*vf),
            _ => None,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelDefault => "its kernel driver",
            Self::VfioPci => VFIO_PCI,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pf() {
            Some(pf) => write!(f, "{pf}")?,
            None => write!(f, "machine")?,
        }
        if let Some(vf) = self.vf() {
            write!(f, " vf {vf}")?;
        }
        match self {
            Self::LoadModule { module } => write!(f, ": load kernel module {module}"),
            Self::AllowNoIommu => write!(f, ": let {VFIO_PCI} have devices without an IOMMU (enable_unsafe_noiommu_mode)"),
            Self::SetRdmaMode { mode } => write!(f, ": set the network namespace mode of RDMA devices to {}", mode.as_str()),
            Self::StageRdmaMode { mode: Some(mode) } => {
                write!(f, ": give RDMA devices the mode {} from the next boot on (/etc/modprobe.d)", mode.as_str())
            }
            Self::StageRdmaMode { mode: None } => {
                write!(f, ": leave the mode of RDMA devices to the machine from the next boot on (/etc/modprobe.d)")
            }
            Self::SetEswitchMode { mode, .. } => write!(f, ": set eswitch mode {}", mode_word(*mode)),
            Self::EnableOffload { .. } => write!(f, ": let the hardware take over flows (hw-tc-offload on)"),
            Self::SetSteering { mode, .. } => write!(f, ": set flow_steering_mode {mode}"),
            Self::RecordOwnership { .. } => write!(f, ": record that this operator configures it"),
            Self::SetAutoprobe { on: true, .. } => write!(f, ": let new VFs bind to their driver by themselves again (sriov_drivers_autoprobe 1)"),
            Self::SetAutoprobe { on: false, .. } => write!(f, ": keep new VFs unbound (sriov_drivers_autoprobe 0)"),
            Self::SetNumVfs { from, to: 0, .. } => write!(f, ": remove {from} {} (sriov_numvfs 0)", vfs(*from)),
            Self::SetNumVfs { to, .. } => write!(f, ": create {to} {} (sriov_numvfs {to})", vfs(*to)),
            Self::SetPfUp { .. } => write!(f, ": set the PF up"),
            Self::SetPfMtu { from, to, .. } => write!(f, ": set the PF's MTU from {from} to {to}"),
            Self::SetAdminMac { mac, .. } => write!(f, ": set administrative MAC {mac}"),
            Self::SetVfGuid { guid, .. } => write!(f, ": set the GUIDs of node and port to {guid}"),
            Self::MakeVdpa { kind, .. } => write!(f, ": give it a vDPA device with driver {}", kind.driver()),
            Self::RemoveVdpa { .. } => write!(f, ": remove its vDPA device"),
            Self::NameRepresentors { base, .. } => write!(f, ": name the representors of its VFs {base}_0, {base}_1, ..."),
            Self::BindDriver { driver, .. } => write!(f, ": bind to {driver}"),
            Self::SetVfMtu { mtu, .. } => write!(f, ": set MTU {mtu}"),
            Self::MakeBridge { wanted, netdev, .. } => write!(f, ": make Open vSwitch bridge {} with uplink {netdev}", wanted.name),
            Self::CorrectBridge { wanted, netdev, .. } => {
                write!(f, ": correct the settings of Open vSwitch bridge {} with uplink {netdev}", wanted.name)
            }
            Self::RemoveBridge { name, .. } => write!(f, ": remove Open vSwitch bridge {name}"),
            Self::StageFirmware { settings, .. } => write!(f, ": tell its firmware for its next start: {}", words(settings)),
            Self::KeepFirmware { settings, .. } => write!(f, ": have its firmware keep for its next start: {}", words(settings)),
            Self::UnstageFirmware { settings, .. } if settings.is_offered() => {
                write!(f, ": tell its firmware again what it was told before: {}", words(settings))
            }
            Self::UnstageFirmware { .. } => write!(f, ": forget what its firmware was told before"),
            Self::Forget { .. } => write!(f, ": forget (delete its record)"),
        }
    }
}

/// devlink's and the API's word.
pub fn mode_word(mode: EswitchMode) -> &'static str {
    match mode {
        EswitchMode::Legacy => "legacy",
        EswitchMode::Switchdev => "switchdev",
    }
}

fn vfs(count: u16) -> &'static str {
    if count == 1 { "VF" } else { "VFs" }
}
