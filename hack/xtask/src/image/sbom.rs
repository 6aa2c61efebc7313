//! Pure: the list of everything that a binary was made from, as CycloneDX 1.6 JSON, from what cargo says and from `Cargo.lock`.
//!
//! Invariant: no time and no random number is in it, so that the same sources give the same image.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// One line `name v1.2.3 (...)<TAB>licence` for each package that `cargo tree` prints for the image's binaries, and the text of `Cargo.lock`.
pub(super) fn cyclonedx(image: &str, tree: &str, lock: &str) -> Result<Vec<u8>> {
    let checksums = checksums(lock);
    let mut components = BTreeMap::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let (package, licence) = line.split_once('\t').with_context(|| format!("cargo tree printed {line:?} without a licence"))?;
        let mut words = package.split_whitespace();
        let (name, version) = (words.next(), words.next().and_then(|version| version.strip_prefix('v')));
        let (name, version) = name.zip(version).with_context(|| format!("cargo tree printed {package:?}, which is no name and version"))?;
        components.insert((name, version), component(name, version, licence.trim(), checksums.get(&(name, version)).copied()));
    }
    ensure!(!components.is_empty(), "cargo tree names no package of {image}");
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image, "version": env!("CARGO_PKG_VERSION")}},
        "components": components.into_values().collect::<Vec<Value>>(),
    });
    let mut bytes = serde_json::to_vec_pretty(&document).context("encode the SBOM")?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn component(name: &str, version: &str, licence: &str, checksum: Option<&str>) -> Value {
    let mut component = json!({
        "type": "library",
        "name": name,
        "version": version,
        "purl": format!("pkg:cargo/{name}@{version}"),
        "licenses": [{"expression": licence.replace('/', " OR ")}],
    });
    // Packages of this workspace come from no registry and have none.
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

/// Checksum of each package of `Cargo.lock` that came from a registry.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    lock.split("[[package]]")
        .filter_map(|package| Some(((field_of(package, "name")?, field_of(package, "version")?), field_of(package, "checksum")?)))
        .collect()
}

/// `value` of a line `key = "value"`.
fn field_of<'a>(package: &'a str, key: &str) -> Option<&'a str> {
    package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"ab12\"\n\n[[package]]\nname = \
                        \"ours\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n";

    #[test]
    fn each_package_is_listed_once_with_its_checksum() {
        let tree = "ours v0.1.0 (/somewhere/ours)\tApache-2.0\na v1.0.0\tMIT/Apache-2.0\na v1.0.0 (*)\tMIT/Apache-2.0\n";
        let bytes = cyclonedx("image", tree, LOCK).unwrap();
        let bom: Value = serde_json::from_slice(&bytes).unwrap();
        let components = bom["components"].as_array().unwrap();
        assert_eq!(components.len(), 2);
        assert_eq!(components[0]["purl"], "pkg:cargo/a@1.0.0");
        assert_eq!(components[0]["hashes"][0]["content"], "ab12");
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(components[1].get("hashes").is_none());
        assert!(!String::from_utf8(bytes).unwrap().contains("somewhere"), "no path of the machine");
    }

    #[test]
    fn a_tree_that_cannot_be_read_is_an_error() {
        assert!(cyclonedx("image", "", LOCK).is_err());
        assert!(cyclonedx("image", "a v1.0.0", LOCK).unwrap_err().to_string().contains("without a licence"));
        assert!(cyclonedx("image", "a\tMIT", LOCK).is_err());
    }
}
