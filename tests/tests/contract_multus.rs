//! I/O: the stand-in for Multus against the contract in `sriov_tests::multus`: its verbs over plugins that are small scripts writing down what they
//! get, its question to a kubelet that is a socket, and the program itself as a runtime calls it. No cluster and no network namespace.
#![expect(clippy::unwrap_used, reason = "what the fixture cannot set up fails the test")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use sriov_device_plugin::api::podresources_v1 as podresources;
use sriov_tests::multus::cluster::{Cluster, Kubernetes, Network, PodFacts};
use sriov_tests::multus::delegate::Devices;
use sriov_tests::multus::status::NetworkStatus;
use sriov_tests::multus::verbs::{self, Request};
use sriov_tests::multus::{Conf, DEFAULT_NETWORK, NETWORKS, PodRef, RESOURCE_NAME};

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=red;K8S_POD_NAME=web;K8S_POD_UID=u1";

/// A folder that is the node: plugins, the first network's list, and what the stand-in keeps.
struct Node {
    folder: tempfile::TempDir,
    request: Request,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in ["first", "chained", "vf", "meta"] {
            // A link: a file that was just written cannot be run while another test's fork still has it open.
            std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/multus/plugin.sh"), bin.join(name)).unwrap();
            let result = json!({
                "cniVersion": "1.0.0", "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
                "ips": [{"address": "192.0.2.4/24", "interface": 0}], "by": name
            });
            std::fs::write(bin.join(format!("result-{name}")), result.to_string()).unwrap();
        }
        let list = json!({"cniVersion": "1.0.0", "name": "first-net", "plugins": [{"type": "first"}, {"type": "chained"}]});
        std::fs::write(folder.path().join("first.conflist"), list.to_string()).unwrap();
        let request = Request {
            conf: serde_json::from_value(conf(folder.path())).unwrap(),
            container: "c1".into(),
            netns: "/run/netns/x".into(),
            interface: "eth0".into(),
            args: ARGS.into(),
            path: vec![bin],
        };
        Self { folder, request }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The calls of the plugins since the last time: verb, plugin, interface, configuration.
    fn calls(&self) -> Vec<(String, Value)> {
        let text = std::fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("bin/log"));
        let call = |line: &str| {
            let (head, config) = line.split_at(line.find('{').unwrap());
            (head.trim().to_owned(), serde_json::from_str(config).unwrap())
        };
        text.lines().map(call).collect()
    }

    fn heads(&self) -> Vec<String> {
        self.calls().into_iter().map(|(head, _)| head).collect()
    }

    fn fail(&self, plugin: &str, verb: &str) {
        std::fs::write(self.path(&format!("bin/fail-{plugin}-{verb}")), "").unwrap();
    }

    fn heal(&self, plugin: &str, verb: &str) {
        std::fs::remove_file(self.path(&format!("bin/fail-{plugin}-{verb}"))).unwrap();
    }

    fn remembered(&self) -> bool {
        self.path("cni/c1").exists()
    }
}

fn conf(folder: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "multus", "type": "multus-standin", "kubeconfig": folder.join("none"), "clusterNetwork": folder.join("first.conflist"),
        "binDir": folder.join("bin"), "cniDir": folder.join("cni"), "confDir": folder.join("net.d"), "deviceInfoFolder": folder.join("devinfo"),
        "podResourcesSocket": folder.join("kubelet.sock"),
    })
}

/// A cluster with one pod, which has been given two devices.
#[derive(Default)]
struct Fake {
    pod: Option<PodFacts>,
    networks: BTreeMap<(String, String), Network>,
    published: RefCell<Vec<Value>>,
}

impl Fake {
    fn with(networks: &str) -> Self {
        let annotations = BTreeMap::from([(NETWORKS.to_owned(), networks.to_owned())]);
        let resource = BTreeMap::from([(RESOURCE_NAME.to_owned(), "example.com/pool".to_owned())]);
        let nad = |config: Value| Network { config: config.to_string(), annotations: resource.clone() };
        let vf = nad(json!({"cniVersion": "1.0.0", "name": "vf-net", "type": "vf", "capabilities": {"CNIDeviceInfoFile": true}}));
        let list = nad(json!({"cniVersion": "1.0.0", "name": "list-net", "plugins": [{"type": "vf"}, {"type": "meta"}]}));
        let file = Network::default();
        let named = [("vf", vf), ("list", list), ("file", file)];
        let networks = named.into_iter().map(|(name, network)| (("red".to_owned(), name.to_owned()), network)).collect();
        Self { pod: Some(PodFacts { uid: "u1".into(), annotations }), networks, published: RefCell::default() }
    }
}

