//! Pure: when to try again what did not work, by kind.
//!
//! Invariant: waits grow to a limit and differ between nodes, so that a thousand nodes do not return to an API server at the same moment.

use std::time::Duration;

use crate::machine::Cure;

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A step failed, or the machine is not as it should be after all steps.
    Step,
    /// VFs that must change are in use. Netdevs that come back announce themselves; VFs of userspace do not.
    VfsInUse,
    /// The machine could not be looked at.
    Observe,
    /// The status could not be written.
    Publish,
    /// A step failed that time alone does not cure.
    Change,
}

impl From<Cure> for Retry {
    fn from(cure: Cure) -> Self {
        match cure {
            Cure::Time => Self::Step,
            Cure::Leave => Self::VfsInUse,
            Cure::Change => Self::Change,
        }
    }
}

/// Counts the tries of one kind.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    kind: Option<Retry>,
    tries: u32,
}

impl Backoff {
    /// The wait before the next try. `random` is from 0 to 1. A new kind starts from its shortest wait.
    pub(crate) fn next(&mut self, kind: Retry, random: f64) -> Duration {
        if self.kind != Some(kind) {
            *self = Self { kind: Some(kind), tries: 0 };
        }
        let (first, limit) = match kind {
            Retry::Step | Retry::Observe | Retry::Publish => (Duration::from_secs(1), Duration::from_mins(1)),
            Retry::VfsInUse => (Duration::from_secs(2), Duration::from_secs(30)),
            Retry::Change => (Duration::from_secs(40), Duration::from_mins(10)),
        };
        let wait = first.saturating_mul(1 << self.tries.min(10)).min(limit);
        self.tries += 1;
        wait.mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// All is well, or the wish is a new one.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The waits of a watch whose API server is away: from a quarter of a second to eight, so that a node is back soon after it, and each wait
/// half to one and a half of that, so that nodes do not come back together.
#[derive(Debug, Default)]
pub(crate) struct WatchBackoff {
    tries: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Duration::from_millis(250).saturating_mul(1 << self.tries.min(5)).min(Duration::from_secs(8));
        self.tries += 1;
        Some(wait.mul_f64(0.5 + random()))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.tries = 0;
    }
}

/// From 0 to 1, different each time and in each process.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let bits = RandomState::new().hash_one(std::process::id());
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_back_within_seconds_and_nodes_do_not_come_back_together() {
        use kube::runtime::utils::Backoff as _;
        let mut one = WatchBackoff::default();
        let waits: Vec<Duration> = one.by_ref().take(50).collect();
        assert!(waits[0] < Duration::from_millis(400), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(12)), "{waits:?}");
        let late: std::collections::BTreeSet<u128> = waits[10..].iter().map(Duration::as_millis).collect();
        assert!(late.len() > 10, "no jitter: {late:?}");
        one.reset();
        assert!(one.next().unwrap() < Duration::from_millis(400));
    }

    #[test]
    fn waits_double_up_to_a_limit_and_start_again_with_another_kind() {
        let mut backoff = Backoff::default();
        let mut waits: Vec<u64> = (0..8).map(|_| backoff.next(Retry::Step, 0.5).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        waits = (0..6).map(|_| backoff.next(Retry::VfsInUse, 0.5).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next(Retry::VfsInUse, 0.0), Duration::from_millis(1500));
        assert_eq!(backoff.next(Retry::VfsInUse, 1.0), Duration::from_secs(5));
    }
}
