//! Pure: the versions of the CNI specification that this plugin speaks, and what each of them allows.

use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.1.0: results with `ip4` and `ip6`.
    V010,
    /// 0.2.0: as 0.1.0.
    V020,
    /// 0.3.0: results with lists.
    V030,
    /// 0.3.1: as 0.3.0.
    V031,
    /// 0.4.0: CHECK.
    V040,
    /// 1.0.0: addresses without a `version` key.
    V100,
    /// 1.1.0: GC, STATUS; MTU and PCI address in results.
    V110,
}

/// A version that this plugin does not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cniVersion {given:?} is not supported: allowed are {}", CniVersion::all_as_text())]
pub struct UnsupportedVersion {
    /// The refused text.
    pub given: String,
}

impl CniVersion {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] = [Self::V010, Self::V020, Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];

    /// The newest version.
    pub const NEWEST: Self = Self::V110;

    /// The version as the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V010 => "0.1.0",
            Self::V020 => "0.2.0",
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    fn all_as_text() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CniVersion {
    type Err = UnsupportedVersion;

    /// An empty text is 0.1.0: the first configurations carried no version (CNI reference library, `version.ConfigDecoder`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::V010);
        }
        Self::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| UnsupportedVersion { given: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known_by_their_text_and_ordered() {
        for version in CniVersion::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
        assert!(CniVersion::ALL.is_sorted());
        assert_eq!("".parse(), Ok(CniVersion::V010));
    }

    #[test]
    fn another_version_is_refused_with_the_list() {
        let error = "1.2.0".parse::<CniVersion>().unwrap_err();
        assert_eq!(error.to_string(), "cniVersion \"1.2.0\" is not supported: allowed are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0");
    }
}
