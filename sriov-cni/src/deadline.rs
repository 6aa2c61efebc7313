//! I/O: how long one call may wait altogether, and trying again what a driver answers with "busy".
//!
//! What does not live here: what is waited for.
//!
//! Invariant: each wait ends at the call's one deadline; time that another program (IPAM) takes is not ours and moves it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use sriov_host::netlink::{LinkMonitor, NetlinkError};

use crate::quirks;

/// The least that undoing a failed ADD gets, also when the call's time is up.
const UNDO: Duration = Duration::from_secs(5);
/// A driver's own reset is no event of the link: after this long at the latest it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// When a call stops waiting.
#[derive(Debug)]
pub(crate) struct Deadline {
    end: Cell<Instant>,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { end: Cell::new(Instant::now() + limit) }
    }

    pub(crate) fn at(&self) -> Instant {
        self.end.get()
    }

    /// Runs what another program does, whose time is its own.
    pub(crate) fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.end.set(self.end.get() + started.elapsed());
        done
    }

    /// Leaves time to undo.
    pub(crate) fn for_undo(&self) {
        self.end.set(self.end.get().max(Instant::now() + UNDO));
    }
}

/// Performs `attempt` again while the driver says that it is busy (a VF that is still resetting after a change through its PF), after each
/// change of a link and at most [`ASK_AGAIN`] later.
pub(crate) fn while_busy<T>(deadline: Instant, mut attempt: impl FnMut() -> Result<T, NetlinkError>) -> Result<T, NetlinkError> {
    let mut pause = Duration::from_millis(1);
    let mut events = None;
    loop {
        let error = match attempt() {
            Err(error) if quirks::is_passing(error.errno()) => error,
            done => return done,
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(error);
        }
        // The attempt after this sees what happens from now on, so that no event is missed.
        let Some(monitor) = &events else {
            events = Some(LinkMonitor::open().map_err(|_| error)?);
            continue;
        };
        // A lost event is a reason to look, as any other.
        let _ = monitor.next(deadline.min(now + pause));
        pause = (pause * 2).min(ASK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: rustix::io::Errno) -> NetlinkError {
        NetlinkError { operation: "change the link", object: "ifindex 3: up".to_owned(), errno: errno.raw_os_error(), ext_ack: None }
    }

    #[test]
    fn a_busy_driver_is_asked_again_until_it_answers() {
        let mut busy = 4;
        let done = while_busy(Instant::now() + Duration::from_secs(20), || {
            busy -= 1;
            if busy > 0 { Err(refusal(rustix::io::Errno::BUSY)) } else { Ok(()) }
        });
        assert_eq!((done, busy), (Ok(()), 0));
    }

    #[test]
    fn it_is_asked_until_the_deadline_and_other_refusals_stand() {
        let started = Instant::now();
        let busy = || Err::<(), _>(refusal(rustix::io::Errno::BUSY));
        assert_eq!(while_busy(started + Duration::from_millis(30), busy), busy());
        assert!(started.elapsed() >= Duration::from_millis(30));
        let mut asked = 0;
        let refused = while_busy(started + Duration::from_secs(20), || {
            asked += 1;
            Err::<(), _>(refusal(rustix::io::Errno::INVAL))
        });
        assert_eq!((refused, asked), (Err(refusal(rustix::io::Errno::INVAL)), 1));
    }

    #[test]
    fn time_of_another_program_is_not_ours() {
        let deadline = Deadline::after(Duration::from_secs(10));
        let before = deadline.at();
        deadline.paused(|| std::thread::park_timeout(Duration::from_millis(20)));
        assert!(deadline.at() > before);
        let late = Deadline::after(Duration::ZERO);
        late.for_undo();
        assert!(late.at() > Instant::now());
    }
}
