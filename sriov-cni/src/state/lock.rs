//! I/O: the lock of one VF among the calls of this plugin.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{StateError, Store, failed};
use sriov_host::device_id::DeviceId;

/// A VF's lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// Locks a VF, waiting until `deadline` for another call that holds it.
    pub fn lock(&self, vf: DeviceId, deadline: Instant) -> Result<Lock, StateError> {
        let started = Instant::now();
        let path = self.locks.join(format!("{vf}.lock"));
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = match open() {
            // Only the Go plugin has been here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create()?;
                open()
            }
            file => file,
        };
        let file = file.map_err(failed("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed("lock", &path)(errno.into())),
        }
        // There is no flock with a deadline: a thread waits for it. If it comes too late, the lock falls with the unreceived file.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            let _ = sender.send(locked.map(|()| file));
        });
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(file)) => Ok(Lock { _file: file }),
            Ok(Err(errno)) => Err(failed("lock", &path)(errno.into())),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(StateError::Locked { vf, waited: started.elapsed() }),
        }
    }
}
