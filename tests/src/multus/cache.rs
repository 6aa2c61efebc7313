//! I/O: what must be remembered between ADD and DEL, one file a container in `cniDir`. What a delegate is, is not known here.
//!
//! Invariant: a file is replaced as a whole, so a reader sees what some earlier ADD wrote or nothing.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::delegate::Delegate;

/// The file of one container.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// Nothing is touched yet. A container id that is no plain file name is refused.
    pub fn new(folder: &Path, container: &str) -> Result<Self> {
        let plain = !container.is_empty() && !container.starts_with('.') && !container.contains('/');
        ensure!(plain, "container id {container:?} is not a plain name");
        Ok(Self { path: folder.join(container) })
    }

    /// Replaces what is remembered.
    pub fn save(&self, delegates: &[Delegate]) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        let partial = self.path.with_extension("partial");
        let text = serde_json::to_vec(delegates).context("encode the delegates")?;
        std::fs::write(&partial, text).with_context(|| format!("write {}", partial.display()))?;
        std::fs::rename(&partial, &self.path).with_context(|| format!("rename {} to {}", partial.display(), self.path.display()))
    }

    /// What is remembered, if anything.
    pub fn load(&self) -> Result<Option<Vec<Delegate>>> {
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| format!("parse {}", self.path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", self.path.display())),
        }
    }

    /// Forgets; nothing to forget is fine.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a file that may be absent.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::delegate::network;
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(&folder.path().join("multus"), "c1").unwrap();
        assert_eq!(cache.load().unwrap(), None);
        let delegates = vec![network(r#"{"type":"sriov","vlan":7}"#, "n").unwrap()];
        cache.save(&delegates).unwrap();
        assert_eq!(cache.load().unwrap(), Some(delegates));
        cache.remove().unwrap();
        cache.remove().unwrap();
        assert_eq!(cache.load().unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("c1"), "{").unwrap();
        assert!(Cache::new(folder.path(), "c1").unwrap().load().is_err());
    }

    #[test]
    fn a_container_id_cannot_leave_the_folder() {
        for id in ["", "../x", ".", "a/b"] {
            assert!(Cache::new(Path::new("/nowhere"), id).is_err(), "{id:?} was taken");
        }
    }
}
