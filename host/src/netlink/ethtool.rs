//! I/O: ethtool (generic netlink): features of a netdev by the names that `ethtool -k` shows.
//!
//! Invariant: a feature that the driver does not have is told as absent, and only a feature that is not as wanted is set.

use super::attribute::{find, text_of, walk};
use super::generic::{Family, bytes, nested, text};
use super::{NetlinkError, Subject};

/// An ethtool socket in the calling thread's network namespace.
#[derive(Debug)]
pub struct Ethtool {
    family: Family,
}

// include/uapi/linux/ethtool_netlink.h, v6.12
const ETHTOOL_VERSION: u8 = 1;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

impl Ethtool {
    /// Opens a socket and looks the family up.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { family: Family::open("ethtool", ETHTOOL_VERSION)? })
    }

    /// Whether a feature is active (`ethtool -k`).
    pub fn feature(&self, ifindex: u32, name: &str) -> Result<bool, NetlinkError> {
        let subject = Subject::new("read features", format!("ifindex {ifindex}"));
        let replies = self.family.request(&subject, 0, ETHTOOL_MSG_FEATURES_GET, vec![header(ifindex)])?;
        let active = replies.first().and_then(|reply| find(reply, ETHTOOL_A_FEATURES_ACTIVE));
        // A bitset that comes without mask lists the bits that are set.
        let bits = active.and_then(|set| find(set, ETHTOOL_A_BITSET_BITS)).unwrap_or_default();
        Ok(walk(bits).any(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME).and_then(text_of).as_deref() == Some(name)))
    }

    /// Switches a feature on (`ethtool -K DEV NAME on`), unless it is. A driver that does not have it is left as it is: look afterwards.
    pub fn enable_feature(&self, ifindex: u32, name: &str) -> Result<(), NetlinkError> {
        if self.feature(ifindex, name)? {
            return Ok(());
        }
        let bit = nested(ETHTOOL_A_BITSET_BITS_BIT, &[text(ETHTOOL_A_BITSET_BIT_NAME, name), bytes(ETHTOOL_A_BITSET_BIT_VALUE, &[])]);
        let wanted = nested(ETHTOOL_A_FEATURES_WANTED, &[nested(ETHTOOL_A_BITSET_BITS, &[bit])]);
        let subject = Subject::new("switch a feature on", format!("ifindex {ifindex}: {name}"));
        self.family.change(&subject, ETHTOOL_MSG_FEATURES_SET, vec![header(ifindex), wanted])
    }
}

fn header(ifindex: u32) -> netlink_packet_core::DefaultNla {
    nested(ETHTOOL_A_FEATURES_HEADER, &[bytes(ETHTOOL_A_HEADER_DEV_INDEX, &ifindex.to_ne_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;
    use crate::testing::new_netns;

    #[test]
    fn a_feature_is_switched_on_and_an_unknown_one_is_refused() {
        let netns = new_netns().unwrap();
        let route = Route::open_in(&netns).unwrap();
        route.add_link_veth("a0", "b0").unwrap();
        let ifindex = route.link_by_name("a0").unwrap().unwrap().netdev.ifindex;
        netns
            .run_in(|| {
                let ethtool = Ethtool::open().unwrap();
                // Off on a new veth, and changeable on all kernels that have it.
                let name = "rx-gro-list";
                assert!(!ethtool.feature(ifindex, name).unwrap());
                ethtool.enable_feature(ifindex, name).unwrap();
                assert!(ethtool.feature(ifindex, name).unwrap());
                ethtool.enable_feature(ifindex, name).unwrap();
                assert!(ethtool.enable_feature(ifindex, "no-such-feature").is_err());
            })
            .unwrap();
    }
}
