//! I/O: the device plugin's binary between a kubelet stand-in, a config file and a tree that stands for the machine's `/sys`, all in a temporary
//! folder.
//!
//! What does not live here: the kubelet (`crate::kubelet`), the tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sriov_host::testing::{FakeSysfs, SysfsTree, igb_pf};

use crate::kubelet::{Kubelet, Resource, SOON};
use crate::lab::artifacts::product;

/// The VFs of the machine.
pub const VFS: [&str; 4] = ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4", "0000:01:10.6"];

/// A machine with an igb PF of four VFs on igbvf, folders for the plugin, and the plugin once it was started.
pub struct Bench {
    /// Its `/sys`, and the rest of its file system.
    pub machine: FakeSysfs,
    /// Everything else.
    pub dir: tempfile::TempDir,
    /// The plugin.
    pub plugin: Option<Child>,
}

impl Bench {
    /// The machine without the plugin.
    pub fn new() -> Result<Self> {
        let bench = Self { machine: igb_pf(SysfsTree::new(), 4).build()?, dir: tempfile::tempdir()?, plugin: None };
        fs::create_dir_all(bench.sockets())?;
        Ok(bench)
    }

    /// The plugin runs, this configuration is in its file, and the kubelet runs.
    pub fn running(config: &Value) -> Result<(Self, Kubelet)> {
        let mut bench = Self::new()?;
        bench.configure(&config.to_string())?;
        let kubelet = Kubelet::start(&bench.sockets(), 0)?;
        bench.start()?;
        Ok((bench, kubelet))
    }

    /// The kubelet's folder.
    pub fn sockets(&self) -> PathBuf {
        self.dir.path().join("device-plugins")
    }

    /// The config file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("run/device-plugin/config.json")
    }

    /// The plugin's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Replaces the file as the config daemon does.
    pub fn configure(&self, text: &str) -> Result<()> {
        let file = self.config_file();
        let fresh = file.with_extension("new");
        fs::create_dir_all(file.parent().context("folder")?)?;
        fs::write(&fresh, text)?;
        Ok(fs::rename(&fresh, &file)?)
    }

    /// The plugin with these further arguments.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.arg("--config-file").arg(self.config_file()).arg("--root").arg(self.machine.path());
        command.arg("--socket-dir").arg(self.sockets()).arg("--device-info-dir").arg(self.dir.path().join("devinfo"));
        command.arg("--cdi-dir").arg(self.dir.path().join("cdi")).arg("--pod-resources-socket").arg(self.dir.path().join("pod-resources.sock"));
        command.args(["-resource-prefix=openshift.io", "-v=10"]).args(arguments);
        Ok(command)
    }

    /// Starts the plugin.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts the plugin with these further arguments.
    pub fn start_with(&mut self, arguments: &[&str]) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        self.plugin = Some(self.command(arguments)?.stderr(log).stdout(Stdio::null()).spawn()?);
        Ok(())
    }

    /// Runs the plugin to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut child = self.command(arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        end_of(&mut child)?;
        Ok(child.wait_with_output()?)
    }

    /// The plugin's process id.
    pub fn process_id(&self) -> Result<u32> {
        Ok(self.plugin.as_ref().context("the plugin was not started")?.id())
    }

    /// Asks the plugin to end, and waits.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let id = i32::try_from(self.process_id()?)?;
        kill_process(Pid::from_raw(id).context("process id")?, Signal::TERM)?;
        end_of(self.plugin.as_mut().context("the plugin was not started")?)
    }

    /// A resource's socket.
    pub fn socket(&self, resource: &str) -> PathBuf {
        self.sockets().join(format!("openshift.io_{resource}.sock"))
    }

    /// Binds a VF of the tree to another driver.
    pub fn bind(&self, vf: &str, driver: Option<&str>) -> Result<()> {
        let link = self.machine.path().join(format!("sys/bus/pci/devices/{vf}/driver"));
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            symlink(format!("../../../../bus/pci/drivers/{driver}"), &link)?;
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(plugin) = &mut self.plugin {
            let _ = plugin.kill();
            let _ = plugin.wait();
        }
        if std::thread::panicking() {
            eprintln!("the plugin's log:\n{}", self.log());
        }
    }
}

/// The product's binary, built once.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || product("sriov-device-plugin").map_err(|error| format!("{error:#}"));
    BINARY.get_or_init(build).clone().map_err(Error::msg)
}

/// Waits for the process to end by itself.
pub fn end_of(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    bail!("the plugin did not end within {SOON:?}")
}

/// A resource of VFs with these indexes and this driver.
pub fn pool(name: &str, indexes: &str, driver: &str) -> Value {
    json!({ "resourceName": name, "selectors": [{ "rootDevices": [format!("0000:01:00.0#{indexes}")], "drivers": [driver] }] })
}

/// A config file of these resources.
pub fn pools(pools: &[Value]) -> Value {
    json!({ "resourceList": pools })
}

/// Polls until the condition holds.
pub fn until(condition: impl Fn() -> bool, describe: impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition() {
        ensure!(Instant::now() < deadline, "not within {SOON:?}: {}", describe());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A resource of which exactly these devices were listed last.
pub fn has(ids: &[&str]) -> impl Fn(&Resource) -> bool {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    move |resource| resource.lists.last().is_some() && resource.ids() == ids
}
