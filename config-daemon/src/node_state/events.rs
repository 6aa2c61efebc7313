//! I/O: "something on this machine changed", from the kernel's device events.
//!
//! Invariant: an event is only a reason to look; nothing is concluded from it, so that lost or doubled events do no harm.

use std::io;
use std::time::{Duration, Instant};

use sriov_host::uevent::{Uevent, UeventError, UeventSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

/// Quiet time after which a burst of events is over.
const QUIET: Duration = Duration::from_millis(300);
/// Longest wait for quiet.
const PATIENCE: Duration = Duration::from_secs(3);

/// Device events as wake-ups.
#[derive(Debug)]
pub(crate) struct Events {
    wake: mpsc::Receiver<()>,
}

impl Events {
    /// Listens on a thread of its own, which ends when the receiver is dropped or the socket fails for good.
    pub(crate) fn listen() -> Result<Self, ListenError> {
        let socket = UeventSocket::open()?;
        let (sender, wake) = mpsc::channel(1);
        std::thread::Builder::new().name("uevents".to_owned()).spawn(move || forward(&socket, &sender))?;
        Ok(Self { wake })
    }

    /// Waits for a change; `None` when no more will be told.
    pub(crate) async fn next(&mut self) -> Option<()> {
        self.wake.recv().await
    }

    /// Waits until a burst is over.
    pub(crate) async fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && timeout(QUIET, self.wake.recv()).await.is_ok_and(|event| event.is_some()) {}
    }
}

/// Why events cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] UeventError),
    /// The thread.
    #[error("failed to start the thread for device events: {0}")]
    Thread(#[from] io::Error),
}

fn forward(socket: &UeventSocket, sender: &mpsc::Sender<()>) {
    while !sender.is_closed() {
        let wanted = match socket.next(Instant::now() + Duration::from_mins(1)) {
            Ok(event) => event.as_ref().is_some_and(matters),
            Err(UeventError::Overrun) => true,
            Err(error) => {
                warn!("{error}; restarting to listen anew");
                return;
            }
        };
        // A full channel already holds a wake-up that nobody has seen.
        if wanted {
            _ = sender.try_send(());
        }
    }
}

/// Pods' veth pairs and bridges come and go all the time and are no business of ours.
fn matters(event: &Uevent) -> bool {
    matches!(event.subsystem.as_str(), "pci" | "net" | "drivers" | "module") && !event.devpath.starts_with("/devices/virtual/")
}
