//! I/O: the device plugin's binary and the node around it: links that lose their carrier, subfunctions, pods that the kubelet tells of, and what is
//! told of them. Tier 1: needs root for network namespaces, and the build.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sriov_device_plugin::api::podresources_v1 as v1;
use sriov_host::netlink::{LinkChange, Route};
use sriov_host::testing::new_netns;
use sriov_tests::kubelet::{Kubelet, Resource, SOON};
use sriov_tests::plugin::{Bench, VFS, pool, pools, until};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

fn healthy(count: usize) -> impl Fn(&Resource) -> bool {
    move |resource| resource.lists.last().is_some() && resource.healthy().len() == count
}

/// The kubelet's list of pods: one pod a device, all of one resource.
#[derive(Clone, Default)]
struct Pods(Arc<Mutex<Vec<String>>>);

impl Pods {
    fn devices(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers at this path until the runtime ends.
    fn listen(self, socket: &Path) -> Result<()> {
        let listener = UnixListener::bind(socket)?;
        let service = v1::pod_resources_lister_server::PodResourcesListerServer::new(self);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(())
    }

    fn have(&self, devices: &[&str]) {
        *self.devices() = devices.iter().map(ToString::to_string).collect();
    }
}

#[tonic::async_trait]
impl v1::pod_resources_lister_server::PodResourcesLister for Pods {
    async fn list(&self, _: Request<v1::ListPodResourcesRequest>) -> Result<Response<v1::ListPodResourcesResponse>, Status> {
        let pod = |device: &String| {
            let devices =
                v1::ContainerDevices { resource_name: "openshift.io/nics".to_owned(), device_ids: vec![device.clone()], ..Default::default() };
            let container = v1::ContainerResources { name: "main".to_owned(), devices: vec![devices], ..Default::default() };
            v1::PodResources { name: format!("pod-of-{device}"), namespace: "blue".to_owned(), containers: vec![container] }
        };
        let pod_resources = self.devices().iter().map(pod).collect();
        Ok(Response::new(v1::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<v1::AllocatableResourcesRequest>,
    ) -> Result<Response<v1::AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get(&self, _: Request<v1::GetPodResourcesRequest>) -> Result<Response<v1::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

#[tokio::test]
async fn device_info_of_pods_that_have_ended_is_swept_and_that_of_others_stays() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("nics", "0-3", "igbvf")]).to_string())?;
    let pods = Pods::default();
    pods.clone().listen(&bench.dir.path().join("pod-resources.sock"))?;
    pods.have(&[VFS[0], VFS[3]]);
    let folder = bench.dir.path().join("devinfo");
    fs::create_dir_all(&folder)?;
    let info = |vf: &str| folder.join(format!("openshift.io-nics-{vf}-device.json"));
    let written = |vf: &str, ago: Duration| -> Result<()> {
        let file = File::create(info(vf))?;
        Ok(file.set_times(FileTimes::new().set_modified(SystemTime::now() - ago))?)
    };
    let old = Duration::from_mins(10);
    written(VFS[0], old)?;
    written(VFS[1], old)?;
    // Its allocation may be one that the kubelet has not counted yet.
    written(VFS[2], Duration::ZERO)?;
    written(VFS[3], old)?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    bench.start()?;
    kubelet.until_resource("openshift.io/nics", healthy(4)).await?;
    let there = |vf: &str| info(vf).exists();
    wait("the file of the pod that ended while no plugin ran is gone", || !there(VFS[1])).await?;
    assert!(there(VFS[0]) && there(VFS[2]) && there(VFS[3]));

    // A pod ends: the CNI takes its journal away, and the kubelet no longer counts the VF to it.
    let journals = bench.machine.path().join("var/lib/cni/sriov/v1");
    fs::create_dir_all(&journals)?;
    fs::write(journals.join(format!("{}.json", VFS[0])), "{}")?;
    pods.have(&[VFS[3]]);
    fs::remove_file(journals.join(format!("{}.json", VFS[0])))?;
    wait("the file of the pod that ended is gone", || !there(VFS[0])).await?;
    assert!(there(VFS[3]), "the other pod still runs");
    Ok(())
}

