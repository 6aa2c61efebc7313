//! I/O: the only code that opens files of the machine (`/sys`, `/proc`, namespace files), below a root that is a value.
//!
//! What lives here: read, write, link and list with errors that name operation and path and keep the kernel's errno. What an attribute
//! means does not live here.
//!
//! Invariant: a path of the machine is always joined below the root, and a write never creates a file: sysfs has the attribute or not.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::io::{Errno, retry_on_intr};

/// The files of a machine below a root folder.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// A file operation that the machine refused. The text holds the kernel's own words.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// `read(2)` or `open(2)` for it.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file, below the root.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// `write(2)` or `open(2)` for it.
    #[error("cannot write {text:?} to {path}: {cause}")]
    Write {
        /// The file, below the root.
        path: PathBuf,
        /// What was written.
        text: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// `readlink(2)`.
    #[error("cannot read the link {path}: {cause}")]
    ReadLink {
        /// The link, below the root.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// `getdents(2)` or `open(2)` for it.
    #[error("cannot list {path}: {cause}")]
    List {
        /// The folder, below the root.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl SysfsError {
    /// The kernel's errno, for example 16 (EBUSY) or 34 (ERANGE) of a write to `sriov_numvfs`.
    pub fn errno(&self) -> Option<i32> {
        self.cause().raw_os_error()
    }

    /// Whether the file or its device is not there (any more).
    pub fn is_gone(&self) -> bool {
        let gone = [Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::NOTDIR].map(Errno::raw_os_error);
        self.errno().is_some_and(|errno| gone.contains(&errno))
    }

    fn cause(&self) -> &io::Error {
        match self {
            Self::Read { cause, .. } | Self::Write { cause, .. } | Self::ReadLink { cause, .. } | Self::List { cause, .. } => cause,
        }
    }
}

impl Sysfs {
    /// The files below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a path of the machine (`/sys/...`) is found below the root.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether the path names something; links are followed.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        count_operation();
        self.resolve(path).exists()
    }

    /// The text of a file without surrounding white space.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String, SysfsError> {
        let path = self.resolve(path);
        match read_whole(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Err(cause) => Err(SysfsError::Read { path, cause }),
        }
    }

    /// As [`Sysfs::read`]; `None` when the file or its device is not there.
    pub fn read_opt(&self, path: impl AsRef<Path>) -> Result<Option<String>, SysfsError> {
        unless_gone(self.read(path))
    }

    /// Writes `text` to a file that exists, in one `write(2)`: sysfs takes each write as a command of its own. (It ignores the truncation,
    /// which makes a plain file of a test hold what was written last.)
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<(), SysfsError> {
        let path = self.resolve(path);
        let result = OpenOptions::new().write(true).truncate(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        result.map_err(|cause| SysfsError::Write { path, text: text.to_owned(), cause })
    }

    /// Opens a file for reading.
    pub(crate) fn open(&self, path: impl AsRef<Path>) -> Result<File, SysfsError> {
        open(&self.resolve(path))
    }

    /// Opens a folder; `None` when it or its device is not there.
    pub(crate) fn folder(&self, path: impl AsRef<Path>) -> Result<Option<Folder>, SysfsError> {
        count_operation();
        let path = self.resolve(path);
        let fd = openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = unless_gone(fd.map_err(|cause| SysfsError::List { path: path.clone(), cause: cause.into() }))?;
        Ok(fd.map(|fd| Folder { fd, path }))
    }

    /// A link's target as it is written; `None` when there is no such link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>, SysfsError> {
        count_operation();
        let path = self.resolve(path);
        match fs::read_link(&path) {
            // A plain folder where a link is usual: there is nothing to follow.
            Err(cause) if cause.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(None),
            target => unless_gone(target.map_err(|cause| SysfsError::ReadLink { path, cause })),
        }
    }

    /// The last component of a link's target (`driver` -> `igbvf`); `None` when there is no such link.
    pub fn read_link_name(&self, path: impl AsRef<Path>) -> Result<Option<String>, SysfsError> {
        count_operation();
        let path = self.resolve(path);
        let target = fs::read_link(&path).map_err(|cause| SysfsError::ReadLink { path, cause });
        Ok(unless_gone(target)?.and_then(|target| target.file_name().map(lossy)))
    }

    /// The names in a folder, sorted. A missing folder is an error.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<String>, SysfsError> {
        count_operation();
        let path = self.resolve(path);
        let entries = fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(lossy(&entry?.file_name()))).collect());
        let mut names: Vec<String> = entries.map_err(|cause| SysfsError::List { path, cause })?;
        names.sort_unstable();
        Ok(names)
    }

    /// As [`Sysfs::list`]; `None` when the folder or its device is not there.
    pub fn list_opt(&self, path: impl AsRef<Path>) -> Result<Option<Vec<String>>, SysfsError> {
        unless_gone(self.list(path))
    }
}