impl Cluster for Fake {
    fn pod(&self, _: &PodRef) -> Result<Option<PodFacts>> {
        Ok(self.pod.clone())
    }

    fn network(&self, namespace: &str, name: &str) -> Result<Network> {
        self.networks.get(&(namespace.to_owned(), name.to_owned())).cloned().ok_or_else(|| anyhow!("no NAD {namespace}/{name}"))
    }

    fn devices(&self, _: &PodRef) -> Result<Devices> {
        Ok(Devices::from([("example.com/pool".to_owned(), vec!["0000:01:10.2".to_owned(), "0000:01:10.0".to_owned()])]))
    }

    fn publish(&self, _: &PodRef, status: &[NetworkStatus]) -> Result<()> {
        self.published.replace(status.iter().map(|status| serde_json::to_value(status).unwrap()).collect());
        Ok(())
    }
}

#[test]
fn add_runs_all_networks_in_order_and_del_gives_them_back_in_the_other() {
    let (node, cluster) = (Node::new(), Fake::with("vf,list@data0"));
    let result = verbs::add(&node.request, &cluster).unwrap();
    assert_eq!(result["by"], "chained", "the result is that of the first network's last plugin");
    let calls = node.calls();
    let heads: Vec<&str> = calls.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(heads, ["ADD first eth0", "ADD chained eth0", "ADD vf net1", "ADD vf data0", "ADD meta data0"]);
    assert_eq!(calls[1].1["prevResult"]["by"], "first");
    assert_eq!(calls[0].1.get("deviceID"), None);
    assert_eq!((&calls[2].1["deviceID"], &calls[2].1["pciBusID"]), (&json!("0000:01:10.0"), &json!("0000:01:10.0")));
    assert_eq!((&calls[3].1["deviceID"], &calls[4].1["deviceID"]), (&json!("0000:01:10.2"), &json!("0000:01:10.2")));

    let published = cluster.published.borrow().clone();
    assert_eq!(published.len(), 3);
    assert_eq!((&published[0]["name"], &published[0]["default"]), (&json!("first-net"), &json!(true)));
    assert_eq!((&published[1]["name"], &published[1]["ips"]), (&json!("red/vf"), &json!(["192.0.2.4"])));

    verbs::check(&node.request).unwrap();
    assert_eq!(node.heads(), ["CHECK first eth0", "CHECK chained eth0", "CHECK vf net1", "CHECK vf data0", "CHECK meta data0"]);

    verbs::del(&node.request, &Fake::default()).unwrap();
    let calls = node.calls();
    let heads: Vec<&str> = calls.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(heads, ["DEL meta data0", "DEL vf data0", "DEL vf net1", "DEL chained eth0", "DEL first eth0"]);
    assert_eq!(calls[2].1["deviceID"], "0000:01:10.0", "DEL gets what ADD got, without asking anyone");
    assert_eq!(calls[2].1["prevResult"]["by"], "vf");
    assert!(!node.remembered());
}

#[test]
fn a_failed_add_takes_back_what_was_added() {
    let (node, cluster) = (Node::new(), Fake::with("vf,list"));
    node.fail("meta", "ADD");
    let error = format!("{:#}", verbs::add(&node.request, &cluster).unwrap_err());
    assert!(error.contains("no device; as the test wants (code 11)") && error.contains("red/list"), "{error}");
    let expected = [
        "ADD first eth0",
        "ADD chained eth0",
        "ADD vf net1",
        "ADD vf net2",
        "ADD meta net2",
        "DEL meta net2",
        "DEL vf net2",
        "DEL vf net1",
        "DEL chained eth0",
        "DEL first eth0",
    ];
    assert_eq!(node.heads(), expected);
    assert!(cluster.published.borrow().is_empty(), "a pod that did not start has no status");
}

