//! Pure (the seam): the two things that a machine can do for us: tell what it is like, and make one change.
//!
//! What lives here: the trait and its errors. Implementations: `linux` (the product), `sim` (a kernel with state, for tests).
//!
//! Invariant: whether a change worked is learnt by observing again, not from the answer to `perform`.

pub mod linux;
#[cfg(test)]
pub(crate) mod sim;

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
    #[error("{0}")]
    Refused(String),
    /// The machine has no memory space or bus numbers for the VFs.
    #[error("{said}: {cure}")]
    NoSpace {
        /// What the kernel said.
        said: String,
        /// What to do.
        cure: &'static str,
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
