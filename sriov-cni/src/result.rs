//! Pure: the result of ADD, in one form inside and in the form of each CNI version outside.
//!
//! The inner form is that of 1.1.0. Older forms leave out what they have no place for; nothing is made up on the way back in.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sriov_host::mac::MacAddr;

use crate::version::CniVersion;

/// What an attachment consists of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces; ours has exactly one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses, from IPAM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes, from IPAM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers, from IPAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Value>,
}

/// One interface of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name in the container.
    pub name: String,
    /// Its final hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of its network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// PCI address of its device (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// One address of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address with the prefix length of its network.
    pub address: IpPrefix,
    /// Gateway of that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// One route of the container. The numbers are those of the kernel, since 1.1.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpPrefix,
    /// Next hop; absent means the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised maximal segment size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (`RT_SCOPE_*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// An address and a prefix length, `192.0.2.5/24`. Host bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpPrefix {
    /// The address.
    pub addr: IpAddr,
    /// The prefix length in bits.
    pub len: u8,
}

/// A text that is not an address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an address with a prefix length, as 192.0.2.5/24")]
pub struct IpPrefixError {
    given: String,
}

/// A result of another plugin that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// Not JSON of the form that its `cniVersion` says.
    #[error("failed to decode a result: {0}")]
    Decode(#[from] serde_json::Error),
    /// A version that we do not know.
    #[error("failed to decode a result: {0}")]
    Version(#[from] crate::version::UnsupportedVersion),
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (addr, len) = text.split_once('/')?;
            let (addr, len) = (addr.parse::<IpAddr>().ok()?, len.parse::<u8>().ok()?);
            (len <= if addr.is_ipv4() { 32 } else { 128 }).then_some(Self { addr, len })
        };
        parse().ok_or_else(|| IpPrefixError { given: text.to_owned() })
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl TryFrom<String> for IpPrefix {
    type Error = IpPrefixError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IpPrefix> for String {
    fn from(prefix: IpPrefix) -> Self {
        prefix.to_string()
    }
}

impl CniResult {
    /// The result in the form of `version`.
    pub fn encode(&self, version: CniVersion) -> Value {
        let mut out = match version {
            CniVersion::V010 | CniVersion::V020 => self.encode_by_family(),
            _ => self.encode_lists(version),
        };
        out.insert("cniVersion".to_owned(), version.as_str().into());
        if version < CniVersion::V100 || self.dns.is_some() {
            out.insert("dns".to_owned(), self.dns.clone().unwrap_or_else(|| json!({})));
        }
        Value::Object(out)
    }

    /// Reads a result of the form that its own `cniVersion` says.
    pub fn decode(value: &Value) -> Result<Self, ResultError> {
        let version: CniVersion = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default().parse()?;
        let mut result = if version <= CniVersion::V020 { Self::decode_by_family(value)? } else { Self::deserialize(value)? };
        result.dns = result.dns.filter(|dns| dns.as_object().is_some_and(|d| !d.is_empty()));
        Ok(result)
    }

    /// 0.1.0 and 0.2.0: the first address of each family with its routes, no interfaces.
    fn encode_by_family(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (key, is_v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr.is_ipv4() == is_v4) else { continue };
            let mut entry = Map::from_iter([("ip".to_owned(), json!(ip.address))]);
            if let Some(gateway) = ip.gateway {
                entry.insert("gateway".to_owned(), json!(gateway));
            }
            let routes: Vec<_> = self.routes.iter().filter(|r| r.dst.addr.is_ipv4() == is_v4).map(short_route).collect();
            if !routes.is_empty() {
                entry.insert("routes".to_owned(), Value::Array(routes));
            }
            out.insert(key.to_owned(), Value::Object(entry));
        }
        out
    }

    /// 0.3.0 and later.
    fn encode_lists(&self, version: CniVersion) -> Map<String, Value> {
        let mut lists = self.clone();
        lists.dns = None;
        if version < CniVersion::V110 {
            for interface in &mut lists.interfaces {
                interface.mtu = None;
                interface.pci_id = None;
            }
        }
        let Ok(Value::Object(mut out)) = serde_json::to_value(&lists) else { return Map::new() };
        if version < CniVersion::V110
            && let Some(routes) = out.get_mut("routes")
        {
            *routes = self.routes.iter().map(short_route).collect();
        }
        if version < CniVersion::V100
            && let Some(Value::Array(ips)) = out.get_mut("ips")
        {
            for (entry, ip) in ips.iter_mut().zip(&self.ips) {
                entry["version"] = if ip.address.addr.is_ipv4() { "4" } else { "6" }.into();
            }
        }
        out
    }

    fn decode_by_family(value: &Value) -> Result<Self, ResultError> {
        #[derive(Deserialize)]
        struct Family {
            ip: IpPrefix,
            gateway: Option<IpAddr>,
            #[serde(default)]
            routes: Vec<Route>,
        }
        let mut result = Self { dns: value.get("dns").cloned(), ..Self::default() };
        for key in ["ip4", "ip6"] {
            if let Some(entry) = value.get(key).filter(|v| !v.is_null()) {
                let family = Family::deserialize(entry)?;
                result.ips.push(IpConfig { address: family.ip, gateway: family.gateway, interface: None });
                result.routes.extend(family.routes);
            }
        }
        Ok(result)
    }
}

/// A route before 1.1.0.
fn short_route(route: &Route) -> Value {
    match route.gw {
        Some(gw) => json!({"dst": route.dst, "gw": gw}),
        None => json!({"dst": route.dst}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "net1".to_owned(),
                mac: Some("02:00:5e:10:00:01".parse().unwrap()),
                mtu: Some(1500),
                sandbox: Some("/run/netns/a".to_owned()),
                pci_id: Some("0000:01:10.2".to_owned()),
            }],
            ips: vec![
                IpConfig { address: "192.0.2.5/24".parse().unwrap(), gateway: Some("192.0.2.1".parse().unwrap()), interface: Some(0) },
                IpConfig { address: "2001:db8::5/64".parse().unwrap(), gateway: None, interface: Some(0) },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("192.0.2.1".parse().unwrap()),
                mtu: Some(1400),
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }],
            dns: None,
        }
    }

    #[test]
    fn each_version_has_its_form() {
        for version in CniVersion::ALL {
            let path = format!("{}/testdata/result/{version}.json", env!("CARGO_MANIFEST_DIR"));
            let expected: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(full().encode(version), expected, "{path}");
        }
    }

    #[test]
    fn each_version_reads_back_what_it_has_a_place_for() {
        assert_eq!(CniResult::decode(&full().encode(CniVersion::V110)).unwrap(), full());
        for version in CniVersion::ALL {
            let back = CniResult::decode(&full().encode(version)).unwrap();
            assert_eq!(back.ips.len(), 2, "{version}");
            assert_eq!(back.ips[0].gateway, full().ips[0].gateway, "{version}");
            assert_eq!(back.routes[0].dst, full().routes[0].dst, "{version}");
        }
    }

    #[test]
    fn a_result_that_is_no_result_is_refused() {
        for text in [r#"{"cniVersion":"7.0.0"}"#, r#"{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.5"}]}"#, r#"{"cniVersion":"1.0.0","ips":{}}"#] {
            assert!(CniResult::decode(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
        assert!("192.0.2.5/33".parse::<IpPrefix>().is_err());
    }
}
