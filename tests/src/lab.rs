//! I/O: a lab: guests with real emulated SR-IOV NICs, the wire between them, and a real control plane when asked for.
//!
//! What lives here: bringing a lab up in order, and what tests hold while it runs. What does not: each part's own rules, which are in the
//! modules below, and what tests do with it.
//!
//! A lab ends with its [`Lab`] value, on Ctrl-C, and with its process: daemons are killed by the kernel (`process`), the namespace has no
//! name (`net`), and only a folder can be left over, which the next lab removes (`run_dir`).
//!
//! Invariant: nothing but loopback and the lab's own namespace is ever addressed.

pub mod artifacts;
pub mod attach;
pub mod certificates;
pub mod config_daemon;
pub mod control_plane;
pub mod diagnostics;
pub mod guest;
pub mod initrd;
pub mod net;
pub mod process;
pub mod protocol;
pub mod qmp;
pub mod run_dir;
pub mod script;
pub mod signals;
pub mod topology;
pub mod vm;
pub mod wire;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as KubernetesNode;
use kube::{Api, Client};
use tokio::runtime::{Builder, Runtime};

use artifacts::Artifacts;
use attach::State;
use certificates::Certificates;
use control_plane::ControlPlane;
use guest::Guest;
use net::Namespace;
use process::{Daemon, Processes};
use qmp::Monitor;
use run_dir::RunDir;
use topology::{Node, Tier, Topology, WIRE_BRIDGE};
use vm::VmSpec;
use wire::Capture;

/// How long guests and the control plane get to come up. Emulation beside a compiler is several times slower than alone.
const BOOT_LIMIT: Duration = Duration::from_mins(5);

/// Size of a node's disk; the file is sparse.
const STATE_DISK_BYTES: u64 = 4 << 30;

/// The emulation of a guest lost the acknowledgement of an interrupt ([`Monitor::lost_acknowledgement`]); what ran on this lab proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatorFault {
    /// Whose.
    pub guest: String,
    /// The interrupt vectors that stay in service.
    pub vectors: String,
}

impl fmt::Display for EmulatorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the emulation of {} lost an interrupt's acknowledgement: a processor sleeps with vector {} in service", self.guest, self.vectors)
    }
}

/// A lab that runs. Fields end in this order.
#[derive(Debug)]
pub struct Lab {
    machines: Vec<Daemon>,
    control_plane: Option<ControlPlane>,
    guests: Vec<Guest>,
    runtime: Runtime,
    processes: Processes,
    namespace: Arc<Namespace>,
    artifacts: Option<Artifacts>,
    topology: Topology,
    started: Instant,
    run: RunDir,
}

impl Lab {
    /// Brings a lab up. If that fails, what can be learned is kept in a folder that the error names, and nothing else stays.
    pub fn boot(topology: Topology) -> Result<Self> {
        let mut lab = Self::prepare(topology)?;
        match lab.bring_up() {
            Ok(()) => Ok(lab),
            Err(error) => {
                let fault = lab.emulator_fault();
                let folder = diagnostics::collect(&lab, "boot");
                let error = error.context(format!("the lab did not come up; see {}", folder.display()));
                Err(match fault {
                    Some(fault) => error.context(fault),
                    None => error,
                })
            }
        }
    }

    fn prepare(topology: Topology) -> Result<Self> {
        let started = Instant::now();
        // First: it may build for minutes, and nothing needs an end before it is done.
        let artifacts = if topology.nodes.is_empty() { None } else { Some(Artifacts::load()?) };
        let run = RunDir::create()?;
        let namespace = Arc::new(Namespace::create()?);
        let processes = Processes::new(&namespace, run.path())?;
        let (kill, folder) = (processes.killer(), run.path().to_owned());
        signals::before_end(move || {
            kill();
            fs::remove_dir_all(folder).ok();
        })?;
        let inside = Arc::clone(&namespace);
        let enter = move || inside.enter().unwrap_or_else(|error| eprintln!("lab: {error:#}"));
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(enter).build()?;
        let (machines, guests, control_plane) = (Vec::new(), Vec::new(), None);
        Ok(Self { machines, control_plane, guests, runtime, processes, namespace, artifacts, topology, started, run })
    }

