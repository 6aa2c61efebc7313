//! I/O: what wakes this program: changes in a folder (inotify), of devices (uevents), of the network (rtnetlink) and of the health of devices
//! (devlink). Nothing here reads what changed.
//!
//! Invariant: a watch stands before the first look, so that a change is either seen by that look or wakes the next one; and several changes
//! while the program is busy are one wake-up.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sriov_host::device_id::SfName;
use sriov_host::netlink::devlink::DevlinkMonitor;
use sriov_host::netlink::{LinkMonitorError, NetMonitor};
use sriov_host::pci::PciAddress;
use sriov_host::uevent::{UeventError, UeventSocket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::machine::Changes;

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

/// The kernel's announcements: device events and changes of links, addresses and routes. Nothing is read from them but what to look at again.
#[derive(Debug, Default)]
pub struct Events {
    devices: Option<(UeventSocket, AsyncFd<OwnedFd>)>,
    net: Option<(NetMonitor, AsyncFd<OwnedFd>)>,
    health: Option<(DevlinkMonitor, AsyncFd<OwnedFd>)>,
}

impl Events {
    /// Listens from now on, to what it can; what it cannot hear is logged. Must be called inside a tokio runtime.
    pub fn listen() -> Self {
        let devices = UeventSocket::open().map_err(io::Error::other).and_then(|socket| Ok((readable(socket.as_fd())?, socket)));
        let net = NetMonitor::open().map_err(io::Error::other).and_then(|socket| Ok((readable(socket.as_fd())?, socket)));
        let health = DevlinkMonitor::open().map_err(io::Error::other).and_then(|socket| Ok((readable(socket.as_fd())?, socket)));
        Self {
            devices: heard("devices", devices).map(|(fd, socket)| (socket, fd)),
            net: heard("links", net).map(|(fd, socket)| (socket, fd)),
            health: heard("devlink", health).map(|(fd, socket)| (socket, fd)),
        }
    }

    /// Returns when there is something to drain; never if nothing can be heard.
    pub async fn ready(&self) {
        let devices = self.devices.as_ref().map(|(_, fd)| fd);
        let net = self.net.as_ref().map(|(_, fd)| fd);
        let health = self.health.as_ref().map(|(_, fd)| fd);
        tokio::select! {
            () = until_readable(devices) => {}
            () = until_readable(net) => {}
            () = until_readable(health) => {}
        }
    }

    /// Notes all that was announced until now.
    pub fn drain(&mut self, changes: &mut Changes) {
        let now = Instant::now();
        if let Some((socket, _)) = &self.devices {
            loop {
                match socket.next(now) {
                    Ok(None) => break,
                    Ok(Some(event)) => match subfunction_of(&event.devpath) {
                        Some(name) => drop(changes.subfunctions.insert(name)),
                        None => changes.functions.extend(function_of(&event.devpath)),
                    },
                    // A look finds what the lost events were about.
                    Err(UeventError::Overrun) => changes.everything = true,
                    Err(error) => {
                        tracing::error!(%error, "cannot hear of device changes any more");
                        self.devices = None;
                        break;
                    }
                }
            }
        }
        if let Some((socket, _)) = &self.net {
            loop {
                match socket.next(now) {
                    Ok(None) => break,
                    Ok(Some(change)) => changes.net.push(change),
                    Err(LinkMonitorError::Overrun) => changes.everything = true,
                    Err(error) => {
                        tracing::error!(%error, "cannot hear of changes of links any more");
                        self.net = None;
                        break;
                    }
                }
            }
        }
        if let Some((socket, _)) = &self.health {
            changes.reporters |= socket.drain();
        }
    }
}

fn heard<T>(what: &str, opened: io::Result<T>) -> Option<T> {
    opened.inspect_err(|error| tracing::warn!(what, %error, "changes cannot be heard, the machine is looked at when the config file changes")).ok()
}

fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "the other constructor is unsafe; an OwnedFd is what that one asks for: one open file for as long as it lives")]
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// The one who is woken drains the socket, so that the readiness can be forgotten at once.
async fn until_readable(fd: Option<&AsyncFd<OwnedFd>>) {
    let Some(fd) = fd else { return std::future::pending().await };
    match fd.readable().await {
        Ok(mut ready) => ready.clear_ready(),
        // The runtime is ending.
        Err(_) => std::future::pending().await,
    }
}

/// The PCI function that a path of sysfs is about: the deepest one on it.
fn function_of(devpath: &str) -> Option<PciAddress> {
    devpath.rsplit('/').find_map(|part| part.parse().ok())
}

/// The subfunction that a path of sysfs is about.
fn subfunction_of(devpath: &str) -> Option<SfName> {
    devpath.rsplit('/').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use sriov_host::netlink::Route;
    use sriov_host::testing::new_netns;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const NEVER: Duration = Duration::from_millis(50);

    async fn wakes(watch: &mut FolderWatch, within: Duration) -> bool {
        tokio::time::timeout(within, watch.changed()).await.map(Result::unwrap).is_ok()
    }

    #[test]
    fn the_function_of_an_event_is_the_deepest_on_its_path() {
        let function = |path: &str| function_of(path).map(|address| address.to_string());
        assert_eq!(function("/devices/pci0000:00/0000:00:01.0/0000:01:10.0/net/eth0").as_deref(), Some("0000:01:10.0"));
        assert_eq!(function("/devices/pci0000:00/0000:00:01.0").as_deref(), Some("0000:00:01.0"));
        assert_eq!(function("/devices/virtual/net/lo"), None);
        let subfunction = subfunction_of("/devices/pci0000:00/0000:08:00.0/mlx5_core.sf.4/net/en8f0s4");
        assert_eq!(subfunction.map(|name| name.to_string()).as_deref(), Some("mlx5_core.sf.4"));
        assert_eq!(subfunction_of("/devices/pci0000:00/0000:08:00.0/net/en8f0"), None);
    }

    #[test]
    fn a_link_that_comes_wakes_and_is_told() {
        let netns = new_netns().unwrap();
        let inside = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut events = Events::listen();
                assert!(tokio::time::timeout(NEVER, events.ready()).await.is_err());
                Route::open().unwrap().add_link_veth("a0", "b0").unwrap();
                tokio::time::timeout(SOON, events.ready()).await.unwrap();
                let mut changes = Changes::default();
                events.drain(&mut changes);
                assert!(!changes.net.is_empty() && !changes.everything && !changes.is_empty());
                assert!(
                    tokio::time::timeout(NEVER, async {
                        loop {
                            events.ready().await;
                            events.drain(&mut changes);
                        }
                    })
                    .await
                    .is_err()
                );
            });
        };
        netns.run_in(inside).unwrap();
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
