//! I/O: `cargo xtask gen-docs`: `docs/reference.md`, every kind with every field, from the schemas of `sriov-crds`. What they say is decided there.
//!
//! Invariant: the committed page is exactly what this module writes; `cargo xtask check` compares them.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::Workspace;

const PAGE: &str = "docs/reference.md";
/// The kind that Multus brings; its reference is not ours to write.
const FOREIGN: &str = "NetworkAttachmentDefinition";

/// Writes the page, or with `check` fails when it is not what the types say.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let wanted = page(&schemas()?);
    let path = workspace.path(PAGE);
    if check {
        ensure!(fs::read_to_string(&path).unwrap_or_default() == wanted, "{PAGE} is not what the types say: run `cargo xtask gen-docs`");
        return Ok(());
    }
    fs::write(&path, wanted).with_context(|| format!("write {}", path.display()))
}

fn schemas() -> Result<Vec<Value>> {
    let crds = sriov_crds::manifests();
    let ours = crds.iter().filter(|crd| crd.spec.names.kind != FOREIGN);
    ours.map(|crd| serde_json::to_value(crd).context("serialise a CustomResourceDefinition")).collect()
}

/// Pure: the page for these CustomResourceDefinitions.
fn page(crds: &[Value]) -> String {
    let mut text = "# Kinds and fields\n\nGenerated from the types by `cargo xtask gen-docs`; do not edit. `[]` is an item of a list, `{}` a value of a map; fields \
                    in **bold** are required.\n"
        .to_owned();
    for crd in crds {
        let (names, version) = (&crd["spec"]["names"], &crd["spec"]["versions"][0]);
        let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
        let group = format!("{}/{}", word(&crd["spec"]["group"]), word(&version["name"]));
        let schema = &version["schema"]["openAPIV3Schema"];
        // Writing to a String cannot fail.
        let _ = write!(text, "\n## {}\n\n{}\n\n`{group}`, short name `{short}`.\n", word(&names["kind"]), word(&schema["description"]));
        for part in ["spec", "status"] {
            let rows = rows(&schema["properties"][part], "");
            if !rows.is_empty() {
                let _ = write!(text, "\n| {part} | type | default, allowed | |\n|---|---|---|---|\n{rows}");
            }
        }
    }
    text
}

/// One row for each field below a schema, in alphabetical order, depth first.
fn rows(schema: &Value, path: &str) -> String {
    let mut text = String::new();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let shown = if required.contains(&name.as_str()) { format!("**`{place}`**") } else { format!("`{place}`") };
        let _ = writeln!(
            text,
            "| {shown} | {} | {} | {} |",
            kind(field),
            limits(field),
            word(&field["description"]).replace('|', "\\|").replace('\n', " ")
        );
        text += &rows(field, &place);
        text += &rows(&field["items"], &format!("{place}[]"));
        if field["additionalProperties"].is_object() {
            text += &rows(&field["additionalProperties"], &format!("{place}{{}}"));
        }
    }
    text
}

fn kind(field: &Value) -> String {
    match (field["type"].as_str(), field["x-kubernetes-int-or-string"] == true) {
        (_, true) => "integer or string".to_owned(),
        (Some("array"), _) => format!("list of {}", kind(&field["items"])),
        (Some("object"), _) if field["additionalProperties"].is_object() => format!("map of {}", kind(&field["additionalProperties"])),
        (Some(name), _) => name.to_owned(),
        (None, _) => "any".to_owned(),
    }
}

fn limits(field: &Value) -> String {
    let mut parts = Vec::new();
    if !field["default"].is_null() {
        parts.push(format!("default `{}`", field["default"]));
    }
    let allowed = if field["enum"].is_array() { &field["enum"] } else { &field["items"]["enum"] };
    if let Some(values) = allowed.as_array() {
        parts.push(values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" "));
    }
    match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(low), Some(high)) => parts.push(format!("{low} to {high}")),
        (Some(low), None) => parts.push(format!("{low} or more")),
        (None, Some(high)) => parts.push(format!("{high} or less")),
        (None, None) => {}
    }
    parts.join("; ")
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_has_a_row_with_what_is_allowed() {
        let schema = json!({"required": ["a"], "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99, "default": 99, "description": "How strong."},
            "b": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "string", "enum": ["x", "y"]}}}},
            "d": {"type": "object", "additionalProperties": {"type": "string"}},
        }});
        let expected = "| **`a`** | integer | default `99`; 0 to 99 | How strong. |\n| `b` | list of object |  |  |\n\
                        | `b[].c` | string | `\"x\"` `\"y\"` |  |\n| `d` | map of string |  |  |\n";
        assert_eq!(rows(&schema, ""), expected);
    }

    #[test]
    fn every_kind_of_ours_has_a_chapter() {
        let text = page(&schemas().unwrap());
        for crd in sriov_crds::manifests().iter().filter(|crd| crd.spec.names.kind != FOREIGN) {
            assert!(text.contains(&format!("\n## {}\n", crd.spec.names.kind)), "{}", crd.spec.names.kind);
        }
        assert!(!text.contains(&format!("## {FOREIGN}")));
    }
}
