//! I/O: the CNI when a process dies in the middle, when two race for one VF, and when IPAM is slow; on a real kernel without a VF, as
//! `netns_cni`. Needs root.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sriov_cni::Error;
use sriov_cni::io::{DelegateError, Delegation, Io, Moment, SystemIo};
use sriov_cni::request::Command::{Add, Del, Gc};
use sriov_host::Host;
use sriov_host::netlink::Link;
use sriov_tests::cni::{Machine, NETDEV, Pod, as_host, host_link, request};

/// What a child process is told in this variable: an ADD that kills its own process at a moment.
const SCRIPT: &str = "SRIOV_CNI_TEST_SCRIPT";

#[derive(Serialize, Deserialize)]
struct Script {
    root: PathBuf,
    plugins: PathBuf,
    container_id: String,
    netns: PathBuf,
    conf: Value,
    /// Index in [`Moment::ALL`].
    moment: usize,
}

struct DieAt(Moment);

impl Io for DieAt {
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError> {
        SystemIo.delegate(call)
    }

    fn reached(&self, moment: Moment) {
        if moment == self.0 {
            // Nothing runs after this: no drop, no undo.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

/// In a child process: performs the script, which ends the process. False in the test itself.
fn performed_as_child() -> Result<bool> {
    let Some(script) = std::env::var_os(SCRIPT) else { return Ok(false) };
    let script: Script = serde_json::from_str(script.to_str().context("UTF-8")?)?;
    let request = request(Add, &script.container_id, Some(script.netns), &script.plugins, &script.conf);
    let done = sriov_cni::run(&request, &Host::at(script.root), &DieAt(Moment::ALL[script.moment]));
    bail!("the child survived: {done:?}");
}

/// Runs ADD in a child process that dies at `moment`. `test` is the name of the calling test, which is also the child's program.
fn add_and_die(machine: &Machine, pod: &Pod, conf: &Value, test: &str, moment: usize) -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    let script = Script {
        root: machine.host().root().to_owned(),
        plugins: machine.plugins.clone(),
        container_id: pod.container_id().to_owned(),
        netns: pod.path(),
        conf: conf.clone(),
        moment,
    };
    // Started from this thread, it is in this thread's namespace.
    let status = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", test])
        .env(SCRIPT, serde_json::to_string(&script)?)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.signal() == Some(9), "the child should have been killed at {:?}: {status}", Moment::ALL[moment]);
    Ok(())
}

fn assert_untouched(machine: &Machine, before: &Link, after_what: &str) -> Result<()> {
    let mut link = host_link(NETDEV).with_context(|| after_what.to_owned())?;
    link.netdev.ifindex = before.netdev.ifindex;
    link.netdev.carrier = before.netdev.carrier;
    assert_eq!(link, *before, "{after_what}");
    assert!(machine.journals().is_empty(), "{after_what}: {:?}", machine.journals());
    assert!(machine.leases().is_empty(), "{after_what}: {:?}", machine.leases());
    Ok(())
}

#[test]
fn an_add_that_dies_anywhere_is_cleaned_up_by_del() -> Result<()> {
    if performed_as_child()? {
        return Ok(());
    }
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let conf = machine.conf(&json!({"mtu": 1300, "ipam": machine.host_local()}));
        for (index, moment) in Moment::ALL.into_iter().enumerate() {
            let pod = Pod::new("a")?;
            add_and_die(&machine, &pod, &conf, "an_add_that_dies_anywhere_is_cleaned_up_by_del", index)?;
            assert_eq!(machine.journals().len(), 1, "the journal comes first: {moment:?}");
            machine.call(Del, &pod, &conf)?;
            assert_untouched(&machine, &before, &format!("DEL after death at {moment:?}"))?;
            assert_eq!(pod.links()?, ["lo".to_owned()].into(), "{moment:?}");
        }
        Ok(())
    })
}

