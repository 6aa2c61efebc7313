//! Pure: the two forms of the pod annotation that selects networks. Not the annotation's key, and not what a selected network is.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One selected network with what the pod requests of it (NPWG §4.1.1.2). Absent parts are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Selection {
    /// The NAD's namespace; empty in the annotation means that of the pod.
    pub namespace: String,
    /// The NAD's name.
    pub name: String,
    /// The interface's name in the pod.
    #[serde(alias = "interfaceRequest")]
    pub interface: Option<String>,
    /// Addresses, each with or without prefix length.
    pub ips: Vec<String>,
    /// MAC address.
    pub mac: Option<String>,
    /// InfiniBand GUID.
    pub infiniband_guid: Option<String>,
    /// As the `portMappings` capability takes them.
    #[serde(rename = "portMappings")]
    pub port_mappings: Vec<Value>,
    /// As the `bandwidth` capability takes it.
    pub bandwidth: Option<Value>,
    /// A device chosen by the pod itself.
    #[serde(rename = "deviceID")]
    pub device_id: Option<String>,
    /// For `args.cni` of each plugin.
    pub cni_args: Map<String, Value>,
    /// Gateways of the default route.
    pub default_route: Vec<String>,
}

/// Reads an annotation's value. An empty value selects nothing. The whole annotation is refused if one network of it is wrong.
pub fn parse(annotation: &str, default_namespace: &str) -> Result<Vec<Selection>> {
    let text = annotation.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut selections = if text.contains(['[', '{', '"']) {
        serde_json::from_str::<Vec<Selection>>(text).with_context(|| format!("parse the networks annotation {text:?} as a JSON list"))?
    } else {
        text.split(',').map(|item| short(item.trim())).collect::<Result<_>>()?
    };
    for selection in &mut selections {
        if selection.namespace.is_empty() {
            default_namespace.clone_into(&mut selection.namespace);
        }
        check(selection).with_context(|| format!("read the networks annotation {text:?}"))?;
    }
    Ok(selections)
}

/// `[<namespace>/]<name>[@<interface>]`.
fn short(item: &str) -> Result<Selection> {
    let parts: Vec<&str> = item.split('/').collect();
    let (namespace, rest) = match parts.as_slice() {
        [rest] => ("", *rest),
        [namespace, rest] if !namespace.is_empty() => (*namespace, *rest),
        _ => bail!("network {item:?} is not of the form [<namespace>/]<name>[@<interface>]"),
    };
    let parts: Vec<&str> = rest.split('@').collect();
    let (name, interface) = match parts.as_slice() {
        [name] => (*name, None),
        [name, interface] => (*name, Some((*interface).to_owned())),
        _ => bail!("network {item:?} is not of the form [<namespace>/]<name>[@<interface>]"),
    };
    Ok(Selection { namespace: namespace.to_owned(), name: name.to_owned(), interface, ..Selection::default() })
}

fn check(selection: &Selection) -> Result<()> {
    for (what, text) in [("name", &selection.name), ("namespace", &selection.namespace)] {
        ensure!(is_dns_label(text), "network {what} {text:?} is not a DNS-1123 label");
    }
    if let Some(interface) = &selection.interface {
        ensure!(is_interface_name(interface), "interface name {interface:?} is not of 1 to 15 characters without `/`, `:` and blanks");
    }
    Ok(())
}

fn is_dns_label(text: &str) -> bool {
    let letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    !text.is_empty() && text.len() <= 63 && letters(text) && !text.starts_with('-') && !text.ends_with('-')
}

