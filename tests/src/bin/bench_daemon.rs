//! I/O: how fast the config daemon is: looking and planning with 1,024 VFs, its memory with 256, and on a real kernel its own time beside that of a
//! bare loop that makes the same writes. Prints what was measured beside the goals; nothing here is a test.
//!
//! `bench-daemon` measures on this machine alone; `bench-daemon --guest` also boots a guest with an emulated igb. Without `--binary PATH` (a build for
//! shipping, say) it is the build of the tests that is measured; `--against PATH` measures another program that knows the same commands beside it.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::observed::Observed;
use sriov_config_daemon::plan::plan;
use sriov_host::Host;
use sriov_host::discover::{Changes, KeptSurvey, NetFacts, Read, survey_with};
use sriov_host::mac::MacAddr;
use sriov_host::netlink::Link;
use sriov_host::pci::PciAddress;
use sriov_host::testing::{self, FakeSysfs, SysfsTree};
use sriov_tests::lab::Lab;
use sriov_tests::lab::artifacts::product;
use sriov_tests::lab::config_daemon::{ConfigDaemon, PROGRAM, Wish};
use sriov_tests::lab::topology::Topology;

const ROUNDS: usize = 20;

/// Measures the config daemon.
#[derive(Debug, Parser)]
struct Args {
    /// Measures on a real kernel too: boots a guest.
    #[arg(long)]
    guest: bool,
    /// Our binary; without it the one of the tests is built.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Another daemon's binary, run the same way in the guest: it must know `apply -f -` and `reset`.
    #[arg(long, requires = "guest")]
    against: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let ours = args.binary.map_or_else(|| product("sriov-config-daemon"), Ok)?;
    look_and_plan()?;
    memory(&ours)?;
    if args.guest {
        guest(&ours, args.against.as_deref())?;
    } else {
        println!("on a real kernel: not measured; --guest boots one");
    }
    Ok(())
}

fn verdict(what: &str, measured: f64, goal: f64, unit: &str) {
    let word = if measured <= goal { "pass" } else { "miss" };
    println!("{what:<66} {measured:>9.2} {unit:<3} goal <= {goal} {unit}  {:.2} of it: {word}", measured / goal);
}

/// PFs with so many VFs each, as mlx5 has them, in files and in netlink's words.
fn machine(pfs: u8, vfs: u8) -> Result<(FakeSysfs, NetFacts)> {
    let mut tree =
        SysfsTree::new().file("/sys/class/iommu/dmar0/version", "1\n").dir("/sys/kernel/iommu_groups/0").dir("/sys/bus/pci/drivers/vfio-pci");
    let mut facts = NetFacts::default();
    for pf in 1..=pfs {
        let address = format!("0000:{pf:02x}:00.0");
        let device = format!("/sys/bus/pci/devices/{address}");
        tree = function(tree, &address, "0x101d")
            .file(&format!("{device}/sriov_totalvfs"), "128\n")
            .file(&format!("{device}/sriov_numvfs"), &format!("{vfs}\n"))
            .file(&format!("{device}/sriov_drivers_autoprobe"), "1\n");
        facts.links.push(link(u32::from(pf), &address)?);
        for index in 0..vfs {
            let vf = format!("0000:{pf:02x}:{:02x}.{}", 1 + index / 8, index % 8);
            tree = function(tree, &vf, "0x101e")
                .link(&format!("{device}/virtfn{index}"), &format!("../{vf}"))
                .link(&format!("/sys/bus/pci/devices/{vf}/physfn"), &format!("../{address}"))
                .link(&format!("/sys/bus/pci/devices/{vf}/iommu_group"), &format!("../../../../kernel/iommu_groups/{index}"));
            facts.links.push(link(u32::from(pf) * 1000 + u32::from(index), &vf)?);
        }
    }
    facts.links.sort_by_key(|link| link.netdev.ifindex);
    Ok((tree.build()?, facts))
}