async fn wait(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition() {
        ensure!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn metrics(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn what_passes_a_vf_is_told_with_the_pod_that_has_it() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("nics", "0-3", "igbvf")]).to_string())?;
    let pods = Pods::default();
    pods.clone().listen(&bench.dir.path().join("pod-resources.sock"))?;
    pods.have(&[VFS[1]]);
    let stats = bench.machine.path().join("sys/bus/pci/devices/0000:01:00.0/sriov/1/stats");
    fs::create_dir_all(&stats)?;
    fs::write(stats.join("rx_bytes"), "4711\n")?;
    fs::write(stats.join("tx_errors"), "3\n")?;
    let counters = bench.machine.path().join(format!("sys/bus/pci/devices/{}/infiniband/mlx5_3/ports/1/counters", VFS[1]));
    fs::create_dir_all(&counters)?;
    fs::write(counters.join("port_rcv_data"), "99\n")?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    bench.start_with(&["--http-address", &address.to_string()])?;
    kubelet.until_resource("openshift.io/nics", healthy(4)).await?;
    let text = tokio::task::spawn_blocking(move || metrics(address)).await??;
    let vf = VFS[1];
    let labels = format!(r#"vf="1",pciAddr="{vf}",numa_node="",namespace="blue",pod="pod-of-{vf}",container="main""#);
    for line in [
        format!(r#"sriov_vf_rx_bytes{{pf="",{labels}}} 4711"#),
        format!(r#"sriov_vf_tx_errors{{pf="",{labels}}} 3"#),
        format!(r#"sriov_vf_rdma_port_rcv_data{{pf="",{labels}}} 99"#),
        format!(r#"sriov_kubepoddevice{{pciAddr="{vf}",dev_type="openshift.io/nics",pod="pod-of-{vf}",namespace="blue",container="main"}} 1"#),
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
    }
    assert!(!text.contains(&format!(r#"sriov_kubepoddevice{{pciAddr="{}""#, VFS[0])), "no pod has it");
    Ok(())
}

#[tokio::test]
async fn a_pf_that_loses_its_carrier_is_told_to_the_kubelet_within_a_second() -> Result<()> {
    let mut bench = Bench::new()?;
    let mut config = pools(&[pool("nics", "0-3", "igbvf")]);
    config["resourceList"][0]["carrierPolicy"] = json!("unhealthy");
    bench.configure(&config.to_string())?;
    // The PF's netdev is one end of a cable in a network namespace of its own, where the plugin runs too.
    fs::create_dir_all(bench.machine.path().join("sys/bus/pci/devices/0000:01:00.0/net/pf0"))?;
    let netns = new_netns()?;
    let up = |name: &'static str, up: bool| -> Result<()> {
        netns.run_in(move || {
            let route = Route::open()?;
            let link = route.link_by_name(name)?.with_context(|| format!("there is no {name}"))?;
            Ok(route.change_link(link.netdev.ifindex, &LinkChange { up: Some(up), ..LinkChange::default() })?)
        })?
    };
    netns.run_in(|| Route::open()?.add_link_veth("pf0", "switch"))??;
    up("pf0", true)?;
    up("switch", true)?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    let mut command = bench.command(&[])?;
    command.stderr(File::create(bench.dir.path().join("log"))?).stdout(Stdio::null());
    bench.plugin = Some(netns.run_in(move || command.spawn())??);
    kubelet.until_resource("openshift.io/nics", healthy(4)).await?;
    let mut lost = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        up("switch", false)?;
        kubelet.until_resource("openshift.io/nics", healthy(0)).await?;
        lost.push(start.elapsed());
        up("switch", true)?;
        kubelet.until_resource("openshift.io/nics", healthy(4)).await?;
    }
    until(|| bench.log().contains("PF 0000:01:00.0 has no carrier"), || bench.log())?;
    lost.sort();
    // The middle one: the machine may do other things at one of the times.
    assert!(lost[2] < Duration::from_secs(1), "{lost:?}");
    Ok(())
}

#[tokio::test]
async fn subfunctions_are_offered_and_given_by_their_names() -> Result<()> {
    let mut bench = Bench::new()?;
    let selector = json!({ "auxTypes": ["sf"], "rootDevices": ["0000:01:00.0#0-99"], "isRdma": true });
    let resource = json!({ "resourceName": "sfs", "deviceType": "auxNetDevice", "selectors": selector, "additionalInfo": { "*": { "k": "v" } } });
    bench.configure(&pools(&[resource.clone(), pool("nics", "0-3", "igbvf")]).to_string())?;
    let make = |number: u32, sfnum: u16| -> Result<()> {
        let root = bench.machine.path();
        let name = format!("mlx5_core.sf.{number}");
        let folder = root.join(format!("sys/devices/pci0000:00/0000:01:00.0/{name}"));
        fs::create_dir_all(folder.join(format!("infiniband/mlx5_{number}")))?;
        fs::create_dir_all(folder.join(format!("infiniband_verbs/uverbs{number}")))?;
        fs::write(folder.join("sfnum"), format!("{sfnum}\n"))?;
        std::os::unix::fs::symlink("../../../../bus/auxiliary/drivers/mlx5_core.sf", folder.join("driver"))?;
        let bus = root.join("sys/bus/auxiliary/devices");
        fs::create_dir_all(&bus)?;
        Ok(std::os::unix::fs::symlink(format!("../../../devices/pci0000:00/0000:01:00.0/{name}"), bus.join(name))?)
    };
    make(2, 4)?;
    make(3, 88)?;
    make(4, 100)?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    bench.start()?;
    let sfs = kubelet.until_resource("openshift.io/sfs", healthy(2)).await?;
    assert_eq!(sfs.ids(), ["mlx5_core.sf.2", "mlx5_core.sf.3"]);
    kubelet.until_resource("openshift.io/nics", healthy(4)).await?;
    let answer = kubelet.allocate("openshift.io/sfs", &["mlx5_core.sf.3"]).await?;
    let info = r#"{"mlx5_core.sf.3":{"extra":{"k":"v"},"generic":{"deviceID":"mlx5_core.sf.3"},"rdma":{"rdma_dev":"mlx5_3","uverbs":"/dev/infiniband/uverbs3"}}}"#;
    let expected: BTreeMap<String, String> = [("PCIDEVICE_OPENSHIFT_IO_SFS", "mlx5_core.sf.3"), ("PCIDEVICE_OPENSHIFT_IO_SFS_INFO", info)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    assert_eq!(answer.envs, expected);
    assert_eq!(answer.devices.iter().map(|node| node.host_path.as_str()).collect::<Vec<_>>(), ["/dev/infiniband/uverbs3"]);
    assert!(!bench.dir.path().join("devinfo").exists(), "device-info files are about the PCI bus");

    // One that is gone is refused even before the list says so; the next look takes it out of the list.
    fs::remove_file(bench.machine.path().join("sys/bus/auxiliary/devices/mlx5_core.sf.2"))?;
    let refused = kubelet.allocate("openshift.io/sfs", &["mlx5_core.sf.2"]).await.err().context("a subfunction was given that is gone")?;
    assert_eq!(refused.message(), "mlx5_core.sf.2 of openshift.io/sfs is no longer on this node");
    bench.configure(&pools(&[resource]).to_string())?;
    kubelet.until_resource("openshift.io/sfs", healthy(1)).await?;
    Ok(())
}
