//! Pure: `ens1f0#0-3,5`: a PF, alone or with some of its VF indexes. The syntax of `pfNames` and `rootDevices`.

use std::ops::RangeInclusive;

use sriov_host::vf::VfIndex;

/// A PF and the VFs of it that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranged<T> {
    /// The PF.
    pub pf: T,
    /// Inclusive ranges of VF indexes; `None` is all of them.
    pub indexes: Option<Vec<RangeInclusive<u16>>>,
}

impl<T> Ranged<T> {
    /// Reads the text; `read_pf` reads the part before `#`. `None` when either part is not readable, or a range is reversed.
    pub fn parse(text: &str, read_pf: impl Fn(&str) -> Option<T>) -> Option<Self> {
        let Some((pf, ranges)) = text.split_once('#') else {
            return Some(Self { pf: read_pf(text)?, indexes: None });
        };
        let indexes = ranges.split(',').map(range).collect::<Option<Vec<_>>>()?;
        Some(Self { pf: read_pf(pf)?, indexes: Some(indexes) })
    }

    /// Whether the VF with this index is meant.
    pub fn holds(&self, index: VfIndex) -> bool {
        self.indexes.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&index.0)))
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (index(first)?, index(last)?);
    (first <= last).then_some(first..=last)
}

/// `parse` also takes a sign, which no index has.
fn index(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Ranged<String>> {
        Ranged::parse(text, |pf| (!pf.is_empty()).then(|| pf.to_owned()))
    }

    #[test]
    fn a_pf_alone_means_all_its_vfs() {
        let ranged = parse("ens1f0").unwrap();
        assert_eq!(ranged.pf, "ens1f0");
        assert!(ranged.holds(VfIndex(0)) && ranged.holds(VfIndex(255)));
    }

    #[test]
    fn ranges_are_inclusive_and_may_be_mixed_with_single_indexes() {
        let ranged = parse("ens1f0#0-3,5,7-9").unwrap();
        let held: Vec<u16> = (0..12).filter(|index| ranged.holds(VfIndex(*index))).collect();
        assert_eq!(held, [0, 1, 2, 3, 5, 7, 8, 9]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "#0", "p#", "p#a", "p#3-1", "p#0-", "p#-1", "p#0,", "p#1-2-3", "p#+1", "p#70000", "p#0#1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
