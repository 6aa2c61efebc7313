//! I/O: what wakes this program: changes in a folder (inotify) and changes of devices (kernel uevents). Nothing here reads what changed.
//!
//! Invariant: a watch stands before the first look, so that a change is either seen by that look or wakes the next one; and several changes
//! while the program is busy are one wake-up.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sriov_host::uevent::{UeventError, UeventSocket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// What may change the names in a folder, or the content behind one of them.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Room for several events; one is at most 16 bytes and a file name of 255.
const BUFFER_BYTES: usize = 4096;

/// A watch that could not be set up or read.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {cause}", folder.display())]
pub struct WatchError {
    verb: &'static str,
    folder: PathBuf,
    cause: io::Error,
}

/// Wakes at each change in a folder. The folder need not exist: until it does, the nearest folder above it is watched.
#[derive(Debug)]
pub struct FolderWatch {
    folder: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    /// What is watched now: the folder, or one above it.
    watched: Option<i32>,
}

impl FolderWatch {
    /// Watches `folder` from now on. Must be called inside a tokio runtime.
    pub fn start(folder: &Path) -> Result<Self, WatchError> {
        let fail = |cause| WatchError { verb: "watch", folder: folder.to_owned(), cause };
        let absolute = std::path::absolute(folder).map_err(fail)?;
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|errno| fail(errno.into()))?;
        #[expect(deprecated, reason = "the other constructor is unsafe; an OwnedFd is what that one asks for: one open file for as long as it lives")]
        let inotify = AsyncFd::with_interest(fd, Interest::READABLE).map_err(fail)?;
        let mut watch = Self { folder: absolute, inotify, watched: None };
        watch.arm()?;
        Ok(watch)
    }

    /// Returns after the next change. Can be dropped and called again without losing one.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        loop {
            let mut ready = self.inotify.readable().await.map_err(|cause| self.error("wait for changes of", cause))?;
            let drained = ready.try_io(|fd| drain(fd.get_ref()));
            match drained {
                Ok(Ok(())) => break,
                Ok(Err(cause)) => return Err(self.error("read changes of", cause)),
                Err(_would_block) => {}
            }
        }
        self.arm()
    }

    /// Moves the watch to the folder itself, or to what there is of its path.
    fn arm(&mut self) -> Result<(), WatchError> {
        let watched = self.watch_deepest().map_err(|errno| self.error("watch", errno.into()))?;
        if let Some(old) = self.watched.replace(watched).filter(|old| *old != watched) {
            // It is gone already when its folder is.
            let _ = inotify::remove_watch(self.inotify.get_ref(), old);
        }
        Ok(())
    }

    fn watch_deepest(&self) -> Result<i32, Errno> {
        // A folder made between two attempts is found by the second round, because its parent is watched by then.
        loop {
            let mut deepest = None;
            for folder in self.folder.ancestors() {
                match inotify::add_watch(self.inotify.get_ref(), folder, CHANGES) {
                    Ok(watch) => {
                        deepest = Some((folder, watch));
                        break;
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            let (folder, watch) = deepest.ok_or(Errno::NOENT)?;
            let next = self.folder.ancestors().take_while(|below| *below != folder).last();
            if next.is_none_or(|next| !next.is_dir()) {
                return Ok(watch);
            }
        }
    }

    fn error(&self, verb: &'static str, cause: io::Error) -> WatchError {
        WatchError { verb, folder: self.folder.clone(), cause }
    }
}

/// Reads all events. Which they are does not matter: whoever is woken looks at the folder itself.
fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut any = false;
    loop {
        match reader.next() {
            Ok(_) => any = true,
            Err(Errno::AGAIN) if any => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A wait for events ends now and then, because it needs an end; a day is no load.
const EVENT_WAIT: Duration = Duration::from_hours(24);

/// Wakes at each change of a PCI function or a netdev, on a thread of its own that ends with the process.
pub fn devices() -> Result<Arc<Notify>, UeventError> {
    let socket = UeventSocket::open()?;
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let listen = move || {
        loop {
            match socket.next(Instant::now() + EVENT_WAIT) {
                Ok(Some(event)) if matches!(event.subsystem.as_str(), "pci" | "net") => notify.notify_one(),
                Ok(_) => {}
                // A look finds what the lost events were about.
                Err(UeventError::Overrun) => notify.notify_one(),
                Err(error) => {
                    tracing::error!(%error, "cannot hear of device changes any more");
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("uevents".to_owned()).spawn(listen).map_err(UeventError::Open)?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const NEVER: Duration = Duration::from_millis(50);

    async fn wakes(watch: &mut FolderWatch, within: Duration) -> bool {
        tokio::time::timeout(within, watch.changed()).await.map(Result::unwrap).is_ok()
    }

    #[tokio::test]
    async fn a_file_replaced_by_rename_wakes_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "1").unwrap();
        let mut watch = FolderWatch::start(dir.path()).unwrap();
        assert!(!wakes(&mut watch, NEVER).await);
        fs::write(dir.path().join("new"), "2").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("config.json")).unwrap();
        assert!(wakes(&mut watch, SOON).await);
        assert!(!wakes(&mut watch, NEVER).await);
    }

    #[tokio::test]
    async fn a_folder_that_appears_later_is_followed_through_each_of_its_parts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run/plugin");
        let mut watch = FolderWatch::start(&folder).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        assert!(wakes(&mut watch, SOON).await);
        fs::create_dir(&folder).unwrap();
        assert!(wakes(&mut watch, SOON).await);
        fs::write(folder.join("config.json"), "1").unwrap();
        assert!(wakes(&mut watch, SOON).await);
        // What happens above the folder is of no interest any more.
        fs::write(dir.path().join("run/other"), "1").unwrap();
        assert!(!wakes(&mut watch, NEVER).await);
    }

    #[tokio::test]
    async fn a_folder_that_is_removed_and_made_again_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("plugin");
        fs::create_dir(&folder).unwrap();
        let mut watch = FolderWatch::start(&folder).unwrap();
        fs::remove_dir(&folder).unwrap();
        assert!(wakes(&mut watch, SOON).await);
        fs::create_dir(&folder).unwrap();
        assert!(wakes(&mut watch, SOON).await);
        fs::write(folder.join("config.json"), "1").unwrap();
        assert!(wakes(&mut watch, SOON).await);
    }
}
