//! I/O: the network namespace of one lab, with the management bridge, the wire and their ports.
//!
//! What lives here: making and entering the namespace, the links in it. What does not: processes (`process`).
//!
//! The namespace has no name: a `cat` that reads a pipe from the lab's process holds it. When that process ends, however it ends, the pipe
//! closes, `cat` ends, and the kernel removes the namespace with every link in it. So there is nothing to clean up.
//!
//! Invariant: no address outside the namespace can be reached from it; it has no link to the host.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::topology::{HOST_ADDRESS, MANAGEMENT_BRIDGE, SERVICE_ADDRESS, Topology, WIRE_BRIDGE};

/// Longest frame that the wire carries, in bytes without the Ethernet header; igb's own limit.
const WIRE_MTU: u32 = 9216;

/// A network namespace that other threads and processes can enter.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    holder: u32,
    // Kept for its end of the pipe; `None` when the namespace belongs to another process.
    child: Option<Mutex<Child>>,
}

impl Namespace {
    /// Makes an empty namespace that ends with this value or this process.
    pub fn create() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run unshare (package util-linux)")?;
        let holder = child.id();
        let (stdin, stdout) = (child.stdin.as_mut(), child.stdout.as_mut());
        let mut echo = [0];
        // The echo comes from inside the new namespace.
        stdin.context("pipe to unshare")?.write_all(b".")?;
        stdout.context("pipe from unshare")?.read_exact(&mut echo).context("make a network namespace (needs root)")?;
        let mut namespace = Self::of(holder)?;
        namespace.child = Some(Mutex::new(child));
        Ok(namespace)
    }

    /// The namespace of a running process.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self { file, holder: pid, child: None })
    }

    /// A process that is in it, for `nsenter --net --target`.
    pub fn holder(&self) -> u32 {
        self.holder
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).context("enter the lab's network namespace")
    }

    /// Runs something on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter()?;
                work()
            });
            worker.join().map_err(|panic| anyhow!("thread in the lab's namespace: {}", crate::harness::panic_text(&*panic)))?
        })
    }

    /// Connects to an address in it; the connection stays usable from outside.
    pub fn connect(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {address}")))
    }

    /// Runs `ip` with one command a line.
    pub fn ip_batch(&self, commands: &str) -> Result<()> {
        self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("run ip (package iproute2)")?;
            child.stdin.take().context("pipe to ip")?.write_all(commands.as_bytes())?;
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "ip -batch: {}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        })
    }

    /// Makes the bridges, a port for every interface of the topology, and the routes to the pods.
    pub fn add_networks(&self, topology: &Topology) -> Result<()> {
        self.ip_batch(&network_commands(topology))?;
        // These files show the namespace of the thread that opens them.
        self.run(|| {
            for (name, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/wire0/disable_ipv6", "1")] {
                let path = format!("/proc/sys/net/{name}");
                std::fs::write(&path, value).with_context(|| format!("write {path}"))?;
            }
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let mut child = child.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            drop(child.stdin.take());
            // It has nothing left to read, so it ends at once.
            child.wait().ok();
        }
    }
}

/// The links of a lab, in the language of `ip -batch`.
fn network_commands(topology: &Topology) -> String {
    let mut lines = vec![
        "link set lo up".to_owned(),
        // The service address is local and the API server listens on it, so pods need no kube-proxy.
        format!("addr add {SERVICE_ADDRESS}/32 dev lo"),
        format!("link add {MANAGEMENT_BRIDGE} type bridge stp_state 0 mcast_snooping 0"),
        format!("link add {WIRE_BRIDGE} type bridge stp_state 0 mcast_snooping 0"),
        format!("addr add {HOST_ADDRESS}/24 dev {MANAGEMENT_BRIDGE}"),
    ];
    for node in &topology.nodes {
        let port = node.management_tap();
        lines.push(format!("tuntap add dev {port} mode tap"));
        lines.push(format!("link set {port} master {MANAGEMENT_BRIDGE} up"));
        for port in node.nics().map(super::topology::Nic::tap) {
            lines.push(format!("tuntap add dev {port} mode tap"));
            lines.push(format!("link set {port} mtu {WIRE_MTU} master {WIRE_BRIDGE} up"));
        }
    }
    lines.push(format!("link set {MANAGEMENT_BRIDGE} up"));
    // Last: a bridge takes the smallest MTU of its ports.
    lines.push(format!("link set {WIRE_BRIDGE} mtu {WIRE_MTU} up"));
    for node in &topology.nodes {
        lines.push(format!("route add {}/24 via {}", node.pod_network(), node.address()));
    }
    lines.join("\n") + "\n"
}
