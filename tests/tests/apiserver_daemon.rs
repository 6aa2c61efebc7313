//! I/O: tier 1: the built config daemon against a real etcd and API server, with a token as its pod gets it and the admission rule in force. The
//! machine is a folder, which shows reads only; what is written to a machine is tested on one (`vm_daemon_igb`).

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use sriov_crds::{SriovNetworkNodeState, SriovOperatorConfig, keys};
use sriov_host::testing::{FakeSysfs, SysfsTree, igb_pf};
use sriov_tests::apiserver::{ApiServer, RunningDaemon, User, eventually};
use sriov_tests::openvswitch::OpenVswitch;
use sriov_tests::pod_resources::PodResources;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

const NAMESPACE: &str = "sriov-network-operator";
const NODE: &str = "node1";
const SOON: Duration = Duration::from_secs(45);

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

struct Bench {
    server: ApiServer,
    states: Api<SriovNetworkNodeState>,
    configs: Api<SriovOperatorConfig>,
    machine: FakeSysfs,
    port: u16,
}

/// A machine with one igb PF and two VFs; the first is in a pod.
fn machine() -> Result<FakeSysfs> {
    let machine = igb_pf(SysfsTree::new(), 2).build()?;
    let journals = machine.path().join("var/lib/cni/sriov/v1");
    std::fs::create_dir_all(&journals)?;
    let owner = json!({ "containerId": "0123456789abcdef", "ifName": "net1", "netnsPath": "/proc/1/ns/net", "netnsDev": 4, "netnsInode": 1 });
    std::fs::write(journals.join("0000:01:10.0.json"), json!({ "vf": "0000:01:10.0", "owner": owner }).to_string())?;
    Ok(machine)
}

impl Bench {
    async fn new() -> Result<Self> {
        let server = ApiServer::start().await?;
        // That these two warn of nothing is looked at by the tests of the operator.
        server.install_crds().await?;
        server.install_deploy().await?;
        let warnings = server.install_node_rule().await?;
        ensure!(warnings.is_empty(), "the API server warns: {warnings:#?}");
        let admin = server.client(User::Admin).await?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let bench =
            Self { states: Api::namespaced(admin.clone(), NAMESPACE), configs: Api::namespaced(admin, NAMESPACE), machine: machine()?, port, server };
        bench.state(NODE, 2).await?;
        Ok(bench)
    }

    async fn daemon(&self) -> Result<RunningDaemon> {
        self.server.daemon(NODE, self.machine.path(), self.port).await
    }

