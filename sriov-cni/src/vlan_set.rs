//! Pure: sets of VLAN ids, as networks ask for a VF's trunk and as drivers print it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The ids that a trunk can hold.
const IDS: RangeInclusive<u16> = 1..=4094;

/// VLAN ids, written `1-10,20`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VlanSet(BTreeSet<u16>);

/// A text that is no such set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a list of VLAN ids and ranges from 1 to 4094, as 1-10,20")]
pub struct VlanSetError {
    given: String,
}

impl VlanSet {
    /// What a driver prints of a trunk. Words that are neither ids nor ranges are its own.
    pub(crate) fn printed(text: &str) -> Self {
        let ranges = text.split(|c: char| c == ',' || c.is_whitespace()).filter_map(range);
        Self(ranges.flatten().collect())
    }

    /// The ids that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// The ids as ranges, in order.
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for id in &self.0 {
            match ranges.last_mut() {
                Some(last) if last.end() + 1 == *id => *last = *last.start()..=*id,
                _ => ranges.push(*id..=*id),
            }
        }
        ranges
    }
}

/// `7` or `1-10`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let id = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|id| IDS.contains(id));
    let (first, last) = (id(first)?, id(last)?);
    (first <= last).then_some(first..=last)
}

impl FromStr for VlanSet {
    type Err = VlanSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ranges: Option<Vec<_>> = text.split(',').map(|part| range(part.trim())).collect();
        ranges.map(|ranges| Self(ranges.into_iter().flatten().collect())).ok_or_else(|| VlanSetError { given: text.to_owned() })
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges().into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let (first, last) = (range.start(), range.end());
            if first == last { write!(f, "{comma}{first}") } else { write!(f, "{comma}{first}-{last}") }?;
        }
        Ok(())
    }
}

impl TryFrom<String> for VlanSet {
    type Error = VlanSetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Ok(Self::default()) } else { text.parse() }
    }
}

impl From<VlanSet> for String {
    fn from(set: VlanSet) -> Self {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> VlanSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_set_has_one_spelling() {
        assert_eq!(set("20, 3-5,4-10,1").to_string(), "1,3-10,20");
        assert_eq!(set("1-3,5").without(&set("2")).to_string(), "1,3,5");
        assert_eq!(set("1").without(&set("1")), VlanSet::default());
        assert_eq!(serde_json::from_str::<VlanSet>("\"\"").unwrap(), VlanSet::default());
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["", "0", "4095", "5-3", "1-", "-1", "1,,2", "a", "1-2-3", "+1"] {
            assert!(text.parse::<VlanSet>().is_err(), "{text}");
        }
    }

    /// The forms of i40e's and ice's own trees (a list), and of `MLNX_OFED` (words and ids).
    #[test]
    fn what_drivers_print_is_read() {
        assert_eq!(VlanSet::printed("2,4-5,10-20\n"), set("2,4-5,10-20"));
        assert_eq!(VlanSet::printed("Allowed 802.1Q VLANs: 2 3 4\n"), set("2-4"));
        assert_eq!(VlanSet::printed(""), VlanSet::default());
    }
}
