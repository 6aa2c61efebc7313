//! I/O: a machine with VFs for tests of the CNI without hardware: a throw-away network namespace stands for the host's, a folder for its sysfs,
//! one end of a veth pair for the netdev of a VF.
//!
//! What does not live here: anything about attributes that a PF holds. A veth has no PF; these are tested on emulated hardware.
//!
//! Invariant: nothing outside the namespaces and folders made here is touched, and all of it ends with the values.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_cni::io::{Io, SystemIo};
use sriov_cni::request::{Command, Request};
use sriov_cni::{Error, run};
use sriov_host::Host;
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_host::netns::NetNs;
use sriov_host::testing::{FakeSysfs, SysfsTree, igb_pf, new_netns};
use tempfile::TempDir;

use crate::lab::artifacts::Artifacts;

/// The VF whose netdev is the veth [`NETDEV`].
pub const VF: &str = "0000:01:10.0";
/// Its netdev in the host.
pub const NETDEV: &str = "enp1s0v0";
/// The other end of the cable, in the host.
pub const WIRE: &str = "wire0";
/// A VF that `vfio-pci` holds.
pub const USERSPACE_VF: &str = "0000:01:10.2";

/// The folder of the reference CNI plugins: `CNI_PLUGINS_DIR`, else those of the lab.
pub fn plugins() -> Result<PathBuf> {
    let folder = if let Some(folder) = std::env::var_os("CNI_PLUGINS_DIR") {
        PathBuf::from(folder)
    } else {
        let plugins = Artifacts::load()?.cni_plugins;
        let host_local = plugins.get("host-local").context("artifacts.json lists no CNI plugin host-local")?;
        host_local.parent().context("host-local has no folder")?.to_owned()
    };
    for plugin in ["host-local", "static"] {
        ensure!(folder.join(plugin).is_file(), "the CNI plugin {plugin} is not in {}", folder.display());
    }
    Ok(folder)
}

/// Runs a test in a namespace of its own that stands for the host's.
pub fn as_host(test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    new_netns()?.run_in(test)?
}

/// A machine with two VFs. Its namespace is that of the thread that made it.
#[derive(Debug)]
pub struct Machine {
    sysfs: FakeSysfs,
    state: TempDir,
    /// Where CNI plugins are.
    pub plugins: PathBuf,
}

/// A pod's network namespace. It ends with this value.
#[derive(Debug)]
pub struct Pod {
    netns: NetNs,
    container_id: String,
    folder: TempDir,
}

impl Pod {
    /// A new pod.
    pub fn new(container_id: &str) -> Result<Self> {
        let pod = Self { netns: new_netns()?, container_id: container_id.to_owned(), folder: tempfile::tempdir()? };
        // The number of the descriptor alone would name another pod's namespace as soon as this one has ended.
        let descriptor = format!("/proc/{}/fd/{}", std::process::id(), pod.netns.as_fd().as_raw_fd());
        std::os::unix::fs::symlink(descriptor, pod.path())?;
        Ok(pod)
    }

    /// `CNI_CONTAINERID`.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// `CNI_NETNS`; it names the namespace for other processes too, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("netns")
    }

    /// A route socket in the pod.
    pub fn route(&self) -> Result<Route> {
        Ok(Route::open_in(&self.netns)?)
    }

    /// The namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The link with this name in the pod.
    pub fn link(&self, name: &str) -> Result<Link> {
        self.route()?.link_by_name(name)?.with_context(|| format!("the pod has no {name}"))
    }

    /// The names of all links of the pod.
    pub fn links(&self) -> Result<BTreeSet<String>> {
        Ok(self.route()?.links()?.into_iter().map(|link| link.netdev.name).collect())
    }

    /// Ends the namespace as the kernel does for a VF: its netdev comes back to the host under `name`, down, without addresses. A veth would
    /// end with its namespace instead.
    pub fn end(self, machine: &Machine, if_name: &str, name: &str) -> Result<()> {
        let host = NetNs::current()?;
        let back = LinkChange { netns: Some(host.as_fd()), name: Some(name), ..LinkChange::default() };
        self.route()?.change_link(self.link(if_name)?.netdev.ifindex, &back)?;
        machine.netdev_is_now(name)
    }
}

impl Machine {
    /// Makes a virtual machine that was given the VF alone, in the calling thread's namespace.
    pub fn without_pf() -> Result<Self> {
        let machine = Self::new()?;
        fs::remove_file(machine.sysfs.path().join(format!("sys/bus/pci/devices/{VF}/physfn")))?;
        Ok(machine)
    }

