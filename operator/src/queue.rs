//! I/O (time only): a queue of keys to reconcile. A key waits at most once, never runs twice at a time, and is tried again after a failure
//! with growing delays of its own, so that one key's trouble is never another's.
//!
//! What does not live here: what reconciling means. Invariant: a request made while its key runs leads to another run.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// First delay after a failure; doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Longest delay after a failure.
const LONGEST_DELAY: Duration = Duration::from_mins(2);

/// What is to be done with a key after it was reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something changes.
    Wait,
    /// Again after this time.
    After(Duration),
}

/// Whether trying again without a change can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It cannot: only a change of an object can, and that queues the key again.
    WhenChanged,
    /// It can, after a while.
    Backoff,
}

/// An error that says whether to try again.
pub trait Retryable: fmt::Display {
    /// See [`Retry`].
    fn retry(&self) -> Retry;
}

/// The asking side.
#[derive(Debug)]
pub struct Queue<K> {
    requests: mpsc::UnboundedSender<K>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone() }
    }
}

impl<K> Queue<K> {
    /// Asks for a run of the key as soon as possible.
    pub fn add(&self, key: K) {
        // Fails only when the serving side is gone, and then nothing is to be done any more.
        self.requests.send(key).ok();
    }
}

/// The serving side.
#[derive(Debug)]
pub struct Requests<K> {
    requests: mpsc::UnboundedReceiver<K>,
}

/// A new queue.
pub fn new<K>() -> (Queue<K>, Requests<K>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Queue { requests: sender }, Requests { requests: receiver })
}

/// One key being reconciled.
type Running<'a, K, E> = Pin<Box<dyn Future<Output = (K, Result<Next, E>)> + 'a>>;

impl<K: Clone + Ord + Hash + fmt::Display> Requests<K> {
    /// Reconciles keys as they come, at most `concurrency` at a time, until every asking side is gone.
    pub async fn serve<Run, Fut, E>(mut self, concurrency: usize, reconcile: Run)
    where
        Run: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, E>>,
        E: Retryable,
    {
        let mut waiting: BTreeMap<K, Instant> = BTreeMap::new();
        let mut failures: HashMap<K, u32> = HashMap::new();
        let mut active: Vec<K> = Vec::new();
        let mut running: FuturesUnordered<Running<'_, K, E>> = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while active.len() < concurrency {
                let due = waiting.iter().find(|(key, at)| **at <= now && !active.contains(key)).map(|(key, _)| key.clone());
                let Some(key) = due else { break };
                waiting.remove(&key);
                active.push(key.clone());
                running.push(Box::pin(reconcile(key.clone()).map(move |outcome| (key, outcome))));
            }
            let free = active.len() < concurrency;
            let wake = waiting.iter().filter(|(key, _)| free && !active.contains(key)).map(|(_, at)| *at).min();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(key) => { waiting.insert(key, Instant::now()); }
                    None => return,
                },
                Some((key, outcome)) = running.next(), if !active.is_empty() => {
                    active.retain(|other| *other != key);
                    let delay = delay_after(&key, outcome, &mut failures);
                    // A request that came meanwhile is sooner than any delay.
                    if let Some(delay) = delay {
                        waiting.entry(key).or_insert_with(|| Instant::now() + delay);
                    }
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }
}

fn delay_after<K: Clone + Eq + Hash + fmt::Display, E: Retryable>(
    key: &K,
    outcome: Result<Next, E>,
    failures: &mut HashMap<K, u32>,
) -> Option<Duration> {
    let error = match outcome {
        Ok(next) => {
            failures.remove(key);
            return match next {
                Next::Wait => None,
                Next::After(delay) => Some(delay),
            };
        }
        Err(error) => error,
    };
    if error.retry() == Retry::WhenChanged {
        failures.remove(key);
        tracing::warn!(%key, %error, "not reconciled; waits for a change");
        return None;
    }
    let count = failures.entry(key.clone()).or_insert(0);
    let delay = LONGEST_DELAY.min(FIRST_DELAY * 2u32.saturating_pow(*count));
    *count = count.saturating_add(1).min(16);
    tracing::warn!(%key, %error, retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), "not reconciled");
    Some(delay)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[derive(Debug)]
    struct Failed(Retry);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("failed")
        }
    }

    impl Retryable for Failed {
        fn retry(&self) -> Retry {
            self.0
        }
    }

    /// Serves for `secs` seconds of paused time.
    async fn serve_for<Fut: Future<Output = Result<Next, Failed>>>(secs: u64, requests: Requests<u8>, run: impl Fn(u8) -> Fut) {
        tokio::time::timeout(Duration::from_secs(secs), requests.serve(4, run)).await.ok();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_backs_off_and_does_not_hold_up_another() {
        let (queue, requests) = new();
        let runs = RefCell::new(vec![]);
        let start = Instant::now();
        queue.add(1);
        queue.add(2);
        serve_for(2, requests, |key| {
            runs.borrow_mut().push((key, start.elapsed().as_millis()));
            async move { if key == 1 { Err(Failed(Retry::Backoff)) } else { Ok(Next::Wait) } }
        })
        .await;
        // The clock of a paused runtime has a resolution of one millisecond.
        let of = |key| runs.borrow().iter().filter(|(k, _)| *k == key).map(|(_, at)| at / 10 * 10).collect::<Vec<_>>();
        assert_eq!(of(1), [0, 250, 750, 1750]);
        assert_eq!(of(2), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_asked_for_while_it_runs_runs_once_more() {
        let (queue, requests) = new();
        let runs = Cell::new(0);
        queue.add(1);
        let asking = queue.clone();
        serve_for(10, requests, |_| {
            runs.set(runs.get() + 1);
            if runs.get() == 1 {
                asking.add(1);
                asking.add(1);
            }
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Next::Wait)
            }
        })
        .await;
        assert_eq!(runs.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_only_a_change_can_mend_is_not_tried_again() {
        let (queue, requests) = new();
        let runs = Cell::new(0);
        queue.add(1);
        serve_for(600, requests, |_| {
            runs.set(runs.get() + 1);
            async { Err(Failed(Retry::WhenChanged)) }
        })
        .await;
        assert_eq!(runs.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_asks_for_later_runs_later() {
        let (queue, requests) = new();
        let runs = Cell::new(0);
        queue.add(1);
        serve_for(95, requests, |_| {
            runs.set(runs.get() + 1);
            async { Ok(Next::After(Duration::from_secs(30))) }
        })
        .await;
        assert_eq!(runs.get(), 4);
    }
}
