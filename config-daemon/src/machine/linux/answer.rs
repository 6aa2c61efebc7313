//! Pure: what the machine's refusals mean for a step: the words as they are, and the kernel's number.
//!
//! What does not live here: what cures a failure (`machine`), how soon it is tried again (`node_state::failures`).
//!
//! Invariant: an error whose number is known never loses it on the way.

use rustix::io::Errno;
use sriov_host::discover::DiscoverError;
use sriov_host::driver::DriverError;
use sriov_host::module::ModuleError;
use sriov_host::netlink::NetlinkError;
use sriov_host::netlink::devlink::ParamError;
use sriov_host::sriov::SriovError;
use sriov_host::sysfs::SysfsError;
use sriov_host::uevent::UeventError;

use crate::kubelet::KubeletError;
use crate::machine::StepError;
use crate::store::StoreError;

impl From<UeventError> for StepError {
    fn from(error: UeventError) -> Self {
        Self::refused(error.to_string())
    }
}

/// What the kernel or the file system said; its number decides how soon it is worth another try.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives values")]
pub(super) fn refused<E: Answer>(error: E) -> StepError {
    StepError::Refused { errno: error.errno(), said: error.to_string() }
}

/// An error that may carry the kernel's number.
pub(super) trait Answer: std::fmt::Display {
    fn errno(&self) -> Option<i32> {
        None
    }
}

impl Answer for UeventError {}
impl Answer for DiscoverError {}
impl Answer for KubeletError {}

impl Answer for ParamError {
    fn errno(&self) -> Option<i32> {
        Some(Self::errno(self))
    }
}

impl Answer for SysfsError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

impl Answer for SriovError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

impl Answer for &SriovError {
    fn errno(&self) -> Option<i32> {
        SriovError::errno(self)
    }
}

impl Answer for DriverError {
    fn errno(&self) -> Option<i32> {
        // A driver or a setting that is missing is not there a second later either.
        let missing = matches!(self, Self::MissingDriver { .. } | Self::AutoprobeOff { .. });
        Self::errno(self).or(missing.then_some(Errno::NODEV.raw_os_error()))
    }
}

impl Answer for ModuleError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Load { cause, .. } => cause.raw_os_error(),
            Self::Missing { .. } => Some(Errno::NODEV.raw_os_error()),
            _ => None,
        }
    }
}

impl Answer for NetlinkError {
    fn errno(&self) -> Option<i32> {
        Some(Self::errno(self))
    }
}

impl Answer for StoreError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}
