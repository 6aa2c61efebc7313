//! Pure: the TLS of the admission server, from the settings that the Go operator takes. Names are those of IANA or of OpenSSL, curves also Go's numbers.
//!
//! Invariants: nothing weaker than TLS 1.2 and the suites that this program has is ever chosen; a setting that leaves nothing is an error at the start,
//! never a server with other rules than asked. TLS 1.3 has no suites to choose (as in Go), so a list of suites is about TLS 1.2.

use std::sync::Arc;

use clap::Args;
use rustls::crypto::CryptoProvider;
use rustls::{NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};

/// What the server may speak; empty is the default.
#[derive(Args, Clone, Debug, Default)]
pub struct Tls {
    /// Lowest version: `VersionTLS12` (the default) or `VersionTLS13`.
    #[arg(long = "tls-min-version", env = "TLS_MIN_VERSION", default_value = "")]
    pub min_version: String,
    /// Cipher suites of TLS 1.2, separated by commas, by their IANA or OpenSSL names.
    #[arg(long = "tls-cipher-suites", env = "TLS_CIPHER_SUITES", default_value = "")]
    pub cipher_suites: String,
    /// Curves of the key exchange, separated by commas: `X25519`, `P-256`, `P-384`.
    #[arg(long = "tls-curve-preferences", env = "TLS_CURVE_PREFERENCES", default_value = "")]
    pub curve_preferences: String,
}

/// What cannot be asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTls {
    /// Not a version that is served.
    #[error("TLS_MIN_VERSION {0:?} must be VersionTLS12 or VersionTLS13")]
    Version(String),
    /// None of the suites is served.
    #[error("TLS_CIPHER_SUITES {0:?} names no suite that is served; there are {known}", known = SUITES.map(|(iana, _)| iana).join(", "))]
    Suites(String),
    /// None of the curves is served.
    #[error("TLS_CURVE_PREFERENCES {0:?} names no curve that is served; there are X25519, P-256 and P-384")]
    Curves(String),
}

/// IANA's and OpenSSL's names of the suites of TLS 1.2 that are served.
const SUITES: [(&str, &str); 6] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
];

/// Each curve that is served, by all names that people give it.
const CURVES: [(NamedGroup, [&str; 4]); 3] = [
    (NamedGroup::X25519, ["X25519", "x25519", "29", "curve25519"]),
    (NamedGroup::secp256r1, ["P-256", "CurveP256", "23", "secp256r1"]),
    (NamedGroup::secp384r1, ["P-384", "CurveP384", "24", "secp384r1"]),
];

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ':']).map(str::trim).filter(|word| !word.is_empty())
}

impl Tls {
    /// What may be spoken. A name that is not known, or of something that is not safe, is left out.
    pub(super) fn choose(&self) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), InvalidTls> {
        let mut provider = rustls::crypto::ring::default_provider();
        let versions = match self.min_version.as_str() {
            "" | "VersionTLS12" => vec![&rustls::version::TLS12, &rustls::version::TLS13],
            "VersionTLS13" => vec![&rustls::version::TLS13],
            other => return Err(InvalidTls::Version(other.to_owned())),
        };
        if words(&self.cipher_suites).next().is_some() {
            let asked: Vec<&str> = words(&self.cipher_suites)
                .filter_map(|word| SUITES.iter().find(|(iana, openssl)| *iana == word || *openssl == word))
                .map(|pair| pair.0)
                .collect();
            let of_13 = words(&self.cipher_suites).any(|word| ["TLS_AES_", "TLS_CHACHA20_"].iter().any(|start| word.starts_with(start)));
            if asked.is_empty() && !of_13 {
                return Err(InvalidTls::Suites(self.cipher_suites.clone()));
            }
            provider.cipher_suites.retain(|suite| match suite {
                SupportedCipherSuite::Tls13(_) => true,
                SupportedCipherSuite::Tls12(_) => suite.suite().as_str().is_some_and(|name| asked.contains(&name)),
            });
        }
        if words(&self.curve_preferences).next().is_some() {
            let asked: Vec<NamedGroup> = words(&self.curve_preferences)
                .filter_map(|word| CURVES.iter().find(|(_, names)| names.contains(&word)))
                .map(|(group, _)| *group)
                .collect();
            provider.kx_groups.retain(|group| asked.contains(&group.name()));
            provider.kx_groups.sort_by_key(|group| asked.iter().position(|name| *name == group.name()));
            if provider.kx_groups.is_empty() {
                return Err(InvalidTls::Curves(self.curve_preferences.clone()));
            }
        }
        Ok((Arc::new(provider), versions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(version: &str, suites: &str, curves: &str) -> Result<(Vec<String>, Vec<NamedGroup>, usize), InvalidTls> {
        let asked = Tls { min_version: version.into(), cipher_suites: suites.into(), curve_preferences: curves.into() };
        let (provider, versions) = asked.choose()?;
        let of_12 = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).map(|suite| suite.suite().as_str().unwrap().to_owned());
        Ok((of_12.collect(), provider.kx_groups.iter().map(|group| group.name()).collect(), versions.len()))
    }

    #[test]
    fn every_suite_and_curve_that_is_served_has_its_names() {
        let (suites, curves, versions) = tls("", "", "").unwrap();
        assert_eq!((suites.len(), curves.len(), versions), (SUITES.len(), CURVES.len(), 2));
        assert!(suites.iter().all(|name| SUITES.iter().any(|(iana, _)| iana == name)), "{suites:?}");
    }

    #[test]
    fn names_of_both_kinds_choose_and_what_is_not_safe_is_left_out() {
        let (suites, curves, versions) =
            tls("VersionTLS13", "ECDHE-RSA-AES128-GCM-SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,AES128-SHA", "CurveP256,29,P-521").unwrap();
        assert_eq!(suites.len(), 2, "{suites:?}");
        assert_eq!(curves, [NamedGroup::secp256r1, NamedGroup::X25519], "in the order that was asked for");
        assert_eq!(versions, 1);
        assert_eq!(tls("", "TLS_AES_128_GCM_SHA256", "").unwrap().0, Vec::<String>::new(), "only TLS 1.3 then");
    }

    #[test]
    fn what_leaves_nothing_is_an_error_that_names_what_there_is() {
        assert_eq!(tls("VersionTLS11", "", "").unwrap_err(), InvalidTls::Version("VersionTLS11".into()));
        assert!(tls("", "AES128-SHA", "").unwrap_err().to_string().contains("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"));
        assert!(tls("", "", "P-521").unwrap_err().to_string().contains("P-384"));
    }
}