fn function(tree: SysfsTree, address: &str, id: &str) -> SysfsTree {
    let device = format!("/sys/bus/pci/devices/{address}");
    tree.file(&format!("{device}/vendor"), "0x15b3\n")
        .file(&format!("{device}/device"), &format!("{id}\n"))
        .file(&format!("{device}/class"), "0x020000\n")
        .file(
            &format!("{device}/uevent"),
            &format!("DRIVER=mlx5_core\nPCI_CLASS=20000\nPCI_ID=15B3:{}\nPCI_SLOT_NAME={address}\n", id[2..].to_uppercase()),
        )
        .file(&format!("{device}/numa_node"), "0\n")
        .link(&format!("{device}/driver"), "../../../../bus/pci/drivers/mlx5_core")
}

fn link(ifindex: u32, address: &str) -> Result<Link> {
    let parent: PciAddress = address.parse()?;
    let mut link = Link { parent: Some(parent), parent_device: Some(parent.to_string()), ..testing::link(ifindex, &format!("if{ifindex}")) };
    (link.netdev.mac, link.netdev.max_mtu) = (Some(MacAddr([2, 0, 0, 0, 0, 1])), Some(9216));
    Ok(link)
}

fn wish(pfs: u8, vfs: u16) -> Result<Desired> {
    let interface = |pf: u8| {
        serde_json::json!({ "pciAddress": format!("0000:{pf:02x}:00.0"), "numVfs": vfs, "vfGroups": [
            { "vfRange": format!("0-{}", vfs / 2 - 1), "deviceType": "netdevice", "resourceName": "net", "policyName": "net", "mtu": 9000 },
            { "vfRange": format!("{}-{}", vfs / 2, vfs - 1), "deviceType": "vfio-pci", "resourceName": "dpdk", "policyName": "dpdk" },
        ] })
    };
    let spec = serde_json::json!({ "policyRevision": "r", "interfaces": (1..=pfs).map(interface).collect::<Vec<_>>() });
    Ok(Desired::read(&serde_json::from_value(spec)?))
}

