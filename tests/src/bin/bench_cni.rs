//! I/O: the benchmark of the CNI: `hack/bench cni`. ADD and DEL of ours and of any other CNI program, interleaved on the same VFs of a guest,
//! beside the floor; then what does not need VFs, natively on this machine.
//!
//! What lives here: the scenes and the tables. What does not: the loop (`sriov_tests::pairs`) and counting calls (`sriov_tests::trace`).
//!
//! Invariant: nothing here passes or fails a test; each goal is printed beside what was measured.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use sriov_host::netlink::Route;
use sriov_host::vf::VfSetting;
use sriov_tests::cni::{Machine, Pod, USERSPACE_VF, VF, as_host};
use sriov_tests::lab::Lab;
use sriov_tests::lab::artifacts::workspace;
use sriov_tests::lab::guest::Guest;
use sriov_tests::lab::topology::{Nic, Topology};
use sriov_tests::pairs::{self, Order, Times};
use sriov_tests::trace::{Trace, Tracer};

/// Measures the CNI.
#[derive(Debug, Parser)]
#[command(name = "hack/bench cni")]
struct Cli {
    /// Another CNI program for comparison: its absolute path on this machine. Its file name is its CNI type.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Our program, instead of one that is built as images ship it.
    #[arg(long)]
    ours: Option<PathBuf>,
    /// Pairs of ADD and DEL of each program and network.
    #[arg(long, default_value_t = 200)]
    pairs: usize,
    /// Only the networks with these names.
    #[arg(long, value_delimiter = ',', default_values = ["plain", "settings", "host-local"])]
    networks: Vec<String>,
    /// Only what needs no guest.
    #[arg(long)]
    native: bool,
}

const OURS: &str = "ours";
const OTHER: &str = "other";
const LEAST: &str = "least";
const GUEST_PLUGINS: &str = "/opt/cni/bin";
const NETNS: &str = "/run/netns/bench";

fn main() -> Result<()> {
    // The program copies itself into the guest, where it is called so.
    if std::env::args().skip(1).eq(["pairs"]) {
        println!("{}", serde_json::to_string(&pairs::measure(&serde_json::from_reader(std::io::stdin().lock())?)?)?);
        return Ok(());
    }
    let cli = Cli::parse();
    let sriov = cli.ours.clone().map_or_else(shipped, Ok)?;
    let size = std::fs::metadata(&sriov)?.len();
    println!("# CNI benchmark\n\nThe program as it is shipped (`--profile dist`): {size} bytes. {}", goal(size < 2_000_000, "below 2,000,000 bytes"));
    native(&cli, &sriov)?;
    if !cli.native {
        guest(&cli, &sriov)?;
    }
    Ok(())
}

fn goal(reached: bool, text: &str) -> String {
    format!("Goal: {text}: {}.", if reached { "reached" } else { "MISSED" })
}

/// Builds the plugin as images ship it.
fn shipped() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", "dist", "-p", "sriov-cni", "--bin", "sriov"]).current_dir(workspace());
    ensure!(command.status().context("run cargo")?.success(), "the plugin does not compile");
    // <target>/<triple>/debug/bench-cni runs this.
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("this program is in no target folder")?;
    Ok(folder.join("dist/sriov"))
}

/// Median and 99th percentile in microseconds.
fn summary(times: &[u64]) -> (u64, u64) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default();
    (at(50), at(99))
}

fn ms(micros: u64) -> String {
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}

