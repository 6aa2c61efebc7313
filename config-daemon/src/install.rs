//! I/O: puts the CNI plugin where the container runtime looks for it.
//!
//! A program tells in its own file which version of journals it writes (what `sriov --version` prints). One whose journals are of an older version
//! than those of the installed program would find pods that it can't detach, so that it is not put in its place unless that is asked for. The
//! program's own version does not count: a release can be taken back.
//!
//! Invariant: at every moment the target is the old or the new program, whole; a runtime that is about to execute it never meets half a file or
//! "text file busy".

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, setxattr};

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

/// What became of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The program was put in place.
    Copied,
    /// It was there.
    Same,
    /// The installed program stays: it writes journals that this one can't read.
    Kept {
        /// The version of the installed program's journals.
        there: u32,
        /// The version of this program's.
        ours: u32,
    },
}

/// The attribute with a file's SELinux label, and the label of programs.
const SELINUX: &str = "security.selinux";
const PROGRAM_LABEL: &[u8] = b"system_u:object_r:bin_t:s0\0";

/// The name by which networks of InfiniBand VFs call the plugin.
const INFINIBAND: &str = "ib-sriov";
/// Between the program's version and the number of the journals' in the plugin's file.
const JOURNALS: &[u8] = b", journals of version ";

/// Installs the CNI plugin, unless what is there writes newer journals; `force` replaces that too. Beside it goes the same program as `ib-sriov`, unless
/// another plugin has that name.
pub fn install_cni(from: &Path, to: &Path, force: bool) -> Result<Installed, InstallError> {
    let wanted = fs::read(from).map_err(|cause| InstallError::ReadSource { path: from.to_owned(), cause })?;
    let ours = journals_of(&wanted);
    let there = fs::read(to).ok().and_then(|present| journals_of(&present));
    if let (Some(ours), Some(there), false) = (ours, there, force)
        && there > ours
    {
        return Ok(Installed::Kept { there, ours });
    }
    let infiniband = to.with_file_name(INFINIBAND);
    if fs::read(&infiniband).map_or(true, |present| journals_of(&present).is_some()) {
        install(from, &infiniband)?;
    }
    Ok(if install(from, to)? { Installed::Copied } else { Installed::Same })
}

/// The version of the journals that a program says it writes; `None` for any other program than the plugin.
fn journals_of(program: &[u8]) -> Option<u32> {
    let at = program.windows(JOURNALS.len()).position(|window| window == JOURNALS)? + JOURNALS.len();
    let digits = program.get(at..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
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

/// Labels a file as a program where files have labels. One that has the label of `/var/lib` is not run by systemd, if SELinux is enforced.
pub fn label_as_program(path: &Path) -> io::Result<()> {
    let mut label = [0; 256];
    let has_labels = path.parent().is_some_and(|folder| getxattr(folder, SELINUX, &mut label).is_ok_and(|length| length > 0));
    if !has_labels || getxattr(path, SELINUX, &mut label).is_ok_and(|length| label.get(..length) == Some(PROGRAM_LABEL)) {
        return Ok(());
    }
    Ok(setxattr(path, SELINUX, PROGRAM_LABEL, XattrFlags::empty())?)
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
    fn program(folder: &Path, name: &str, journals: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("\0\0sriov 0.1.0, journals of version {journals}, CNI 0.1.0 to 1.1.0\0{name}")).unwrap();
        path
    }

    #[test]
    fn a_program_that_cannot_read_the_journals_there_is_not_installed_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new, to) = (program(folder.path(), "old", 1), program(folder.path(), "new", 2), folder.path().join("bin/sriov"));
        assert_eq!(install_cni(&new, &to, false).unwrap(), Installed::Copied);
        assert_eq!(install_cni(&new, &to, false).unwrap(), Installed::Same);
        assert_eq!(install_cni(&old, &to, false).unwrap(), Installed::Kept { there: 2, ours: 1 });
        assert_eq!(fs::read(&to).unwrap(), fs::read(&new).unwrap());
        assert_eq!(install_cni(&old, &to, true).unwrap(), Installed::Copied);
        let again = program(folder.path(), "again", 1);
        assert_eq!(install_cni(&again, &to, false).unwrap(), Installed::Copied, "another program with the same journals");
        fs::write(&to, "the Go plugin").unwrap();
        assert_eq!(install_cni(&old, &to, false).unwrap(), Installed::Copied, "what is not ours is replaced, its pods are taken over");
    }

    #[test]
    fn infiniband_networks_find_the_same_program_unless_another_has_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (program(folder.path(), "sriov", 1), folder.path().join("bin/sriov"));
        install_cni(&from, &to, false).unwrap();
        let infiniband = folder.path().join("bin/ib-sriov");
        assert_eq!(fs::read(&infiniband).unwrap(), fs::read(&from).unwrap());
        fs::write(&infiniband, "another plugin").unwrap();
        install_cni(&program(folder.path(), "next", 1), &to, false).unwrap();
        assert_eq!(fs::read_to_string(&infiniband).unwrap(), "another plugin");
    }
}
