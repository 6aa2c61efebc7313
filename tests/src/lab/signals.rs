//! I/O: what happens when someone ends the lab's process with Ctrl-C or `kill`.
//!
//! What lives here: one thread that waits for the signals and runs what was registered. What does not: what is done then.
//!
//! Invariant: after the registered work the process ends with 128 plus the signal's number, as if the signal had ended it.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

type Work = Box<dyn FnOnce() + Send>;

static WORK: Mutex<Vec<Work>> = Mutex::new(Vec::new());

/// Registers work to be done before this process ends by a signal.
pub fn before_end(work: impl FnOnce() + Send + 'static) -> Result<()> {
    static LISTENING: OnceLock<bool> = OnceLock::new();
    WORK.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(work));
    if !LISTENING.get_or_init(|| listen().inspect_err(|error| eprintln!("lab: {error:#}")).is_ok()) {
        bail!("cannot listen for signals");
    }
    Ok(())
}

fn listen() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build().context("make a runtime for signals")?;
    let guard = runtime.enter();
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    drop(guard);
    thread::Builder::new().name("lab-signals".to_owned()).spawn(move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hangup.recv() => SignalKind::hangup(),
            }
        });
        let work = std::mem::take(&mut *WORK.lock().unwrap_or_else(PoisonError::into_inner));
        for work in work {
            work();
        }
        std::process::exit(128 + kind.as_raw_value());
    })?;
    Ok(())
}
