//! Pure: what a verb can fail with, and the CNI error that the runtime gets: code, message, details.
//!
//! Codes 1 to 99 are the specification's, from 100 on they are ours; README.md has the table, and a test compares it with [`OWN_CODES`].

use crate::attach::AttachError;
use crate::conf::ConfError;
use crate::device::DeviceError;
use crate::ipam::IpamError;
use crate::request::RequestError;
use crate::restore::RestoreError;
use crate::state::StateError;
use crate::version::CniVersion;
use serde_json::{Value, json};
use sriov_host::device_id::DeviceId;
use sriov_host::netlink::NetlinkError;
use sriov_host::netns::NetNsError;

/// Our own codes with their meaning.
pub const OWN_CODES: [(u64, &str); 7] = [
    (100, "the device is not a VF that can be attached"),
    (101, "the PF's driver refused or ignored an attribute of the VF"),
    (102, "the netdev could not be moved into the container, brought up or given its addresses"),
    (103, "the IPAM plugin could not be run, or its result could not be used"),
    (104, "CHECK found the attachment different from what ADD left"),
    (105, "the VF could not be brought back to its original state"),
    (106, "an error in this program"),
];

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment. Code 4.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The network configuration. Codes 1, 2, 6, 7.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// A verb that the configuration's version does not have. Code 1.
    #[error("{verb} needs cniVersion {needed} or later: the configuration says {given}")]
    VerbVersion {
        /// The verb.
        verb: &'static str,
        /// The first version that has it.
        needed: CniVersion,
        /// The configuration's.
        given: CniVersion,
    },
    /// The container's namespace. Code 4.
    #[error("CNI_NETNS: {0}")]
    NetNs(NetNsError),
    /// The container's namespace is the plugin's own. Code 4.
    #[error("CNI_NETNS {path:?} is this plugin's own network namespace: set CNI_NETNS_OVERRIDE=1 if that is meant")]
    OwnNetNs {
        /// The path.
        path: String,
    },
    /// The VF belongs to another attachment that lives. Code 11.
    #[error("VF {vf} is attached to container {container_id} as {if_name}, whose network namespace still exists")]
    Taken {
        /// The VF.
        vf: DeviceId,
        /// Its container.
        container_id: String,
        /// Its interface there.
        if_name: String,
    },
    /// The Go plugin gave the VF to a container that lives. Code 11.
    #[error("VF {vf} was attached by the Go plugin to the network namespace {netns}, which still exists")]
    TakenBefore {
        /// The VF.
        vf: DeviceId,
        /// Its container's namespace.
        netns: String,
    },
    /// DEL or another ADD took the attachment away while IPAM worked. Code 11.
    #[error("the attachment of VF {vf} was taken away by another call while IPAM worked")]
    Overtaken {
        /// The VF.
        vf: DeviceId,
    },
    /// Our files. Codes 5, 11.
    #[error(transparent)]
    State(#[from] StateError),
    /// The device. Codes 11, 100.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A change of the machine. Codes 100, 101, 102.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The way back. Code 105.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A VF with a dead owner could not be brought back. Code 11: it may be on its way.
    #[error("VF {vf} was left by a container that is gone and could not be restored: {cause}")]
    RestoreFirst {
        /// The VF.
        vf: DeviceId,
        /// Why.
        cause: Box<RestoreError>,
    },
    /// IPAM. Its own code, or 103.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// CHECK found a difference. Code 104.
    #[error("{what} is {found}: ADD left {expected}")]
    Differs {
        /// What differs.
        what: String,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// STATUS: no ADD can work now. Code 50.
    #[error("no pod can be attached now: {0}")]
    Unavailable(StateError),
    /// STATUS: no ADD can work now. Code 50.
    #[error("no pod can be attached now: {0}")]
    IpamUnavailable(IpamError),
    /// Netlink. Code 102.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Several failures of a verb that goes on past each. The code of the first.
    #[error("{first}")]
    Several {
        /// The first failure.
        first: Box<Error>,
        /// The others, and failures of the undo.
        others: Vec<String>,
    },
}

impl Error {
    /// The CNI error code.
    pub fn code(&self) -> u64 {
        match self {
            Self::Request(_) | Self::NetNs(_) | Self::OwnNetNs { .. } => 4,
            Self::VerbVersion { .. } | Self::Conf(ConfError::Version(_)) => 1,
            Self::Conf(ConfError::UnknownKey { .. }) => 2,
            Self::Conf(ConfError::Decode(_)) => 6,
            Self::Conf(ConfError::Invalid { .. } | ConfError::Missing { .. })
            | Self::Attach(
                AttachError::Mtu { .. }
                | AttachError::Userspace { .. }
                | AttachError::NotUserspace { .. }
                | AttachError::NotInfiniband { .. }
                | AttachError::NoTrunk { .. },
            ) => 7,
            Self::Taken { .. }
            | Self::TakenBefore { .. }
            | Self::Overtaken { .. }
            | Self::State(StateError::Locked { .. })
            | Self::RestoreFirst { .. } => 11,
            Self::State(_) => 5,
            Self::Unavailable(_) | Self::IpamUnavailable(_) => 50,
            Self::Device(error) | Self::Attach(AttachError::Device(error)) => device_code(error),
            Self::Attach(
                AttachError::Refused { .. } | AttachError::Ignored { .. } | AttachError::TrunkRefused { .. } | AttachError::TrunkIgnored { .. },
            ) => 101,
            Self::Attach(_) | Self::Netlink(_) => 102,
            Self::Ipam(IpamError::Refused { code, .. }) => *code,
            Self::Ipam(_) => 103,
            Self::Differs { .. } => 104,
            Self::Restore(_) => 105,
            Self::Several { first, .. } => first.code(),
        }
    }

    /// The first of several failures with the others as its details; `None` without failures.
    pub(crate) fn all(failures: Vec<Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let first = failures.next()?;
        Some(first.with(failures.map(|f| f.to_string()).collect()))
    }

    /// This failure, with what else went wrong.
    pub(crate) fn with(self, others: Vec<String>) -> Self {
        if others.is_empty() { self } else { Self::Several { first: Box::new(self), others } }
    }

    /// The CNI error object.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let details = if let Self::Several { others, .. } = self { others.join("; ") } else { String::new() };
        error_json(version, self.code(), &self.to_string(), &details)
    }
}

