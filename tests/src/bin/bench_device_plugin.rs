//! I/O: `hack/bench device-plugin [--against PATH] [--binary PATH]`: how fast a device plugin registers, follows its file and answers, and what it takes.
//!
//! Each plugin runs the same way: in a mount namespace of its own, where `/sys` is a tree of 8 PFs with 128 VFs each and `/var/lib/kubelet` belongs to
//! a stand-in for the kubelet, with the flags that both programs have. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sriov_device_plugin::api::deviceplugin_v1beta1 as v1beta1;
use sriov_host::testing::{FakeSysfs, SysfsTree};
use sriov_tests::kubelet::Kubelet;
use sriov_tests::lab::artifacts::workspace;

const PFS: u8 = 8;
const VFS_OF_EACH: u16 = 128;
const ROUNDS: usize = 5;
const ALLOCATIONS: usize = 1000;

/// Measures the device plugin, and beside it another one.
#[derive(Debug, Parser)]
struct Args {
    /// Another plugin's binary, run the same way.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Our binary; without it the one that is shipped is built (profile dist).
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// What was measured of one plugin.
#[derive(Debug, Default)]
struct Measured {
    registered: Vec<Duration>,
    /// A plugin that does not follow its file has none.
    followed: Vec<Duration>,
    allocated: Vec<Duration>,
    resident_kib: u64,
    wake_ups: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let ours = args.binary.map_or_else(shipped, Ok)?;
    let machine = tree().build()?;
    let floor = floor(&machine)?;
    let base = shell_time(&machine)?;
    print_row(["", "ours", "goal", "", "other", "ours/other"]);
    let first = measure(&ours, &machine, base).await.context("measure our plugin")?;
    let other = match &args.against {
        Some(path) => Some(measure(path, &machine, base).await.with_context(|| format!("measure {}", path.display()))?),
        None => None,
    };
    let of = |get: &dyn Fn(&Measured) -> Option<f64>| (get(&first), other.as_ref().and_then(get));
    report("start to registered, 1024 VFs (ms, median)", of(&|m| middle(&m.registered)), 50.0);
    print_row(["  of that, floor: only reading the same files", &format!("{floor:.2}"), "", "", "", ""]);
    report("config change to ListAndWatch (ms, median)", of(&|m| middle(&m.followed)), 20.0);
    report("Allocate (ms, p99)", of(&|m| part(&m.allocated, 99)), 2.0);
    report("resident memory (MB)", of(&|m| Some(kib_to_mb(m.resident_kib))), 8.0);
    report("wake-ups in 3 idle seconds", of(&|m| u32::try_from(m.wake_ups).ok().map(f64::from)), 0.0);
    Ok(())
}

/// The program as it is shipped.
fn shipped() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--profile", "dist", "--package", "sriov-device-plugin", "--bin", "sriov-device-plugin"])
        .current_dir(workspace());
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "cargo build --profile dist: {status}");
    // This program is <target>/<triple>/debug/bench-device-plugin.
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("this program has no folder")?;
    Ok(folder.join("dist/sriov-device-plugin"))
}

/// How long a bare loop takes for what a look at the machine reads, in milliseconds (median).
fn floor(machine: &FakeSysfs) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for function in fs::read_dir(machine.path().join("sys/bus/pci/devices"))? {
            let folder = function?.path();
            for name in fs::read_dir(&folder)? {
                let name = name?;
                if name.file_name().to_string_lossy().starts_with("virtfn") {
                    fs::read_link(name.path())?;
                }
            }
            ensure!(!fs::read(folder.join("uevent"))?.is_empty() && !fs::read(folder.join("numa_node"))?.is_empty(), "{}", folder.display());
            ensure!(fs::read_dir(folder.join("net"))?.count() == 1, "{}", folder.display());
        }
        times.push(start.elapsed());
    }
    middle(&times).context("no round")
}

fn kib_to_mb(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) * 1024.0 / 1_000_000.0
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn print_row(cells: [&str; 6]) {
    println!("{:<46}{:>10}{:>10}{:>7}{:>10}{:>12}", cells[0], cells[1], cells[2], cells[3], cells[4], cells[5]);
}

