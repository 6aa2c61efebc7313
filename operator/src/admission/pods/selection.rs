//! Pure: the networks that a pod names in its annotations, in both notations of the Network Plumbing Working Group's specification
//! (version 1.3, section 4.1.2): a JSON list, or `[namespace/]name[@interface]` separated by commas.

use serde::Deserialize;
use serde_json::Value;
use sriov_crds::keys;

/// Longest name of an object.
const LONGEST_NAME: usize = 253;

/// A NAD that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::admission) struct NetworkName {
    /// Its namespace; the pod's when it says none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

#[derive(Deserialize)]
struct Element {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

/// The networks of a pod in `namespace`, each as often as it is named.
pub(in crate::admission) fn networks(pod: &Value, namespace: &str) -> Result<Vec<NetworkName>, String> {
    let mut all = vec![];
    for key in [keys::POD_NETWORKS, keys::POD_DEFAULT_NETWORK] {
        let text = pod.pointer("/metadata/annotations").and_then(|annotations| annotations.get(key)).and_then(Value::as_str).unwrap_or_default();
        all.extend(parse(text.trim(), namespace).map_err(|why| format!("annotation {key}: {why}"))?);
    }
    Ok(all)
}

fn parse(text: &str, namespace: &str) -> Result<Vec<NetworkName>, String> {
    if text.is_empty() {
        return Ok(vec![]);
    }
    let named = |ns: Option<&str>, name: &str| {
        let network = NetworkName { namespace: ns.filter(|ns| !ns.is_empty()).unwrap_or(namespace).to_owned(), name: name.to_owned() };
        for part in [&network.namespace, &network.name] {
            if !is_name(part) {
                return Err(format!("{part:?} is no name of an object: lower-case letters, digits, - and . are allowed"));
            }
        }
        Ok(network)
    };
    if text.starts_with('[') {
        let elements: Vec<Element> = serde_json::from_str(text).map_err(|error| format!("not a list of networks: {error}"))?;
        return elements.iter().map(|element| named(element.namespace.as_deref(), &element.name)).collect();
    }
    let short = |item: &str| {
        let item = item.trim();
        let item = item.split_once('@').map_or(item, |(network, _)| network);
        match item.split_once('/') {
            Some((ns, name)) => named(Some(ns), name),
            None => named(None, item),
        }
    };
    text.split(',').map(short).collect()
}

fn is_name(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= LONGEST_NAME
        && end(text.chars().next())
        && end(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let pod = json!({ "metadata": { "annotations": { keys::POD_NETWORKS: text } } });
        networks(&pod, "apps").map(|all| all.into_iter().map(|n| format!("{}/{}", n.namespace, n.name)).collect())
    }

    #[test]
    fn both_notations_name_the_same() {
        for text in ["a, other/b@net7,a", r#"[{"name":"a"},{"name":"b","namespace":"other","interface":"net7"},{"name":"a","namespace":""}]"#] {
            assert_eq!(read(text).unwrap(), ["apps/a", "other/b", "apps/a"], "{text}");
        }
        assert!(read(" ").unwrap().is_empty());
        assert!(networks(&json!({}), "apps").unwrap().is_empty());
        let default = json!({ "metadata": { "annotations": { keys::POD_DEFAULT_NETWORK: "kube-system/main" } } });
        assert_eq!(networks(&default, "apps").unwrap()[0].namespace, "kube-system");
    }

    #[test]
    fn what_names_no_network_is_said_so() {
        for text in ["a,,b", "A", "a/b/c", "[{}]", "[", r#"[{"name":"../x"}]"#, "a b", "-a"] {
            let why = read(text).unwrap_err();
            assert!(why.contains(keys::POD_NETWORKS), "{text}: {why}");
        }
    }
}