/// Of several runs the median, in milliseconds.
fn median(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn look_and_plan() -> Result<()> {
    let (files, facts) = machine(8, 128)?;
    let (host, desired) = (files.host(), wish(8, 128)?);
    let look = || -> Result<Observed> {
        let survey = survey_with(&host, &facts)?;
        ensure!(survey.faults.is_empty(), "{:?}", survey.faults);
        Ok(Observed { inventory: survey.inventory, vfio_pci_loaded: true, machine_id: "bench".to_owned(), ..Observed::default() })
    };
    let observed = look()?;
    let simulated = median(|| {
        let seen = observed.clone();
        ensure!(plan(&desired, &seen).steps.len() > 1000, "a plan of few steps is no measure");
        Ok(())
    })?;
    verdict("8 PFs x 128 VFs, simulated: observe + plan", simulated, 20.0, "ms");
    let read = median(|| {
        plan(&desired, &look()?);
        Ok(())
    })?;
    verdict("8 PFs x 128 VFs, from files of a tree: observe + plan", read, 20.0, "ms");
    verdict("the same after an event of one VF: only its PF is read", after_an_event(&host, &facts, &desired)?, 20.0, "ms");
    let before = memory_kib("self", "VmRSS")?;
    let plans: Vec<_> = (0..8).map(|_| plan(&desired, &observed)).collect();
    let mib = (memory_kib("self", "VmRSS")? - before) / 1024.0 / 8.0;
    verdict(&format!("memory of a plan of {} steps", plans[0].steps.len()), mib, 10.0, "MiB");
    Ok(())
}

/// A look that begins with the last one, after a VF got another driver and its netdev went.
fn after_an_event(host: &Host, facts: &NetFacts, desired: &Desired) -> Result<f64> {
    let (mut kept, mut event) = (KeptSurvey::default(), Changes::default());
    kept.look_with(host, facts, &event)?;
    event.add_function("0000:03:01.0".parse()?);
    event.add_link(3000);
    median(|| {
        let look = kept.look_with(host, facts, &event)?;
        ensure!(matches!(&look.read, Read::Pfs(pfs) if pfs.len() == 1), "more was read: {:?}", look.read);
        let observed = Observed { inventory: look.survey.inventory, vfio_pci_loaded: true, machine_id: "bench".to_owned(), ..Observed::default() };
        ensure!(plan(desired, &observed).steps.len() > 1000, "a plan of few steps is no measure");
        Ok(())
    })
}

fn memory_kib(process: &str, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).context("the kernel does not tell it")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The program itself, holding its whole output because nobody reads it yet.
fn memory(program: &Path) -> Result<()> {
    let (files, _) = machine(2, 128)?;
    let mut child =
        Command::new(program).args(["observe", "-o", "json", "--root"]).arg(files.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut output = child.stdout.take().context("no output")?;
    let mut first = [0];
    // It writes when it has everything; what is more than a pipe holds waits inside it.
    output.read_exact(&mut first)?;
    let peak = memory_kib(&child.id().to_string(), "VmHWM")?;
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    child.wait()?;
    ensure!(rest.len() > 65_536, "the output fits into the pipe, so the program may have been gone");
    verdict("resident memory with 256 VFs (observe, peak)", peak / 1024.0, 12.0, "MiB");
    Ok(())
}

const VFS: u8 = 7;

/// The same writes without anything between them; the waits are those that the kernel makes.
fn bare_loop(pf: &str, name: &str) -> String {
    let device = format!("/sys/bus/pci/devices/{pf}");
    let macs: Vec<String> = (0..VFS).map(|vf| format!("link set {name} vf {vf} mac 02:00:00:00:00:0{vf}")).collect();
    format!(
        "set -e; echo 0 > {device}/sriov_drivers_autoprobe; echo {VFS} > {device}/sriov_numvfs; echo 1 > {device}/sriov_drivers_autoprobe
         ip -batch - <<'EOF'\n{}\nEOF
         for vf in {device}/virtfn*; do basename $(readlink $vf) > /sys/bus/pci/drivers_probe; done
         while [ $(ls -d {device}/virtfn*/net/* | wc -l) -lt {VFS} ]; do :; done",
        macs.join("\n")
    )
}

fn guest(ours: &Path, against: Option<&Path>) -> Result<()> {
    let lab = Lab::boot(Topology::one_guest())?;
    let guest = lab.guest(1)?;
    let nic = guest.node().nics().next().context("the guest has no PF")?;
    let (pf, name) = (nic.pci_address(), nic.netdev());
    let mut daemons = vec![("daemon", ConfigDaemon::install_program(guest, ours, PROGRAM)?)];
    if let Some(other) = against {
        daemons.push(("other", ConfigDaemon::install_program(guest, other, "/usr/local/bin/other-daemon")?));
    }
    guest.run(&["/usr/sbin/ip", "link", "set", &name, "up"])?;
    let numvfs = format!("/sys/bus/pci/devices/{pf}/sriov_numvfs");
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    // Alternating, so that a busy moment of this machine does not meet one of them alone.
    for _ in 0..5 {
        let start = Instant::now();
        guest.command(&["/bin/sh", "-c", &bare_loop(&pf, &name)]).limit(Duration::from_mins(2)).output()?;
        times.entry("bare").or_default().push(start.elapsed());
        guest.write_attribute(&numvfs, "0")?;
        for (who, daemon) in &daemons {
            let start = Instant::now();
            let outcome = daemon.apply(&[Wish::vfs(nic, VFS).group("0-6", "netdevice")])?;
            times.entry(who).or_default().push(start.elapsed());
            ensure!(outcome.success(), "{who}: {outcome}");
            ensure!(daemon.reset()?.success(), "{who}: reset failed");
        }
    }
    let best = |name: &str| times[name].iter().min().map_or(0.0, Duration::as_secs_f64);
    println!("7 VFs on igb, best of 5: bare loop {:.2} s, daemon (look, plan, apply, look again) {:.2} s", best("bare"), best("daemon"));
    verdict("policy change to configured VFs, against a bare loop", best("daemon") / best("bare"), 1.15, "x");
    if against.is_some() {
        println!(
            "the other daemon: {:.2} s, {:.2} x of the bare loop; ours takes {:.2} of its time",
            best("other"),
            best("other") / best("bare"),
            best("daemon") / best("other")
        );
    }
    Ok(())
}