    /// What the operator writes.
    async fn state(&self, node: &str, num_vfs: u16) -> Result<()> {
        let interface = json!({ "pciAddress": "0000:01:00.0", "name": "enp1s0", "numVfs": num_vfs });
        let object = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": node },
            "spec": { "policyRevision": format!("r{num_vfs}"), "interfaces": [interface] },
        });
        self.states.patch(node, &PatchParams::apply("operator").force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    /// The same with bridges.
    async fn state_with(&self, num_vfs: u16, bridges: &Value) -> Result<()> {
        let interface = json!({ "pciAddress": "0000:01:00.0", "name": "enp1s0", "numVfs": num_vfs });
        let object = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": NODE },
            "spec": { "policyRevision": "bridges", "interfaces": [interface], "bridges": bridges },
        });
        self.states.patch(NODE, &PatchParams::apply("operator").force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    /// What the drain controller writes.
    async fn answer(&self, state: &str) -> Result<()> {
        let patch = json!({ "metadata": { "annotations": { keys::CURRENT_STATE: state } } });
        self.states.patch(NODE, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn asked(&self) -> Result<String> {
        let state = self.states.get(NODE).await?;
        Ok(state.metadata.annotations.unwrap_or_default().get(keys::DESIRED_STATE).cloned().unwrap_or_default())
    }

    async fn expect_asked(&self, what: &str, expected: &str) -> Result<Duration> {
        eventually(SOON, what, async || {
            let asked = self.asked().await?;
            ensure!(asked == expected, "desired-state is {asked:?}, not {expected:?}");
            Ok(())
        })
        .await
    }

    async fn expect_condition(&self, kind: &str, status: &str, reason: &str) -> Result<String> {
        let mut message = String::new();
        eventually(SOON, &format!("{kind} is {status} {reason}"), async || {
            let all = self.states.get(NODE).await?.status.unwrap_or_default().conditions;
            let found = all.iter().find(|c| c.type_ == kind).with_context(|| format!("no {kind} in {all:?}"))?;
            ensure!(found.status == status && found.reason == reason, "{kind} is {} {}: {}", found.status, found.reason, found.message);
            message.clone_from(&found.message);
            Ok(())
        })
        .await?;
        Ok(message)
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// The counters of one metric, by their labels.
    async fn metric(&self, name: &str) -> Result<BTreeMap<String, f64>> {
        let text = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit_once(' ').context("a sample").and_then(|(key, value)| Ok((key.to_owned(), value.parse()?)))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_before_vfs_of_pods_change_and_given_back_after() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let daemon = bench.daemon().await?;
    daemon.explain(handshake(&bench).await)?;
    daemon.explain(events_tell_it(&bench).await)?;
    daemon.explain(drains_can_be_switched_off(&bench).await)?;
    let log = daemon.log();
    ensure!(!log.contains("orbidden"), "the daemon lacks rights:\n{log}");
    Ok(())
}

async fn handshake(bench: &Bench) -> Result<()> {
    bench.expect_condition("Ready", "True", "Converged").await?;
    bench.expect_condition("DrainRequired", "False", "Idle").await?;
    ensure!(bench.asked().await?.is_empty(), "a drain was asked for although nothing has to change");
    let get = bench.get("/readyz").await?;
    ensure!(get.starts_with("HTTP/1.1 200"), "{get}");

    bench.state(NODE, 4).await?;
    let took = bench.expect_asked("a change that takes VFs from pods asks for a drain", keys::DRAIN_REQUIRED).await?;
    eprintln!("policy -> drain asked for: {} ms", took.as_millis());
    let message = bench.expect_condition("Ready", "False", "WaitingForVfsInUse").await?;
    ensure!(message.contains("0000:01:10.0") && message.contains("container 0123456789ab"), "names neither VF nor pod: {message}");
    bench.expect_condition("DrainRequired", "True", "WaitingForDrain").await?;
    bench.answer(keys::DRAINING).await?;
    let state = async || -> Result<()> {
        let text = bench.expect_condition("DrainRequired", "True", "WaitingForDrain").await?;
        ensure!(text.contains("being drained"), "{text}");
        Ok(())
    };
    eventually(SOON, "the drain is seen", state).await?;
    bench.answer(keys::DRAIN_COMPLETE).await?;
    let message = bench.expect_condition("DrainRequired", "True", "DrainedButInUse").await?;
    ensure!(message.contains("DaemonSets"), "does not say what to do: {message}");
    let numvfs = std::fs::read_to_string(bench.machine.path().join("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs"))?;
    ensure!(numvfs.trim() == "2", "the VFs of a pod were touched: sriov_numvfs is {numvfs}");

    bench.state(NODE, 2).await?;
    bench.expect_asked("a node on which nothing is left to do is given back", keys::IDLE).await?;
    bench.answer(keys::IDLE).await?;
    bench.expect_condition("Ready", "True", "Converged").await?;
    bench.expect_condition("DrainRequired", "False", "Idle").await?;
    Ok(())
}

async fn events_tell_it(bench: &Bench) -> Result<()> {
    let events: Api<Event> = Api::namespaced(bench.server.client(User::Admin).await?, NAMESPACE);
    eventually(SOON, "the changes were told", async || {
        let told: Vec<_> = events.list(&ListParams::default()).await?.items.into_iter().filter_map(|event| event.reason).collect();
        for reason in ["Configured", "DrainRequested", "DrainReleased", "SyncStatusChanged"] {
            ensure!(told.iter().any(|r| r == reason), "no event {reason} among {told:?}");
        }
        Ok(())
    })
    .await?;
    Ok(())
}

async fn drains_can_be_switched_off(bench: &Bench) -> Result<()> {
    let patch = json!({ "spec": { "disableDrain": true } });
    bench.configs.patch(keys::DEFAULT_CONFIG, &PatchParams::default(), &Patch::Merge(patch)).await?;
    bench.state(NODE, 4).await?;
    bench.expect_condition("DrainRequired", "True", "DrainDisabled").await?;
    let asked = bench.asked().await?;
    ensure!(asked == keys::IDLE, "disableDrain is set, and desired-state is {asked}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_asks_nothing_and_wakes_for_nothing() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let daemon = bench.daemon().await?;
    daemon.explain(idle(&bench, daemon.pid()).await)
}

async fn idle(bench: &Bench, pid: u32) -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(15);
    bench.expect_condition("Ready", "True", "Converged").await?;
    let mut quiet = (BTreeMap::new(), BTreeMap::new());
    // The events of the first round are told on the side; other tests on this machine may make links, which are a reason to look.
    eventually(Duration::from_mins(2), "no request and no round for 15 s", async || {
        let before = (bench.metric("sriov_config_daemon_api_requests_total").await?, bench.metric("sriov_config_daemon_rounds_total").await?);
        let before_by_thread = switches(pid)?;
        tokio::time::sleep(WATCHED).await;
        quiet = (bench.metric("sriov_config_daemon_api_requests_total").await?, bench.metric("sriov_config_daemon_rounds_total").await?);
        ensure!(quiet == before, "requests and rounds went from {before:?} to {quiet:?}");
        // Threads that had nothing to do for long may have ended meanwhile.
        let after = switches(pid)?;
        let woken: u64 = after.iter().map(|(thread, count)| count - before_by_thread.get(thread).unwrap_or(&0)).sum();
        eprintln!("idle for {} s: {woken} wake-ups of {} threads, the test's own two requests included", WATCHED.as_secs(), after.len());
        ensure!(woken < 60, "{woken} wake-ups in {} s", WATCHED.as_secs());
        Ok(())
    })
    .await?;
    ensure!(quiet.0.values().sum::<f64>() > 0.0 && quiet.1.values().sum::<f64>() > 0.0, "nothing was counted at all: {quiet:?}");
    Ok(())
}

/// Voluntary context switches by thread: how often it waited for something.
fn switches(pid: u32) -> Result<BTreeMap<String, u64>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let count = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).context("no context switches")?;
        Ok((thread.file_name().to_string_lossy().into_owned(), line.trim().parse()?))
    };
    threads.map(|thread| count(thread?)).collect()
}

/// A bridge that was made before, whose PF the emulated card cannot be: of it the daemon only tells what it is like.
const KEPT: &str = r#"{"br-kept":{"name":"br-kept","bridge":{"externalIDs":{"a":"1"}},"uplinks":[{"pciAddress":"0000:01:00.0","name":"enp1s0"}]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_bridge_is_told_without_a_wait_and_a_database_at_rest_wakes_nobody() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let mut ovs = OpenVswitch::new(bench.machine.path(), "srv/switch")?;
    ovs.init()?;
    ovs.add_bridge("br-kept")?;
    let kept = bench.machine.path().join("etc/sriov-operator/managed-ovs-bridges.json");
    std::fs::create_dir_all(kept.parent().context("no folder")?)?;
    std::fs::write(&kept, KEPT)?;
    bench
        .state_with(
            2,
            &json!({ "ovs": [{ "name": "br-kept", "bridge": { "externalIDs": { "a": "1" } }, "uplinks": [{ "pciAddress": "0000:01:00.0" }] }] }),
        )
        .await?;
    let kubeconfig = bench.server.daemon_kubeconfig(NODE).await?;
    let socket = ovs.socket();
    let daemon = bench.server.daemon_told(
        NODE,
        &kubeconfig,
        (bench.machine.path(), bench.port),
        &[("OVSDB_SOCKET_PATH", socket.as_str())],
        &["--manage-software-bridges"],
    )?;
    daemon.explain(bridge_is_told(&bench, &mut ovs, daemon.pid()).await)
}