/// A folder that is open: of a device, many of whose attributes are read. The kernel walks its path once; a device that vanishes meanwhile has no
/// attributes any more, and one that takes its name afterwards is not mistaken for it.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// As [`Sysfs::read_opt`], of a file in this folder.
    pub(crate) fn read_opt(&self, name: &str) -> Result<Option<String>, SysfsError> {
        count_operation();
        let read = || {
            let mut file = File::from(openat(&self.fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
            // The kernel gives all of an attribute at once, and none is longer than a page: what does not fill this is all.
            let mut page = [0; ATTRIBUTE_BYTES];
            let length = retry_on_intr(|| rustix::io::read(&file, &mut page))?;
            let first = page.get(..length).unwrap_or_default();
            if length < ATTRIBUTE_BYTES {
                return Ok(String::from_utf8_lossy(first).trim().to_owned());
            }
            let mut whole = first.to_vec();
            file.read_to_end(&mut whole)?;
            Ok(String::from_utf8_lossy(&whole).trim().to_owned())
        };
        unless_gone(read().map_err(|cause: io::Error| SysfsError::Read { path: self.path.join(name), cause }))
    }

    /// As [`Sysfs::read_link_name`], of a link in this folder.
    pub(crate) fn read_link_name(&self, name: &str) -> Result<Option<String>, SysfsError> {
        count_operation();
        let target = readlinkat(&self.fd, name, Vec::new());
        let target = unless_gone(target.map_err(|cause| SysfsError::ReadLink { path: self.path.join(name), cause: cause.into() }))?;
        Ok(target.map(|target| target.to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned()))
    }

    /// As [`Sysfs::list_opt`], of a folder in this folder.
    pub(crate) fn list_opt(&self, name: &str) -> Result<Option<Vec<String>>, SysfsError> {
        count_operation();
        let list = || {
            let fd = openat(&self.fd, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let mut names = Vec::new();
            for entry in Dir::new(fd)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy();
                if !matches!(&*name, "." | "..") {
                    names.push(name.into_owned());
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        unless_gone(list().map_err(|cause: Errno| SysfsError::List { path: self.path.join(name), cause: cause.into() }))
    }
}

/// Attributes are at most a page.
const ATTRIBUTE_BYTES: usize = 4096;

/// All of a file. The size that the machine tells of its files is no help, so that it is not asked for.
fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    count_operation();
    let mut bytes = Vec::with_capacity(ATTRIBUTE_BYTES);
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
std::thread_local! {
    /// What this thread read, in operations, so that a test can say what a look costs.
    pub(crate) static OPERATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts one operation, in tests alone.
fn count_operation() {
    #[cfg(test)]
    OPERATIONS.set(OPERATIONS.get() + 1);
}

/// Opens a file for reading by its path in this process's own view: namespace files, which are never below a host root.
pub(crate) fn open(path: &Path) -> Result<File, SysfsError> {
    File::open(path).map_err(|cause| SysfsError::Read { path: path.to_owned(), cause })
}

/// Metadata of a file by its path in this process's own view; `None` when it is not there.
pub(crate) fn stat(path: &Path) -> Result<Option<fs::Metadata>, SysfsError> {
    unless_gone(fs::metadata(path).map_err(|cause| SysfsError::Read { path: path.to_owned(), cause }))
}

fn unless_gone<T>(result: Result<T, SysfsError>) -> Result<Option<T>, SysfsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

fn lossy(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use crate::testing::SysfsTree;

    #[test]
    fn paths_of_the_machine_are_taken_below_the_root() {
        let fake = SysfsTree::new().file("/sys/a", "1\n").link("/sys/b", "../../bus/pci/drivers/igbvf").build().unwrap();
        let sysfs = fake.host().sysfs().clone();
        assert_eq!(sysfs.read("/sys/a").unwrap(), "1");
        assert_eq!(sysfs.read("sys/a").unwrap(), "1");
        assert_eq!(sysfs.read_link_name("/sys/b").unwrap().as_deref(), Some("igbvf"));
        assert_eq!(sysfs.list("/sys").unwrap(), ["a", "b", "bus"]);
    }

    #[test]
    fn an_open_folder_shows_what_its_path_shows() {
        let tree = SysfsTree::new().file("/sys/d/a", " 1\n").link("/sys/d/driver", "../../bus/pci/drivers/igbvf").dir("/sys/d/net/eth0");
        let fake = tree.file("/sys/d/long", &"x".repeat(5000)).build().unwrap();
        let sysfs = fake.host().sysfs().clone();
        let folder = sysfs.folder("/sys/d").unwrap().unwrap();
        assert_eq!(folder.read_opt("a").unwrap().as_deref(), Some("1"));
        assert_eq!(folder.read_opt("long").unwrap().map(|text| text.len()), Some(5000));
        assert_eq!(folder.read_link_name("driver").unwrap().as_deref(), Some("igbvf"));
        assert_eq!(folder.list_opt("net").unwrap(), Some(vec!["eth0".to_owned()]));
        assert_eq!((folder.read_opt("no").unwrap(), folder.read_link_name("no").unwrap(), folder.list_opt("no").unwrap()), (None, None, None));
        assert!(sysfs.folder("/sys/no").unwrap().is_none());
        let error = folder.read_opt("net").unwrap_err().to_string();
        assert!(error.contains("sys/d/net"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_none_or_an_error_that_names_the_path() {
        let fake = SysfsTree::new().file("/sys/a", "1").build().unwrap();
        let sysfs = fake.host().sysfs().clone();
        assert_eq!(sysfs.read_opt("/sys/missing").unwrap(), None);
        assert_eq!(sysfs.read_opt("/sys/a/below-a-file").unwrap(), None);
        assert_eq!(sysfs.read_link_name("/sys/missing").unwrap(), None);
        assert_eq!(sysfs.list_opt("/sys/missing").unwrap(), None);
        let error = sysfs.write("/sys/missing", "4").unwrap_err();
        assert_eq!(error.errno(), Some(2));
        assert!(error.to_string().contains("\"4\"") && error.to_string().contains("sys/missing"), "{error}");
        assert!(!sysfs.exists("/sys/missing"), "a write must not create the file");
    }
}
