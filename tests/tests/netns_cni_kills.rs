//! I/O: the CNI killed with `kill -9` before each of its system calls, one run a call, then cleaned up by each verb that may clean up; on a real
//! kernel without a VF, as `netns_cni`. Needs root.
//!
//! That no boundary is left out is part of each test: the killed runs made the calls of an undisturbed run, one more each time, and the loop ends
//! with the run that has no more. What does not live here: attributes that a PF holds, which need a PF.

use std::process::Command as Program;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_cni::request::Command::{self, Add, Del, Gc};
use sriov_host::netlink::Link;
use sriov_tests::cni::{Machine, NETDEV, Pod, USERSPACE_VF, as_host, host_link};
use sriov_tests::trace::{Trace, Tracer};

/// The fewest calls that an ADD or DEL can be made of; fewer means that the program was not traced.
const PLAUSIBLE: usize = 50;

/// A run may be disturbed: a process that another test starts holds each lock of this one for the moment until it is executed.
const ATTEMPTS: usize = 10;

/// A machine, its VF before anything happened, and the network.
struct Scene {
    machine: Machine,
    tracer: Tracer,
    before: Link,
    conf: Value,
    kind: Kind,
}

/// What is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A VF with a netdev, which moves.
    Netdev,
    /// A VF that a userspace driver holds.
    Userspace,
}

impl Scene {
    fn new(kind: Kind) -> Result<Self> {
        let machine = Machine::new()?;
        let asked = match kind {
            Kind::Netdev => json!({"mtu": 1300, "ipam": machine.host_local()}),
            Kind::Userspace => json!({"deviceID": USERSPACE_VF, "ipam": machine.host_local()}),
        };
        let conf = machine.conf(&asked);
        Ok(Self { before: host_link(NETDEV)?, tracer: Tracer::build()?, machine, conf, kind })
    }

    /// One call in a process of its own, killed before system call `at`.
    fn killed(&self, verb: Command, pod: &Pod, at: usize) -> Result<Trace> {
        let mut program = Program::new(env!("CARGO_BIN_EXE_cni-probe"));
        program.arg(self.machine.host().root());
        program.env("CNI_COMMAND", verb.as_str()).env("CNI_CONTAINERID", pod.container_id()).env("CNI_NETNS", pod.path());
        program.env("CNI_IFNAME", "net1").env("CNI_PATH", &self.machine.plugins);
        let trace = self.tracer.kill_at(&program, self.conf.to_string().as_bytes(), at)?;
        ensure!(trace.exit.is_none_or(|code| code == 0), "{trace:?}");
        Ok(trace)
    }

    fn call(&self, verb: Command, pod: &Pod) -> Result<Option<Value>> {
        let mut conf = self.conf.clone();
        if verb == Gc {
            conf["cni.dev/valid-attachments"] = json!([]);
        }
        self.machine.call(verb, pod, &conf).with_context(|| format!("{} of {}", verb.as_str(), pod.container_id()))
    }

    /// The files of all attachments: journals, what IPAM is owed, records in the Go plugin's form. A temporary file is written over the next time.
    fn records(&self) -> Result<Vec<String>> {
        let mut records = Vec::new();
        for folder in ["", "v1", "owed", "pci"] {
            let folder = self.machine.state().join(folder);
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                records.extend((entry.file_type()?.is_file() && !name.starts_with('.')).then_some(name));
            }
        }
        Ok(records)
    }

    /// Cleans up with `verb` and looks whether everything is as it was.
    fn clean(&self, verb: Command, pod: &Pod) -> Result<()> {
        let done = self.call(verb, pod)?;
        if verb == Add {
            let result = done.context("ADD has a result")?;
            ensure!(result["interfaces"][0]["name"] == "net1" && result["ips"][0]["address"].is_string(), "{result}");
            ensure!(self.machine.leases().len() == 1, "ADD did less than it says");
            if self.kind == Kind::Netdev {
                ensure!(result["interfaces"][0]["mtu"] == 1300 && pod.link("net1")?.netdev.admin_up, "ADD did less than it says");
            }
            self.call(Del, pod)?;
        }
        let mut link = host_link(NETDEV)?;
        link.netdev.ifindex = self.before.netdev.ifindex;
        link.netdev.carrier = self.before.netdev.carrier;
        ensure!(link == self.before, "the VF is {link:?} and was {:?}", self.before);
        let records = self.records()?;
        ensure!(records.is_empty() && self.machine.leases().is_empty(), "{records:?} {:?}", self.machine.leases());
        ensure!(pod.links()? == ["lo".to_owned()].into(), "{:?}", pod.links());
        Ok(())
    }
}

