//! I/O: ADD and DEL of two CNI programs in turn on the same VFs, each call timed from before its start until its output is read; beside them the
//! floor, which is the same netlink messages without a process, the start of a process that does nothing, and the IPAM plugin on its own.
//!
//! Runs in the machine that has the VFs (`bench-cni pairs`). What does not live here: how the times are told (`bench_cni`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_host::netns::NetNs;
use sriov_host::pci::PciAddress;
use sriov_host::vf::{VfAttributes, VfIndex, VfSetting};

use crate::trace::{TIME, Trace};

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Name of each program's times, its path, and the network configuration that it gets; `deviceID` is put in.
    pub programs: Vec<(String, PathBuf, Value)>,
    /// The VFs, in turn: name of the PF's netdev, index, PCI address.
    pub vfs: Vec<(String, u16, String)>,
    /// A container's namespace.
    pub netns: PathBuf,
    /// Folder of the IPAM plugins.
    pub plugins: PathBuf,
    /// Pairs of ADD and DEL for each program.
    pub pairs: usize,
    /// What the floor sets on a VF, and takes back; `None` leaves the floor out.
    pub floor: Option<Vec<VfSetting>>,
    /// A program that does nothing, to time the start of a process.
    pub idle: Option<Vec<String>>,
    /// With this tracer, the time from before the start of a program to its first message on a netlink socket is measured, and not the whole call's.
    #[serde(default)]
    pub tracer: Option<PathBuf>,
}

/// Times in microseconds by the name of what was timed: `NAME ADD`, `NAME DEL`, `floor ADD`, `floor DEL`, `ipam ADD`, `ipam DEL`, `start`.
pub type Times = BTreeMap<String, Vec<u64>>;

