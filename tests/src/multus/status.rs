//! Pure: the `network-status` annotation, from the CNI results of a pod's networks (NPWG §4.2).

use serde::Serialize;
use serde_json::{Map, Value};

use super::delegate::Delegate;

/// One network of the pod, as the annotation lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkStatus {
    /// `<namespace>/<name>` of the NAD, or the first network's own name.
    pub name: String,
    /// Interface in the pod.
    pub interface: String,
    /// Addresses without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// MAC address of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MTU of the interface in bytes, where the plugin tells (CNI 1.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Whether this is the pod's first network.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// DNS settings of the result.
    pub dns: Map<String, Value>,
    /// What the device plugin said of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_info: Option<Value>,
}

/// The status of a network after its ADD. A result that names no interface in the pod gives the name that was asked for.
pub fn of(delegate: &Delegate, device_info: Option<Value>) -> NetworkStatus {
    let result = delegate.result.as_ref();
    let list = |key: &str| result.and_then(|result| result[key].as_array()).map(Vec::as_slice).unwrap_or_default();
    let inside = |interface: &&Value| interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
    let inside: Vec<&Value> = list("interfaces").iter().filter(inside).collect();
    let interface = inside.iter().find(|interface| interface["name"] == delegate.interface.as_str()).or(inside.first());
    let text = |key: &str| interface.and_then(|interface| interface[key].as_str()).filter(|text| !text.is_empty()).map(str::to_owned);
    let address = |ip: &Value| Some(ip["address"].as_str()?.split('/').next()?.to_owned());
    NetworkStatus {
        name: delegate.network.clone(),
        interface: text("name").unwrap_or_else(|| delegate.interface.clone()),
        ips: list("ips").iter().filter_map(address).collect(),
        mac: text("mac"),
        mtu: interface.and_then(|interface| interface["mtu"].as_u64()).filter(|mtu| *mtu > 0),
        default: delegate.is_default,
        dns: result.and_then(|result| result["dns"].as_object()).cloned().unwrap_or_default(),
        device_info,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::delegate::network;
    use super::*;

    fn after(result: Value) -> Delegate {
        let mut delegate = network(r#"{"type":"sriov"}"#, "fast").unwrap();
        delegate.network = "red/fast".into();
        delegate.interface = "net1".into();
        delegate.result = Some(result);
        delegate
    }

    #[test]
    fn the_interface_in_the_pod_is_reported_with_its_addresses() {
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:09"}, {"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 9000, "sandbox": "/run/netns/x"}],
            "ips": [{"address": "192.0.2.4/24", "interface": 1}, {"address": "2001:db8::4/64", "interface": 1}],
            "dns": {"nameservers": ["192.0.2.1"]}
        });
        let info = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:01:10.0"}});
        let expected = json!({
            "name": "red/fast", "interface": "net1", "ips": ["192.0.2.4", "2001:db8::4"], "mac": "02:00:00:00:00:01", "mtu": 9000,
            "dns": {"nameservers": ["192.0.2.1"]}, "device-info": info
        });
        assert_eq!(serde_json::to_value(of(&after(result), Some(info))).unwrap(), expected);
    }

    #[test]
    fn the_first_network_is_marked() {
        let mut delegate = after(json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}]}));
        delegate.is_default = true;
        assert_eq!(serde_json::to_value(of(&delegate, None)).unwrap(), json!({"name": "red/fast", "interface": "eth0", "default": true, "dns": {}}));
    }

    #[test]
    fn a_result_without_an_interface_gives_the_requested_name() {
        for result in [json!({}), json!({"interfaces": [{"name": "br0", "sandbox": ""}]}), json!({"interfaces": null, "ips": null})] {
            assert_eq!(serde_json::to_value(of(&after(result), None)).unwrap(), json!({"name": "red/fast", "interface": "net1", "dns": {}}));
        }
    }
}
