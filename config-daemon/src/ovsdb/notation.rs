//! Pure: OVSDB's values in JSON (RFC 7047, 5.1): sets of one or none, maps, identifiers of rows.
//!
//! What lives here: writing and reading them. What does not: tables and columns (`bridges`).
//!
//! Invariant: what cannot be read counts as absent; a database with another schema is no reason to panic.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A map of texts.
pub fn map(values: &BTreeMap<String, String>) -> Value {
    let pairs: Vec<Value> = values.iter().map(|(key, value)| json!([key, value])).collect();
    json!(["map", pairs])
}

/// A set of texts.
pub fn texts<'a>(values: impl Iterator<Item = &'a String>) -> Value {
    json!(["set", values.collect::<Vec<_>>()])
}

/// No value.
pub fn nothing() -> Value {
    json!(["set", []])
}

/// A row that the same transaction inserts.
pub fn named(name: &str) -> Value {
    json!(["named-uuid", name])
}

/// The members of a set; one alone stands for itself.
pub fn members(value: &Value) -> Vec<&Value> {
    match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::Array(members)]) if kind == "set" => members.iter().collect(),
        _ if value.is_null() => Vec::new(),
        _ => vec![value],
    }
}

/// A text that may be absent; an empty one counts as absent.
pub fn text(value: &Value) -> Option<String> {
    members(value).first()?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A number that may be absent.
pub fn number(value: &Value) -> Option<i64> {
    members(value).first()?.as_i64()
}

/// A map of texts.
pub fn pairs(value: &Value) -> BTreeMap<String, String> {
    let pair = |pair: &Value| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned()));
    match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::Array(pairs)]) if kind == "map" => pairs.iter().filter_map(pair).collect(),
        _ => BTreeMap::new(),
    }
}

/// The identifier of a row.
pub fn uuid(value: &Value) -> Option<&str> {
    match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::String(uuid)]) if kind == "uuid" => Some(uuid),
        _ => None,
    }
}

/// The identifiers of several rows.
pub fn uuids(value: &Value) -> Vec<&str> {
    members(value).into_iter().filter_map(uuid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let values: BTreeMap<String, String> = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into();
        assert_eq!(pairs(&map(&values)), values);
        assert_eq!(
            (text(&nothing()), text(&json!("secure")), text(&json!(["set", ["secure"]])), text(&json!(""))),
            (None, Some("secure".into()), Some("secure".into()), None)
        );
        assert_eq!((number(&json!(9000)), number(&nothing()), number(&json!("9000"))), (Some(9000), None, None));
        assert_eq!(uuids(&json!(["uuid", "1"])), ["1"]);
        assert_eq!(uuids(&json!(["set", [["uuid", "1"], ["uuid", "2"]]])), ["1", "2"]);
        assert!(uuids(&nothing()).is_empty() && members(&Value::Null).is_empty());
    }
}
