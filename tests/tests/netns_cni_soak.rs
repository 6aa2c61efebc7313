//! I/O: ten thousand attachments in one process, after which there is not one file, descriptor, thread, mount, lock, address or link more than
//! before. The only test of its file, because it counts what the whole process has. Needs root.
//!
//! A network namespace lives by a thread, a descriptor or a mount, so that counting these counts namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_cni::io::{DelegateError, Delegation, Io};
use sriov_cni::request::Command::{self, Add, Del};
use sriov_cni::state::Store;
use sriov_host::netlink::Route;
use sriov_tests::cni::{Machine, Pod, USERSPACE_VF, VF, as_host};

const PAIRS: usize = 10_000;

/// One pair of so many has a VF with a netdev; the others have a userspace VF. Each of the two moves of a netdev waits until all processors of the machine
/// have let go of it, with the kernel's one lock of links held (10 to 20 ms measured on two processors, in which nothing is computed), so that ten
/// thousand pairs that move take five minutes, and still three with four VFs at once. What a move could leave behind is looked for a thousand
/// times; what the plugin itself could leave behind, files, locks, descriptors, addresses, ten thousand times. With SOAK_ONE_MOVES_OF=1 all pairs move.
const ONE_MOVES_OF: usize = 10;

fn one_moves_of() -> usize {
    std::env::var("SOAK_ONE_MOVES_OF").ok().and_then(|given| given.parse().ok()).filter(|given| *given > 0).unwrap_or(ONE_MOVES_OF)
}

/// An IPAM plugin without a process: it gives the lowest free address of 192.0.2.0/24.
#[derive(Default)]
struct Pool(Mutex<BTreeMap<(String, String), u8>>);

impl Io for Pool {
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = (call.container_id.to_owned(), call.if_name.to_owned());
        let result = if call.command == Command::Add {
            let free = (2..=254).find(|number| given.values().all(|taken| taken != number)).unwrap_or(255);
            given.insert(whose, free);
            json!({"cniVersion": "1.1.0", "ips": [{"address": format!("192.0.2.{free}/24"), "gateway": "192.0.2.1"}]}).to_string()
        } else {
            given.remove(&whose);
            String::new()
        };
        Ok(result.into_bytes())
    }
}

/// What there is of everything that could be left behind.
#[derive(Debug, PartialEq, Eq)]
struct Belongings {
    descriptors: usize,
    threads: usize,
    mounts: usize,
    locks: usize,
    files: BTreeSet<String>,
    host_links: BTreeSet<String>,
    pod_links: Vec<BTreeSet<String>>,
    addresses: usize,
}

impl Belongings {
    fn count(machine: &Machine, pods: &[Pod], pool: &Pool) -> Result<Self> {
        let entries = |folder: &str| Ok::<_, anyhow::Error>(std::fs::read_dir(folder)?.count());
        let lines = |file: &str| Ok::<_, anyhow::Error>(std::fs::read_to_string(file)?);
        let own = format!(" {} ", std::process::id());
        let mut files = BTreeSet::new();
        files_below(&machine.state(), &mut files)?;
        Ok(Self {
            descriptors: entries("/proc/self/fd")?,
            threads: entries("/proc/self/task")?,
            mounts: lines("/proc/self/mountinfo")?.lines().count(),
            locks: lines("/proc/locks")?.lines().filter(|line| line.contains(&own)).count(),
            files,
            host_links: Route::open()?.links()?.into_iter().map(|link| link.netdev.name).collect(),
            pod_links: pods.iter().map(Pod::links).collect::<Result<_>>()?,
            addresses: pool.0.lock().unwrap_or_else(PoisonError::into_inner).len(),
        })
    }
}

fn files_below(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files_below(&path, found)? } else { found.extend([path.display().to_string()]) }
    }
    Ok(())
}

/// One attachment of either kind to either pod.
fn pair(machine: &Machine, pods: &[Pod], pool: &Pool, networks: &[Value], round: usize) -> Result<()> {
    let (pod, network) = (&pods[round % pods.len()], &networks[usize::from(!(round / pods.len()).is_multiple_of(one_moves_of()))]);
    let result = machine.call_with(Add, pod, network, pool)?.context("a result")?;
    ensure!(result["ips"][0]["address"] == "192.0.2.2/24", "an address was not given back: {result}");
    ensure!(machine.call_with(Del, pod, network, pool)?.is_none(), "DEL prints nothing");
    Ok(())
}

#[test]
fn ten_thousand_attachments_leave_nothing_behind() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pool = Pool::default();
        let pods = [Pod::new("a")?, Pod::new("b")?];
        let ipam = json!({"type": "pool"});
        let networks = [machine.conf(&json!({"mtu": 1400, "ipam": ipam})), machine.conf(&json!({"deviceID": USERSPACE_VF, "ipam": ipam}))];
        // Folders and lock files are made once and stay.
        for round in 0..2 * ONE_MOVES_OF {
            pair(&machine, &pods, &pool, &networks, round)?;
        }
        let before = Belongings::count(&machine, &pods, &pool)?;
        let started = Instant::now();
        for round in 0..PAIRS {
            pair(&machine, &pods, &pool, &networks, round).with_context(|| format!("round {round}"))?;
        }
        eprintln!("{PAIRS} pairs in {:?}", started.elapsed());
        assert_eq!(Belongings::count(&machine, &pods, &pool)?, before);
        let vfs = if one_moves_of() == 1 { 1 } else { 2 };
        assert!(machine.journals().is_empty() && before.files.len() == vfs, "one lock file a VF: {before:?}");
        for vf in [VF, USERSPACE_VF] {
            Store::at(&machine.state()).lock(vf.parse()?, Instant::now()).context("a lock is still held")?;
        }
        Ok(())
    })
}
