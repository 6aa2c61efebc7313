//! I/O: what the device plugin's binary does with devices that pods have, device nodes by CDI, wishes of the kubelet, and its own numbers. Tier 1:
//! needs root for network namespaces, and the build.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};
use sriov_host::testing::new_netns;
use sriov_tests::kubelet::{Kubelet, Resource};
use sriov_tests::plugin::{Bench, VFS, pool, pools, until};

fn has(ids: &[&str]) -> impl Fn(&Resource) -> bool {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    move |resource| resource.lists.last().is_some() && resource.ids() == ids
}

fn healthy(ids: &[&str]) -> impl Fn(&Resource) -> bool {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    move |resource| resource.lists.last().is_some() && resource.healthy() == ids
}

/// A pod's claim on a VF, as the CNI leaves it: a journal, and a network namespace.
struct Claim {
    journal: PathBuf,
    mount: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = unmount(&self.mount, UnmountFlags::DETACH);
    }
}

impl Claim {
    fn on(bench: &Bench, vf: &str) -> Result<Self> {
        let netns = new_netns()?;
        let id = netns.id()?;
        let root = bench.machine.path();
        let journal = root.join(format!("var/lib/cni/sriov/v1/{vf}.json"));
        fs::create_dir_all(root.join("run/netns"))?;
        fs::create_dir_all(journal.parent().context("folder")?)?;
        // As the runtime does. (A link to the open file would not do: the plugin may not look into other processes.)
        let mount = root.join(format!("run/netns/{vf}"));
        fs::write(&mount, "")?;
        mount_bind(format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd()), &mount)?;
        let owner = json!({ "containerId": "abc", "netnsPath": format!("/run/netns/{vf}"), "netnsDev": id.dev, "netnsInode": id.ino });
        fs::write(journal.with_extension("new"), json!({ "version": 1, "vf": vf, "owner": owner }).to_string())?;
        fs::rename(journal.with_extension("new"), &journal)?;
        Ok(Self { journal, mount })
    }

    fn end(self) -> Result<()> {
        Ok(fs::remove_file(&self.journal)?)
    }
}

