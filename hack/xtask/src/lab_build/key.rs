//! Pure but for reading the files it is given: the content keys that decide whether a lab stage is built again. What a stage depends on is
//! decided by the stage.
//!
//! Invariant: every field goes in with its length and its label, so two different lists of inputs never give the same bytes to the hash.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

/// Identity of a stage's inputs: 24 hexadecimal digits of a SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// The digits, also the name of the stage's folder.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Collects the inputs of one stage.
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// Starts with the stage's name and the source text of its recipe: changing how a stage is built builds it again.
    pub(crate) fn new(stage: &str, recipe: &str) -> Self {
        Self(Sha256::new()).text("stage", stage).text("recipe", recipe)
    }

    /// A version, a flag, a list: anything that is a short text.
    pub(crate) fn text(self, label: &str, value: &str) -> Self {
        self.bytes(label, value.as_bytes())
    }

    /// What an earlier stage was built from.
    pub(crate) fn key(self, label: &str, key: &Key) -> Self {
        self.text(label, key.as_str())
    }

    /// One file: its content, not its name or time.
    pub(crate) fn file(self, label: &str, path: &Path) -> Result<Self> {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(self.bytes(label, &content))
    }

    /// A folder: names, contents, link targets and whether files may be executed.
    pub(crate) fn tree(self, label: &str, root: &Path) -> Result<Self> {
        let mut inputs = self.text("tree", label);
        for relative in files_below(root)? {
            let path = root.join(&relative);
            let shown = relative.to_string_lossy().into_owned();
            let metadata = std::fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
            inputs = if metadata.is_symlink() {
                let target = std::fs::read_link(&path).with_context(|| format!("read the link {}", path.display()))?;
                inputs.text("link", &shown).text("to", &target.to_string_lossy())
            } else if metadata.permissions().mode() & 0o100 != 0 {
                inputs.text("executable", &shown).file("content", &path)?
            } else {
                inputs.text("file", &shown).file("content", &path)?
            };
        }
        Ok(inputs)
    }

    /// The key of everything given so far.
    pub(crate) fn finish(self) -> Key {
        let mut text = String::new();
        for byte in self.0.finalize().iter().take(12) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Key(text)
    }

    fn bytes(mut self, label: &str, value: &[u8]) -> Self {
        for part in [label.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }
}

/// The files and links below `root`, relative to it, sorted; folders only count through what is in them.
pub(crate) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry.with_context(|| format!("list {}", path.display()))?;
            let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
            let relative = folder.join(entry.file_name());
            if kind.is_dir() { folders.push(relative) } else { found.push(relative) }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn key(fields: &[(&str, &str)]) -> Key {
        fields.iter().fold(Inputs::new("stage", "recipe"), |inputs, (label, value)| inputs.text(label, value)).finish()
    }

    fn tree_key(root: &Path) -> Key {
        Inputs::new("stage", "recipe").tree("tree", root).unwrap().finish()
    }

    #[test]
    fn the_same_inputs_give_the_same_key_and_any_change_gives_another() {
        let base = key(&[("go", "1.26.8"), ("flags", "-s -w")]);
        assert_eq!(base, key(&[("go", "1.26.8"), ("flags", "-s -w")]));
        assert_ne!(base, key(&[("go", "1.26.9"), ("flags", "-s -w")]));
        assert_ne!(base, key(&[("flags", "-s -w"), ("go", "1.26.8")]));
        assert_ne!(base, Inputs::new("stage", "another recipe").text("go", "1.26.8").text("flags", "-s -w").finish());
    }

    #[test]
    fn text_that_moves_from_one_field_into_the_next_changes_the_key() {
        assert_ne!(key(&[("a", "bc"), ("d", "")]), key(&[("a", "b"), ("d", "c")]));
        assert_ne!(key(&[("ab", "c")]), key(&[("a", "bc")]));
    }

    #[test]
    fn a_tree_key_sees_content_name_mode_and_link_target_but_not_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/rc"), "one").unwrap();
        std::os::unix::fs::symlink("rc", root.join("etc/link")).unwrap();
        let base = tree_key(root);

        fs::write(root.join("etc/rc"), "one").unwrap();
        assert_eq!(tree_key(root), base, "written again with the same content");
        fs::set_permissions(root.join("etc/rc"), fs::Permissions::from_mode(0o755)).unwrap();
        let executable = tree_key(root);
        assert_ne!(executable, base);
        fs::write(root.join("etc/rc"), "two").unwrap();
        assert_ne!(tree_key(root), executable);
        fs::write(root.join("etc/rc"), "one").unwrap();
        fs::remove_file(root.join("etc/link")).unwrap();
        std::os::unix::fs::symlink("elsewhere", root.join("etc/link")).unwrap();
        assert_ne!(tree_key(root), executable);
    }
}