fn report(what: &str, (ours, other): (Option<f64>, Option<f64>), goal: f64) {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    let verdict = if ours.is_some_and(|ours| ours <= goal) { "pass" } else { "miss" };
    let ratio = ours.zip(other).filter(|(_, other)| *other > 0.0).map(|(ours, other)| ours / other);
    print_row([what, &number(ours), &number(Some(goal)), verdict, &number(other), &number(ratio)]);
}

/// In milliseconds.
fn part(times: &[Duration], percent: usize) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len() * percent / 100).min(times.len().checked_sub(1)?)).map(|time| time.as_secs_f64() * 1000.0)
}

fn middle(times: &[Duration]) -> Option<f64> {
    part(times, 50)
}

/// 8 PFs with 128 VFs each, as the mlx5 driver shows them: files, links and names that a plugin reads. Made, not captured.
fn tree() -> SysfsTree {
    let mut tree =
        SysfsTree::new().dir("/sys/class/net").dir("/sys/class/infiniband").dir("/sys/bus/pci/drivers/mlx5_core").dir("/sys/class/misc/tun");
    for number in 0..PFS {
        let pf = format!("0000:{:02x}:00.0", 0x10 + number);
        let device = format!("/sys/bus/pci/devices/{pf}");
        tree = function(tree, &pf, "0x1017", number)
            .file(&format!("{device}/sriov_totalvfs"), "128\n")
            .file(&format!("{device}/sriov_numvfs"), "128\n")
            .file(&format!("{device}/net/ens{number}f0/ifindex"), &format!("{}\n", 10_000 + u32::from(number)));
        for index in 0..VFS_OF_EACH {
            let vf = vf_address(number, index);
            tree = function(tree, &vf, "0x1018", number)
                .link(&format!("{device}/virtfn{index}"), &format!("../{vf}"))
                .link(&format!("/sys/bus/pci/devices/{vf}/physfn"), &format!("../{pf}"))
                .dir(&format!("/sys/bus/pci/devices/{vf}/net/ens{number}f0v{index}"));
        }
    }
    tree
}

fn vf_address(pf: u8, index: u16) -> String {
    format!("0000:{:02x}:{:02x}.{}", 0x10 + pf, 1 + index / 8, index % 8)
}

fn function(tree: SysfsTree, address: &str, id: &str, node: u8) -> SysfsTree {
    let device = format!("/sys/bus/pci/devices/{address}");
    let modalias = format!("pci:v000015B3d0000{}sv000015B3sd00000001bc02sc00i00\n", id.trim_start_matches("0x"));
    let uevent = format!(
        "DRIVER=mlx5_core\nPCI_CLASS=20000\nPCI_ID=15B3:{}\nPCI_SUBSYS_ID=15B3:0001\nPCI_SLOT_NAME={address}\nMODALIAS={modalias}",
        id.trim_start_matches("0x")
    );
    tree.file(&format!("{device}/uevent"), &uevent)
        .file(&format!("{device}/vendor"), "0x15b3\n")
        .file(&format!("{device}/device"), &format!("{id}\n"))
        .file(&format!("{device}/class"), "0x020000\n")
        .file(&format!("{device}/modalias"), &modalias)
        .file(&format!("{device}/numa_node"), &format!("{}\n", node / 4))
        .link(&format!("{device}/driver"), "../../../../bus/pci/drivers/mlx5_core")
}

/// A plugin that runs. Dropped, it is gone.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program where `/sys` is the tree's and `/var/lib/kubelet` is `kubelet`.
fn run(program: &Path, arguments: &[&str], machine: &FakeSysfs, kubelet: &Path) -> Result<Running> {
    let script = r#"mount --bind "$1/sys" /sys && mount -t tmpfs none /var/lib && mkdir /var/lib/kubelet && mount --bind "$2" /var/lib/kubelet && mount -t tmpfs none /run && shift 2 && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(machine.path()).arg(kubelet).arg(program).args(arguments);
    Ok(Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("run unshare")?))
}