    fn bring_up(&mut self) -> Result<()> {
        self.namespace.add_networks(&self.topology)?;
        if self.topology.tier == Tier::Cluster {
            let certificates = Certificates::make(&self.processes, &self.run.file("pki"))?;
            let control_plane = ControlPlane::start(&self.processes, self.artifacts()?, certificates, self.run.path())?;
            self.control_plane = Some(control_plane);
        }
        for node in self.topology.nodes.clone() {
            self.start_machine(node)?;
        }
        let deadline = Instant::now() + BOOT_LIMIT;
        if self.control_plane.is_some() {
            self.complete_control_plane(deadline)?;
            self.progress("the control plane is ready");
        }
        for at in 0..self.guests.len() {
            self.guests[at].wait_until_up(deadline)?;
            self.machines.iter_mut().try_for_each(Daemon::check)?;
            self.progress(&format!("{} is up", self.guests[at].name()));
        }
        if self.control_plane.is_some() {
            self.wait_for_nodes(deadline)?;
        }
        self.state().write(&self.run)
    }

    fn complete_control_plane(&mut self, deadline: Instant) -> Result<()> {
        let Self { namespace, runtime, processes, control_plane, artifacts, .. } = self;
        let (control_plane, artifacts) = (control_plane.as_mut().context("no control plane")?, artifacts.as_ref().context("no artifacts")?);
        namespace.run(|| runtime.block_on(control_plane.complete(processes, artifacts, deadline)))
    }

    fn wait_for_nodes(&self, deadline: Instant) -> Result<()> {
        for guest in &self.guests {
            let ready = || self.block_on(|| async { Ok(is_ready(&self.client().await?, &guest.name()).await?.then_some(())) });
            guest.poll(deadline, "the node is Ready", ready)?;
            self.progress(&format!("{} is Ready", guest.name()));
        }
        for guest in &self.guests {
            guest.poll(deadline, "container images are imported", || guest.read("/run/images-ready").map(Some))?;
        }
        self.progress("container images are imported");
        Ok(())
    }

    fn start_machine(&mut self, node: Node) -> Result<()> {
        let artifacts = self.artifacts()?;
        let file = |what: &str| self.run.file(&format!("{}.{what}", node.name()));
        let (mut initrd, mut state_disk) = (artifacts.initrd.clone(), None);
        if let Some(control_plane) = &self.control_plane {
            let files = control_plane.certificates().node_files(&self.processes, &node)?;
            let files: Vec<_> = files.iter().map(|(path, content)| (*path, content.as_slice())).collect();
            let base = fs::read(&initrd).with_context(|| format!("read {}", initrd.display()))?;
            initrd = file("initrd");
            fs::write(&initrd, initrd::append(&base, &files))?;
        }
        if self.control_plane.is_some() || node.disk {
            let disk = file("state");
            fs::File::create(&disk)?.set_len(STATE_DISK_BYTES)?;
            let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
            let argv = ["mkfs.ext4", "-q", "-F", "-E", options, "-O", "^metadata_csum", &disk.display().to_string()].map(str::to_owned);
            self.processes.output(&argv)?;
            state_disk = Some(disk);
        }
        let spec = VmSpec {
            tier: self.topology.tier,
            qemu: artifacts.qemu.clone(),
            kernel: artifacts.vmlinuz.clone(),
            initrd,
            root_disk: artifacts.root_squashfs.clone(),
            state_disk,
            images_disk: artifacts.images_disk.clone(),
            console: file("console"),
            monitor: file("qmp"),
            node,
        };
        let machine = self.processes.daemon(&spec.node.name(), &spec.argv(), &self.run.file(&format!("{}.qemu.log", spec.node.name())))?;
        let guest = Guest::new(spec.node, Arc::clone(&self.namespace), Monitor::at(&spec.monitor), spec.console);
        self.machines.push(machine);
        self.guests.push(guest);
        Ok(())
    }

    fn artifacts(&self) -> Result<&Artifacts> {
        self.artifacts.as_ref().context("a lab without nodes has no artifacts")
    }

    /// Copies one of our own programs into a guest.
    pub fn install(&self, guest: &Guest, product: &str, to: &str) -> Result<()> {
        guest.copy_program(&artifacts::product(product)?, to)
    }