/// Measures. The order of the programs changes with each round, and each round has its own VF, so that none has the better place.
pub fn measure(order: &Order) -> Result<Times> {
    let mut times = Times::new();
    for round in 0..order.pairs {
        let (pf, index, vf) = &order.vfs[round % order.vfs.len()];
        for place in 0..order.programs.len() {
            let (name, program, conf) = &order.programs[(place + round) % order.programs.len()];
            for verb in ["ADD", "DEL"] {
                let micros = match &order.tracer {
                    Some(tracer) => until_netlink(order, tracer, program, (verb, conf), vf),
                    None => call(order, &mut Command::new(program), verb, conf, vf),
                };
                let micros = micros.with_context(|| format!("{name}, round {round}"))?;
                times.entry(format!("{name} {verb}")).or_default().push(micros);
            }
        }
        if let Some(settings) = &order.floor {
            let (add, del) = floor(order, pf, VfIndex(*index), vf.parse()?, settings).with_context(|| format!("floor, round {round}"))?;
            times.entry("floor ADD".to_owned()).or_default().push(add);
            times.entry("floor DEL".to_owned()).or_default().push(del);
        }
        if order.floor.is_some()
            && let Some((_, _, conf)) = order.programs.first()
            && let Some(ipam) = conf["ipam"]["type"].as_str()
        {
            for verb in ["ADD", "DEL"] {
                let micros =
                    call(order, &mut Command::new(order.plugins.join(ipam)), verb, conf, vf).with_context(|| format!("{ipam}, round {round}"))?;
                times.entry(format!("ipam {verb}")).or_default().push(micros);
            }
        }
        if let Some([program, arguments @ ..]) = order.idle.as_deref() {
            let started = Instant::now();
            let status = Command::new(program).args(arguments).stdout(Stdio::null()).status().with_context(|| format!("run {program}"))?;
            ensure!(status.success(), "{program}: {status}");
            times.entry("start".to_owned()).or_default().push(micros(started));
        }
    }
    Ok(times)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// How long it takes from before the program is executed until it sends its first message to the kernel.
fn until_netlink(order: &Order, tracer: &Path, program: &Path, (verb, conf): (&str, &Value), vf: &str) -> Result<u64> {
    let report = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(tracer);
    command.arg(report.path()).arg(TIME).arg(program);
    call(order, &mut command, verb, conf, vf)?;
    let trace = Trace::of_report(&std::fs::read(report.path())?, String::new())?;
    ensure!(trace.exit == Some(0), "{verb} of {vf}: {trace:?}");
    let (_, after) = trace.first_netlink.with_context(|| format!("{verb} sends no netlink message"))?;
    Ok(u64::try_from(after.as_micros())?)
}

fn call(order: &Order, program: &mut Command, verb: &str, conf: &Value, vf: &str) -> Result<u64> {
    let mut conf = conf.clone();
    // Plugins of the reference collection call it by the other name.
    conf["deviceID"] = vf.into();
    conf["pciBusID"] = vf.into();
    let started = Instant::now();
    let mut child = program
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "bench")
        .env("CNI_NETNS", &order.netns)
        .env("CNI_IFNAME", "net1")
        .env("CNI_PATH", &order.plugins)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start it")?;
    child.stdin.take().context("a pipe")?.write_all(conf.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let micros = micros(started);
    ensure!(output.status.success(), "{verb} of {vf}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(micros)
}

/// The messages that attach and detach a VF, and nothing else: no files, no process, names and indexes known before.
fn floor(order: &Order, pf: &str, index: VfIndex, vf: PciAddress, settings: &[VfSetting]) -> Result<(u64, u64)> {
    let (host, netns) = (NetNs::current()?, NetNs::open(&order.netns)?);
    let (route, pod) = (Route::open()?, Route::open_in(&netns)?);
    let pf = route.link_by_name(pf)?.with_context(|| format!("there is no {pf}"))?.netdev.ifindex;
    let link = route.link_by_pci(vf)?.with_context(|| format!("VF {vf} has no netdev"))?;
    let original = route.vf(pf, index)?.with_context(|| format!("VF {vf} is not reported"))?;

    let started = Instant::now();
    route.link_by_name(&link.netdev.name)?;
    set(&route, pf, index, settings)?;
    let moving = LinkChange { name: Some("net1"), netns: Some(netns.as_fd()), ..LinkChange::default() };
    route.change_link(link.netdev.ifindex, &moving)?;
    let inside = pod.link_by_name("net1")?.context("net1 is not in the namespace")?.netdev.ifindex;
    pod.change_link(inside, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    pod.link_by_index(inside)?;
    let add = micros(started);

    let back = set_back(&original, settings);
    let started = Instant::now();
    let there = pod.link_by_name("net1")?.context("net1 is not in the namespace")?;
    leave(&pod, &there, &link, &host)?;
    set(&route, pf, index, &back)?;
    route.link_by_name(&link.netdev.name)?;
    Ok((add, micros(started)))
}

fn leave(pod: &Route, there: &Link, link: &Link, host: &NetNs) -> Result<()> {
    pod.change_link(there.netdev.ifindex, &LinkChange { up: Some(false), ..LinkChange::default() })?;
    // The name first: udev gives a netdev that comes under another one its old name as an alternative, which is then in the way.
    pod.change_link(there.netdev.ifindex, &LinkChange { name: Some(&link.netdev.name), ..LinkChange::default() })?;
    Ok(pod.change_link(there.netdev.ifindex, &LinkChange { netns: Some(host.as_fd()), ..LinkChange::default() })?)
}

/// One message with all, and a look at the VF before and after.
fn set(route: &Route, pf: u32, index: VfIndex, settings: &[VfSetting]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    route.vf(pf, index)?;
    route.set_vf(pf, index, settings)?;
    route.vf(pf, index)?;
    Ok(())
}

fn set_back(original: &VfAttributes, settings: &[VfSetting]) -> Vec<VfSetting> {
    sriov_cni::vf_plan::inverse(settings, original, &VfAttributes { mac: sriov_host::mac::MacAddr([0xff; 6]), ..original.clone() })
}
