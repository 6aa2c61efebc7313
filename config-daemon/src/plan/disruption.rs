//! Pure: what it costs running pods to get where the policies want to be.
//!
//! What lives here: the cost as data, for the handshake with whoever drains. What does not: the handshake (`node_state`).
//!
//! Invariant: a plan's steps never disturb a pod; what would, is a refusal, and the disruption says what must happen before it goes away.

use std::fmt;

use sriov_host::pci::PciAddress;

/// What must happen before the whole wish can be fulfilled, from the least to the worst.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Disruption {
    /// Nothing: the plan leaves all pods alone.
    #[default]
    None,
    /// The pods that use these VFs must end first; no other pod is touched.
    EvictPods(Vec<PciAddress>),
    /// The node must be drained: of at least one of these VFs it is not known which pod uses it.
    Drain(Vec<PciAddress>),
    /// The node must be started anew; the text says what for.
    Reboot(String),
}

impl Disruption {
    /// Adds VFs that stand in the way; `known` says whether it is known which pods use them.
    pub fn add(&mut self, vfs: impl IntoIterator<Item = PciAddress>, known: bool) {
        let (mut all, only_known) = match std::mem::take(self) {
            Self::None => (Vec::new(), true),
            Self::EvictPods(vfs) => (vfs, true),
            Self::Drain(vfs) => (vfs, false),
            reboot @ Self::Reboot(_) => {
                *self = reboot;
                return;
            }
        };
        all.extend(vfs);
        if !all.is_empty() {
            *self = if known && only_known { Self::EvictPods(all) } else { Self::Drain(all) };
        }
    }

    /// The node must be started anew, which outweighs all else.
    pub fn reboot(&mut self, why: &str) {
        *self = match std::mem::take(self) {
            Self::Reboot(earlier) => Self::Reboot(format!("{earlier}; {why}")),
            _ => Self::Reboot(why.to_owned()),
        };
    }

    /// The VFs that must be free first.
    pub fn vfs(&self) -> &[PciAddress] {
        match self {
            Self::EvictPods(vfs) | Self::Drain(vfs) => vfs,
            Self::None | Self::Reboot(_) => &[],
        }
    }

    /// The word for `status.plan.disruption`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::EvictPods(_) => "EvictPods",
            Self::Drain(_) => "Drain",
            Self::Reboot(_) => "Reboot",
        }
    }
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if let Self::Reboot(why) = self {
            write!(f, " ({why})")?;
        }
        let names: Vec<String> = self.vfs().iter().map(ToString::to_string).collect();
        if !names.is_empty() {
            write!(f, " of VFs {}", names.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_nothing_is_forgotten() {
        let vf = |text: &str| -> PciAddress { text.parse().unwrap() };
        let mut disruption = Disruption::default();
        disruption.add([], true);
        assert_eq!(disruption, Disruption::None);
        disruption.add([vf("0000:01:10.0")], true);
        assert_eq!(disruption.to_string(), "EvictPods of VFs 0000:01:10.0");
        disruption.add([vf("0000:01:10.2")], false);
        disruption.add([vf("0000:01:10.4")], true);
        assert_eq!(disruption.to_string(), "Drain of VFs 0000:01:10.0, 0000:01:10.2, 0000:01:10.4");
        disruption.reboot("RDMA mode");
        disruption.add([vf("0000:01:10.6")], true);
        assert_eq!(disruption.to_string(), "Reboot (RDMA mode)");
    }
}
