//! Pure: whether the licence and the source of each dependency are among those that `deny.toml` allows. What cargo-deny does beyond that is not here.
//!
//! A licence is an SPDX expression of names, `AND`, `OR`, `WITH` and parentheses (SPDX 2.3, annex D); `/` is the old spelling of `OR`.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The only place that dependencies come from, as cargo writes it.
const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The names in `allow = [ ... ]` of `[licenses]`.
pub(super) fn allowed(deny: &str) -> Result<Vec<String>> {
    let section = deny.split("\n[licenses]\n").nth(1).context("deny.toml has no [licenses]")?;
    let list = section.split("allow = [").nth(1).and_then(|rest| rest.split("\n]").next()).context("[licenses] of deny.toml has no `allow`")?;
    let names: Vec<String> = list.lines().filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "[licenses] of deny.toml allows nothing");
    Ok(names)
}

/// What is wrong with the packages of `cargo metadata`. Those of the workspace have no source and are not looked at.
pub(super) fn objections(metadata: &str, allowed: &[String]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        license: Option<String>,
        source: Option<String>,
    }
    let metadata: Metadata = serde_json::from_str(metadata).context("parse the output of cargo metadata")?;
    let mut objections = Vec::new();
    for package in metadata.packages {
        let Some(source) = package.source else { continue };
        let (name, version) = (&package.name, &package.version);
        if source != SOURCE {
            objections.push(format!("{name} {version} comes from {source}"));
        }
        let licence = package.license.unwrap_or_default();
        if !acceptable(&licence, allowed) {
            objections.push(format!("{name} {version} has the licence {licence:?}, which deny.toml does not allow"));
        }
    }
    Ok(objections)
}

/// Whether the expression can be met with allowed licences only. What cannot be read is not acceptable.
fn acceptable(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any(&mut words, allowed);
    result == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut result = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= all(words, allowed)?;
    }
    Some(result)
}

fn all(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut result = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed)?;
    }
    Some(result)
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let name = words.next().filter(|word| !["AND", "OR", "WITH", ")"].contains(word))?;
    if name == "(" {
        let result = any(words, allowed);
        return words.next_if_eq(&")").and(result);
    }
    let full = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{name} WITH {}", words.next()?),
        None => name.to_owned(),
    };
    Some(allowed.contains(&full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = names(&["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "GPL-3.0/MIT",
            "MIT AND Apache-2.0",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 AND X OR MIT",
        ] {
            assert!(acceptable(good, &allowed), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR GPL-3.0) AND GPL-3.0",
            "MIT WITH LLVM-exception",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT MIT",
            "AND MIT",
        ] {
            assert!(!acceptable(bad, &allowed), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_dependency_with_another_licence_or_from_elsewhere_is_found() {
        let package =
            |name: &str, licence: &str, source: &str| serde_json::json!({"name": name, "version": "1.0.0", "license": licence, "source": source});
        let own = serde_json::json!({"name": "own", "version": "0.1.0", "license": "Secret", "source": null});
        let bare = serde_json::json!({"name": "bare", "version": "1.0.0", "license": null, "source": SOURCE});
        let packages =
            [own, package("fine", "MIT", SOURCE), package("viral", "GPL-3.0", SOURCE), package("branch", "MIT", "git+https://example.com/x"), bare];
        let found = objections(&serde_json::json!({ "packages": packages }).to_string(), &names(&["MIT"])).unwrap();
        let named: Vec<&str> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(named, ["viral", "branch", "bare"]);
    }

    #[test]
    fn the_allowed_names_are_read_from_the_file() {
        let text = "# x\n[licenses]\n# y\nallow = [\n    \"MIT\",\n    \"ISC\", # data\n]\n\n[sources]\nother = [\n \"no\",\n]\n";
        assert_eq!(allowed(text).unwrap(), ["MIT", "ISC"]);
        assert!(allowed("[sources]\n").is_err());
        assert!(allowed("\n[licenses]\nallow = [\n]\n").is_err());
    }
}
