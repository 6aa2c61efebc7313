//! I/O: puts the CNI plugin where the container runtime looks for it.
//!
//! Invariant: at every moment the target is the old or the new program, whole; a runtime that is about to execute it never meets half a file or
//! "text file busy".

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Why the program was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The source.
    #[error("failed to read {path}: {cause}")]
    ReadSource {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The target.
    #[error("failed to install {path}: {cause}")]
    WriteTarget {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Copies `from` to `to` unless it is the same and executable already; answers whether it was copied.
pub fn install(from: &Path, to: &Path) -> Result<bool, InstallError> {
    let wanted = fs::read(from).map_err(|cause| InstallError::ReadSource { path: from.to_owned(), cause })?;
    let same = fs::read(to).is_ok_and(|present| present == wanted) && fs::metadata(to).is_ok_and(|m| m.permissions().mode() & 0o111 == 0o111);
    if same {
        return Ok(false);
    }
    replace(&wanted, to).map_err(|cause| InstallError::WriteTarget { path: to.to_owned(), cause })?;
    Ok(true)
}

fn replace(content: &[u8], to: &Path) -> io::Result<()> {
    let folder = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, to)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_installed_once_and_replaced_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("sriov"), folder.path().join("opt/cni/bin/sriov"));
        assert!(install(&from, &to).unwrap_err().to_string().starts_with("failed to read"));
        fs::write(&from, "one").unwrap();
        assert!(install(&from, &to).unwrap());
        assert!(!install(&from, &to).unwrap(), "nothing changed");
        fs::write(&from, "two").unwrap();
        assert!(install(&from, &to).unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(install(&from, &to).unwrap(), "not executable");
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
