//! Pure (the seam): the two things that a machine can do for us: tell what it is like, and make one change.
//!
//! What lives here: the trait and its errors. Implementations: `linux` (the product), `sim` (a kernel with state, for tests).
//!
//! Invariant: whether a change worked is learnt by observing again, not from the answer to `perform`.

pub mod linux;
pub mod ovs;
#[cfg(test)]
pub(crate) mod sim;

use rustix::io::Errno;

use crate::observed::Observed;
use crate::plan::step::Step;

/// A machine.
pub trait Machine {
    /// One look at everything that a plan is made from. `supported_nics` is left `None`: it comes from the cluster.
    fn observe(&self) -> Result<Observed, ObserveError>;

    /// Makes one change and waits, with a deadline, until it took effect.
    fn perform(&self, step: &Step) -> Result<(), StepError>;
}

/// Why the machine could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The inventory.
    #[error("failed to read the machine's network functions: {0}")]
    Discover(String),
    /// Records or journals.
    #[error("failed to read {what}: {reason}")]
    ReadState {
        /// Path or kind.
        what: String,
        /// What the system said.
        reason: String,
    },
}

/// Why a change was not made. Names the operation and the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The kernel or the file system refused.
    #[error("{said}")]
    Refused {
        /// Operation, object and the answer.
        said: String,
        /// The kernel's number of the answer, where there was one.
        errno: Option<i32>,
    },
    /// A PF did not get its VFs, and it is known why.
    #[error("{said}: {cure}")]
    NoVfs {
        /// What the kernel said.
        said: String,
        /// What to do.
        cure: &'static str,
        /// The kernel's number of the answer, where there was one.
        errno: Option<i32>,
    },
    /// A NIC's firmware cannot be told by the kernel.
    #[error("{said}: {cure}")]
    Firmware {
        /// What the kernel said.
        said: String,
        /// What to do.
        cure: String,
    },
    /// Somebody took the VF between looking and acting.
    #[error("VF {vf} was taken into use by {user} in the meantime")]
    VfTaken {
        /// The VF.
        vf: String,
        /// Who has it.
        user: String,
    },
}

/// What may cure a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Time: the kernel or a driver was busy, or too slow.
    Time,
    /// The user of a VF leaves.
    Leave,
    /// Another wish, or a change of the machine: the driver cannot do it, a module or a right is missing.
    Change,
}

impl StepError {
    /// An answer that has no number.
    pub(crate) fn refused(said: impl Into<String>) -> Self {
        Self::Refused { said: said.into(), errno: None }
    }

    /// What may cure it.
    pub fn cure(&self) -> Cure {
        const FINAL: [Errno; 10] = [
            Errno::PERM,
            Errno::ACCESS,
            Errno::INVAL,
            Errno::NOSYS,
            Errno::NOTSUP,
            Errno::OPNOTSUPP,
            Errno::RANGE,
            Errno::ROFS,
            Errno::NODEV,
            Errno::NOEXEC,
        ];
        match self {
            Self::Refused { errno: Some(errno), .. } if FINAL.iter().any(|known| known.raw_os_error() == *errno) => Cure::Change,
            Self::Refused { .. } => Cure::Time,
            // What the machine or the driver has no room for it has not a second later either.
            Self::NoVfs { errno: Some(errno), .. } if [Errno::AGAIN, Errno::BUSY].iter().any(|known| known.raw_os_error() == *errno) => Cure::Time,
            Self::NoVfs { .. } | Self::Firmware { .. } => Cure::Change,
            Self::VfTaken { .. } => Cure::Leave,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_kernel_is_cured_by_time_and_a_driver_that_cannot_is_not() {
        let of = |errno: Errno| StepError::Refused { said: String::new(), errno: Some(errno.raw_os_error()) }.cure();
        for errno in [Errno::BUSY, Errno::AGAIN, Errno::NOSPC, Errno::IO, Errno::TIMEDOUT] {
            assert_eq!(of(errno), Cure::Time, "{errno}");
        }
        for errno in [Errno::OPNOTSUPP, Errno::INVAL, Errno::PERM, Errno::RANGE, Errno::ROFS] {
            assert_eq!(of(errno), Cure::Change, "{errno}");
        }
        assert_eq!(StepError::refused("too late").cure(), Cure::Time);
        assert_eq!(StepError::VfTaken { vf: String::new(), user: String::new() }.cure(), Cure::Leave);
        assert_eq!(StepError::NoVfs { said: String::new(), cure: "", errno: Some(Errno::NOMEM.raw_os_error()) }.cure(), Cure::Change);
    }
}