async fn bridge_is_told(bench: &Bench, ovs: &mut OpenVswitch, pid: u32) -> Result<()> {
    let told = async |value: &str| {
        eventually(SOON, "the bridge's external id is told", async || {
            let bridges = bench.states.get(NODE).await?.status.and_then(|status| status.bridges).context("no bridges are told")?;
            let found = bridges.ovs.first().and_then(|bridge| bridge.bridge.as_ref()?.external_ids.get("a"));
            ensure!(found.is_some_and(|found| found == value), "external id a is {found:?}, not {value}");
            Ok(())
        })
        .await
    };
    bench.expect_condition("Ready", "False", "InvalidSpec").await?;
    ovs.set_external_id("br-kept", "a", "2")?;
    let took = told("2").await?;
    eprintln!("change of a bridge -> told in the node state: {} ms", took.as_millis());
    // Nothing but the database is looked at for that, and nothing while it rests.
    let rounds = async || bench.metric("sriov_config_daemon_rounds_total").await;
    eventually(SOON, "no round for 3 s", async || {
        let (before, before_by_thread) = (rounds().await?, switches(pid)?);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = rounds().await?;
        ensure!(after == before, "rounds went from {before:?} to {after:?}");
        let woken: u64 = switches(pid)?.iter().map(|(thread, count)| count - before_by_thread.get(thread).unwrap_or(&0)).sum();
        ensure!(woken < 30, "{woken} wake-ups in 3 s");
        Ok(())
    })
    .await?;
    ovs.stop_database()?;
    let message = bench.expect_condition("Ready", "False", "BridgeUnavailable").await?;
    ensure!(message.contains("srv/switch/db.sock"), "{message}");
    ovs.start_database()?;
    ovs.set_external_id("br-kept", "a", "3")?;
    told("3").await?;
    ovs.set_external_id("br-kept", "a", "4")?;
    told("4").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_the_kept_wish_holds_and_with_it_again_the_daemon_is_back_soon() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let daemon = bench.daemon().await?;
    daemon.explain(bench.expect_condition("Ready", "True", "Converged").await)?;
    let kept: Value = serde_json::from_str(&read(bench.machine.path(), "etc/sriov-operator/node-state.json")?)?;
    assert_eq!(kept["spec"]["interfaces"][0]["numVfs"], 2);
    assert!(read(bench.machine.path(), "etc/sriov-operator/sriov-supported-nics-ids.yaml")?.contains("8086 10c9 10ca\n"));
    drop(daemon);
    // As after a reboot of the machine: the record is gone with its disk's last seconds, the wish is not.
    let record = bench.machine.path().join("etc/sriov-operator/pci/0000:01:00.0");
    std::fs::remove_file(&record).context("no record was written")?;
    let kubeconfig = bench.server.daemon_kubeconfig(NODE).await?;
    bench.server.freeze()?;
    let daemon = bench.server.daemon_with(NODE, &kubeconfig, bench.machine.path(), bench.port)?;
    let applied = eventually(SOON, "the kept wish is applied without an API server", async || {
        ensure!(record.exists(), "{} is not there", record.display());
        Ok(())
    })
    .await;
    bench.server.thaw()?;
    let took = daemon.explain(applied)?;
    eprintln!("start without an API server -> configured: {} ms", took.as_millis());
    bench.state(NODE, 3).await?;
    let back = daemon.explain(bench.expect_asked("the daemon is back", keys::DRAIN_REQUIRED).await)?;
    eprintln!("API server is back -> new wish acted on: {} ms", back.as_millis());
    ensure!(back < Duration::from_secs(20), "the daemon was away for {back:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_names_the_resources_of_exactly_the_pods_whose_vfs_change() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    // No CNI plugin tells of the second VF: its pod has it through a userspace driver alone.
    let held = [("red", "web", "openshift.io/nics", "0000:01:10.0"), ("blue", "dpdk", "openshift.io/dpdk", "0000:01:10.2")];
    let kubelet = PodResources::serve(bench.machine.path(), &held)?;
    let daemon = bench.daemon().await?;
    daemon.explain(evictions(&bench, &kubelet).await)
}

async fn evictions(bench: &Bench, kubelet: &PodResources) -> Result<()> {
    bench.expect_condition("Ready", "True", "Converged").await?;
    bench.state(NODE, 4).await?;
    bench.expect_asked("pods have VFs that change", keys::DRAIN_REQUIRED).await?;
    let message = bench.expect_condition("Ready", "False", "WaitingForVfsInUse").await?;
    for word in ["0000:01:10.0 (pod red/web, container 0123456789ab", "0000:01:10.2 (pod blue/dpdk)"] {
        ensure!(message.contains(word), "{word:?} is not in {message}");
    }
    let named = async || Ok(bench.states.get(NODE).await?.status.and_then(|s| s.plan).map(|plan| plan.evict_resources).unwrap_or_default());
    ensure!(named().await? == ["openshift.io/dpdk", "openshift.io/nics"], "{:?}", named().await?);
    // One pod ends: nothing tells it but the kubelet.
    kubelet.hold(&[("red", "web", "openshift.io/nics", "0000:01:10.0")]);
    eventually(SOON, "one resource is left", async || {
        let named: Result<_> = named().await;
        let named: Vec<String> = named?;
        ensure!(named == ["openshift.io/nics"], "{named:?}");
        Ok(())
    })
    .await?;
    kubelet.refuse();
    bench.state(NODE, 5).await?;
    let message = bench.expect_condition("Degraded", "True", "ObserveFailed").await?;
    ensure!(message.contains("kubelet.sock") && message.contains("until it answers"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_costs_at_most_two_writes_of_the_node_state() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let daemon = bench.daemon().await?;
    daemon.explain(two_writes(&bench).await)
}

async fn two_writes(bench: &Bench) -> Result<()> {
    bench.expect_condition("Ready", "True", "Converged").await?;
    for change in ["first", "second"] {
        let before = bench.states.get(NODE).await?;
        let version = before.metadata.resource_version.clone().context("no version")?;
        let mut versions = pin!(bench.states.watch(&WatchParams::default().fields(&format!("metadata.name={NODE}")), &version).await?);
        // A change that is a step: the record of what the PF is configured for.
        let group = json!({ "vfRange": "0-1", "resourceName": change, "policyName": change, "deviceType": "netdevice" });
        let interface = json!({ "pciAddress": "0000:01:00.0", "name": "enp1s0", "numVfs": 2, "vfGroups": [group], "externallyManaged": true });
        let object = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": NODE },
            "spec": { "policyRevision": change, "interfaces": [interface] },
        });
        let changed = bench.states.patch(NODE, &PatchParams::apply("operator").force(), &Patch::Apply(object)).await?;
        let (mut status, mut writes) = (before.status.unwrap_or_default(), Vec::new());
        let settled = async {
            while let Some(event) = versions.next().await {
                let WatchEvent::Modified(state) = event? else { continue };
                let new = state.status.unwrap_or_default();
                if new != status {
                    writes.push(new.sync_status.clone().unwrap_or_default());
                    status = new;
                }
                if status.observed_generation == changed.metadata.generation && status.sync_status.as_deref() != Some("InProgress") {
                    return Ok(());
                }
            }
            anyhow::bail!("the watch ended")
        };
        tokio::time::timeout(SOON, settled).await.context("the change is not answered")??;
        eprintln!("change {change}: status written {} times: {writes:?}", writes.len());
        ensure!((1..=2).contains(&writes.len()), "{writes:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlisted_nic_is_told_with_its_entry_and_dev_mode_configures_it_and_the_log_level_is_live() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let kubeconfig = bench.server.daemon_kubeconfig(NODE).await?;
    let daemon = bench.server.daemon_with(NODE, &kubeconfig, bench.machine.path(), bench.port)?;
    daemon.explain(unlisted(&bench).await)?;
    ensure!(!daemon.log().contains("DEBUG"), "nobody asked for that");
    let verbose = json!({ "spec": { "logLevel": 1 } });
    bench.configs.patch(keys::DEFAULT_CONFIG, &PatchParams::default(), &Patch::Merge(verbose)).await?;
    let more = eventually(SOON, "the log says more", async || {
        ensure!(daemon.log().contains("DEBUG"), "it does not");
        Ok(())
    });
    daemon.explain(more.await)?;
    drop(daemon);
    let daemon = bench.server.daemon_in(NODE, &kubeconfig, bench.machine.path(), bench.port, &[("DEV_MODE", "TRUE")])?;
    daemon.explain(bench.expect_condition("Ready", "True", "Converged").await)?;
    Ok(())
}

async fn unlisted(bench: &Bench) -> Result<()> {
    bench.expect_condition("Ready", "True", "Converged").await?;
    let nics: Api<ConfigMap> = Api::namespaced(bench.server.client(User::Admin).await?, NAMESPACE);
    let without = json!({ "data": { "intel-igb-10c9": null } });
    nics.patch(keys::SUPPORTED_NIC_IDS, &PatchParams::default(), &Patch::Merge(without)).await?;
    // Without a restart.
    let message = bench.expect_condition("Ready", "False", "UnsupportedNic").await?;
    ensure!(message.contains("my-nic: \"8086 10c9 10ca\""), "the entry is not told: {message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_from_outside_is_reported_ignored_or_repaired_as_the_daemon_is_told() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    let kubeconfig = bench.server.daemon_kubeconfig(NODE).await?;
    for (policy, device) in [("report", "fff0"), ("ignore", "fff1"), ("repair", "fff2")] {
        let policies = [("SRIOV_DRIFT_POLICY", policy)];
        let daemon = bench.server.daemon_in(NODE, &kubeconfig, bench.machine.path(), bench.port, &policies)?;
        daemon.explain(drift(&bench, policy, device).await.context(policy))?;
    }
    Ok(())
}

async fn drift(bench: &Bench, policy: &str, device: &str) -> Result<()> {
    // A daemon that starts makes the machine as it is asked to be, whatever the one before left.
    bench.expect_condition("DriftDetected", "False", "Idle").await?;
    bench.expect_condition("Ready", "True", "Converged").await?;
    let record = bench.machine.path().join("etc/sriov-operator/pci/0000:01:00.0");
    std::fs::remove_file(&record).context("no record was written")?;
    // A folder announces nothing; another list of NICs is a reason to look at everything.
    let nics: Api<ConfigMap> = Api::namespaced(bench.server.client(User::Admin).await?, NAMESPACE);
    let more = json!({ "data": { policy: format!("8086 {device} fffe") } });
    nics.patch(keys::SUPPORTED_NIC_IDS, &PatchParams::default(), &Patch::Merge(more)).await?;
    if policy == "repair" {
        eventually(SOON, "the record is back", async || {
            ensure!(record.exists(), "{} is not there", record.display());
            Ok(())
        })
        .await?;
        let repaired = bench.metric("sriov_config_daemon_drifts_total").await?;
        ensure!(repaired.values().sum::<f64>() > 0.0, "it was not counted: {repaired:?}");
        bench.expect_condition("DriftDetected", "False", "Idle").await?;
    } else {
        let message = bench.expect_condition("DriftDetected", "True", "NotRepaired").await?;
        ensure!(message.contains("0000:01:00.0") && message.contains(&format!("--drift {policy}")), "{message}");
        ensure!(!record.exists(), "it was changed back");
    }
    match policy {
        "report" => bench.expect_condition("Ready", "False", "NotRepaired").await.map(drop),
        _ => bench.expect_condition("Ready", "True", "Converged").await.map(drop),
    }
}

fn read(root: &Path, path: &str) -> Result<String> {
    std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_does_not_write_the_state_of_another_node_nor_what_is_not_its_own() -> Result<()> {
    let _alone = ALONE.lock().await;
    let bench = Bench::new().await?;
    bench.state("node2", 0).await?;
    let kubeconfig = Kubeconfig::read_from(bench.server.daemon_kubeconfig(NODE).await?)?;
    let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?;
    let states: Api<SriovNetworkNodeState> = Api::namespaced(client, NAMESPACE);
    let report = json!({ "status": { "syncStatus": "Succeeded" } });
    let asks = |value: &str| json!({ "metadata": { "annotations": { keys::DESIRED_STATE: value } } });
    // The rule is in force a moment after it was written.
    let refused = async || {
        let answer = states.patch_status("node2", &PatchParams::default(), &Patch::Merge(&report)).await;
        ensure!(answer.is_err(), "the state of another node could be written");
        Ok(())
    };
    eventually(SOON, "the rule is in force", refused).await?;
    for (node, patch, words) in [
        ("node2", asks("Reboot_Required"), "its own node only"),
        (NODE, json!({ "spec": { "interfaces": [] } }), "does not change the spec"),
        (NODE, json!({ "metadata": { "annotations": { keys::CURRENT_STATE: "DrainComplete" } } }), "no annotation but"),
        (NODE, json!({ "metadata": { "annotations": { keys::KEEP_STATE_UNTIL: "2030-01-01T00:00:00Z" } } }), "no annotation but"),
        (NODE, json!({ "metadata": { "labels": { "a": "b" } } }), "labels, finalizers and owners"),
        (NODE, json!({ "metadata": { "finalizers": ["a.example/b"] } }), "labels, finalizers and owners"),
    ] {
        let said = match states.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => "it was written".to_owned(),
            Err(error) => error.to_string(),
        };
        ensure!(said.contains(words), "{node} {patch}: {said}");
    }
    // What is its own, it can.
    states.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&report)).await?;
    states.patch(NODE, &PatchParams::default(), &Patch::Merge(asks(keys::DRAIN_REQUIRED))).await?;
    // A token that says of no pod on which node it runs is no daemon's.
    let elsewhere: Api<SriovNetworkNodeState> = Api::namespaced(bench.server.client(User::Daemon).await?, NAMESPACE);
    let unbound = elsewhere.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&report)).await;
    ensure!(unbound.is_err(), "a token of no node could write");
    Ok(())
}
