//! Pure: a value as YAML in the form in which people write objects of Kubernetes, in which strings may hold expressions of Helm (`{{ .. }}`). A YAML library
//! would quote those, and the quotes would meet the ones that expressions have.
//!
//! Invariant: what is written reads back as the value once the expressions are names.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::Value;

/// Longest line with a list in it.
const WIDTH: usize = 150;

/// The text of an object or a list, with a line break at the end.
pub(super) fn text(value: &Value) -> Result<String> {
    let mut text = String::new();
    block(&mut text, value, 0)?;
    Ok(text)
}

/// Writes the lines of a map or a list, each with its indentation.
fn block(out: &mut String, value: &Value, indent: usize) -> Result<()> {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                write!(out, "{margin}{}:", scalar(key, indent)?)?;
                entry(out, field, indent, key.len())?;
            }
        }
        Value::Array(items) => {
            for item in items {
                // A map's first field stands beside the dash, in the place of two blanks of its indentation.
                let mut lines = String::new();
                match item {
                    Value::Object(fields) if !fields.is_empty() => block(&mut lines, item, indent + 2)?,
                    Value::Object(_) | Value::Array(_) => bail!("no form is known for {item} in a list"),
                    _ => lines = format!("{margin}  {}\n", leaf(item, indent)?),
                }
                out.push_str(&margin);
                out.push_str("- ");
                out.push_str(&lines[indent + 2..]);
            }
        }
        _ => bail!("{value} is neither a map nor a list"),
    }
    Ok(())
}

/// Writes what comes after `key:`.
fn entry(out: &mut String, field: &Value, indent: usize, key: usize) -> Result<()> {
    match field {
        Value::Object(fields) if fields.is_empty() => out.push_str(" {}\n"),
        Value::Object(_) => {
            out.push('\n');
            block(out, field, indent + 2)?;
        }
        Value::Array(items) => match flow(items) {
            Some(list) if indent + key + list.len() < WIDTH => writeln!(out, " {list}")?,
            _ => {
                out.push('\n');
                block(out, field, indent)?;
            }
        },
        _ => writeln!(out, " {}", leaf(field, indent)?)?,
    }
    Ok(())
}

/// A list in one line, when each of its items is a plain word.
fn flow(items: &[Value]) -> Option<String> {
    let words = items.iter().map(|item| match item {
        Value::String(text) if is_word(text) => Some(text.clone()),
        Value::String(text) if !text.contains(['"', '\\', '\n', '{']) => Some(format!("\"{text}\"")),
        _ => None,
    });
    Some(format!("[{}]", words.collect::<Option<Vec<_>>>()?.join(", ")))
}

fn leaf(value: &Value, indent: usize) -> Result<String> {
    match value {
        Value::String(text) => scalar(text, indent),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => bail!("no form is known for {value}"),
    }
}

/// A string: plain where that is safe, in lines of their own where it has quotes of its own.
fn scalar(text: &str, indent: usize) -> Result<String> {
    let spoken = text.split(' ').all(|word| !word.is_empty() && (is_word(word.trim_end_matches([',', ':'])))) && !text.contains(": ");
    if is_word(text) || (spoken && !text.ends_with([',', ':'])) {
        return Ok(text.to_owned());
    }
    if !text.contains(['"', '\\', '\n', '\'', '{']) {
        return Ok(format!("\"{text}\""));
    }
    if text.starts_with([' ', '\n']) || text.ends_with('\n') {
        bail!("no form is known for {text:?}");
    }
    let margin = " ".repeat(indent + 2);
    let lines: Vec<String> = text.lines().map(|line| format!("\n{margin}{line}")).collect();
    Ok(format!("|-{}", lines.concat()))
}

/// True for what YAML reads as this very string wherever it stands; what an expression of Helm becomes is taken for a word.
fn is_word(text: &str) -> bool {
    let Some(text) = named(text) else { return false };
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    let letters = text.chars().all(|c| c.is_ascii_alphanumeric() || ['.', '/', '-', '_', '=', ','].contains(&c));
    // What begins with a letter is no number; `,` ends an item of a list in one line.
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && letters && !reserved && !text.contains(',')
}

/// The text with a name in the place of each expression; nothing if one does not end.
fn named(text: &str) -> Option<String> {
    let mut rest = text;
    let mut named = String::new();
    while let Some((before, expression)) = rest.split_once("{{") {
        named += before;
        named += "name";
        rest = expression.split_once("}}")?.1;
    }
    Some(named + rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn awkward_strings_read_back_as_they_are() {
        let strings =
            ["0", "true", "on", "*", "", "a: b", "a, b", "a word, more: x", "x:", "it's", "#no", "- a", "1.5", "a 'b' \"c\"", "a\nb", "[x]", "~"];
        let value = json!({
            "list": strings.iter().take(9).collect::<Vec<_>>(),
            "map": strings.iter().map(|s| (format!("k{}", s.len()), json!(s))).collect::<serde_json::Map<_, _>>(),
            "items": strings.iter().map(|s| json!({ "name": s, "deeper": { "same": s } })).collect::<Vec<_>>(),
            "empty": {}, "none": [], "number": 3, "flag": false, "0": "key",
        });
        let text = text(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn expressions_of_helm_stay_as_they_are() {
        let value = json!({ "name": "{{ include \"sriov.name\" . }}-crds", "names": ["{{ .Values.secret }}", "b"] });
        assert_eq!(text(&value).unwrap(), "name: {{ include \"sriov.name\" . }}-crds\nnames: [{{ .Values.secret }}, b]\n");
    }
}
