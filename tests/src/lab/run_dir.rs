//! I/O: the folder of one running lab, and who owns it.
//!
//! What lives here: making the folder, naming its owner, finding the labs that run, removing the folders of labs that are gone. What does
//! not: processes and namespaces, which end with their owner and need no clean-up of their own (see `process` and `net`).
//!
//! Invariant: a folder is removed by its owner, or by anyone once no process has the recorded number and start time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "sriov-lab.";
const OWNER: &str = "owner.json";

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process number.
    pub pid: u32,
    /// Start time in clock ticks since the host booted, as in `/proc/<pid>/stat`.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in parentheses that may hold spaces and parentheses itself.
        let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start_time: fields.nth(18)?.parse().ok()? })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal if it still runs.
    pub fn signal(self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.is_alive()) {
            // It may end between the look and the signal; then there is nothing to do.
            kill_process(pid, signal).ok();
        }
    }
}

/// The folder of a lab; removed on drop.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes a folder for this process, after removing the folders of labs whose process is gone.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers(&base())?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base().join(format!("{PREFIX}{}.{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let run = Self { path };
        let owner = ProcessId::of(std::process::id()).context("this process is not in /proc")?;
        fs::write(run.file(OWNER), serde_json::to_vec(&owner)?)?;
        Ok(run)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("lab: remove {}: {error}", self.path.display());
        }
    }
}

/// Where labs have their folders: short, because the path of a socket in it may have 107 bytes.
pub fn base() -> PathBuf {
    std::env::temp_dir()
}

/// Labs whose owner runs, as owner and folder.
pub fn running(base: &Path) -> Result<Vec<(ProcessId, PathBuf)>> {
    Ok(folders(base)?.into_iter().filter_map(|(owner, path)| Some((owner.filter(|owner| owner.is_alive())?, path))).collect())
}

/// Removes the folders of labs whose owner is gone.
pub fn remove_leftovers(base: &Path) -> Result<()> {
    for (owner, path) in folders(base)? {
        // Without an owner file the folder is this instant being made, or was left in that instant: then its name still tells.
        let gone = owner.map_or_else(|| maker(&path).is_none_or(|pid| ProcessId::of(pid).is_none()), |owner| !owner.is_alive());
        if gone {
            fs::remove_dir_all(&path).with_context(|| format!("remove the folder of a lab that is gone, {}", path.display()))?;
            eprintln!("lab: removed {}, left by a lab that is gone", path.display());
        }
    }
    Ok(())
}

fn maker(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

fn folders(base: &Path) -> Result<Vec<(Option<ProcessId>, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(base).with_context(|| format!("list {}", base.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) && path.is_dir() {
            let owner = fs::read(path.join(OWNER)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            found.push((owner, path));
        }
    }
    found.sort_by(|(_, a), (_, b)| a.cmp(b));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(base: &Path, name: &str, owner: ProcessId) -> PathBuf {
        let path = base.join(format!("{PREFIX}{name}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(OWNER), serde_json::to_vec(&owner).unwrap()).unwrap();
        path
    }

    #[test]
    fn a_running_process_is_alive_and_one_with_its_number_but_another_start_is_not() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me }.is_alive());
    }

    #[test]
    fn leftovers_are_removed_and_running_labs_stay() {
        let base = tempfile::tempdir().unwrap();
        let me = ProcessId::of(std::process::id()).unwrap();
        let mine = lab(base.path(), "1.0", me);
        let gone = lab(base.path(), "2.0", ProcessId { start_time: me.start_time + 1, ..me });
        let foreign = base.path().join("other");
        fs::create_dir(&foreign).unwrap();
        remove_leftovers(base.path()).unwrap();
        assert_eq!((mine.exists(), gone.exists(), foreign.exists()), (true, false, true));
        assert_eq!(running(base.path()).unwrap(), [(me, mine)]);
    }
}