#[test]
fn del_goes_on_over_a_failure_and_returns_it() {
    let (mut node, cluster) = (Node::new(), Fake::with("vf,list"));
    node.request.conf.retry_delete_on_error = true;
    verbs::add(&node.request, &cluster).unwrap();
    node.calls();
    node.fail("meta", "DEL");
    let error = format!("{:#}", verbs::del(&node.request, &cluster).unwrap_err());
    assert!(error.contains("no device"), "{error}");
    assert_eq!(node.heads(), ["DEL meta net2", "DEL vf net1", "DEL chained eth0", "DEL first eth0"]);
    assert!(node.remembered(), "with retryDeleteOnError the next DEL must know what to do");
    node.heal("meta", "DEL");
    verbs::del(&node.request, &cluster).unwrap();
    assert_eq!(node.heads().len(), 5);
    assert!(!node.remembered());
}

#[test]
fn del_without_memory_is_rebuilt_from_the_api_and_without_a_pod_succeeds() {
    let (node, cluster) = (Node::new(), Fake::with("vf"));
    verbs::del(&node.request, &cluster).unwrap();
    assert_eq!(node.heads(), ["DEL vf net1", "DEL chained eth0", "DEL first eth0"]);
    verbs::del(&node.request, &Fake::default()).unwrap();
    assert_eq!(node.heads(), Vec::<String>::new());
}

#[test]
fn a_pod_that_is_gone_starts_empty_and_another_pod_of_its_name_is_refused() {
    let node = Node::new();
    let result = verbs::add(&node.request, &Fake::default()).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    let mut other = Fake::with("vf");
    other.pod.as_mut().unwrap().uid = "u2".into();
    let error = format!("{:#}", verbs::add(&node.request, &other).unwrap_err());
    assert!(error.contains("u2") && error.contains("u1"), "{error}");
    assert_eq!(node.heads(), Vec::<String>::new());
}

#[test]
fn device_information_reaches_the_plugin_and_the_status_and_goes_with_the_pod() {
    let (node, cluster) = (Node::new(), Fake::with("vf"));
    let info = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:01:10.0"}});
    std::fs::create_dir_all(node.path("devinfo/dp")).unwrap();
    std::fs::write(node.path("devinfo/dp/example.com-pool-0000:01:10.0-device.json"), info.to_string()).unwrap();
    verbs::add(&node.request, &cluster).unwrap();
    let copy = node.path("devinfo/cni/red-vf-c1_net1");
    assert_eq!(node.calls()[2].1["runtimeConfig"]["CNIDeviceInfoFile"], copy.to_str().unwrap());
    assert_eq!(cluster.published.borrow()[1]["device-info"], info);
    assert!(copy.exists());
    verbs::del(&node.request, &cluster).unwrap();
    assert!(!copy.exists());
}