/// `1.23` of two numbers.
fn ratio(a: u64, b: u64) -> String {
    let hundredths = (a * 100).checked_div(b).unwrap_or_default();
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn median(times: &Times, name: &str) -> u64 {
    times.get(name).map(|times| summary(times).0).unwrap_or_default()
}

/// The table of one network, with its goals.
fn table(times: &Times, calls: &[(String, Trace)]) {
    println!("| | median ms | p99 ms | to ours | system calls | peak KiB |\n|---|--:|--:|--:|--:|--:|");
    for (name, samples) in times {
        let (median_us, p99) = summary(samples);
        let ours = name.split(' ').next_back().map(|verb| median(times, &format!("{OURS} {verb}"))).filter(|ours| *ours > 0);
        let to_ours = ours.map(|ours| ratio(median_us, ours)).unwrap_or_default();
        let trace = calls.iter().find(|(traced, _)| traced == name).map(|(_, trace)| trace);
        let count = trace.map(|trace| trace.calls.len().to_string()).unwrap_or_default();
        let peak = trace.map(|trace| trace.peak_kib.to_string()).unwrap_or_default();
        println!("| {name} ({}) | {} | {} | {to_ours} | {count} | {peak} |", samples.len(), ms(median_us), ms(p99));
    }
    println!();
    for verb in ["ADD", "DEL"] {
        let ours = median(times, &format!("{OURS} {verb}"));
        let (other, floor) = (median(times, &format!("{OTHER} {verb}")), median(times, &format!("floor {verb}")));
        if other > 0 {
            println!("- {verb} against the other program: {} of its time. {}", ratio(ours, other), goal(ours * 3 <= other, "at most a third"));
        }
        if floor > 0 {
            let ipam = median(times, &format!("ipam {verb}"));
            let least = floor + median(times, "start") + ipam;
            let what = if ipam > 0 { "floor + start of a process + the IPAM plugin on its own" } else { "floor + start of a process" };
            println!("- {verb} against {what}: {}. {}", ratio(ours, least), goal(ours * 2 <= least * 3, "at most 1.5"));
        }
    }
    println!();
}

// --- in a guest ---

fn guest(cli: &Cli, sriov: &Path) -> Result<()> {
    let lab = Lab::boot(Topology::one_guest())?;
    let guest = lab.guest(1)?;
    let nic = guest.node().nics().next().context("no PF")?;
    guest.copy_program(sriov, &format!("{GUEST_PLUGINS}/sriov"))?;
    guest.copy_program(&std::env::current_exe()?, "/usr/local/bin/bench-cni")?;
    guest.copy_program(&Tracer::build()?.program(), "/usr/local/bin/tracer")?;
    if let Some(other) = &cli.against {
        guest.copy_program(other, &format!("{GUEST_PLUGINS}/{}", other_type(other)?))?;
    }
    guest.sh("ip netns add bench")?;
    guest.run(&["/usr/sbin/ip", "link", "set", &nic.netdev(), "up"])?;
    println!("## In a guest: Linux {}, emulated igb, no hardware virtualisation\n", guest.run(&["uname", "-r"])?.trim());
    vfs(guest, nic, 2)?;
    for (name, asked, floor) in networks()?.into_iter().filter(|(name, _, _)| cli.networks.iter().any(|asked| asked == name)) {
        println!("### Network `{name}`: `{asked}`\n");
        let order = order(cli, &asked, vf_list(nic, 2), cli.pairs, Some(floor))?;
        let times = run_pairs(guest, &order)?;
        table(&times, &calls(guest, &order)?);
    }
    println!(
        "### Cost by the number of VFs of the PF (`settings`, 20 pairs each)\n\n| VFs | ADD ms | DEL ms | calls ADD | calls DEL |\n|--:|--:|--:|--:|--:|"
    );
    for count in [1, 7] {
        vfs(guest, nic, 0)?;
        vfs(guest, nic, count)?;
        let mut order = order(cli, &networks()?.swap_remove(1).1, vf_list(nic, 1), 20, None)?;
        order.programs.truncate(1);
        let (times, calls) = (run_pairs(guest, &order)?, calls(guest, &order)?);
        let number = |verb: &str| calls.iter().find(|(name, _)| name.ends_with(verb)).map_or(0, |(_, trace)| trace.calls.len());
        let medians = ["ADD", "DEL"].map(|verb| ms(median(&times, &format!("{OURS} {verb}"))));
        println!("| {count} | {} | {} | {} | {} |", medians[0], medians[1], number("ADD"), number("DEL"));
    }
    println!();
    Ok(())
}

fn other_type(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).filter(|name| *name != "sriov").context("--against needs a path whose file name is not sriov")
}

