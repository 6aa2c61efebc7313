//! I/O: the kernel's device events (`NETLINK_KOBJECT_UEVENT`), and waiting for a state of the machine with them.
//!
//! Invariant: an event is only a reason to look again; what is true is read from sysfs. Lost events therefore delay a wait and never
//! falsify it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A socket that receives the kernel's own device events, not those that udev sends on.
#[derive(Debug)]
pub struct UeventSocket {
    socket: netlink_sys::Socket,
}

/// A device event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `bind`, `unbind`, `change`, `move`, ...
    pub action: String,
    /// The device's path below `/sys`, with a leading slash.
    pub devpath: String,
    /// `pci`, `net`, ...; empty when the event has none.
    pub subsystem: String,
    /// All fields, for example `PCI_SLOT_NAME`, `DRIVER`, `INTERFACE`.
    pub fields: BTreeMap<String, String>,
}

/// The event socket failed.
#[derive(Debug, thiserror::Error)]
pub enum UeventError {
    /// It could not be opened.
    #[error("cannot open the device event socket: {0}")]
    Open(io::Error),
    /// It could not be read.
    #[error("cannot read device events: {0}")]
    Receive(io::Error),
    /// Events came faster than they were read, and some are lost: look at the machine again.
    #[error("device events were lost because they came faster than they were read")]
    Overrun,
}

/// Kernel events; group 2 carries udev's.
const KERNEL_GROUP: u32 = 1;

/// The kernel's events are at most 2 KiB (`UEVENT_BUFFER_SIZE`) and their first line.
const EVENT_BYTES: usize = 8 * 1024;

/// Room for a burst: a PF that makes its VFs sends several events of about 300 bytes for each.
const RECEIVE_BUFFER_BYTES: i32 = 1024 * 1024;

/// The longest time between two looks during a wait. The kernel does not promise that all of a change can be seen when its event is sent.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl UeventSocket {
    /// Opens the socket. Open it before the look or the write whose effect is awaited, else the event can be missed.
    pub fn open() -> Result<Self, UeventError> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_KOBJECT_UEVENT)?;
            socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
            socket.set_non_blocking(true)?;
            socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
            Ok(Self { socket })
        };
        open().map_err(UeventError::Open)
    }

    /// The next event; `None` when the deadline passes first.
    pub fn next(&self, deadline: Instant) -> Result<Option<Uevent>, UeventError> {
        let mut bytes = Vec::with_capacity(EVENT_BYTES);
        loop {
            bytes.clear();
            match self.socket.recv_from(&mut bytes, 0) {
                // Any privileged process can send to the group; only the kernel is port 0.
                Ok((_, sender)) if sender.port_number() == 0 => {
                    if let Some(event) = Uevent::parse(&bytes) {
                        return Ok(Some(event));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.readable(deadline)? {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Err(UeventError::Overrun),
                Err(error) => return Err(UeventError::Receive(error)),
            }
        }
    }

    /// Looks, and looks again after each event, until `look` finds something, which is returned, or the deadline passes (`None`). Looks at
    /// least once.
    pub fn wait_until<T, E: From<UeventError>>(&self, deadline: Instant, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            match self.next(deadline.min(now + LOOK_AGAIN)) {
                Ok(_) | Err(UeventError::Overrun) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until there is something to read; false when the deadline passes first.
    fn readable(&self, deadline: Instant) -> Result<bool, UeventError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true), // The caller reads, finds nothing and comes back.
            Err(errno) => Err(UeventError::Receive(errno.into())),
        }
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Uevent {
    /// An event from the kernel's form: `ACTION@DEVPATH`, then `KEY=VALUE`, each closed by a zero byte.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let head = parts.next()?;
        let (action, devpath) = head.split_once('@')?;
        let fields: BTreeMap<String, String> =
            parts.filter_map(|part| part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))).collect();
        Some(Self { action: action.to_owned(), devpath: devpath.to_owned(), subsystem: fields.get("SUBSYSTEM").cloned().unwrap_or_default(), fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;
    use crate::testing::new_netns;

    #[test]
    fn the_kernel_form_is_read() {
        let event = Uevent::parse(b"bind@/devices/pci0000:00/0000:01:10.0\0ACTION=bind\0SUBSYSTEM=pci\0DRIVER=igbvf\0").unwrap();
        assert_eq!((event.action.as_str(), event.subsystem.as_str()), ("bind", "pci"));
        assert_eq!(event.fields["DRIVER"], "igbvf");
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed\xca\xfe"), None);
    }

    #[test]
    fn a_new_link_is_an_event_in_its_namespace() {
        let seen = new_netns().unwrap().run_in(|| {
            let events = UeventSocket::open().unwrap();
            Route::open().unwrap().add_link_veth("a0", "b0").unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut names = Vec::new();
            while names.len() < 2 {
                let event = events.next(deadline).unwrap().expect("an event before the deadline");
                if event.subsystem == "net" && event.action == "add" {
                    names.push(event.fields["INTERFACE"].clone());
                }
            }
            names.sort();
            names
        });
        assert_eq!(seen.unwrap(), ["a0", "b0"]);
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_looks_at_least_once() {
        new_netns()
            .unwrap()
            .run_in(|| {
                let events = UeventSocket::open().unwrap();
                let start = Instant::now();
                let mut looks = 0;
                let found = events.wait_until(start + Duration::from_millis(20), || {
                    looks += 1;
                    Ok::<Option<()>, UeventError>(None)
                });
                assert_eq!(found.unwrap(), None);
                assert!(looks >= 1 && start.elapsed() >= Duration::from_millis(20));
                assert_eq!(events.wait_until(start, || Ok::<_, UeventError>(Some(7))).unwrap(), Some(7));
            })
            .unwrap();
    }
}
