//! Pure: the ConfigMap `nri-control-switches` of the field's network-resources-injector: huge pages on or off, and annotations that pods with a label
//! get. Its key `config.json` is read as written for that program (specification `dataplane`, 4.7).
//!
//! Not here: `enableHonorExistingResources`. What a pod asks for itself always counts. Invariant: what cannot be read leaves the rest as without the
//! ConfigMap, and is told.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Key of the ConfigMap.
pub(in crate::admission) const FILE: &str = "config.json";
/// The only thing of a pod that may be changed.
const ANNOTATIONS: &str = "/metadata/annotations";

/// What is switched, and what pods with a label get.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::admission) struct Switches {
    /// Whether containers can read their huge pages.
    pub huge_pages: bool,
    /// By label; a pod has it with the value `true`.
    injections: BTreeMap<String, Operation>,
    /// Entries that are left out, each with the reason.
    pub remarks: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Operation {
    op: String,
    path: String,
    #[serde(default)]
    value: Map<String, Value>,
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    features: BTreeMap<String, Value>,
    #[serde(default, rename = "user-defined-injections")]
    injections: BTreeMap<String, Value>,
}

impl Default for Switches {
    fn default() -> Self {
        Self { huge_pages: true, injections: BTreeMap::new(), remarks: vec![] }
    }
}

impl Switches {
    /// `text` is the value of [`FILE`].
    pub(in crate::admission) fn read(text: &str) -> Self {
        let file: File = match serde_json::from_str(text) {
            Ok(file) => file,
            Err(error) => return Self { remarks: vec![format!("{FILE} is not as it should be: {error}")], ..Self::default() },
        };
        let mut read = Self::default();
        if let Some(on) = file.features.get("enableHugePageDownApi").and_then(Value::as_bool) {
            read.huge_pages = on;
        }
        for (label, entry) in file.injections {
            match serde_json::from_value::<Operation>(entry) {
                Ok(operation) if operation.is_possible() => {
                    read.injections.insert(label, operation);
                }
                Ok(Operation { op, path, .. }) => {
                    read.remarks.push(format!(
                        "injection {label}: {op} of {path} is not possible, only add, replace and remove of texts in {ANNOTATIONS} are"
                    ));
                }
                Err(error) => read.remarks.push(format!("injection {label}: {error}")),
            }
        }
        read
    }

    /// All annotations of a pod after the injections that its labels ask for, as a patch; nothing when they change nothing.
    pub(super) fn annotations(&self, pod: &Value) -> Option<Value> {
        let there = pod.pointer(ANNOTATIONS).and_then(Value::as_object);
        let mut all = there.cloned().unwrap_or_default();
        for (label, Operation { op, value, .. }) in &self.injections {
            let asked = pod["metadata"]["labels"][label.as_str()].as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"));
            if !asked {
                continue;
            }
            for (key, text) in value {
                if op == "remove" {
                    all.remove(key);
                } else {
                    all.insert(key.clone(), text.clone());
                }
            }
        }
        let changed = there.map_or(!all.is_empty(), |there| *there != all);
        changed.then(|| json!({ "op": "add", "path": ANNOTATIONS, "value": all }))
    }
}

impl Operation {
    fn is_possible(&self) -> bool {
        ["add", "replace", "remove"].contains(&self.op.as_str()) && self.path == ANNOTATIONS && self.value.values().all(Value::is_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{
        "features": { "enableHugePageDownApi": false, "enableHonorExistingResources": true },
        "user-defined-injections": {
            "feature.example/more": { "op": "add", "path": "/metadata/annotations", "value": { "a": "1", "b": "2" } },
            "feature.example/less": { "op": "remove", "path": "/metadata/annotations", "value": { "c": "" } },
            "feature.example/host": { "op": "add", "path": "/spec/hostNetwork", "value": { "a": "1" } },
            "feature.example/odd": 7
        }
    }"#;

    fn pod(labels: &Value, annotations: &Value) -> Value {
        json!({ "metadata": { "labels": labels, "annotations": annotations } })
    }

    #[test]
    fn pods_with_the_label_get_the_annotations_and_keep_their_own() {
        let switches = Switches::read(TEXT);
        assert!(!switches.huge_pages);
        let asking = pod(&json!({ "feature.example/more": "True", "feature.example/less": "true" }), &json!({ "own": "x", "b": "0", "c": "3" }));
        let patch = switches.annotations(&asking).unwrap();
        assert_eq!(patch, json!({ "op": "add", "path": "/metadata/annotations", "value": { "own": "x", "a": "1", "b": "2" } }));
        assert_eq!(switches.annotations(&pod(&json!({ "feature.example/more": "yes" }), &json!({ "own": "x" }))), None);
        assert_eq!(switches.annotations(&pod(&json!({ "feature.example/more": "true" }), &json!({ "a": "1", "b": "2" }))), None, "a second round");
    }

    #[test]
    fn only_annotations_can_be_injected_and_what_is_wrong_is_told() {
        let switches = Switches::read(TEXT);
        assert_eq!(switches.annotations(&pod(&json!({ "feature.example/host": "true" }), &json!({}))), None);
        assert_eq!(switches.remarks.len(), 2, "{:?}", switches.remarks);
        assert!(switches.remarks[0].contains("/spec/hostNetwork"), "{:?}", switches.remarks);
        let broken = Switches::read("{");
        assert!(broken.huge_pages && broken.remarks.len() == 1, "{broken:?}");
        assert_eq!(Switches::read("{}"), Switches::default());
    }
}