/// The kernel's own rule (`dev_valid_name`).
fn is_interface_name(text: &str) -> bool {
    let plain = text.chars().all(|letter| letter != '/' && letter != ':' && !letter.is_whitespace());
    !text.is_empty() && text.len() <= 15 && text != "." && text != ".." && plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short_of(annotation: &str) -> Vec<(String, String, Option<String>)> {
        let selections = parse(annotation, "pod-ns").unwrap();
        selections.into_iter().map(|selection| (selection.namespace, selection.name, selection.interface)).collect()
    }

    fn row(namespace: &str, name: &str, interface: Option<&str>) -> (String, String, Option<String>) {
        (namespace.to_owned(), name.to_owned(), interface.map(str::to_owned))
    }

    #[test]
    fn the_short_form_is_read() {
        let table = [
            ("", vec![]),
            ("  ", vec![]),
            ("net-a", vec![row("pod-ns", "net-a", None)]),
            ("blue/net-a", vec![row("blue", "net-a", None)]),
            ("net-a@data0", vec![row("pod-ns", "net-a", Some("data0"))]),
            ("blue/net-a@data0", vec![row("blue", "net-a", Some("data0"))]),
            (" net-a , blue/net-b@x.1 ", vec![row("pod-ns", "net-a", None), row("blue", "net-b", Some("x.1"))]),
            ("net-a,net-a", vec![row("pod-ns", "net-a", None), row("pod-ns", "net-a", None)]),
        ];
        for (annotation, expected) in table {
            assert_eq!(short_of(annotation), expected, "{annotation:?}");
        }
    }

    #[test]
    fn a_wrong_short_form_is_refused() {
        for annotation in
            [",", "a,,b", "a,", "a/b/c", "/a", "a/", "a@b@c", "a@", "A", "a_b", "-a", "a-", "a@averyveryverylongname", "a@b/c", "a@b c", "a@.."]
        {
            assert!(parse(annotation, "pod-ns").is_err(), "{annotation:?} was taken");
        }
    }

    #[test]
    fn the_json_form_is_read_with_all_its_keys() {
        let annotation = r#"[{"name":"a"},{"name":"b","namespace":"blue","interface":"data0","ips":["192.0.2.4/24"],"mac":"02:00:00:00:00:01",
            "infiniband-guid":"00:11:22:33:44:55:66:77","portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}],
            "bandwidth":{"ingressRate":100},"deviceID":"0000:01:10.0","cni-args":{"color":"red"},"default-route":["192.0.2.1"]}]"#;
        let selections = parse(annotation, "pod-ns").unwrap();
        assert_eq!(selections[0], Selection { namespace: "pod-ns".into(), name: "a".into(), ..Selection::default() });
        let all = &selections[1];
        assert_eq!((all.namespace.as_str(), all.interface.as_deref()), ("blue", Some("data0")));
        assert_eq!((all.ips.as_slice(), all.mac.as_deref()), (&["192.0.2.4/24".to_owned()][..], Some("02:00:00:00:00:01")));
        assert_eq!(all.infiniband_guid.as_deref(), Some("00:11:22:33:44:55:66:77"));
        assert_eq!(all.port_mappings[0]["containerPort"], 8080);
        assert_eq!(all.bandwidth.as_ref().unwrap()["ingressRate"], 100);
        assert_eq!(all.device_id.as_deref(), Some("0000:01:10.0"));
        assert_eq!(all.cni_args["color"], "red");
        assert_eq!(all.default_route, ["192.0.2.1"]);
    }

    #[test]
    fn the_old_key_of_the_interface_is_understood() {
        let selections = parse(r#"[{"name":"a","interfaceRequest":"data0"}]"#, "pod-ns").unwrap();
        assert_eq!(selections[0].interface.as_deref(), Some("data0"));
    }

    #[test]
    fn a_wrong_json_form_is_refused() {
        for annotation in [r#"{"name":"a"}"#, r#"["a"]"#, r#"[{"namespace":"a"}]"#, r#"[{"name":"a","interface":"a/b"}]"#, r#"[{"name":"a"}"#, "[1]"]
        {
            assert!(parse(annotation, "pod-ns").is_err(), "{annotation:?} was taken");
        }
    }
}
