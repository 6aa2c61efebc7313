//! Pure: InfiniBand identifiers of adapters and ports (GUID, EUI-64).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An identifier of eight bytes, printed `c2:11:22:33:44:55:66:77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guid(pub u64);

/// A text that is not such an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a GUID: expected eight bytes in hexadecimal as c2:11:22:33:44:55:66:77, c2-11-22-33-44-55-66-77 or c211.2233.4455.6677")]
pub struct GuidParseError {
    /// The refused text.
    pub given: String,
}

impl Guid {
    /// Whether an adapter or port can have it: subnet managers take neither zero nor all ones for one.
    pub fn is_assignable(self) -> bool {
        self.0 != 0 && self.0 != u64::MAX
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.to_be_bytes().into_iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Guid {
    type Err = GuidParseError;

    /// Takes colon, hyphen and dot forms in either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || GuidParseError { given: text.to_owned() };
        let (separator, group, groups) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2, 8),
            Some(b'-') => ('-', 2, 8),
            _ => ('.', 4, 4),
        };
        let parts: Vec<&str> = text.split(separator).collect();
        if parts.len() != groups || parts.iter().any(|part| part.len() != group || !part.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(wrong());
        }
        u64::from_str_radix(&parts.concat(), 16).map(Self).map_err(|_| wrong())
    }
}

impl TryFrom<String> for Guid {
    type Error = GuidParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_name_the_same_identifier() {
        for text in ["c2:11:22:33:44:55:66:77", "C2-11-22-33-44-55-66-77", "c211.2233.4455.6677"] {
            assert_eq!(text.parse(), Ok(Guid(0xc211_2233_4455_6677)), "{text}");
        }
        assert_eq!(Guid(0x0200_0000_0000_0001).to_string(), "02:00:00:00:00:00:00:01");
    }

    #[test]
    fn other_texts_are_refused_and_some_identifiers_belong_to_nobody() {
        for text in ["", "c2:11:22:33:44:55", "c2:11:22:33:44:55:66:77:88", "c2:11-22:33:44:55:66:77", "c2:11:22:33:44:55:66:7g", "c211223344556677"]
        {
            assert!(text.parse::<Guid>().is_err(), "{text}");
        }
        assert!(!Guid(0).is_assignable() && !Guid(u64::MAX).is_assignable() && Guid(1).is_assignable());
    }
}
