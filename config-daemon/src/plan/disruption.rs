//! Pure: what it costs running pods to get where the policies want to be.

use std::fmt;

use sriov_host::pci::PciAddress;

/// What must happen to pods before the whole wish can be fulfilled. Steps of a plan never disturb a pod: what would, is a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Disruption {
    /// Nothing: the plan leaves all pods alone.
    #[default]
    None,
    /// The pods that use these VFs must end first.
    EvictPods(Vec<PciAddress>),
}

impl Disruption {
    /// Adds VFs that stand in the way.
    pub fn add(&mut self, vfs: impl IntoIterator<Item = PciAddress>) {
        let mut all = match std::mem::take(self) {
            Self::None => Vec::new(),
            Self::EvictPods(vfs) => vfs,
        };
        all.extend(vfs);
        if !all.is_empty() {
            *self = Self::EvictPods(all);
        }
    }

    /// The word for `status.plan.disruption`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::EvictPods(_) => "EvictPods",
        }
    }
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if let Self::EvictPods(vfs) = self {
            let names: Vec<String> = vfs.iter().map(ToString::to_string).collect();
            write!(f, " of VFs {}", names.join(", "))?;
        }
        Ok(())
    }
}
