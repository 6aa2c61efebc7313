//! Pure: one JSON object of the config file, read key by key, so that each error can name the key and an unknown key is not overlooked.

use serde_json::Value;

use super::{ConfigError, Place};

/// The keys of an object that were not taken yet.
pub(super) struct Fields<'a> {
    place: &'a Place,
    /// Stands before each key in messages: empty, or `selectors[1].`.
    path: String,
    left: Vec<(String, Value)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn open(place: &'a Place, path: String, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { place, path, left: map.into_iter().collect(), known: Vec::new() }),
            other => {
                let key = if path.is_empty() { "resourceList" } else { path.trim_end_matches('.') };
                Err(bad(place, key, &other, "an object"))
            }
        }
    }

    /// The value of `key`; absent and null are the same, as for Go's decoder.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        let position = self.left.iter().position(|(name, _)| name.eq_ignore_ascii_case(key))?;
        Some(self.left.remove(position).1).filter(|value| !value.is_null())
    }

    /// Whether a key that was not taken yet says something: neither null, nor empty, nor false.
    pub(super) fn has_value(&self, key: &str) -> bool {
        let says = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        };
        self.left.iter().any(|(name, value)| name.eq_ignore_ascii_case(key) && says(value))
    }

    pub(super) fn text(&mut self, key: &'static str, allowed: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other, allowed)),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, ConfigError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.bad(key, &other, "true or false")),
        }
    }

    pub(super) fn list<T>(&mut self, key: &'static str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ConfigError> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.bad(key, &other, allowed)),
        };
        let read = |item: &Value| item.as_str().and_then(&read).ok_or_else(|| self.bad(key, item, allowed));
        items.iter().map(read).collect()
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(ConfigError::RefuseKey { place: self.place.clone(), key: format!("{}{key}", self.path), known: self.known.join(", ") })
            }
        }
    }

    pub(super) fn bad(&self, key: &str, given: &Value, allowed: &str) -> ConfigError {
        bad(self.place, &format!("{}{key}", self.path), given, allowed)
    }

    pub(super) fn missing(&self, key: &str, allowed: &'static str) -> ConfigError {
        ConfigError::MissKey { place: self.place.clone(), key: format!("{}{key}", self.path), allowed }
    }
}

pub(super) fn bad(place: &Place, key: &str, given: &Value, allowed: &str) -> ConfigError {
    ConfigError::ReadKey { place: place.clone(), key: key.to_owned(), given: given.to_string(), allowed: allowed.to_owned() }
}