/// Name, what is asked of the VF, and the same as the floor sets it. The floor has another MAC, so that it leaves no work done.
fn networks() -> Result<Vec<(String, Value, Vec<VfSetting>)>> {
    let settings = json!({ "vlan": 100, "mac": "02:00:5e:10:00:01", "spoofchk": "off", "trust": "on" });
    let floor =
        json!([{ "Mac": "02:00:5e:10:00:02" }, { "Vlan": { "id": 100, "qos": 0, "proto": "802.1q" } }, { "SpoofCheck": false }, { "Trust": true }]);
    let leases = json!({ "ipam": { "type": "host-local", "dataDir": "/run/leases", "ranges": [[{ "subnet": "192.0.2.0/24" }]] } });
    Ok(vec![
        ("plain".to_owned(), json!({}), Vec::new()),
        ("settings".to_owned(), settings, serde_json::from_value(floor).context("the form of the floor's settings")?),
        ("host-local".to_owned(), leases, Vec::new()),
    ])
}

fn order(cli: &Cli, asked: &Value, vfs: Vec<(String, u16, String)>, pairs: usize, floor: Option<Vec<VfSetting>>) -> Result<Order> {
    let conf = |kind: &str| {
        let mut conf = json!({ "cniVersion": "1.0.0", "name": format!("net-{kind}"), "type": kind });
        for (key, value) in asked.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        conf
    };
    let mut programs = vec![(OURS.to_owned(), PathBuf::from(GUEST_PLUGINS).join("sriov"), conf("sriov"))];
    if let Some(other) = &cli.against {
        let kind = other_type(other)?;
        programs.push((OTHER.to_owned(), PathBuf::from(GUEST_PLUGINS).join(kind), conf(kind)));
    }
    let idle = Some(["/bin/busybox", "true"].map(str::to_owned).to_vec());
    Ok(Order { programs, vfs, netns: NETNS.into(), plugins: GUEST_PLUGINS.into(), pairs, floor, idle, tracer: None })
}

/// igb numbers its VFs from 16 devices above the PF, every second function.
fn vf_list(nic: Nic, count: u16) -> Vec<(String, u16, String)> {
    (0..count).map(|index| (nic.netdev(), index, format!("0000:{:02x}:1{}.{}", nic.index + 1, index / 4, 2 * (index % 4)))).collect()
}

/// Makes the VFs and waits until each has its netdev.
fn vfs(guest: &Guest, nic: Nic, count: u16) -> Result<()> {
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", nic.pci_address()), &count.to_string())?;
    for (_, _, vf) in vf_list(nic, count) {
        let there = || guest.run(&["ls", &format!("/sys/bus/pci/devices/{vf}/net")]).map(|names| (!names.is_empty()).then_some(()));
        guest.poll(Instant::now() + Duration::from_mins(1), "the VF has a netdev", there)?;
    }
    guest.run(&["udevadm", "settle", "--timeout=30"]).map(drop)
}

/// The pairs in batches, because a guest's command has a time limit.
fn run_pairs(guest: &Guest, order: &Order) -> Result<Times> {
    const BATCH: usize = 20;
    let mut times = Times::new();
    for done in (0..order.pairs).step_by(BATCH) {
        let batch = Order { pairs: BATCH.min(order.pairs - done), ..order.clone() };
        let command = guest.command(&["/usr/local/bin/bench-cni", "pairs"]).stdin(serde_json::to_vec(&batch)?).limit(Duration::from_mins(10));
        let measured: Times = serde_json::from_str(&command.output()?)?;
        for (name, samples) in measured {
            times.entry(name).or_default().extend(samples);
        }
        eprintln!("{} of {} pairs", done + batch.pairs, order.pairs);
    }
    Ok(times)
}

/// One traced pair of each program.
fn calls(guest: &Guest, order: &Order) -> Result<Vec<(String, Trace)>> {
    let mut traces = Vec::new();
    for (name, program, conf) in &order.programs {
        for verb in ["ADD", "DEL"] {
            let mut conf = conf.clone();
            conf["deviceID"] = order.vfs[0].2.clone().into();
            conf["pciBusID"] = conf["deviceID"].clone();
            let command = guest.command(&["/usr/local/bin/tracer", "/run/trace.json", "0", &program.display().to_string()]).stdin(conf.to_string());
            let command = command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "bench").env("CNI_NETNS", NETNS);
            let outcome = command.env("CNI_IFNAME", "net1").env("CNI_PATH", GUEST_PLUGINS).outcome()?;
            let trace = Trace::of_report(&guest.read("/run/trace.json")?, outcome.text())?;
            ensure!(trace.exit == Some(0), "{name} {verb}: {outcome}");
            traces.push((format!("{name} {verb}"), trace));
        }
    }
    Ok(traces)
}

