//! Pure (randomness and the caller's clock only): the certificates of the admission server, as they are kept in one Secret.
//!
//! A generation is a certificate authority that signs one server certificate, after which its key is forgotten. The Secret holds the generation in
//! use and the next one, and the bundle that clients trust has both and the one before. So a rotation only moves on to a certificate that
//! everybody has trusted for a whole period: no order of events between servers and the API server can break a connection.
//! What does not live here: reading and writing the Secret.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// On our Secret: when to move on to the next generation. A Secret without it belongs to someone else and is only read.
pub(crate) const ROTATE_AT: &str = "sriovnetwork.openshift.io/certificate-rotate-at";
/// Clocks of machines differ.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{key} is missing in the Secret")]
    Missing { key: &'static str },
    #[error("{key} of the Secret is not PEM: {why}")]
    NotPem { key: &'static str, why: String },
    #[error("tls.key of the Secret cannot be used: {0}")]
    Key(rustls::Error),
}

/// One authority with one certificate, all PEM.
#[derive(Clone, Debug, PartialEq)]
struct Generation {
    issuer: String,
    certificate: String,
    key: String,
}

impl Generation {
    fn make(names: &[String], lifetime: Duration, now: Timestamp) -> Result<Self, rcgen::Error> {
        let mut issuer = params(&[], lifetime, now)?;
        issuer.distinguished_name.push(DnType::CommonName, "sriov-network-operator admission");
        issuer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(issuer, KeyPair::generate()?)?;
        let mut leaf = params(names, lifetime, now)?;
        leaf.distinguished_name.push(DnType::CommonName, names.first().map_or("admission", String::as_str));
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &issuer)?;
        Ok(Self { issuer: issuer.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(names: &[String], lifetime: Duration, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + lifetime;
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

/// What is to become of the Secret.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing before this time; `None` when it is not ours.
    Keep(Option<Timestamp>),
    /// Create it, or replace its data.
    Write(Box<Secret>),
}

/// For whom certificates are made, and how long they last.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Of the Secret.
    pub secret: String,
    /// Of the Service, which is also the Secret's.
    pub namespace: String,
    /// The Service that the API server calls.
    pub service: String,
    /// From making to expiry; each is in use for the middle third.
    pub lifetime: Duration,
    /// Whether somebody else makes the Secret: it is only read, also before it is there.
    pub made_elsewhere: bool,
}

impl Subject {
    fn names(&self) -> Vec<String> {
        let Self { namespace, service, .. } = self;
        vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}"),
            service.clone(),
            format!("{service}.{namespace}.svc.cluster.local"),
        ]
    }

    fn period(&self) -> SignedDuration {
        SignedDuration::try_from(self.lifetime / 3).unwrap_or(SignedDuration::from_hours(24))
    }

    /// What is to be done with the Secret that is there.
    pub(super) fn decide(&self, there: Option<&Secret>, now: Timestamp) -> Result<Decision, Error> {
        if self.made_elsewhere {
            return Ok(Decision::Keep(None));
        }
        let Some(there) = there else { return self.fresh(None, now) };
        let Some(rotate_at) = there.annotations().get(ROTATE_AT) else { return Ok(Decision::Keep(None)) };
        let Ok(rotate_at) = rotate_at.parse::<Timestamp>() else { return self.fresh(Some(there), now) };
        if now < rotate_at && certified_key(there).is_ok() {
            return Ok(Decision::Keep(Some(rotate_at)));
        }
        let missed = rotate_at.checked_add(self.period()).is_ok_and(|end| now >= end);
        match (missed, generation(there, ""), generation(there, "next-")) {
            (false, Some(current), Some(next)) => self.write(Some(there), [Some(current), Some(next)], now),
            _ => self.fresh(Some(there), now),
        }
    }

    /// Nothing usable is there, or it lay too long: whoever trusts the old certificates has none that works anyway.
    fn fresh(&self, there: Option<&Secret>, now: Timestamp) -> Result<Decision, Error> {
        self.write(there, [None, None], now)
    }

    fn write(&self, there: Option<&Secret>, [before, current]: [Option<Generation>; 2], now: Timestamp) -> Result<Decision, Error> {
        let make = || Generation::make(&self.names(), self.lifetime, now);
        let current = current.map_or_else(make, Ok)?;
        let next = make()?;
        let bundle: String = before.iter().chain([&current, &next]).map(|generation| generation.issuer.as_str()).collect();
        let data = [
            ("tls.crt", current.certificate),
            ("tls.key", current.key),
            ("issuer.crt", current.issuer),
            ("next-tls.crt", next.certificate),
            ("next-tls.key", next.key),
            ("next-issuer.crt", next.issuer),
            ("ca.crt", bundle),
        ];
        let mut secret = Secret::default();
        secret.metadata.name = Some(self.secret.clone());
        secret.metadata.namespace = Some(self.namespace.clone());
        // A second writer that read the same Secret is refused by the API server.
        secret.metadata.resource_version = there.and_then(ResourceExt::resource_version);
        let rotate_at = now.checked_add(self.period()).unwrap_or(Timestamp::MAX);
        secret.annotations_mut().insert(ROTATE_AT.to_owned(), rotate_at.to_string());
        secret.data = Some(data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect::<BTreeMap<_, _>>());
        Ok(Decision::Write(Box::new(secret)))
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    secret.data.as_ref()?.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).filter(|text| !text.is_empty())
}

fn generation(secret: &Secret, prefix: &str) -> Option<Generation> {
    let part = |name: &str| text(secret, &format!("{prefix}{name}"));
    Some(Generation { issuer: part("issuer.crt")?, certificate: part("tls.crt")?, key: part("tls.key")? })
}

/// The certificates that clients are to trust, PEM; the Secret of cert-manager and of people has them under the same key.
pub(super) fn bundle(secret: &Secret) -> Option<Vec<u8>> {
    text(secret, "ca.crt").map(String::into_bytes)
}

/// What the server shows.
pub(super) fn certified_key(secret: &Secret) -> Result<Arc<CertifiedKey>, Error> {
    let pem = |key: &'static str| text(secret, key).ok_or(Error::Missing { key });
    let chain = CertificateDer::pem_slice_iter(pem("tls.crt")?.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::NotPem { key: "tls.crt", why: error.to_string() })?;
    if chain.is_empty() {
        return Err(Error::Missing { key: "tls.crt" });
    }
    let key = PrivateKeyDer::from_pem_slice(pem("tls.key")?.as_bytes()).map_err(|error| Error::NotPem { key: "tls.key", why: error.to_string() })?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(Error::Key)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Err(error) if !matches!(error, rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Err(Error::Key(error)),
        _ => Ok(Arc::new(certified)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            secret: "cert".into(),
            namespace: "ops".into(),
            service: "hook".into(),
            lifetime: Duration::from_hours(90 * 24),
            made_elsewhere: false,
        }
    }

    fn at(day: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(24 * day)
    }

    fn written(decision: Decision) -> Secret {
        match decision {
            Decision::Write(secret) => *secret,
            Decision::Keep(until) => panic!("kept until {until:?}"),
        }
    }

    fn trusts(bundle_of: &Secret, shown_by: &Secret) -> bool {
        let bundle = String::from_utf8(bundle(bundle_of).unwrap()).unwrap();
        bundle.contains(&text(shown_by, "issuer.crt").unwrap())
    }

    #[test]
    fn a_rotation_moves_on_to_what_everybody_trusts_already() {
        let first = written(subject().decide(None, at(0)).unwrap());
        assert_eq!(subject().decide(Some(&first), at(29)).unwrap(), Decision::Keep(Some(at(30))));
        let second = written(subject().decide(Some(&first), at(30)).unwrap());
        assert_ne!(text(&first, "tls.crt"), text(&second, "tls.crt"));
        assert_eq!(text(&second, "tls.crt"), text(&first, "next-tls.crt"));
        assert!(trusts(&first, &second), "an API server that has the old bundle takes the new certificate");
        assert!(trusts(&second, &first), "one that has the new bundle takes a server that has not moved on");
        let third = written(subject().decide(Some(&second), at(60)).unwrap());
        assert!(trusts(&second, &third) && trusts(&third, &second) && !trusts(&third, &first));
    }

    #[test]
    fn what_lay_unused_for_too_long_is_made_anew() {
        let first = written(subject().decide(None, at(0)).unwrap());
        let late = written(subject().decide(Some(&first), at(61)).unwrap());
        assert_ne!(text(&late, "tls.crt"), text(&first, "next-tls.crt"), "that one would expire while it is in use");
        let mut broken = first;
        broken.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"junk".to_vec()));
        assert!(certified_key(&broken).is_err());
        assert!(certified_key(&written(subject().decide(Some(&broken), at(1)).unwrap())).is_ok());
    }

    #[test]
    fn a_secret_of_someone_else_is_only_read() {
        let mut theirs = written(subject().decide(None, at(0)).unwrap());
        theirs.annotations_mut().clear();
        assert_eq!(subject().decide(Some(&theirs), at(400)).unwrap(), Decision::Keep(None));
        assert!(certified_key(&theirs).is_ok() && bundle(&theirs).is_some());
        assert!(matches!(certified_key(&Secret::default()), Err(Error::Missing { key: "tls.crt" })));
    }

    /// cert-manager puts its certificates into a Secret that is there already and leaves its annotations, ours among them.
    #[test]
    fn a_secret_that_somebody_else_is_to_make_is_neither_made_nor_renewed() {
        let ours = written(subject().decide(None, at(0)).unwrap());
        let theirs = Subject { made_elsewhere: true, ..subject() };
        assert_eq!(theirs.decide(None, at(0)).unwrap(), Decision::Keep(None));
        assert_eq!(theirs.decide(Some(&ours), at(400)).unwrap(), Decision::Keep(None));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let mut mixed = written(subject().decide(None, at(0)).unwrap());
        let other = mixed.data.as_ref().unwrap()["next-tls.key"].clone();
        mixed.data.as_mut().unwrap().insert("tls.key".into(), other);
        assert!(matches!(certified_key(&mixed), Err(Error::Key(_))));
    }
}
