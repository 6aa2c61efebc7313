//! Pure: single values of a configuration, each of its type and in its range, or an error that names key, value and what is allowed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ConfError;

pub(super) fn invalid(key: &'static str, given: &Value, allowed: &str) -> ConfError {
    ConfError::Invalid { key, given: given.to_string(), allowed: allowed.to_owned() }
}

/// A text; absent, `null` and empty are the same, as in the field.
pub(super) fn text<'a>(wire: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, ConfError> {
    match wire.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|t| !t.is_empty())),
        Some(other) => Err(invalid(key, other, "a text")),
    }
}

pub(super) fn number(wire: &Map<String, Value>, key: &'static str, range: RangeInclusive<u32>) -> Result<Option<u32>, ConfError> {
    let Some(value) = wire.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n));
    number.map(Some).ok_or_else(|| invalid(key, value, &format!("a whole number from {} to {}", range.start(), range.end())))
}

pub(super) fn switch(wire: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, ConfError> {
    one_of(wire, key, &[("on", true), ("off", false)])
}

pub(super) fn one_of<T: Copy>(wire: &Map<String, Value>, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, ConfError> {
    let allowed = || choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(" or ");
    let Some(value) = wire.get(key).filter(|v| !v.is_null() && v.as_str() != Some("")) else { return Ok(None) };
    let choice = value.as_str().and_then(|given| choices.iter().find(|(name, _)| *name == given));
    choice.map(|(_, meaning)| Some(*meaning)).ok_or_else(|| invalid(key, value, &allowed()))
}

/// `true` or `false`.
pub(super) fn flag(wire: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, ConfError> {
    let Some(value) = wire.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| invalid(key, value, "true or false"))
}