#[test]
fn an_add_that_dies_anywhere_is_completed_by_another_add() -> Result<()> {
    if performed_as_child()? {
        return Ok(());
    }
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let conf = machine.conf(&json!({"mtu": 1300, "ipam": machine.host_local()}));
        for (index, moment) in Moment::ALL.into_iter().enumerate() {
            let pod = Pod::new("a")?;
            add_and_die(&machine, &pod, &conf, "an_add_that_dies_anywhere_is_completed_by_another_add", index)?;
            let result = machine.call(Add, &pod, &conf).with_context(|| format!("{moment:?}"))?.context("a result")?;
            assert_eq!(result["interfaces"][0]["mtu"], 1300, "{moment:?}");
            assert!(pod.link("net1")?.netdev.admin_up, "{moment:?}");
            assert_eq!(machine.leases().len(), 1, "{moment:?}");
            machine.call(Del, &pod, &conf)?;
            assert_untouched(&machine, &before, &format!("ADD and DEL after death at {moment:?}"))?;
        }
        Ok(())
    })
}

#[test]
fn an_add_that_dies_anywhere_is_cleaned_up_by_gc() -> Result<()> {
    if performed_as_child()? {
        return Ok(());
    }
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let conf = machine.conf(&json!({"mtu": 1300, "ipam": machine.host_local()}));
        let mut collect = conf.clone();
        collect["cni.dev/valid-attachments"] = json!([]);
        for (index, moment) in Moment::ALL.into_iter().enumerate() {
            let pod = Pod::new("a")?;
            add_and_die(&machine, &pod, &conf, "an_add_that_dies_anywhere_is_cleaned_up_by_gc", index)?;
            machine.call(Gc, &pod, &collect)?;
            assert_untouched(&machine, &before, &format!("GC after death at {moment:?}"))?;
        }
        Ok(())
    })
}

#[test]
fn of_two_adds_that_race_one_wins() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        for _ in 0..10 {
            let pods = [Pod::new("a")?, Pod::new("b")?];
            let results = std::thread::scope(|scope| {
                let adds = pods.each_ref().map(|pod| scope.spawn(|| machine.call(Add, pod, &conf)));
                adds.map(|add| add.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            });
            let won: Vec<_> = results.iter().map(|result| result.as_ref().map_or_else(Error::code, |_| 0)).collect();
            ensure!(won == [0, 11] || won == [11, 0], "{results:?}");
            assert_eq!(machine.leases().len(), 1);
            for pod in &pods {
                machine.call(Del, pod, &conf)?;
            }
            assert_untouched(&machine, &before, "both DELs")?;
        }
        Ok(())
    })
}

/// An IPAM that says when it was called and answers when it is told to.
struct Slow {
    called: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Slow {
    fn new() -> (Self, Receiver<()>, Sender<()>) {
        let (called, was_called) = channel();
        let (tell, go_on) = channel();
        (Self { called, go_on: Mutex::new(go_on) }, was_called, tell)
    }
}

impl Io for Slow {
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError> {
        let _ = self.called.send(());
        // An error means that the test is over.
        let _ = self.go_on.lock().map(|go_on| go_on.recv());
        SystemIo.delegate(call)
    }
}

#[test]
fn a_del_that_is_slow_in_ipam_leaves_the_next_pod_alone() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        machine.call(Add, &first, &conf)?;
        let (slow, was_called, tell) = Slow::new();
        std::thread::scope(|scope| {
            let slow = &slow;
            let del = scope.spawn(|| machine.call_with(Del, &first, &conf, slow));
            was_called.recv()?;
            let added = machine.call(Add, &second, &machine.conf(&json!({"mtu": 1300})));
            tell.send(())?;
            del.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            added?;
            Ok::<(), anyhow::Error>(())
        })?;
        assert_eq!(second.link("net1")?.netdev.mtu, 1300);
        assert_eq!(machine.journals().len(), 1);
        assert!(machine.leases().is_empty());
        Ok(())
    })
}

#[test]
fn an_add_that_is_slow_in_ipam_can_be_deleted_meanwhile() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        let (slow, was_called, tell) = Slow::new();
        let added = std::thread::scope(|scope| {
            let slow = &slow;
            let add = scope.spawn(|| machine.call_with(Add, &pod, &conf, slow));
            was_called.recv()?;
            let deleted = machine.call(Del, &pod, &conf);
            // Once for ADD, once for the DEL of its undo.
            tell.send(())?;
            tell.send(())?;
            let added = add.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            deleted?;
            Ok::<_, anyhow::Error>(added)
        })?;
        assert!(matches!(added, Err(Error::Overtaken { .. })), "{added:?}");
        assert_untouched(&machine, &before, "DEL during ADD")
    })
}
