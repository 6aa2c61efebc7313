//! Pure: a JSON value that keeps the order of its keys. NAD configurations are compared as text by their readers, and users' own parts keep the
//! order that they were written in. A key given twice is an error: two readers would take different ones.

use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    /// Null, boolean, number or string.
    Scalar(serde_json::Value),
}

impl Json {
    /// A scalar.
    pub(super) fn from(value: impl Into<serde_json::Value>) -> Self {
        Self::Scalar(value.into())
    }

    /// As readable text, four spaces a level.
    pub(super) fn pretty(&self) -> String {
        let mut text = vec![];
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        // Neither a vector nor a value with string keys can fail.
        if self.serialize(&mut serializer).is_err() {
            text.clear();
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// An object under construction.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Json)>);

impl Object {
    /// Adds a key.
    pub(super) fn with(mut self, key: &str, value: Json) -> Self {
        self.0.push((key.to_owned(), value));
        self
    }

    /// Adds a key when there is a value.
    pub(super) fn with_some(self, key: &str, value: Option<Json>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Adds the keys of another object after its own.
    pub(super) fn with_all(mut self, other: Json) -> Self {
        if let Json::Object(entries) = other {
            self.0.extend(entries);
        }
        self
    }

    /// Done.
    pub(super) fn build(self) -> Json {
        Json::Object(self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(value) => value.serialize(serializer),
            Self::Array(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Scalar(serde_json::Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = vec![];
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries: Vec<(String, Json)> = vec![];
        while let Some(key) = map.next_key::<String>()? {
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(de::Error::custom(format_args!("key {key:?} is given twice")));
            }
            entries.push((key, map.next_value()?));
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_survive() {
        let text = r#"{"z":[1,-2,0.5,null,true],"a":{"y":"it's  \"so\"","b":{}}}"#;
        let value: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), text);
        assert_eq!(Object::default().with("a", Json::from(1)).with("b", Json::Object(vec![])).build().pretty(), "{\n    \"a\": 1,\n    \"b\": {}\n}");
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let error = serde_json::from_str::<Json>(r#"{"type":"a","type":"b"}"#).unwrap_err();
        assert!(error.to_string().contains(r#"key "type" is given twice"#), "{error}");
    }
}