#[tokio::test]
async fn an_allocation_waits_until_the_pod_before_has_given_its_vf_back() -> Result<()> {
    let (bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    let claim = Claim::on(&bench, VFS[0])?;
    kubelet.allocate("openshift.io/nics", &[VFS[1]]).await?;
    let give_back = async {
        until_log(&bench, "waiting for a device to be given back").await?;
        claim.end()
    };
    let (answer, ended) = tokio::join!(kubelet.allocate("openshift.io/nics", &[VFS[0]]), give_back);
    ended?;
    assert_eq!(answer?.envs["PCIDEVICE_OPENSHIFT_IO_NICS"], VFS[0]);

    let _claim = Claim::on(&bench, VFS[2])?;
    let refused = kubelet.allocate("openshift.io/nics", &[VFS[2]]).await.err().context("a VF was given that a pod has")?;
    assert_eq!(refused.message(), format!("{} of openshift.io/nics is still in use by container abc", VFS[2]));
    Ok(())
}

async fn until_log(bench: &Bench, text: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !bench.log().contains(text) {
        ensure!(Instant::now() < deadline, "{text:?} is not in the log: {}", bench.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_vf_that_moves_to_another_pool_is_not_offered_there_while_a_pod_has_it() -> Result<()> {
    let (bench, kubelet) = Bench::running(&pools(&[pool("a", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/a", has(&VFS)).await?;
    kubelet.allocate("openshift.io/a", &[VFS[1]]).await?;
    let claim = Claim::on(&bench, VFS[1])?;
    bench.configure(&pools(&[pool("b", "0-3", "igbvf")]).to_string())?;
    let b = kubelet.until_resource("openshift.io/b", has(&VFS)).await?;
    assert_eq!(b.healthy(), [VFS[0], VFS[2], VFS[3]]);
    assert!(bench.log().contains("a pod has it, given by pool openshift.io-a"), "{}", bench.log());
    claim.end()?;
    kubelet.until_resource("openshift.io/b", healthy(&VFS)).await?;
    let short: Vec<_> = kubelet.history("openshift.io/b").into_iter().filter(|count| *count == 4).collect();
    assert_eq!(short.len(), 1, "it was offered once, after the pod had ended");
    Ok(())
}

#[tokio::test]
async fn a_vf_that_vanishes_under_a_pod_is_unhealthy_and_others_leave_the_list() -> Result<()> {
    let config = pools(&[pool("nics", "0-3", "igbvf")]);
    let (bench, kubelet) = Bench::running(&config)?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    let _claim = Claim::on(&bench, VFS[3])?;
    for vf in &VFS[2..] {
        fs::remove_dir_all(bench.machine.path().join(format!("sys/bus/pci/devices/{vf}")))?;
    }
    bench.configure(&config.to_string())?;
    kubelet.until_resource("openshift.io/nics", has(&[VFS[0], VFS[1], VFS[3]])).await?;
    kubelet.until_resource("openshift.io/nics", healthy(&VFS[..2])).await?;
    until(|| bench.log().contains("it is gone from this machine"), || bench.log())
}

#[tokio::test]
async fn with_cdi_nodes_are_named_by_a_spec_that_outlives_the_process() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.bind(VFS[0], Some("vfio-pci"))?;
    bench.configure(&pools(&[pool("dpdk", "0", "vfio-pci"), pool("more-dpdk", "9", "vfio-pci"), pool("nics", "1-3", "igbvf")]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    bench.start_with(&["-use-cdi"])?;
    kubelet.until_resource("openshift.io/dpdk", has(&VFS[..1])).await?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[1..])).await?;
    let spec = bench.dir.path().join("cdi/sriov-dp-openshift.io-dpdk.json");
    let nodes =
        || -> Result<Value> { Ok(serde_json::from_str::<Value>(&fs::read_to_string(&spec)?)?["devices"][0]["containerEdits"]["deviceNodes"].take()) };
    assert_eq!(nodes()?[1]["hostPath"], "/dev/vfio/8");

    // Another group since the offer: the spec is right before the answer is.
    let group = bench.machine.path().join(format!("sys/bus/pci/devices/{}/iommu_group", VFS[0]));
    fs::remove_file(&group)?;
    symlink("../../../../kernel/iommu_groups/77", &group)?;
    let answer = kubelet.allocate("openshift.io/dpdk", &[VFS[0]]).await?;
    let named: Vec<_> = answer.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(named, ["openshift.io/net-dpdk=0000:01:10.0"]);
    assert!(answer.devices.is_empty() && answer.annotations.is_empty() && answer.envs.contains_key("PCIDEVICE_OPENSHIFT_IO_DPDK_INFO"));
    assert_eq!(nodes()?[1]["hostPath"], "/dev/vfio/77");

    let plain = kubelet.allocate("openshift.io/nics", &[VFS[1]]).await?;
    assert!(plain.cdi_devices.is_empty(), "a kernel VF has no nodes");
    assert_eq!(fs::read_dir(bench.dir.path().join("cdi"))?.count(), 1, "no spec without devices");
    bench.terminate()?;
    assert!(spec.exists(), "containers may start again while no plugin runs");
    Ok(())
}

#[tokio::test]
async fn the_kubelet_learns_of_a_policy_and_gets_its_answer() -> Result<()> {
    let mut config = pools(&[pool("nics", "0-3", "igbvf")]);
    let (bench, kubelet) = Bench::running(&config)?;
    let plain = kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    assert!(!plain.request.options.is_some_and(|options| options.get_preferred_allocation_available));
    config["resourceList"][0]["allocationPolicy"] = "pack".into();
    bench.configure(&config.to_string())?;
    let wish =
        |resource: &Resource| resource.request.options.is_some_and(|options| options.get_preferred_allocation_available) && resource.ids() == VFS;
    kubelet.until_resource("openshift.io/nics", wish).await?;
    assert_eq!(kubelet.preferred("openshift.io/nics", &[VFS[3], VFS[1]], 1).await?, [VFS[1]]);
    Ok(())
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn it_tells_its_numbers_and_has_no_capabilities() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.bind(VFS[1], None)?;
    bench.configure(&pools(&[pool("nics", "0-2", "igbvf"), json!({ "resourceName": "bad" })]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    bench.start_with(&["--http-address", &address.to_string()])?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..3])).await?;
    kubelet.allocate("openshift.io/nics", &[VFS[0]]).await?;
    let _ = kubelet.allocate("openshift.io/nics", &[VFS[1]]).await.err().context("an unbound VF was given")?;

    let (health, text) = tokio::task::spawn_blocking(move || (get(address, "/healthz"), get(address, "/metrics"))).await?;
    assert!(health?.starts_with("HTTP/1.1 200 OK"));
    let text = text?;
    for line in [
        r#"sriov_device_plugin_devices{pool="openshift.io/nics",health="Healthy",reason=""} 2"#,
        r#"sriov_device_plugin_devices{pool="openshift.io/nics",health="Unhealthy",reason="Unbound"} 1"#,
        "sriov_device_plugin_left_out_resources 1",
        r#"sriov_device_plugin_registrations_total{pool="openshift.io/nics",result="taken"} 1"#,
        r#"sriov_device_plugin_allocations_total{pool="openshift.io/nics"} 1"#,
        r#"sriov_device_plugin_refused_allocations_total{pool="openshift.io/nics",reason="RefuseUnhealthy"} 1"#,
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", bench.process_id()?))?;
    for set in ["CapInh", "CapPrm", "CapEff"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"));
    Ok(())
}

#[tokio::test]
async fn the_next_instance_tells_its_numbers_at_the_same_address() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("nics", "0-2", "igbvf")]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let arguments = ["--http-address", &address.to_string()];
    bench.start_with(&arguments)?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..3])).await?;
    let newer = bench.command(&arguments)?.stderr(Stdio::null()).spawn()?;
    kubelet.until_resource("openshift.io/nics", |resource| resource.registrations > 1).await?;
    bench.terminate()?;
    bench.plugin = Some(newer);
    let text = tokio::task::spawn_blocking(move || get(address, "/metrics")).await??;
    assert!(text.contains(r#"sriov_device_plugin_devices{pool="openshift.io/nics",health="Healthy",reason=""} 3"#), "{text}");
    Ok(())
}
