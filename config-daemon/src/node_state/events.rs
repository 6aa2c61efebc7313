//! I/O: "something on this machine changed", from the kernel's device events, its announcements of links, and the folders that tell of pods; and what
//! the kernel named.
//!
//! What does not live here: what is read again because of that (`sriov_host::discover`).
//!
//! Invariants: an event is only a reason to look; nothing else is concluded from it, so that doubled events do no harm, and lost ones mean everything.
//! What is named is noted before anybody is woken, also where nobody is: links of others tell what the host uses ours for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sriov_host::discover::Changes;
use sriov_host::netlink::{Link, LinkMonitor, LinkMonitorError};
use sriov_host::uevent::{Uevent, UeventError, UeventSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::store::PodFolders;

/// Quiet time after which a burst of events is over.
const QUIET: Duration = Duration::from_millis(300);
/// Longest wait for quiet.
const PATIENCE: Duration = Duration::from_secs(3);

/// Longest time in which a thread does not notice that nobody listens any more.
const LOOK_UP: Duration = Duration::from_mins(1);

/// Changes as wake-ups.
#[derive(Debug)]
pub(crate) struct Events {
    wake: mpsc::Receiver<Wake>,
    ended: bool,
    noted: Noted,
    /// For who listens to something else.
    waker: mpsc::Sender<Wake>,
}

/// What was told since somebody took it.
#[derive(Clone, Debug, Default)]
struct Noted(Arc<Mutex<Note>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Note {
    /// What the kernel named.
    changes: Changes,
    /// Somebody was woken for the machine, and not for what others keep about it alone.
    of_machine: bool,
}

impl Noted {
    fn note<T>(&self, add: impl FnOnce(&mut Note) -> T) -> T {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers whether the event is a reason to look.
    fn device(&self, event: &Uevent) -> bool {
        let matters = self.note(|note| note.changes.add_device(event));
        self.machine(matters)
    }

    fn link(&self, link: &Link) -> bool {
        self.note(|note| note.changes.add_link(link.netdev.ifindex));
        self.machine(link_matters(link))
    }

    fn lost(&self) -> bool {
        self.note(|note| note.changes.add_everything());
        self.machine(true)
    }

    fn machine(&self, matters: bool) -> bool {
        self.note(|note| note.of_machine |= matters);
        matters
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Changed,
    /// A thread has ended, so that changes would be missed from now on.
    Ended,
}

impl Events {
    /// Listens on threads of their own, which end when the receiver is dropped or their socket fails for good.
    pub(crate) fn listen(folders: &PodFolders) -> Result<Self, ListenError> {
        let (devices, links, pods) = (UeventSocket::open()?, LinkMonitor::open()?, watch(folders)?);
        let (wake_for_device, wake) = mpsc::channel(1);
        let (wake_for_link, wake_for_pod) = (wake_for_device.clone(), wake_for_device.clone());
        let (noted, waker) = (Noted::default(), wake_for_device.clone());
        let (by_device, by_link, by_pod) = (noted.clone(), noted.clone(), noted.clone());
        spawn("pods", wake_for_pod, move || pods.changed().map(|matters| by_pod.machine(matters)))?;
        spawn("devices", wake_for_device, move || match devices.next(Instant::now() + LOOK_UP) {
            Ok(event) => Ok(event.as_ref().is_some_and(|event| by_device.device(event))),
            Err(UeventError::Overrun) => Ok(by_device.lost()),
            Err(error) => Err(error.to_string()),
        })?;
        spawn("links", wake_for_link, move || match links.next(Instant::now() + LOOK_UP) {
            Ok(link) => Ok(link.as_ref().is_some_and(|link| by_link.link(link))),
            Err(LinkMonitorError::Overrun) => Ok(by_link.lost()),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(Self { wake, ended: false, noted, waker })
    }

    /// What the kernel named since this was called last. A look after it sees all of that.
    pub(crate) fn take(&self) -> Changes {
        self.noted.note(std::mem::take).changes
    }

    /// Whether somebody was woken for the machine since then.
    pub(crate) fn of_machine(&self) -> bool {
        self.noted.note(|note| note.of_machine)
    }

    /// Wakes for what is not the machine itself, from elsewhere.
    pub(crate) fn waker(&self) -> impl Fn() + use<> {
        let waker = self.waker.clone();
        move || _ = waker.try_send(Wake::Changed)
    }

    /// Waits for a change; `None` when no more will be told.
    pub(crate) async fn next(&mut self) -> Option<()> {
        if !self.ended {
            let wake = self.wake.recv().await;
            self.ended = wake != Some(Wake::Changed);
        }
        (!self.ended).then_some(())
    }

    /// Waits until a burst is over.
    pub(crate) async fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && timeout(QUIET, self.next()).await == Ok(Some(())) {}
    }
}

/// Why changes cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket for device events.
    #[error(transparent)]
    Devices(#[from] UeventError),
    /// The socket for links.
    #[error(transparent)]
    Links(#[from] LinkMonitorError),
    /// A folder.
    #[error("failed to watch {path}: {cause}")]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A thread.
    #[error("failed to start a thread that listens for changes: {0}")]
    Thread(#[from] io::Error),
}

/// Wakes for each change that matters; an error ends the thread, and with it the daemon, which is then started anew.
fn spawn(name: &str, wake: mpsc::Sender<Wake>, matters: impl Fn() -> Result<bool, String> + Send + 'static) -> io::Result<()> {
    let listen = move || {
        while !wake.is_closed() {
            match matters() {
                // A full channel already holds a wake-up that nobody has seen.
                Ok(true) => _ = wake.try_send(Wake::Changed),
                Ok(false) => {}
                Err(error) => {
                    warn!("{error}");
                    break;
                }
            }
        }
        _ = wake.blocking_send(Wake::Ended);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(listen).map(drop)
}

/// Folders in which files go away when pods end.
#[derive(Debug)]
struct PodWatch {
    fd: OwnedFd,
    /// The journals' folder, and its watch.
    journals: Option<(PathBuf, i32)>,
}

/// Journals are written and removed, and namespaces end: a change that waits for pods goes on at that moment. A folder that is not there (no pod has
/// ever had a VF, and this container may not make it) is left out; the waiting change is then tried again after a while.
fn watch(folders: &PodFolders) -> Result<PodWatch, ListenError> {
    let failed = |path: &Path, errno: Errno| ListenError::Watch { path: path.to_owned(), cause: errno.into() };
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|errno| failed(Path::new("folders"), errno))?;
    let add = |folder: &Path| {
        _ = std::fs::create_dir_all(folder);
        match inotify::add_watch(&fd, folder, WatchFlags::DELETE | WatchFlags::MOVED_TO) {
            Ok(watch) => Ok(Some(watch)),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                warn!("{} is not there, so that the end of pods is noticed late", folder.display());
                Ok(None)
            }
            Err(errno) => Err(failed(folder, errno)),
        }
    };
    add(&folders.namespaces)?;
    let journals = add(&folders.journals)?.map(|watch| (folders.journals.clone(), watch));
    Ok(PodWatch { fd, journals })
}

impl PodWatch {
    /// Waits for a change, or a while, and takes all that were told. Namespaces come and go with every pod; that matters only while pods have VFs.
    fn changed(&self) -> Result<bool, String> {
        let timeout = Timespec::try_from(LOOK_UP).ok();
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(format!("cannot wait for changes of folders: {errno}")),
        }
        let mut bytes = [const { MaybeUninit::uninit() }; 4096];
        let mut events = inotify::Reader::new(&self.fd, &mut bytes);
        let journals = self.journals.as_ref();
        let mut matters = journals.is_none();
        loop {
            match events.next() {
                Ok(event) => matters |= journals.is_some_and(|(_, watch)| event.wd() == *watch),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(errno) => return Err(format!("cannot read changes of folders: {errno}")),
            }
        }
        let in_use = |(folder, _): &(PathBuf, i32)| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        Ok(matters || journals.is_some_and(in_use))
    }
}

fn link_matters(link: &Link) -> bool {
    link.parent.is_some()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_named_is_noted_whether_it_wakes_or_not() {
        let event = |subsystem: &str, devpath: &str| Uevent {
            action: "add".to_owned(),
            devpath: devpath.to_owned(),
            subsystem: subsystem.to_owned(),
            fields: std::collections::BTreeMap::new(),
        };
        let link = |ifindex, parent: Option<&str>| Link { parent: parent.map(|pf| pf.parse().unwrap()), ..sriov_host::testing::link(ifindex, "l") };
        let noted = Noted::default();
        assert!(noted.device(&event("infiniband", "/devices/pci0000:00/0000:01:00.0/infiniband/mlx5_0")));
        assert!(!noted.device(&event("net", "/devices/virtual/net/veth1")) && !noted.device(&event("block", "/devices/pci0000:00/0000:02:00.0/x")));
        assert!(noted.link(&link(3, Some("0000:01:00.0"))));
        assert!(!noted.link(&link(7, None)), "a bond, perhaps above a PF");
        let mut expected = Changes::default();
        expected.add_function("0000:01:00.0".parse().unwrap());
        expected.add_link(3);
        expected.add_link(7);
        assert_eq!(noted.note(std::mem::take), Note { changes: expected, of_machine: true });
        assert!(!noted.link(&link(7, None)) && !noted.note(|note| note.of_machine), "nobody was woken");
        assert!(noted.lost());
        assert!(noted.note(|note| note.of_machine && note.changes.is_everything()));
    }

    #[test]
    fn the_end_of_a_pod_wakes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let journals = folder.path().join("v1");
        let watcher = watch(&PodFolders { journals: journals.clone(), namespaces: folder.path().join("netns") }).unwrap();
        fs::write(journals.join(".0000:01:10.0.tmp"), "{}").unwrap();
        fs::rename(journals.join(".0000:01:10.0.tmp"), journals.join("0000:01:10.0.json")).unwrap();
        assert!(watcher.changed().unwrap(), "a journal came");
        let start = Instant::now();
        fs::remove_file(journals.join("0000:01:10.0.json")).unwrap();
        assert!(watcher.changed().unwrap(), "a journal went");
        assert!(start.elapsed() < LOOK_UP / 2);
        fs::write(folder.path().join("netns/cni-1"), "").unwrap();
        fs::write(folder.path().join("netns/cni-2"), "").unwrap();
        fs::remove_file(folder.path().join("netns/cni-1")).unwrap();
        assert!(!watcher.changed().unwrap(), "a namespace ended while no pod has a VF");
        fs::write(journals.join("0000:01:10.2.json"), "{").unwrap();
        fs::remove_file(folder.path().join("netns/cni-2")).unwrap();
        assert!(watcher.changed().unwrap(), "a namespace ended, perhaps of the pod that has the VF");
    }
}