/// Kills `verb` before each of its calls, after what `prepare` does with an empty pod, and cleans up with `cleaner`.
fn killed_everywhere(kind: Kind, verb: Command, cleaner: Command, prepare: fn(&Scene, &Pod) -> Result<()>) -> Result<()> {
    as_host(|| {
        let scene = Scene::new(kind)?;
        let pod = Pod::new("a")?;
        // Folders are made once: the first pair is another than all after it.
        scene.call(Add, &pod)?;
        scene.call(Del, &pod)?;
        let undisturbed = || {
            prepare(&scene, &pod)?;
            let whole = scene.killed(verb, &pod, 0)?;
            ensure!(whole.exit == Some(0) && whole.calls.len() > PLAUSIBLE, "{whole:?}");
            scene.clean(if verb == Add { Del } else { verb }, &pod)?;
            Ok(whole.calls)
        };
        let mut whole = undisturbed()?;
        for _ in 0..ATTEMPTS {
            let before = std::mem::replace(&mut whole, undisturbed()?);
            if before == whole {
                break;
            }
        }
        for at in 1..=whole.len() + 1 {
            // Each boundary of an undisturbed run, and nothing but these.
            let mut found = Vec::new();
            for _ in 0..ATTEMPTS {
                prepare(&scene, &pod)?;
                let trace = scene.killed(verb, &pod, at)?;
                let what = || format!("{} after a {} that was killed before call {at}: {}", cleaner.as_str(), verb.as_str(), trace.output);
                scene.clean(cleaner, &pod).with_context(what)?;
                found = trace.calls;
                if found == whole[..at - 1] {
                    break;
                }
            }
            ensure!(found == whole[..at - 1], "{} that is killed before call {at} makes other calls than one that is not: {found:?}", verb.as_str());
        }
        Ok(())
    })
}

fn attached(scene: &Scene, pod: &Pod) -> Result<()> {
    scene.call(Add, pod).map(drop)
}

/// An ADD that died with everything done but not recorded: its address is given and nobody knows the result.
fn almost_attached(scene: &Scene, pod: &Pod) -> Result<()> {
    scene.call(Add, pod)?;
    let journal = scene.machine.state().join("v1").join(format!("{}.json", sriov_tests::cni::VF));
    let mut content: Value = serde_json::from_slice(&std::fs::read(&journal)?)?;
    content["phase"] = json!("prepared");
    content.as_object_mut().context("an object")?.remove("result");
    Ok(std::fs::write(&journal, content.to_string())?)
}

#[test]
fn an_add_killed_at_any_call_is_cleaned_up_by_del() -> Result<()> {
    killed_everywhere(Kind::Netdev, Add, Del, |_, _| Ok(()))
}

#[test]
fn an_add_killed_at_any_call_is_completed_by_add() -> Result<()> {
    killed_everywhere(Kind::Netdev, Add, Add, |_, _| Ok(()))
}

#[test]
fn an_add_killed_at_any_call_is_cleaned_up_by_gc() -> Result<()> {
    killed_everywhere(Kind::Netdev, Add, Gc, |_, _| Ok(()))
}

#[test]
fn a_del_killed_at_any_call_is_completed_by_del() -> Result<()> {
    killed_everywhere(Kind::Netdev, Del, Del, attached)
}

#[test]
fn after_a_del_killed_at_any_call_add_attaches_again() -> Result<()> {
    killed_everywhere(Kind::Netdev, Del, Add, attached)
}

#[test]
fn a_del_killed_at_any_call_is_completed_by_gc() -> Result<()> {
    killed_everywhere(Kind::Netdev, Del, Gc, attached)
}

#[test]
fn an_add_killed_while_it_mends_an_interrupted_add_is_completed_by_add() -> Result<()> {
    killed_everywhere(Kind::Netdev, Add, Add, almost_attached)
}

#[test]
fn an_add_of_a_userspace_vf_killed_at_any_call_is_cleaned_up_by_del() -> Result<()> {
    killed_everywhere(Kind::Userspace, Add, Del, |_, _| Ok(()))
}

#[test]
fn an_add_of_a_userspace_vf_killed_at_any_call_is_completed_by_add() -> Result<()> {
    killed_everywhere(Kind::Userspace, Add, Add, |_, _| Ok(()))
}

#[test]
fn an_add_of_a_userspace_vf_killed_at_any_call_is_cleaned_up_by_gc() -> Result<()> {
    killed_everywhere(Kind::Userspace, Add, Gc, |_, _| Ok(()))
}

#[test]
fn a_del_of_a_userspace_vf_killed_at_any_call_is_completed_by_del() -> Result<()> {
    killed_everywhere(Kind::Userspace, Del, Del, attached)
}

#[test]
fn after_a_del_of_a_userspace_vf_killed_at_any_call_add_attaches_again() -> Result<()> {
    killed_everywhere(Kind::Userspace, Del, Add, attached)
}

#[test]
fn a_del_of_a_userspace_vf_killed_at_any_call_is_completed_by_gc() -> Result<()> {
    killed_everywhere(Kind::Userspace, Del, Gc, attached)
}
