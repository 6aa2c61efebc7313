//! I/O: unix sockets as files: made beside their place and renamed into it, known again, removed only by who made them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::net::UnixListener;

/// A socket file that could not be made, looked at or removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {cause}", path.display())]
pub struct SocketError {
    verb: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// Which file this is. Inode numbers are used again at once by some file systems, so the time of birth belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

impl Identity {
    /// The file at `path` now; `None` when there is none.
    pub fn of(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() }
    }
}

/// Listens on a new socket at `path`, in place of whatever is there.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, Identity), SocketError> {
    let fail = |verb, path: &Path| {
        let path = path.to_owned();
        move |cause| SocketError { verb, path, cause }
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("remove", &fresh)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(fail("listen on", &fresh))?;
    let place = || {
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        let identity = Identity::from(&fs::symlink_metadata(&fresh)?);
        fs::rename(&fresh, path)?;
        Ok(identity)
    };
    Ok((listener, place().map_err(fail("put in place", path))?))
}

/// Removes the socket at `path` if it is the one that was made.
pub(crate) fn remove(path: &Path, made: &Identity) -> Result<(), SocketError> {
    if Identity::of(path).as_ref() != Some(made) {
        return Ok(());
    }
    fs::remove_file(path).map_err(|cause| SocketError { verb: "remove", path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_older_of_two_instances_leaves_the_newer_ones_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_older, made_by_older) = bind(&path).unwrap();
        let (_newer, made_by_newer) = bind(&path).unwrap();
        remove(&path, &made_by_older).unwrap();
        assert!(path.exists());
        remove(&path, &made_by_newer).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&dir.path().join("a".repeat(120))).unwrap_err();
        assert!(error.to_string().starts_with("failed to listen on ") && error.to_string().contains("aaaa"), "{error}");
    }
}
