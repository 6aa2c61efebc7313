//! Pure but for [`roots`], which asks cargo (I/O): which Rust files no `mod` declaration leads to. The compiler says nothing of such a file, so it rots.
//!
//! Understood are `mod name;` with and without `#[path = "..."]`, and `include!("...")`, at any place of a file. A file that is reached in another way
//! is reported, which is loud and not wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::workspace::{Workspace, stdout_of};

/// The first file of each target of the workspace, relative to its root.
pub(super) fn roots(workspace: &Workspace) -> Result<BTreeSet<PathBuf>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        src_path: PathBuf,
    }
    let text = stdout_of(&mut workspace.cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("parse the output of cargo metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    targets
        .map(|target| {
            let relative = target.src_path.strip_prefix(workspace.root());
            relative.map(Path::to_path_buf).with_context(|| format!("{} is outside the workspace", target.src_path.display()))
        })
        .collect()
}

/// The files that cannot be reached from the roots.
pub(super) fn orphans(roots: &BTreeSet<PathBuf>, files: &BTreeMap<PathBuf, String>) -> Vec<PathBuf> {
    let mut reached = BTreeSet::new();
    // The targets of cargo-fuzz are in a workspace of their own, of which cargo tells nothing here.
    let fuzz = files.keys().filter(|file| file.parent().is_some_and(|folder| folder.ends_with("fuzz/fuzz_targets")));
    let mut waiting: Vec<(PathBuf, bool)> = roots.iter().chain(fuzz).map(|root| (root.clone(), true)).collect();
    while let Some((file, is_root)) = waiting.pop() {
        let Some(text) = files.get(&file) else {
            continue;
        };
        if reached.insert(file.clone()) {
            waiting.extend(children(&file, is_root, text));
        }
    }
    files.keys().filter(|file| !reached.contains(*file)).cloned().collect()
}

/// The files that the text asks for, each with whether its own children lie beside it.
fn children(file: &Path, is_root: bool, text: &str) -> Vec<(PathBuf, bool)> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let below = if is_root { folder.to_path_buf() } else { file.with_extension("") };
    let mut found = Vec::new();
    let mut named: Option<&str> = None;
    for line in text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("#[path = \"").and_then(|rest| rest.split('"').next()) {
            named = Some(path);
        } else if let Some(module) = declared(line) {
            match named.take() {
                Some(path) => found.push((normal(&folder.join(path)), true)),
                None => found.extend([(below.join(format!("{module}.rs")), false), (below.join(module).join("mod.rs"), true)]),
            }
        } else if let Some(path) = line.split("include!(\"").nth(1).and_then(|rest| rest.split('"').next()) {
            found.push((normal(&folder.join(path)), true));
        }
    }
    found
}

/// `name` of a line `mod name;` with any visibility.
fn declared(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let name = line.strip_prefix("mod ")?.split_once(';')?.0.trim();
    (!name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_')).then_some(name)
}

/// Resolves `..` and `.` by name.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = normal.pop(),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphans_of(roots: &[&str], files: &[(&str, &str)]) -> Vec<String> {
        let roots = roots.iter().map(PathBuf::from).collect();
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        orphans(&roots, &files).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn a_file_that_nothing_declares_is_found() {
        let files = [("a/src/lib.rs", "mod pci;\n"), ("a/src/pci.rs", ""), ("a/src/forgotten.rs", "")];
        assert_eq!(orphans_of(&["a/src/lib.rs"], &files), ["a/src/forgotten.rs"]);
    }

    #[test]
    fn a_fuzz_target_is_declared_by_nobody_and_declares_others() {
        let files = [("a/fuzz/fuzz_targets/x.rs", "#[path = \"../y.rs\"]\nmod y;"), ("a/fuzz/y.rs", ""), ("a/fuzz/z.rs", "")];
        assert_eq!(orphans_of(&[], &files), ["a/fuzz/z.rs"]);
    }

    #[test]
    fn a_file_below_an_orphan_is_an_orphan() {
        let files = [("a/src/lib.rs", ""), ("a/src/old.rs", "mod deep;"), ("a/src/old/deep.rs", "")];
        assert_eq!(orphans_of(&["a/src/lib.rs"], &files).len(), 2);
    }

    #[test]
    fn a_commented_or_inline_module_declares_no_file() {
        let files = [("a/src/lib.rs", "// mod gone;\nmod tests {\n}\n"), ("a/src/gone.rs", ""), ("a/src/tests.rs", "")];
        assert_eq!(orphans_of(&["a/src/lib.rs"], &files), ["a/src/gone.rs", "a/src/tests.rs"]);
    }

    #[test]
    fn nested_public_renamed_and_included_files_are_reached() {
        let files = [
            ("a/src/main.rs", "pub(crate) mod add;\npub mod del;\n#[cfg(test)]\n#[path = \"../testing/fake.rs\"]\nmod fake;\n"),
            ("a/src/add.rs", "mod ipam;"),
            ("a/src/add/ipam.rs", ""),
            ("a/src/del.rs", "include!(\"table.rs\");"),
            ("a/src/table.rs", ""),
            ("a/testing/fake.rs", "mod kernel;"),
            ("a/testing/kernel.rs", ""),
        ];
        assert_eq!(orphans_of(&["a/src/main.rs"], &files), Vec::<String>::new());
    }

    #[test]
    fn every_target_is_a_root_of_its_own() {
        let files = [("a/src/lib.rs", ""), ("a/tests/one.rs", "mod shared;"), ("a/tests/shared.rs", ""), ("a/tests/two.rs", "")];
        assert_eq!(orphans_of(&["a/src/lib.rs", "a/tests/one.rs"], &files), ["a/tests/two.rs"]);
    }
}
