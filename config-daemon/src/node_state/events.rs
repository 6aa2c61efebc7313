//! I/O: "something on this machine changed", from the kernel's device events and its announcements of links.
//!
//! Invariant: an event is only a reason to look; nothing is concluded from it, so that lost or doubled events do no harm.

use std::io;
use std::time::{Duration, Instant};

use sriov_host::netlink::{Link, LinkMonitor, LinkMonitorError};
use sriov_host::uevent::{Uevent, UeventError, UeventSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Changed,
    /// A thread has ended, so that changes would be missed from now on.
    Ended,
}

impl Events {
    /// Listens on threads of their own, which end when the receiver is dropped or their socket fails for good.
    pub(crate) fn listen() -> Result<Self, ListenError> {
        let (devices, links) = (UeventSocket::open()?, LinkMonitor::open()?);
        let (wake_for_device, wake) = mpsc::channel(1);
        let wake_for_link = wake_for_device.clone();
        spawn("devices", wake_for_device, move || match devices.next(Instant::now() + LOOK_UP) {
            Ok(event) => Ok(event.as_ref().is_some_and(device_matters)),
            Err(UeventError::Overrun) => Ok(true),
            Err(error) => Err(error.to_string()),
        })?;
        spawn("links", wake_for_link, move || match links.next(Instant::now() + LOOK_UP) {
            Ok(link) => Ok(link.as_ref().is_some_and(link_matters)),
            Err(LinkMonitorError::Overrun) => Ok(true),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(Self { wake, ended: false })
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

/// Pods' veth pairs and bridges come and go all the time and are no business of ours.
fn device_matters(event: &Uevent) -> bool {
    matches!(event.subsystem.as_str(), "pci" | "net" | "drivers" | "module") && !event.devpath.starts_with("/devices/virtual/")
}

fn link_matters(link: &Link) -> bool {
    link.parent.is_some()
}
