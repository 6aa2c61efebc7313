//! I/O: settings of NICs' firmware, and its reset.
//!
//! What does not live here: what firmware is to be told (`plan::firmware`).
//!
//! Invariant: what firmware was told before is on disk before it is told anything else.

use sriov_host::discover;
use sriov_host::inventory::FirmwareSettings;
use sriov_host::kernel;
use sriov_host::netlink::devlink::{Device, Devlink, ReloadAction};
use sriov_host::pci::{PciAddress, VendorId};

use super::{Linux, refused};
use crate::machine::StepError;
use crate::observed::Staging;
use crate::plan::firmware::{by_hand_of, words};

impl Linux {
    /// Tells firmware, after writing down what it was told before.
    pub(super) fn stage_firmware(&self, pf: PciAddress, wanted: &FirmwareSettings, before: &FirmwareSettings) -> Result<(), StepError> {
        let boot = kernel::boot_id(&self.host).map_err(refused)?;
        self.store.write_staging(pf, &Staging { boot, before: before.clone(), wanted: wanted.clone() }).map_err(refused)?;
        self.tell_firmware(pf, wanted)
    }

    /// Tells firmware, and forgets what it was told before.
    pub(super) fn unstage_firmware(&self, pf: PciAddress, settings: &FirmwareSettings) -> Result<(), StepError> {
        if settings.is_offered() {
            self.tell_firmware(pf, settings)?;
        }
        self.store.delete_staging(pf).map_err(refused)
    }

    /// Tells firmware, and reads whether it holds that.
    fn tell_firmware(&self, pf: PciAddress, settings: &FirmwareSettings) -> Result<(), StepError> {
        let (devlink, device) = (Devlink::open().map_err(refused)?, Device::from(pf));
        let vendor = self.host.sysfs().read_opt(format!("/sys/bus/pci/devices/{pf}/vendor")).ok().flatten();
        let vendor = vendor.and_then(|text| text.parse().ok()).unwrap_or(VendorId(0));
        let total = settings.total_vfs.and_then(|total| u16::try_from(total).ok()).unwrap_or_default();
        let cannot = |said: String| StepError::Firmware { said, cure: by_hand_of(vendor, pf, total) };
        devlink.set_firmware_settings(&device, settings).map_err(|error| cannot(error.to_string()))?;
        let holds = devlink.firmware_settings(&device).map_err(refused)?;
        if holds != *settings {
            return Err(cannot(format!("the firmware of {pf} was told {}, and says that it was told {}", words(settings), words(&holds))));
        }
        Ok(())
    }

    /// Has the firmware of a PF's card start anew, after taking all VFs of the card away; answers what the driver did. The machine is about to be
    /// rebooted, so that what this leaves behind does not last.
    pub fn reset_firmware(&self, pf: PciAddress) -> Result<Vec<&'static str>, StepError> {
        for member in discover::functions_of_card(&self.host, pf).map_err(refused)? {
            if !discover::vf_addresses(&self.host, member).map_err(refused)?.is_empty() {
                self.set_numvfs(member, 0)?;
            }
        }
        let performed = Devlink::open().and_then(|devlink| devlink.reload(&pf.into(), ReloadAction::FwActivate)).map_err(refused)?;
        Ok(performed.into_iter().map(ReloadAction::as_str).collect())
    }
}