    /// Prints a line with the time since the lab was asked for.
    pub fn progress(&self, text: &str) {
        eprintln!("lab: {:6.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    /// Time since the lab was asked for.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The guest with this number, 1 for the first.
    pub fn guest(&self, number: u8) -> Result<&Guest> {
        let found = self.guests.iter().find(|guest| guest.node().number == number);
        found.with_context(|| format!("the lab has no guest {number}"))
    }

    /// All guests.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// The lab's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Starts processes on the host inside the lab's namespace.
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The lab's folder.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// What was asked for.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Runs a future on the lab's runtime, whose threads are all inside the namespace.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(&self, future: impl FnOnce() -> F + Send) -> Result<T> {
        self.namespace.run(|| self.runtime.block_on(future()))
    }

    /// A client with all permissions, for use inside [`Self::block_on`].
    pub async fn client(&self) -> Result<Client> {
        self.control_plane.as_ref().context("this lab has no control plane")?.client().await
    }

    /// Runs `kubectl` with all permissions and gives its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.processes.output(&self.kubectl_argv(arguments)?)
    }

    /// Starts `kubectl` beside the test, with what it says in a file; it ends with the value.
    pub fn kubectl_beside(&self, name: &str, arguments: &[&str], log: &Path) -> Result<Daemon> {
        self.processes.daemon(name, &self.kubectl_argv(arguments)?, log)
    }

    fn kubectl_argv(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let kubeconfig = self.control_plane.as_ref().context("this lab has no control plane")?.kubeconfig();
        let mut argv = vec![self.artifacts()?.program("kubectl")?, format!("--kubeconfig={kubeconfig}")];
        argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Ok(argv)
    }

    /// Ends the API server, as if its machine had gone.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.control_plane.as_mut().context("this lab has no control plane")?.stop_api_server()
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let Self { namespace, runtime, processes, control_plane, .. } = self;
        let control_plane = control_plane.as_mut().context("this lab has no control plane")?;
        namespace.run(|| runtime.block_on(control_plane.start_api_server(processes, Instant::now() + BOOT_LIMIT)))
    }

    /// Captures frames on the wire between the PFs.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        Capture::start(&self.processes, WIRE_BRIDGE, filter)
    }

    /// A guest that will never answer again because of the emulation, and how that is known.
    pub fn emulator_fault(&self) -> Option<EmulatorFault> {
        self.guests.iter().find_map(|guest| {
            let vectors = (0..guest.node().processors).find_map(|processor| guest.monitor().lost_acknowledgement(processor).ok().flatten())?;
            Some(EmulatorFault { guest: guest.name(), vectors })
        })
    }

    /// Restarts every guest that does not answer, so that one test's hung kernel does not fail the next.
    pub fn recover(&self) -> Result<()> {
        for guest in &self.guests {
            if guest.wait_until_up(Instant::now() + Duration::from_secs(20)).is_err() {
                self.progress(&format!("{} does not answer and is restarted", guest.name()));
                guest.monitor().reset()?;
                guest.wait_until_up(Instant::now() + BOOT_LIMIT)?;
            }
        }
        Ok(())
    }

    /// What another process needs to use this lab.
    pub fn state(&self) -> State {
        State {
            holder: self.namespace.holder(),
            topology: self.topology.clone(),
            kubectl: self.kubectl_argv(&[]).ok(),
            folder: self.run.path().to_owned(),
        }
    }

    /// Fails when a daemon of the lab has ended.
    pub fn check(&mut self) -> Result<()> {
        self.machines.iter_mut().try_for_each(Daemon::check)
    }
}

async fn is_ready(client: &Client, node: &str) -> Result<bool> {
    let nodes: Api<KubernetesNode> = Api::all(client.clone());
    let Some(node) = nodes.get_opt(node).await? else { return Ok(false) };
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    Ok(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Fails with one line when this machine lacks what a lab needs.
pub fn check_host() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "a lab needs root: run the same command with sudo");
    for (program, package) in [
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("tcpdump", "tcpdump"),
        ("openssl", "openssl"),
        ("mkfs.ext4", "e2fsprogs"),
    ] {
        let found = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| fs::exists(format!("{folder}/{program}")).unwrap_or(false));
        ensure!(found, "{program} is not installed: apt-get install {package}");
    }
    Ok(())
}
