//! I/O: taking back what an ADD did when it fails, last change first.
//!
//! Invariant: an ADD that ends without `commit` is undone, however it ends. What can't be undone stays in the journal for DEL and GC.

use crate::Context;
use crate::ipam::{self, Attachment};
use crate::log::Level;
use crate::request::Command;
use crate::restore::restore;
use crate::state::{Lock, Store};
use sriov_host::device_id::DeviceId;

/// What has to be taken back.
#[derive(Debug)]
enum Step {
    /// Addresses of this plugin.
    Ipam(String),
    /// All that the journal of this attempt tells.
    Journal { vf: DeviceId, attempt: String },
}

/// The changes of one ADD so far, with the VF's lock while it is held.
#[derive(Debug)]
pub(crate) struct Undo<'a> {
    ctx: &'a Context<'a>,
    store: &'a Store,
    lock: Option<Lock>,
    steps: Vec<Step>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(ctx: &'a Context<'a>, store: &'a Store, lock: Lock) -> Self {
        Self { ctx, store, lock: Some(lock), steps: Vec::new() }
    }

    /// From here on a journal tells what to take back.
    pub(crate) fn journal(&mut self, vf: DeviceId, attempt: &str) {
        self.steps.push(Step::Journal { vf, attempt: attempt.to_owned() });
    }

    /// From here on there may be addresses.
    pub(crate) fn ipam(&mut self, plugin: &str) {
        self.steps.push(Step::Ipam(plugin.to_owned()));
    }

    /// Lets others at the VF while something slow runs.
    pub(crate) fn release_lock(&mut self) {
        self.lock = None;
    }

    /// Takes the VF's lock again.
    pub(crate) fn take_lock(&mut self, lock: Lock) {
        self.lock = Some(lock);
    }

    /// All went well: nothing is taken back.
    pub(crate) fn commit(mut self) {
        self.steps.clear();
    }

    /// Takes everything back and tells what could not be.
    pub(crate) fn roll_back(mut self) -> Vec<String> {
        self.run()
    }

    fn run(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.steps.is_empty() {
            self.ctx.deadline.for_undo();
        }
        while let Some(step) = self.steps.pop() {
            if let Err(failure) = self.take_back(&step) {
                failures.push(format!("undo: {failure}"));
            }
        }
        failures
    }

    fn take_back(&mut self, step: &Step) -> Result<(), crate::Error> {
        match step {
            Step::Ipam(plugin) => {
                self.lock = None;
                ipam::call(self.ctx, plugin, Command::Del, Attachment::of(self.ctx))?;
            }
            Step::Journal { vf, attempt } => {
                let _lock = match self.lock.take() {
                    Some(lock) => lock,
                    None => self.store.lock(*vf, self.ctx.deadline.at())?,
                };
                // Another call may have taken the VF over while the lock was free.
                let Some(journal) = self.store.read(*vf)?.filter(|journal| journal.attempt == *attempt) else { return Ok(()) };
                restore(self.ctx, &journal)?;
                self.store.forget(&journal)?;
            }
        }
        Ok(())
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for failure in self.run() {
            self.ctx.log.write(Level::Error, &failure);
        }
    }
}
