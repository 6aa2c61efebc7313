//! I/O: network namespaces: open, name by identity, run something inside.
//!
//! Invariant: a namespace belongs to a thread. Whatever happens inside, the calling thread is back where it was when a function returns; a process
//! that could not bring it back ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::sysfs::{self, SysfsError};

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

/// What makes a namespace the same namespace: device and inode of its file. A path can later name another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NsId {
    /// Device number of the namespace file system.
    pub dev: u64,
    /// Inode, unique while the namespace lives.
    pub ino: u64,
}

/// A namespace that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The path could not be opened or looked at.
    #[error(transparent)]
    Open(#[from] SysfsError),
    /// The path is left over from a namespace that has ended, or never was one.
    #[error("{path} is not a network namespace (left over from one that ended?)")]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// `setns(2)` failed.
    #[error("cannot enter the network namespace {path}: {cause}")]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl NetNsError {
    /// Whether the namespace does not exist (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open(error) => error.is_gone(),
            Self::NotANamespace { .. } => true,
            Self::Enter { .. } => false,
        }
    }
}

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i128 = 0x6e73_6673;

impl NetNs {
    /// Opens the namespace that a path names: a bind mount (`/run/netns/NAME`) or `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref();
        let file = sysfs::open(path)?;
        let kind = rustix::fs::fstatfs(&file).map_err(|errno| SysfsError::Read { path: path.to_owned(), cause: errno.into() })?;
        // When a namespace ends under its bind mount's folder, a plain empty file stays.
        if i128::from(kind.f_type) != NSFS_MAGIC {
            return Err(NetNsError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(OWN_NETNS)
    }

    /// Its identity.
    pub fn id(&self) -> Result<NsId, NetNsError> {
        let metadata = self.file.metadata().map_err(|cause| SysfsError::Read { path: self.path.clone(), cause })?;
        Ok(NsId { dev: metadata.dev(), ino: metadata.ino() })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` with the calling thread inside and returns its result. Threads that `work` starts are inside for good. A panic in `work` goes on
    /// outside.
    pub fn run_in<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetNsError> {
        let outside = sysfs::open(Path::new(OWN_NETNS))?;
        enter(&self.file).map_err(|cause| NetNsError::Enter { path: self.path.clone(), cause })?;
        let _return = Return(outside);
        Ok(work())
    }
}

/// The calling thread's namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

fn enter(netns: &File) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Brings the thread back to this namespace, also when the work inside panics.
struct Return(File);

impl Drop for Return {
    fn drop(&mut self) {
        // Who may enter one namespace may enter the other. If that is ever not so, all that this thread did next would be done to a container.
        if enter(&self.0).is_err() {
            std::process::abort();
        }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NsId {
    /// The identity of whatever a path names now, without opening it; `None` when there is nothing. Equal to a remembered identity only
    /// while that namespace is still mounted there.
    pub fn of_path(path: impl AsRef<Path>) -> Result<Option<Self>, NetNsError> {
        Ok(sysfs::stat(path.as_ref())?.map(|metadata| Self { dev: metadata.dev(), ino: metadata.ino() }))
    }

    /// The identity of the calling thread's namespace, which is not opened for it.
    pub fn own() -> Result<Self, NetNsError> {
        Self::of_path(OWN_NETNS)?.ok_or_else(|| NetNsError::NotANamespace { path: OWN_NETNS.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;
    use crate::testing::new_netns;

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let netns = new_netns().unwrap();
        let before = NetNs::current().unwrap().id().unwrap();
        assert_eq!(NsId::own().unwrap(), before);
        assert_eq!(netns.run_in(NsId::own).unwrap().unwrap(), netns.id().unwrap());
        let inside = netns.run_in(|| NetNs::current().unwrap().id().unwrap()).unwrap();
        assert_eq!(inside, netns.id().unwrap());
        assert_ne!(inside, before);
        assert_eq!(NetNs::current().unwrap().id().unwrap(), before);
    }

    #[test]
    fn a_socket_opened_inside_stays_inside() {
        let netns = new_netns().unwrap();
        let route = Route::open_in(&netns).unwrap();
        let names: Vec<_> = route.links().unwrap().into_iter().map(|link| link.netdev.name).collect();
        assert_eq!(names, ["lo"]);
    }

    #[test]
    fn a_plain_file_is_a_namespace_that_has_ended() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(NetNs::open(file.path()).unwrap_err().is_gone());
        assert!(NetNs::open("/run/netns/there-is-no-such-namespace").unwrap_err().is_gone());
        assert_eq!(NsId::of_path("/run/netns/there-is-no-such-namespace").unwrap(), None);
    }

    #[test]
    fn a_panic_inside_reaches_the_caller() {
        let netns = new_netns().unwrap();
        let before = NetNs::current().unwrap().id().unwrap();
        let result = std::panic::catch_unwind(|| netns.run_in(|| panic!("inside")));
        assert!(result.is_err());
        assert_eq!(NetNs::current().unwrap().id().unwrap(), before, "the caller is back");
    }
}