/// A netdev may still be on its way out of a container that ended.
fn device_code(error: &DeviceError) -> u64 {
    if matches!(error, DeviceError::NoNetdev { .. }) { 11 } else { 100 }
}

/// A CNI error object. `details` is left out when it is empty.
pub fn error_json(version: CniVersion, code: u64, message: &str, details: &str) -> Value {
    let mut error = json!({"cniVersion": version.as_str(), "code": code, "msg": message});
    if !details.is_empty() {
        error["details"] = details.into();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_each_own_code() {
        let readme = include_str!("../README.md");
        for (code, meaning) in OWN_CODES {
            assert!(readme.contains(&format!("| {code} | {meaning} |")), "{code}");
        }
    }

    /// All numbers that `code` and its like have.
    #[test]
    fn each_code_that_is_given_is_in_the_readme() {
        let (_, code) = include_str!("errors.rs").split_once("pub fn code(&self)").unwrap();
        let (code, _) = code.split_once("A CNI error object").unwrap();
        let given: std::collections::BTreeSet<u64> = code.split([' ', ',', '\n']).filter_map(|word| word.parse().ok()).collect();
        assert_eq!(given.iter().copied().filter(|code| *code < 100).collect::<Vec<_>>(), [1, 2, 4, 5, 6, 7, 11, 50]);
        let readme = include_str!("../README.md");
        let (_, table) = readme.split_once("Codes of the specification:").unwrap();
        for code in given {
            let told = if code < 100 { table.contains(&format!(" {code} ")) } else { OWN_CODES.iter().any(|(own, _)| *own == code) };
            assert!(told, "{code}");
        }
    }

    #[test]
    fn several_failures_are_told_in_one() {
        let taken = || Error::Overtaken { vf: "0000:01:10.0".parse().unwrap() };
        let error = Error::all(vec![taken(), taken()]).unwrap();
        let json = error.to_json(CniVersion::V100);
        assert_eq!(json["code"], 11);
        assert_eq!(json["msg"], json["details"]);
        assert!(Error::all(Vec::new()).is_none());
        assert!(taken().to_json(CniVersion::V100).get("details").is_none());
    }
}
