//! I/O: the lab's cache folder. Each stage is a folder `<stage>/<key>`, built in `partial/` and renamed, so a folder that exists is complete.
//! What the stages are is not known here.
//!
//! Invariant: one process at a time writes (an exclusive lock on `lock`, released by the kernel when the process ends), and a finished folder
//! is never changed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};

use super::key::Key;

/// So many builds of one stage stay, whatever their age: other work trees and branches use the same cache.
const KEPT_BUILDS: usize = 4;
/// A build that was used more recently than this is never removed.
const KEPT_FOR: Duration = Duration::from_hours(12);

/// The open, locked cache.
pub(crate) struct Cache {
    root: PathBuf,
    _lock: File,
}

/// A finished stage.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// What it was built from.
    pub(crate) key: Key,
}

impl Stage {
    /// A file of the stage.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// `$SRIOV_LAB_CACHE`, or `sriov-lab` in the user's cache folder.
pub(crate) fn folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SRIOV_LAB_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("sriov-lab")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/sriov-lab")))
        .ok_or_else(|| anyhow!("no folder for the lab's cache: set SRIOV_LAB_CACHE, XDG_CACHE_HOME or HOME"))
}

impl Cache {
    /// Opens the cache at `root`, making it if needed, and waits for another process that is building in it.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("make the folder {}", root.display()))?;
        let path = root.join("lock");
        let lock = File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))?;
        if lock.try_lock().is_err() {
            eprintln!("lab-build: waiting for another lab-build that holds {}", path.display());
            lock.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(Self { root, _lock: lock })
    }

    /// Where the cache is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The stage `name` built from `key`: found, or built by `build` in an empty folder. Prints one line.
    pub(crate) fn stage(&self, name: &str, key: Key, build: impl FnOnce(&Path) -> Result<()>) -> Result<Stage> {
        let start = Instant::now();
        let dir = self.root.join(name).join(key.as_str());
        let found = dir.is_dir();
        if !found {
            eprintln!("lab-build: {name:<10} building");
            self.build(name, &key, &dir, build)?;
        }
        mark_used(&dir)?;
        let did = if found { "found" } else { "built" };
        eprintln!("lab-build: {name:<10} {did} {} {:>6.1} s", key.as_str(), start.elapsed().as_secs_f64());
        Ok(Stage { dir, key })
    }

    fn build(&self, name: &str, key: &Key, dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let partial = self.root.join("partial").join(name);
        remove(&partial)?;
        fs::create_dir_all(&partial).with_context(|| format!("make the folder {}", partial.display()))?;
        build(&partial).with_context(|| format!("build the lab stage {name} ({})", key.as_str()))?;
        let parent = self.root.join(name);
        fs::create_dir_all(&parent).with_context(|| format!("make the folder {}", parent.display()))?;
        fs::rename(&partial, dir).with_context(|| format!("move {} to {}", partial.display(), dir.display()))?;
        for old in superseded(&builds(&parent)?, SystemTime::now()) {
            remove(&old)?;
        }
        Ok(())
    }
}

/// A folder's own time is when a lab-build last used it.
fn mark_used(dir: &Path) -> Result<()> {
    let mark = || File::open(dir)?.set_modified(SystemTime::now());
    mark().with_context(|| format!("set the time of {}", dir.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

/// Every build of a stage with the time of its last use.
fn builds(parent: &Path) -> Result<Vec<(PathBuf, SystemTime)>> {
    let list = || -> std::io::Result<Vec<_>> {
        fs::read_dir(parent)?.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?.modified()?)))).collect()
    };
    list().with_context(|| format!("list {}", parent.display()))
}

/// Pure: the builds that are neither among the last few nor used lately.
fn superseded(builds: &[(PathBuf, SystemTime)], now: SystemTime) -> Vec<PathBuf> {
    let mut newest_first = builds.to_vec();
    newest_first.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    let old = |used: &SystemTime| now.duration_since(*used).is_ok_and(|age| age > KEPT_FOR);
    newest_first.into_iter().skip(KEPT_BUILDS).filter(|(_, used)| old(used)).map(|(dir, _)| dir).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::key::Inputs;
    use super::*;

    fn key(text: &str) -> Key {
        Inputs::new("stage", text).finish()
    }

    #[test]
    fn a_stage_is_built_once_for_each_key() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().to_path_buf()).unwrap();
        let count = Cell::new(0);
        let build = |dir: &Path| {
            count.set(count.get() + 1);
            Ok(fs::write(dir.join("out"), format!("{}", count.get()))?)
        };
        let first = cache.stage("kernel", key("a"), build).unwrap();
        let again = cache.stage("kernel", key("a"), build).unwrap();
        let other = cache.stage("kernel", key("b"), build).unwrap();
        assert_eq!(count.get(), 2);
        assert_eq!(first.dir, again.dir);
        assert_eq!(fs::read_to_string(again.path("out")).unwrap(), "1");
        assert_eq!(fs::read_to_string(other.path("out")).unwrap(), "2");
    }

    #[test]
    fn a_build_that_fails_leaves_nothing_that_counts_as_built() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().to_path_buf()).unwrap();
        let failed = cache.stage("kernel", key("a"), |dir| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("no space")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("kernel"));
        let built = cache.stage("kernel", key("a"), |dir| Ok(fs::write(dir.join("whole"), "")?)).unwrap();
        assert!(built.path("whole").exists());
        assert!(!built.path("half").exists(), "the next build starts from an empty folder");
    }

    #[test]
    fn a_second_process_cannot_take_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().to_path_buf()).unwrap();
        let second = File::options().append(true).open(folder.path().join("lock")).unwrap();
        assert!(second.try_lock().is_err());
        drop(cache);
        assert!(second.try_lock().is_ok());
    }

    #[test]
    fn old_builds_beyond_the_last_few_are_superseded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1000);
        let build = |name: &str, hours: u64| (PathBuf::from(name), now.checked_sub(Duration::from_hours(hours)).unwrap());
        let builds = [build("e", 40), build("a", 1), build("b", 20), build("c", 21), build("d", 22), build("f", 50)];
        assert_eq!(superseded(&builds, now), [PathBuf::from("e"), PathBuf::from("f")]);
        let recent: Vec<_> = (0..9).map(|n| build("x", n)).collect();
        assert!(superseded(&recent, now).is_empty(), "nothing that was used lately goes");
    }
}
