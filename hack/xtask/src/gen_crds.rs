//! I/O: `cargo xtask gen-crds`: the CustomResourceDefinitions of `sriov-crds` as the committed files of `crds/yaml`. What they say is decided there.
//!
//! Invariant: the folder holds exactly what this module writes; `--check` fails when a file is missing, different or left over.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Where the files are, relative to the workspace root.
const FOLDER: &str = "crds/yaml";

/// Brings the folder up to date, or with `check` only compares and fails on a difference.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let folder = workspace.path(FOLDER);
    let wanted: BTreeMap<String, String> = sriov_crds::manifests::files().context("render the CustomResourceDefinitions")?.into_iter().collect();
    let differences = differences(&wanted, &present(&folder)?);
    if check {
        if differences.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = differences.iter().map(|(name, difference)| format!("{FOLDER}/{name}: {difference}")).collect();
        bail!("{}\nrun `cargo xtask gen-crds`", lines.join("\n"));
    }
    fs::create_dir_all(&folder).with_context(|| format!("make the folder {}", folder.display()))?;
    for name in differences.keys() {
        let path = folder.join(name);
        match wanted.get(name) {
            Some(text) => fs::write(&path, text).with_context(|| format!("write {}", path.display()))?,
            None => fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?,
        }
    }
    Ok(())
}

/// Name and text of each file of the folder; nothing if there is no folder.
fn present(folder: &Path) -> Result<BTreeMap<String, String>> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .map(|entry| {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text))
        })
        .collect()
}

/// Pure: what is wrong with each file that is not as wanted.
fn differences(wanted: &BTreeMap<String, String>, present: &BTreeMap<String, String>) -> BTreeMap<String, &'static str> {
    let changed = wanted.iter().filter_map(|(name, text)| match present.get(name) {
        None => Some((name.clone(), "missing")),
        Some(found) if found != text => Some((name.clone(), "stale")),
        Some(_) => None,
    });
    let left_over = present.keys().filter(|name| !wanted.contains_key(*name)).map(|name| (name.clone(), "left over"));
    changed.chain(left_over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn stale_missing_and_left_over_files_are_told_apart() {
        let wanted = files(&[("a.yaml", "1"), ("b.yaml", "2"), ("c.yaml", "3")]);
        let present = files(&[("a.yaml", "1"), ("b.yaml", "old"), ("d.yaml", "4")]);
        let found: Vec<_> = differences(&wanted, &present).into_iter().collect();
        assert_eq!(found, [("b.yaml".to_owned(), "stale"), ("c.yaml".to_owned(), "missing"), ("d.yaml".to_owned(), "left over")]);
    }

    #[test]
    fn every_kind_gets_a_file_of_its_own() {
        let files = sriov_crds::manifests::files().unwrap();
        let names: std::collections::BTreeSet<_> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), sriov_crds::manifests().len());
    }
}