// --- on this machine ---

/// Runs of which the median is the time to the first netlink message.
const STARTS: usize = 200;
/// What may be remembered and how many VFs a PF may have: without anything, with much of the one, with much of the other.
const SURROUNDINGS: [(usize, usize); 3] = [(1, 2), (10_000, 2), (1, 126)];

/// The plugin's own costs, with one end of a veth pair in the place of a VF's netdev and a folder in the place of its sysfs. What grows is looked for
/// with a VF that a userspace driver holds: nothing moves, so that all of the time is the plugin's.
fn native(cli: &Cli, sriov: &Path) -> Result<()> {
    let (sriov, probe, pairs) = (sriov.to_owned(), std::env::current_exe()?, cli.pairs);
    as_host(move || {
        println!("\n## On this machine, natively, with a veth in the place of a VF's netdev\n");
        let tracer = Tracer::build()?;
        println!(
            "| journals | VFs | ADD ms | DEL ms | userspace ADD ms | userspace DEL ms | calls ADD | calls DEL | start to netlink ms, median of {STARTS} | the same of a program that does nothing else | peak KiB |"
        );
        println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        let mut rows = Vec::new();
        for (journals, vfs) in SURROUNDINGS {
            let machine = Machine::new()?;
            let scene = Scene { machine: &machine, tracer: &tracer, sriov: &sriov, probe: &probe };
            scene.fill(journals, vfs)?;
            let moved = scene.pairs(pairs, VF, false)?;
            let own = scene.pairs(STARTS, USERSPACE_VF, false)?;
            let starts = scene.pairs(STARTS, VF, true)?;
            let verbs_traced = scene.calls()?;
            let row = Row {
                moved: verbs(|verb| median(&moved, &format!("{OURS} {verb}"))),
                own: verbs(|verb| median(&own, &format!("{OURS} {verb}"))),
                start: median(&starts, &format!("{OURS} ADD")),
                least: median(&starts, &format!("{LEAST} ADD")),
                calls: verbs_traced.each_ref().map(|trace| trace.calls.len()),
                peak_kib: verbs_traced.iter().map(|trace| trace.peak_kib).max().unwrap_or_default(),
            };
            let Row { moved, own, start, least, calls, peak_kib } = &row;
            print!("| {journals} | {vfs} | {} | {} | {} | {} |", ms(moved[0]), ms(moved[1]), ms(own[0]), ms(own[1]));
            println!(" {} | {} | {} | {} | {peak_kib} |", calls[0], calls[1], ms(*start), ms(*least));
            rows.push(row);
            Scene::clear()?;
        }
        println!();
        if let [least, journals, vfs] = rows.as_slice() {
            for (what, much) in [("10,000 journals against 1", journals), ("126 VFs against 2", vfs)] {
                let times = [ratio(much.own[0], least.own[0]), ratio(much.own[1], least.own[1])];
                let same = much.calls == least.calls && much.own.iter().sum::<u64>() * 5 <= least.own.iter().sum::<u64>() * 6;
                println!(
                    "- {what}: {} of the time of ADD, {} of DEL. {}",
                    times[0],
                    times[1],
                    goal(same, "the same calls and at most 1.2 of the time")
                );
            }
        }
        let most = |of: fn(&Row) -> u64| rows.iter().map(of).max().unwrap_or_default();
        println!("- {}", goal(most(|row| row.start) < 1000, "process start to first netlink byte below 1 ms"));
        println!("- {}\n", goal(most(|row| row.peak_kib) < 3 * 1024, "peak memory below 3 MiB"));
        Ok(())
    })
}

fn verbs<T>(of: impl Fn(&str) -> T) -> [T; 2] {
    ["ADD", "DEL"].map(of)
}

