//! I/O: a look at the whole machine that nobody waits for. It finds what no event told, while what is told goes on being followed.
//!
//! Invariant: what was told while it looked is given back with what it found, to be looked at again: its result never takes the place of something newer.

use std::future::pending;

use sriov_host::discover::DiscoverError;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::machine::{Changes, Machine};

/// At most one look that is under way.
#[derive(Debug, Default)]
pub struct WholeLook {
    looking: Option<JoinHandle<Result<Machine, DiscoverError>>>,
    /// What was told since it began.
    told: Changes,
    /// Asked for once more since it began: it may have passed by what it is asked for.
    again: bool,
}

impl WholeLook {
    /// Begins to look, or if a look is under way, has another one begun after it.
    pub fn start(&mut self, look: impl FnOnce() -> Result<Machine, DiscoverError> + Send + 'static) {
        if self.looking.is_some() {
            self.again = true;
            return;
        }
        (self.told, self.again) = (Changes::default(), false);
        self.looking = Some(spawn_blocking(look));
    }

    /// Notes what is told while it looks.
    pub fn note(&mut self, changes: &Changes) {
        if self.looking.is_some() {
            self.told.add(changes.clone());
        }
    }

    /// The next look's result; never, if none is under way. Can be dropped and called again without losing one.
    pub async fn found(&mut self) -> Result<Result<Machine, DiscoverError>, JoinError> {
        let Some(looking) = &mut self.looking else { return pending().await };
        let found = looking.await;
        self.looking = None;
        found
    }

    /// What was told while the last look was under way.
    pub fn told(&mut self) -> Changes {
        std::mem::take(&mut self.told)
    }

    /// Whether another look was asked for and none is under way.
    pub fn is_due(&self) -> bool {
        self.again && self.looking.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use sriov_host::Host;

    use super::*;
    use crate::claims::Claims;
    use crate::machine::Wants;

    #[tokio::test]
    async fn what_is_told_while_it_looks_is_looked_at_again_and_what_is_asked_for_meanwhile_is_due() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sys/bus/pci/devices")).unwrap();
        let (host, claims) = (Host::at(dir.path()), Claims::new(dir.path(), dir.path()));
        let (go, wait) = mpsc::channel::<()>();
        let mut whole = WholeLook::default();
        let function = |slot: u8| Changes { functions: [format!("0000:01:{slot:02x}.0").parse().unwrap()].into(), ..Changes::default() };

        whole.note(&function(1));
        whole.start(move || {
            wait.recv().unwrap();
            Machine::look(host, claims, Wants::default())
        });
        whole.note(&function(2));
        whole.start(|| unreachable!("two looks at once"));
        assert!(!whole.is_due());
        go.send(()).unwrap();
        whole.note(&function(3));
        whole.found().await.unwrap().unwrap();
        let mut told = function(2);
        told.add(function(3));
        assert_eq!(whole.told().functions, told.functions);
        assert!(whole.is_due());
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), whole.found()).await.is_err());
    }
}
