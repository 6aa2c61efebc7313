//! Pure: transmit rates of VFs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rate in Mbit/s as `ip link set PF vf N max_tx_rate` takes it; as a limit, 0 means "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mbps(pub u32);

impl fmt::Display for Mbps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mbit/s", self.0)
    }
}