/// Of one surroundings: medians in microseconds of ADD and DEL, of the start, and of that of a program which does nothing; calls, peak of memory.
struct Row {
    moved: [u64; 2],
    own: [u64; 2],
    start: u64,
    least: u64,
    calls: [usize; 2],
    peak_kib: u64,
}

struct Scene<'a> {
    machine: &'a Machine,
    tracer: &'a Tracer,
    sriov: &'a Path,
    probe: &'a Path,
}

impl Scene<'_> {
    /// Adds journals of other VFs, and VFs to the PF.
    fn fill(&self, journals: usize, vfs: usize) -> Result<()> {
        let folder = self.machine.state().join("v1");
        std::fs::create_dir_all(&folder)?;
        let journal = include_str!("../../../sriov-cni/testdata/journal/v1.json");
        for number in 0..journals {
            std::fs::write(folder.join(format!("{:04x}:02:10.0.json", number + 1)), journal)?;
        }
        let devices = self.machine.host().root().join("sys/bus/pci/devices");
        for index in 2..vfs {
            let vf = format!("0000:02:{:02x}.{}", index / 8, index % 8);
            std::fs::create_dir_all(devices.join(&vf).join(format!("net/enp1s0v{index}")))?;
            std::os::unix::fs::symlink("../0000:01:00.0", devices.join(&vf).join("physfn"))?;
            std::os::unix::fs::symlink(format!("../{vf}"), devices.join(format!("0000:01:00.0/virtfn{index}")))?;
        }
        Ok(std::fs::write(devices.join("0000:01:00.0/sriov_numvfs"), format!("{vfs}\n"))?)
    }

    /// A program that sees the machine's folder in the place of /sys.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "/bin/sh", "-e", "-c", "mount --bind \"$0\" /sys; exec \"$@\""]);
        command.arg(self.machine.host().root().join("sys")).arg(program).args(arguments);
        command
    }

    fn conf(&self) -> Value {
        self.machine.conf(&json!({}))
    }

    /// Whole calls, or the time from their start to the first netlink message, beside that of the least program.
    fn pairs(&self, pairs: usize, vf: &str, starts: bool) -> Result<Times> {
        let pod = Pod::new("bench")?;
        let mut programs = vec![(OURS.to_owned(), self.sriov.to_owned(), self.conf())];
        programs.extend(starts.then(|| (LEAST.to_owned(), self.tracer.least(), self.conf())));
        let order = Order {
            programs,
            vfs: vec![("none".to_owned(), 0, vf.to_owned())],
            netns: pod.path(),
            plugins: self.machine.plugins.clone(),
            pairs,
            floor: None,
            idle: None,
            tracer: starts.then(|| self.tracer.program()),
        };
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), serde_json::to_vec(&order)?)?;
        let mut command = self.command(self.probe, &["pairs"]);
        let output = command.stdin(std::fs::File::open(file.path())?).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "pairs: {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// One traced ADD and DEL.
    fn calls(&self) -> Result<[Trace; 2]> {
        let pod = Pod::new("bench")?;
        let traced = |verb: &str| {
            // The tracer starts inside, so that it sees the plugin from its first call.
            let report = tempfile::NamedTempFile::new()?;
            let input = tempfile::NamedTempFile::new()?;
            std::fs::write(input.path(), self.conf().to_string())?;
            let (report_path, sriov) = (report.path().display().to_string(), self.sriov.display().to_string());
            let mut command = self.command(&self.tracer.program(), &[&report_path, "0", &sriov]);
            command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "bench").env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "net1");
            let output = command.env("CNI_PATH", &self.machine.plugins).stdin(std::fs::File::open(input.path())?).output()?;
            let trace = Trace::of_report(&std::fs::read(report.path())?, String::from_utf8_lossy(&output.stdout).into_owned())?;
            ensure!(trace.exit == Some(0), "{verb}: {}", trace.output);
            Ok::<_, anyhow::Error>(trace)
        };
        Ok([traced("ADD")?, traced("DEL")?])
    }

    /// Takes the machine's links away: the next one has the same names.
    fn clear() -> Result<()> {
        let route = Route::open()?;
        let link = route.link_by_name(sriov_tests::cni::NETDEV)?.context("the VF's netdev has gone")?;
        Ok(route.del_link(link.netdev.ifindex)?)
    }
}
