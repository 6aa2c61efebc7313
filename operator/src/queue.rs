//! I/O (time only): a queue of keys to reconcile. A key waits at most once, never runs twice at a time, and is tried again after a failure
//! with growing delays of its own, so that one key's trouble is never another's.
//!
//! What does not live here: what reconciling means. Invariant: a request made while its key runs leads to another run.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::metrics::Meter;

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

    /// One word for metrics, one of a few.
    fn reason(&self) -> &'static str {
        "Invalid"
    }
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
    meter: Option<Meter>,
}

/// A new queue.
pub fn new<K>() -> (Queue<K>, Requests<K>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Queue { requests: sender }, Requests { requests: receiver, meter: None })
}

/// One key being reconciled.
type Running<'a, K, E> = Pin<Box<dyn Future<Output = (K, Instant, Result<Next, E>)> + 'a>>;

/// The keys that are not running: each at most once, found by key and by time. Every operation is logarithmic, because at a start all nodes of
/// a cluster wait at the same time.
#[derive(Debug)]
struct Waiting<K> {
    by_key: HashMap<K, (Instant, u64)>,
    by_time: BTreeSet<(Instant, u64, K)>,
    count: u64,
}

impl<K: Clone + Ord + Hash> Waiting<K> {
    /// Keys of the same time come in the order in which they were put in.
    fn put(&mut self, key: K, at: Instant) {
        if let Some((old, number)) = self.by_key.get(&key).copied() {
            if old <= at {
                return;
            }
            self.by_time.remove(&(old, number, key.clone()));
        }
        self.count += 1;
        self.by_key.insert(key.clone(), (at, self.count));
        self.by_time.insert((at, self.count, key));
    }

    fn next_time(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _, _)| *at)
    }

    fn take_due(&mut self, now: Instant) -> Option<K> {
        if self.next_time()? > now {
            return None;
        }
        let (_, _, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

/// What is known of the keys while a queue is served.
struct Book<K> {
    waiting: Waiting<K>,
    failures: HashMap<K, u32>,
    /// Running keys; the value says when one that was asked for meanwhile is due.
    active: HashMap<K, Option<Instant>>,
    meter: Option<Meter>,
}

impl<K: Clone + Ord + Hash + fmt::Display> Book<K> {
    fn request(&mut self, key: K) {
        match self.active.get_mut(&key) {
            Some(again) => *again = Some(Instant::now()),
            None => self.waiting.put(key, Instant::now()),
        }
        self.measure_depth();
    }

    fn start(&mut self) -> Option<K> {
        let key = self.waiting.take_due(Instant::now())?;
        self.active.insert(key.clone(), None);
        tracing::debug!(%key, "reconciles");
        self.measure_depth();
        Some(key)
    }

    fn finish<E: Retryable>(&mut self, key: K, started: Instant, outcome: Result<Next, E>) {
        if let Some(meter) = &self.meter {
            meter.finished(started.elapsed(), outcome.as_ref().err().map(Retryable::reason));
        }
        let asked = self.active.remove(&key).flatten();
        let delay = delay_after(&key, outcome, &mut self.failures);
        // A request that came meanwhile is sooner than any delay.
        if let Some(at) = asked.or_else(|| delay.map(|delay| Instant::now() + delay)) {
            self.waiting.put(key, at);
        }
        self.measure_depth();
    }

    fn measure_depth(&self) {
        if let Some(meter) = &self.meter {
            meter.depth(self.waiting.by_key.len());
        }
    }
}

impl<K: Clone + Ord + Hash + fmt::Display> Requests<K> {
    /// Measures what is served from now on.
    #[must_use]
    pub fn measured(self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Reconciles keys as they come, at most `concurrency` at a time, until every asking side is gone.
    pub async fn serve<Run, Fut, E>(mut self, concurrency: usize, reconcile: Run)
    where
        Run: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, E>>,
        E: Retryable,
    {
        let waiting: Waiting<K> = Waiting { by_key: HashMap::new(), by_time: BTreeSet::new(), count: 0 };
        let mut book: Book<K> = Book { waiting, failures: HashMap::new(), active: HashMap::new(), meter: self.meter.take() };
        let mut running: FuturesUnordered<Running<'_, K, E>> = FuturesUnordered::new();
        loop {
            // All that was asked so far before anything is begun, so that a key asked for twice runs once.
            while let Ok(key) = self.requests.try_recv() {
                book.request(key);
            }
            while running.len() < concurrency {
                let Some(key) = book.start() else { break };
                let started = Instant::now();
                running.push(Box::pin(reconcile(key.clone()).map(move |outcome| (key, started, outcome))));
            }
            let wake = book.waiting.next_time().filter(|_| running.len() < concurrency);
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(key) => book.request(key),
                    None => return,
                },
                Some((key, started, outcome)) = running.next(), if !running.is_empty() => book.finish(key, started, outcome),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
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
    async fn a_request_is_sooner_than_the_delay_that_a_key_waits_for() {
        let (queue, requests) = new();
        let runs = RefCell::new(vec![]);
        let start = Instant::now();
        queue.add(1);
        let asking = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            queue.add(1);
            tokio::time::sleep(Duration::from_mins(10)).await;
        };
        let serving = serve_for(30, requests, |_| {
            runs.borrow_mut().push(start.elapsed().as_secs());
            async { Ok(Next::After(Duration::from_mins(1))) }
        });
        futures::future::select(Box::pin(asking), Box::pin(serving)).await;
        assert_eq!(runs.into_inner(), [0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_of_keys_is_served_once_each_in_the_order_of_asking() {
        let (sender, receiver) = mpsc::unbounded_channel::<u32>();
        let requests = Requests { requests: receiver, meter: None };
        let runs = RefCell::new(vec![]);
        for key in (0..20_000).rev() {
            sender.send(key).unwrap();
        }
        let began = std::time::Instant::now();
        let serving = requests.serve(16, |key| {
            runs.borrow_mut().push(key);
            async { Ok::<_, Failed>(Next::Wait) }
        });
        tokio::time::timeout(Duration::from_secs(1), serving).await.ok();
        assert_eq!(runs.into_inner(), (0..20_000).rev().collect::<Vec<_>>());
        // A scan of all waiting keys at each step would take minutes.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
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