    /// Makes the machine in the calling thread's namespace.
    pub fn new() -> Result<Self> {
        let device = format!("/sys/bus/pci/devices/{USERSPACE_VF}/driver");
        let sysfs = igb_pf(SysfsTree::new(), 2)
            .dir(&format!("/sys/bus/pci/devices/{VF}/net/{NETDEV}"))
            .without(&device)
            .link(&device, "../../../../bus/pci/drivers/vfio-pci")
            .file("/proc/sys/kernel/random/boot_id", "this-boot\n")
            // Sysctls of a namespace are the same files everywhere: they show the reader's own.
            .link("/proc/sys/net", "/proc/sys/net")
            .build()?;
        let route = Route::open()?;
        route.add_link_veth(NETDEV, WIRE)?;
        let machine = Self { sysfs, state: state_folder()?, plugins: plugins()? };
        let wire = host_link(WIRE)?.netdev.ifindex;
        route.change_link(wire, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        Ok(machine)
    }

    /// The machine's files.
    pub fn host(&self) -> Host {
        self.sysfs.host()
    }

    /// `stateDir`.
    pub fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// The journals there are, by file name.
    pub fn journals(&self) -> Vec<String> {
        names(&self.state().join("v1")).into_iter().filter(|name| Path::new(name).extension().is_some_and(|e| e == "json")).collect()
    }

    /// The addresses that host-local has given away.
    pub fn leases(&self) -> Vec<String> {
        names(&self.leases_folder().join("blue")).into_iter().filter(|name| name.starts_with("192.")).collect()
    }

    /// Lets sysfs show the VF's netdev under another name, as the kernel would.
    pub fn netdev_is_now(&self, name: &str) -> Result<()> {
        let folder = self.sysfs.path().join(format!("sys/bus/pci/devices/{VF}/net"));
        fs::remove_dir_all(&folder)?;
        Ok(fs::create_dir_all(folder.join(name))?)
    }

    /// Lets sysfs show this netdev as the PF's.
    pub fn show_pf(&self, name: &str) -> Result<()> {
        Ok(fs::create_dir_all(self.sysfs.path().join("sys/bus/pci/devices/0000:01:00.0/net").join(name))?)
    }

    /// As if the machine had been restarted.
    pub fn reboot(&self) -> Result<()> {
        Ok(fs::write(self.sysfs.path().join("proc/sys/kernel/random/boot_id"), "next-boot\n")?)
    }

    /// A configuration of network `blue` for the VF, with these keys added.
    pub fn conf(&self, extra: &Value) -> Value {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "blue", "type": "sriov", "deviceID": VF, "stateDir": self.state(), "logLevel": "error"});
        if let (Some(conf), Some(extra)) = (conf.as_object_mut(), extra.as_object()) {
            conf.extend(extra.clone());
        }
        conf
    }

    /// `ipam` with host-local: the first address is 192.0.2.2/24.
    pub fn host_local(&self) -> Value {
        json!({
            "type": "host-local", "dataDir": self.leases_folder(), "ranges": [[{"subnet": "192.0.2.0/24"}]],
            "routes": [{"dst": "198.51.100.0/24"}]
        })
    }

    /// A call about `pod` with `CNI_IFNAME` net1.
    pub fn request(&self, command: Command, pod: &Pod, conf: &Value) -> Request {
        request(command, &pod.container_id, Some(pod.path()), &self.plugins, conf)
    }

    /// Performs a call.
    pub fn call(&self, command: Command, pod: &Pod, conf: &Value) -> Result<Option<Value>, Error> {
        self.call_with(command, pod, conf, &SystemIo)
    }

    /// Performs a call in these surroundings.
    pub fn call_with(&self, command: Command, pod: &Pod, conf: &Value, io: &dyn Io) -> Result<Option<Value>, Error> {
        run(&self.request(command, pod, conf), &self.host(), io)
    }

    fn leases_folder(&self) -> PathBuf {
        self.state.path().join("leases")
    }
}

/// In memory if the machine has such a folder: what is synced to a disk thousands of times there takes minutes, and no test cuts the power.
fn state_folder() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// The link with this name in the host: the calling thread's namespace.
pub fn host_link(name: &str) -> Result<Link> {
    Route::open()?.link_by_name(name)?.with_context(|| format!("the host has no {name}"))
}

/// A call with `CNI_IFNAME` net1.
pub fn request(command: Command, container_id: &str, netns: Option<PathBuf>, plugins: &Path, conf: &Value) -> Request {
    Request {
        command,
        container_id: container_id.to_owned(),
        if_name: "net1".to_owned(),
        netns,
        netns_override: false,
        args: String::new(),
        args_mac: None,
        path: vec![plugins.to_owned()],
        stdin: conf.to_string().into_bytes(),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort_unstable();
    names
}