#[test]
fn a_nad_without_configuration_is_looked_for_on_the_node() {
    let (node, cluster) = (Node::new(), Fake::with("file"));
    assert!(verbs::add(&node.request, &cluster).is_err(), "there is no such file yet");
    node.calls();
    std::fs::create_dir(node.path("net.d")).unwrap();
    std::fs::write(node.path("net.d/10-other.conf"), r#"{"name": "other", "type": "meta"}"#).unwrap();
    std::fs::write(node.path("net.d/20-file.conf"), r#"{"cniVersion": "1.0.0", "name": "file", "type": "vf"}"#).unwrap();
    verbs::add(&node.request, &cluster).unwrap();
    assert_eq!(node.heads(), ["ADD first eth0", "ADD chained eth0", "ADD vf net1"]);
}

#[test]
fn a_nad_may_take_the_place_of_the_first_network() {
    let (node, mut cluster) = (Node::new(), Fake::with("vf"));
    let vf = cluster.networks[&("red".to_owned(), "vf".to_owned())].clone();
    cluster.networks.insert(("kube-system".into(), "vf".into()), vf);
    cluster.pod.as_mut().unwrap().annotations.insert(DEFAULT_NETWORK.into(), "vf".into());
    verbs::add(&node.request, &cluster).unwrap();
    let calls = node.calls();
    let heads: Vec<&str> = calls.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(heads, ["ADD vf eth0", "ADD vf net1"]);
    assert_eq!(calls[0].1["deviceID"], calls[1].1["deviceID"], "devices of the two are counted apart, as in Multus");
    assert_eq!(cluster.published.borrow()[0]["default"], true);
}

/// A kubelet whose only pod has one device.
struct Kubelet;

#[tonic::async_trait]
impl podresources::pod_resources_lister_server::PodResourcesLister for Kubelet {
    async fn list(
        &self,
        _: tonic::Request<podresources::ListPodResourcesRequest>,
    ) -> Result<tonic::Response<podresources::ListPodResourcesResponse>, tonic::Status> {
        let devices = vec![podresources::ContainerDevices {
            resource_name: "example.com/pool".into(),
            device_ids: vec!["0000:01:10.0".into()],
            ..Default::default()
        }];
        let containers = vec![podresources::ContainerResources { name: "c".into(), devices, ..Default::default() }];
        let pod = podresources::PodResources { name: "web".into(), namespace: "red".into(), containers };
        Ok(tonic::Response::new(podresources::ListPodResourcesResponse { pod_resources: vec![pod] }))
    }

    async fn get_allocatable_resources(
        &self,
        _: tonic::Request<podresources::AllocatableResourcesRequest>,
    ) -> Result<tonic::Response<podresources::AllocatableResourcesResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked by Multus"))
    }

    async fn get(
        &self,
        _: tonic::Request<podresources::GetPodResourcesRequest>,
    ) -> Result<tonic::Response<podresources::GetPodResourcesResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked by Multus"))
    }
}

#[test]
fn the_devices_come_from_the_kubelets_socket() {
    let node = Node::new();
    let socket = node.path("kubelet.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket).unwrap() });
    let service = podresources::pod_resources_lister_server::PodResourcesListerServer::new(Kubelet);
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let cluster = Kubernetes::new(&node.request.conf).unwrap();
    let devices = cluster.devices(&PodRef::from_cni_args(ARGS).unwrap()).unwrap();
    assert_eq!(devices, Devices::from([("example.com/pool".to_owned(), vec!["0000:01:10.0".to_owned()])]));
    server.abort();
}

#[test]
fn a_kubelet_that_is_away_is_an_error_and_not_an_empty_list() {
    let node = Node::new();
    let cluster = Kubernetes::new(&node.request.conf).unwrap();
    assert!(cluster.devices(&PodRef::from_cni_args(ARGS).unwrap()).is_err());
}

/// The program as a runtime calls it.
fn call(verb: &str, conf: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_multus-standin"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c1");
    command.env("CNI_NETNS", "/run/netns/x").env("CNI_IFNAME", "eth0").env("CNI_ARGS", ARGS).env("CNI_PATH", "/nowhere");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_program_tells_its_versions() {
    let output = call("VERSION", r#"{"cniVersion": "1.0.0"}"#);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["supportedVersions"].as_array().unwrap().contains(&json!("1.0.0")), "{answer}");
}

#[test]
fn the_program_answers_a_failure_in_the_form_of_the_specification() {
    let node = Node::new();
    for (verb, conf) in
        [("ADD", "not JSON".to_owned()), ("JUMP", conf(node.folder.path()).to_string()), ("ADD", conf(node.folder.path()).to_string())]
    {
        let output = call(verb, &conf);
        assert!(!output.status.success());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["code"], 999);
        assert!(!answer["msg"].as_str().unwrap().is_empty());
    }
}

#[test]
fn the_program_deletes_from_memory_while_the_api_server_is_away() {
    let (node, cluster) = (Node::new(), Fake::with("vf"));
    verbs::add(&node.request, &cluster).unwrap();
    node.calls();
    let text = conf(node.folder.path()).to_string();
    let _: Conf = serde_json::from_str(&text).unwrap();
    let output = call("DEL", &text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(node.heads(), ["DEL vf net1", "DEL chained eth0", "DEL first eth0"]);
}