/// How long the namespace and its mounts take, without any plugin.
fn shell_time(machine: &FakeSysfs) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let status = run(Path::new("/bin/true"), &[], machine, folder.path())?.0.wait()?;
        ensure!(status.success(), "mounting in a namespace of its own failed: {status}");
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn config(vfs: u16) -> String {
    let pools: Vec<String> = (0..PFS)
        .map(|pf| {
            format!(
                r#"{{"resourceName":"pool{pf}","selectors":[{{"vendors":["15b3"],"rootDevices":["0000:{:02x}:00.0#0-{}"]}}]}}"#,
                0x10 + pf,
                vfs - 1
            )
        })
        .collect();
    format!(r#"{{"resourceList":[{}]}}"#, pools.join(","))
}

async fn measure(program: &Path, machine: &FakeSysfs, base: Duration) -> Result<Measured> {
    let mut measured = Measured::default();
    for round in 0..ROUNDS {
        let folder = tempfile::tempdir()?;
        let sockets = folder.path().join("kubelet/device-plugins");
        let kubelet = Kubelet::start(&sockets, 0)?;
        let file = folder.path().join("config.json");
        fs::write(&file, config(VFS_OF_EACH))?;
        let start = Instant::now();
        let arguments = ["-config-file", file.to_str().context("path")?, "-resource-prefix", "bench.io"];
        let plugin = run(program, &arguments, machine, &folder.path().join("kubelet"))?;
        let has = |vfs: u16| {
            move |all: &sriov_tests::kubelet::Resources| {
                all.len() == usize::from(PFS) && all.values().all(|pool| pool.healthy().len() == usize::from(vfs))
            }
        };
        kubelet.until(has(VFS_OF_EACH)).await?;
        measured.registered.push(start.elapsed().saturating_sub(base));
        if round + 1 == ROUNDS {
            at_rest(&mut measured, plugin.0.id()).await?;
            allocate(&mut measured, &kubelet).await?;
            follow(&mut measured, &kubelet, &file, &has).await?;
        }
    }
    Ok(measured)
}

async fn at_rest(measured: &mut Measured, process: u32) -> Result<()> {
    let status = |key: &str| -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let text = fs::read_to_string(task?.path().join("status"))?;
            let line = text.lines().find(|line| line.starts_with(key)).with_context(|| format!("no {key}"))?;
            sum += line.split_whitespace().nth(1).context("value")?.parse::<u64>()?;
        }
        Ok(sum)
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    measured.resident_kib = resident.split_whitespace().next().context("VmRSS")?.parse()?;
    let before = status("voluntary_ctxt_switches:")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    measured.wake_ups = status("voluntary_ctxt_switches:")?.saturating_sub(before);
    Ok(())
}

/// One connection, as the kubelet has one.
async fn allocate(measured: &mut Measured, kubelet: &Kubelet) -> Result<()> {
    let mut plugin = kubelet.plugin("bench.io/pool0").await?;
    for number in 0..ALLOCATIONS {
        let devices_ids = vec![vf_address(0, u16::try_from(number)? % VFS_OF_EACH)];
        let request = v1beta1::AllocateRequest { container_requests: vec![v1beta1::ContainerAllocateRequest { devices_ids }] };
        let start = Instant::now();
        plugin.allocate(request).await?;
        measured.allocated.push(start.elapsed());
    }
    Ok(())
}

async fn follow<F: Fn(&sriov_tests::kubelet::Resources) -> bool>(
    measured: &mut Measured,
    kubelet: &Kubelet,
    file: &Path,
    has: &impl Fn(u16) -> F,
) -> Result<()> {
    for vfs in [100, 128, 64, 128, 96] {
        fs::write(file.with_extension("new"), config(vfs))?;
        let start = Instant::now();
        fs::rename(file.with_extension("new"), file)?;
        if kubelet.until(has(vfs)).await.is_err() {
            return Ok(());
        }
        measured.followed.push(start.elapsed());
    }
    Ok(())
}
