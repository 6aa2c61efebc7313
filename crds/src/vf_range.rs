//! Pure: the syntax that names a part of a PF's VFs: `ens1f0#0-3` in a policy's `pfNames`, `0-3` in a node state's `vfRange`. This is the one
//! parser and the one printer of it on the cluster and node side. Ranges are inclusive and never empty.

use std::fmt;
use std::str::FromStr;

/// An inclusive, non-empty range of VF indices. Printed and parsed as `first-last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VfRange {
    first: u16,
    last: u16,
}

/// A PF's name with the VFs meant: `ens1f0` (all) or `ens1f0#0-3`. The name part may also be a PCI address (`0000:3b:00.0#0-3`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PfSelector {
    /// Netdev name, alternative name, or PCI address; never empty.
    pub name: String,
    /// The VFs meant; `None` is all of them.
    pub range: Option<VfRange>,
}

/// Why a text names no VFs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VfRangeError {
    /// Nothing before the `#`.
    #[error("no PF name in {given:?}: expected a name, or a name and a range as in ens1f0#0-3")]
    NameMissing {
        /// The whole text.
        given: String,
    },
    /// Not two numbers with a dash between.
    #[error("no VF range in {given:?}: expected first-last as in 0-3, both from 0 to 65535")]
    NotARange {
        /// The part that should be a range.
        given: String,
    },
    /// The last index is below the first.
    #[error("empty VF range {first}-{last}: the last index must not be below the first")]
    Reversed {
        /// First index given.
        first: u16,
        /// Last index given.
        last: u16,
    },
}

impl VfRange {
    /// The VFs from `first` to `last`, both included.
    pub fn new(first: u16, last: u16) -> Result<Self, VfRangeError> {
        if last < first {
            return Err(VfRangeError::Reversed { first, last });
        }
        Ok(Self { first, last })
    }

    /// All VFs of a PF that has `count` of them; `None` when it has none.
    pub fn all_of(count: u16) -> Option<Self> {
        Some(Self { first: 0, last: count.checked_sub(1)? })
    }

    /// First index.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Last index, included.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many VFs it names, at least 1.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// True when `index` is in the range.
    pub fn contains(self, index: u16) -> bool {
        (self.first..=self.last).contains(&index)
    }

    /// True when both have an index in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Its indices in order.
    pub fn indices(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for VfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for VfRange {
    type Err = VfRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_range = || VfRangeError::NotARange { given: text.to_owned() };
        let (first, last) = text.split_once('-').ok_or_else(not_a_range)?;
        let index = |digits: &str| {
            // `parse` alone would also take "+1".
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(not_a_range());
            }
            digits.parse::<u16>().map_err(|_| not_a_range())
        };
        Self::new(index(first)?, index(last)?)
    }
}

impl fmt::Display for PfSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            None => f.write_str(&self.name),
            Some(range) => write!(f, "{}#{range}", self.name),
        }
    }
}

impl FromStr for PfSelector {
    type Err = VfRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, range) = match text.split_once('#') {
            None => (text, None),
            Some((name, range)) => (name, Some(range.parse()?)),
        };
        if name.is_empty() {
            return Err(VfRangeError::NameMissing { given: text.to_owned() });
        }
        Ok(Self { name: name.to_owned(), range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_range_print_as_they_were_read() {
        for text in ["ens1f0", "ens1f0#0-3", "0000:3b:00.0#7-7", "eth0.5#0-65535"] {
            assert_eq!(text.parse::<PfSelector>().unwrap().to_string(), text);
        }
        let selector: PfSelector = "ens1f0#2-5".parse().unwrap();
        assert_eq!(selector.name, "ens1f0");
        assert_eq!(selector.range.unwrap().indices().collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(selector.range.unwrap().count(), 4);
    }

    #[test]
    fn texts_that_name_no_vfs_are_refused_with_what_was_given() {
        for text in [
            "ens1f0#",
            "ens1f0#3",
            "ens1f0#0-",
            "ens1f0#-3",
            "ens1f0#0-3-5",
            "ens1f0#0-3#4-5",
            "ens1f0#a-b",
            "ens1f0#+0-3",
            "ens1f0#0-65536",
            "ens1f0# 0-3",
        ] {
            let range = text.split_once('#').unwrap().1;
            assert_eq!(text.parse::<PfSelector>(), Err(VfRangeError::NotARange { given: range.into() }), "{text}");
        }
        assert_eq!("ens1f0#3-2".parse::<PfSelector>(), Err(VfRangeError::Reversed { first: 3, last: 2 }));
        assert_eq!("#0-1".parse::<PfSelector>(), Err(VfRangeError::NameMissing { given: "#0-1".into() }));
        assert_eq!("".parse::<PfSelector>(), Err(VfRangeError::NameMissing { given: String::new() }));
    }

    #[test]
    fn ranges_overlap_exactly_when_they_share_an_index() {
        let range = |text: &str| text.parse::<VfRange>().unwrap();
        assert!(range("0-3").overlaps(range("3-5")));
        assert!(range("3-5").overlaps(range("0-3")));
        assert!(range("0-9").overlaps(range("4-4")));
        assert!(!range("0-3").overlaps(range("4-5")));
        assert!(!range("4-5").overlaps(range("0-3")));
        assert!(range("0-3").contains(3) && !range("0-3").contains(4));
    }

    #[test]
    fn all_of_a_pf_without_vfs_is_nothing() {
        assert_eq!(VfRange::all_of(0), None);
        assert_eq!(VfRange::all_of(8).unwrap().to_string(), "0-7");
    }
}
