//! I/O: the operator against a real etcd and API server with thousands of nodes, which are API objects only; this program speaks for their daemons.
//!
//! For each operator and size: start -> all node states; policy created -> all carry it; numVfs changed -> the same; 100 nodes relabelled; a drain
//! of a pool. Beside each time is the floor: 8 plain clients that write that many objects to the same API server. Nothing here is a test.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams, Request, WatchParams};
use serde_json::{Value, json};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkNodeStateSpec, SriovNetworkPoolConfig, keys};
use sriov_tests::apiserver::requests::Requests;
use sriov_tests::apiserver::{ApiServer, Operator, User};
use tokio::sync::watch;

/// The operator's namespace.
const NAMESPACE: &str = "sriov-network-operator";
/// Where the floor is measured.
const FLOOR: &str = "floor";
/// Plain clients that the floor is measured with.
const CLIENTS: usize = 8;
/// Nodes that get another label.
const RELABELLED: usize = 100;
/// Longest time of one phase.
const DEADLINE: Duration = Duration::from_mins(10);
/// A phase is to take at most so many times the floor.
const RATIO: f64 = 2.0;
/// Writes a changed node, at most.
const WRITES: f64 = 1.1;
/// Peak memory with 5,000 nodes, at most.
const MEGABYTES: f64 = 80.0;

#[derive(Parser)]
struct Arguments {
    /// Sizes, in nodes.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    nodes: Vec<usize>,
    /// Operators to compare; none is the one of this tree, as cargo builds it for tests.
    #[arg(long)]
    operator: Vec<PathBuf>,
    /// Nodes of the drain; 0 leaves it out.
    #[arg(long, default_value_t = 1000)]
    drain: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let operators: Vec<Option<PathBuf>> = if arguments.operator.is_empty() { vec![None] } else { arguments.operator.into_iter().map(Some).collect() };
    for operator in &operators {
        for nodes in &arguments.nodes {
            println!("\n== {} nodes, operator {}", nodes, operator.as_ref().map_or("of this tree".into(), |path| path.display().to_string()));
            Run::start(*nodes).await?.measure(operator.as_ref(), arguments.drain).await?;
        }
    }
    Ok(())
}

/// What is known of one node state.
#[derive(Clone, Debug, Default)]
struct Seen {
    rendered: bool,
    /// `numVfs` of its interfaces.
    interfaces: Vec<i64>,
    current: String,
}

/// All node states, followed by a watch of this program's own.
#[derive(Clone)]
struct States {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    changed: watch::Sender<()>,
}

impl States {
    /// Reads the lines of a watch and of each only what it is about: to read whole objects in a program that is built without optimisation took more of the
    /// machine than the operator that is measured.
    async fn follow(client: &Client, api: &Api<SriovNetworkNodeState>) -> Result<Self> {
        let states = Self { seen: Arc::default(), changed: watch::Sender::new(()) };
        let own = states.clone();
        let parameters = WatchParams::default().timeout(290);
        let client = client.clone();
        let url = api.resource_url().to_owned();
        let mut lines = client.request_stream(Request::new(url.as_str()).watch(&parameters, "0")?).await?.lines();
        tokio::spawn(async move {
            loop {
                while let Some(Ok(line)) = lines.next().await {
                    own.put(&line);
                    own.changed.send_replace(());
                }
                // A watch ends after its time. The next one begins with all objects.
                let Ok(request) = Request::new(url.as_str()).watch(&parameters, "0") else { return };
                match client.request_stream(request).await {
                    Ok(stream) => lines = stream.lines(),
                    Err(_) => return,
                }
            }
        });
        Ok(states)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of an event's line; the API server writes `metadata`, `spec` and `status` in this order. Nothing is deleted here.
    fn put(&self, line: &str) {
        let (metadata, rest) = line.split_once(",\"spec\":").unwrap_or((line, ""));
        let spec = rest.split_once(",\"status\":").map_or(rest, |(spec, _)| spec);
        let text = |of: &str, before: &str| of.split_once(before).and_then(|(_, rest)| rest.split_once('"')).map(|(value, _)| value.to_owned());
        let Some(name) = text(metadata, "\"name\":\"") else { return };
        let number = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
        let seen = Seen {
            rendered: spec.contains("\"policyRevision\":"),
            interfaces: spec.split("\"numVfs\":").skip(1).filter_map(number).collect(),
            current: text(metadata, &format!("\"{}\":\"", keys::CURRENT_STATE)).unwrap_or_default(),
        };
        self.lock().insert(name, seen);
    }

    fn count(&self, is: impl Fn(&Seen) -> bool) -> usize {
        self.lock().values().filter(|seen| is(seen)).count()
    }

    /// Waits until so many are so; answers the time.
    async fn until(&self, what: &str, count: usize, is: impl Fn(&Seen) -> bool) -> Result<Duration> {
        let start = Instant::now();
        let mut changed = self.changed.subscribe();
        while self.count(&is) < count {
            let left = DEADLINE.checked_sub(start.elapsed()).with_context(|| format!("{what}: {} of {count} after {DEADLINE:?}", self.count(&is)))?;
            tokio::time::timeout(left, changed.changed()).await.ok();
            // One look a moment is enough, and looking costs the machine that is measured.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(start.elapsed())
    }
}

/// What the API server counted so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    requests: Requests,
    /// Seconds of a processor that it had used.
    processor: f64,
}

struct Run {
    server: ApiServer,
    admin: Client,
    states: Api<SriovNetworkNodeState>,
    nodes: usize,
    /// The floor: N objects created, N changed.
    created: Cost,
    changed: Cost,
}

/// What writes cost.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    took: Duration,
    /// Seconds of a processor, of the API server.
    server: f64,
}

impl Run {
    async fn start(nodes: usize) -> Result<Self> {
        let server = ApiServer::start().await?;
        server.install_crds().await?;
        server.install_deploy().await?;
        let admin = server.client(User::Admin).await?;
        let metadata = ObjectMeta { name: Some(FLOOR.to_owned()), ..ObjectMeta::default() };
        Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        let api: Api<Node> = Api::all(admin.clone());
        each(nodes, |number| {
            let api = api.clone();
            async move {
                let labels = [(keys::OS_LABEL, "linux"), (keys::CAPABLE_LABEL, "true"), ("bench", "node")];
                let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
                let metadata = ObjectMeta { name: Some(name(number)), labels: Some(labels), ..ObjectMeta::default() };
                api.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await?;
                Ok(())
            }
        })
        .await?;
        let states = Api::namespaced(admin.clone(), NAMESPACE);
        let mut run = Self { server, admin, states, nodes, created: Cost::default(), changed: Cost::default() };
        run.floor().await?;
        Ok(run)
    }

    /// What the API server can do at all, with objects as large as those of the fleet: their daemons have reported.
    async fn floor(&mut self) -> Result<()> {
        let api: Api<SriovNetworkNodeState> = Api::namespaced(self.admin.clone(), FLOOR);
        let before = self.server.processor_seconds()?;
        let took = each(self.nodes, |number| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &SriovNetworkNodeState::new(&name(number), SriovNetworkNodeStateSpec::default())).await?;
                Ok(())
            }
        })
        .await?;
        self.created = Cost { took, server: self.server.processor_seconds()? - before };
        self.report_all(&api).await?;
        let before = self.server.processor_seconds()?;
        let took = each(self.nodes, |number| {
            let api = api.clone();
            async move {
                let group = json!({ "resourceName": "nics", "deviceType": "netdevice", "vfRange": "0-3", "policyName": "all" });
                let pf = |address: &str| json!({ "pciAddress": address, "name": "eth0", "numVfs": 4, "vfGroups": [group] });
                let spec = json!({ "interfaces": [pf("0000:01:00.0"), pf("0000:01:00.1")], "policyRevision": "0123456789abcdef" });
                api.patch(&name(number), &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await?;
                Ok(())
            }
        })
        .await?;
        self.changed = Cost { took, server: self.server.processor_seconds()? - before };
        println!(
            "floor, {CLIENTS} plain clients: {} objects created in {:.2} s ({:.0}/s), changed in {:.2} s ({:.0}/s)",
            self.nodes,
            self.created.took.as_secs_f64(),
            per_second(self.nodes, self.created.took),
            self.changed.took.as_secs_f64(),
            per_second(self.nodes, self.changed.took)
        );
        Ok(())
    }

    async fn measure(self, operator: Option<&PathBuf>, drain: usize) -> Result<()> {
        let states = States::follow(&self.admin, &self.states).await?;
        let before = self.requests().await?;
        let begin = Instant::now();
        let operator = match operator {
            None => self.server.operator("bench", &[("RUST_LOG", "warn"), ("MALLOC_ARENA_MAX", "1")])?,
            Some(path) => self.server.operator_at(path, "bench", &[("RUST_LOG", "warn"), ("MALLOC_ARENA_MAX", "1")])?,
        };
        let result = self.phases(&operator, &states, before, begin, drain).await;
        operator.explain(result)
    }

    async fn phases(&self, operator: &Operator, states: &States, before: Counted, begin: Instant, drain: usize) -> Result<()> {
        let all = self.nodes;
        states.until("all node states", all, |_| true).await?;
        let before = self.line("start -> all node states", begin.elapsed(), self.created, all, before).await?;
        self.report_all(&self.states).await?;
        states.until("all rendered", all, |s| s.rendered).await?;
        let _ = before;

        let before = self.requests().await?;
        let begin = Instant::now();
        self.policy("all", 4, json!({}), json!({ "vendor": "8086" })).await?;
        states.until("policy", all, |s| s.interfaces == [4, 4]).await?;
        let before = self.line("policy created -> all carry it", begin.elapsed(), self.changed, all, before).await?;

        let begin = Instant::now();
        self.policy("all", 6, json!({}), json!({ "vendor": "8086" })).await?;
        states.until("numVfs", all, |s| s.interfaces == [6, 6]).await?;
        self.line("numVfs changed -> all carry it", begin.elapsed(), self.changed, all, before).await?;

        self.policy("some", 7, json!({ "bench": "other" }), json!({ "pfNames": ["eth1"] })).await?;
        let count = RELABELLED.min(all);
        let before = self.requests().await?;
        let begin = Instant::now();
        let api: Api<Node> = Api::all(self.admin.clone());
        each(count, |number| {
            let api = api.clone();
            async move {
                api.patch(&name(number), &PatchParams::default(), &Patch::Merge(json!({ "metadata": { "labels": { "bench": "other" } } }))).await?;
                Ok(())
            }
        })
        .await?;
        states.until("relabelled", count, |s| s.interfaces == [6, 7]).await?;
        let part = 2.0 * to_f64(count) / to_f64(all);
        let share = Cost { took: self.changed.took.mul_f64(part), server: self.changed.server * part };
        self.line(&format!("{count} nodes relabelled (floor: both writes)"), begin.elapsed(), share, count, before).await?;

        let before = self.requests().await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let after = self.requests().await?;
        let idle = after.requests.since(&before.requests);
        println!("idle for 10 s: {} requests for node states, nodes and pods (goal 0: {})", idle.total(), verdict(idle.total() == 0.0));
        if drain > 0 {
            self.drain(states, drain.min(all)).await?;
        }
        let peak = operator.peak_memory()?;
        let goal = if all >= 5000 { format!(", goal at 5,000 nodes {MEGABYTES} MB: {}", verdict(peak <= MEGABYTES)) } else { String::new() };
        println!("peak memory: {peak:.1} MB{goal}");
        Ok(())
    }

    /// What the daemons of nodes with two PFs of 8 VFs each say.
    async fn report_all(&self, api: &Api<SriovNetworkNodeState>) -> Result<()> {
        let vfs: Vec<Value> = (0..8)
            .map(|vf| json!({ "pciAddress": format!("0000:01:10.{vf}"), "vfID": vf, "name": format!("eth0v{vf}"), "mac": "02:00:00:00:00:01", "driver": "igbvf", "vendor": "8086", "deviceID": "10ca", "mtu": 1500 }))
            .collect();
        let pf = |address: &str, name: &str| {
            json!({ "pciAddress": address, "name": name, "vendor": "8086", "deviceID": "10c9", "driver": "igb", "mtu": 1500, "totalvfs": 8, "numVfs": 8,
                "linkSpeed": "10000 Mb/s", "linkType": "ETH", "Vfs": vfs })
        };
        let status =
            json!({ "interfaces": [pf("0000:01:00.0", "eth0"), pf("0000:01:00.1", "eth1")], "syncStatus": "Succeeded", "observedGeneration": 1 });
        each(self.nodes, |number| {
            let (api, status) = (api.clone(), status.clone());
            async move {
                let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": name(number) }, "status": status });
                api.patch_status(&name(number), &PatchParams::apply("daemon").force(), &Patch::Apply(object)).await?;
                Ok(())
            }
        })
        .await?;
        Ok(())
    }

    async fn policy(&self, name: &str, num_vfs: u32, nodes: Value, nics: Value) -> Result<()> {
        let spec = json!({ "resourceName": name, "nodeSelector": nodes, "nicSelector": nics, "numVfs": num_vfs, "priority": if name == "all" { 90 } else { 10 } });
        let object =
            json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": name }, "spec": spec });
        let api: Api<SriovNetworkNodePolicy> = Api::namespaced(self.admin.clone(), NAMESPACE);
        api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    /// All nodes of a pool ask; each daemon works for no time at all.
    async fn drain(&self, states: &States, nodes: usize) -> Result<()> {
        let allowed = (nodes / 10).max(1);
        let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkPoolConfig", "metadata": { "name": "bench" },
            "spec": { "maxUnavailable": allowed } });
        let pools: Api<SriovNetworkPoolConfig> = Api::namespaced(self.admin.clone(), NAMESPACE);
        pools.patch("bench", &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
        let before = self.requests().await?;
        let begin = Instant::now();
        let ask = |node: String, desired: &'static str| {
            let api = self.states.clone();
            async move {
                let patch = json!({ "metadata": { "annotations": { keys::DESIRED_STATE: desired } } });
                api.patch_metadata(&node, &PatchParams::default(), &Patch::Merge(patch)).await?;
                Ok::<_, anyhow::Error>(())
            }
        };
        each(nodes, |number| ask(name(number), keys::DRAIN_REQUIRED)).await?;
        let mut answered = BTreeSet::new();
        let mut most = 0;
        let mut changed = states.changed.subscribe();
        while answered.len() < nodes || states.count(|s| s.current != keys::IDLE) > 0 {
            ensure!(begin.elapsed() < DEADLINE, "{} of {nodes} nodes drained", answered.len());
            most = most.max(states.count(|s| s.current == keys::DRAINING || s.current == keys::DRAIN_COMPLETE));
            let complete = |(name, seen): (&String, &Seen)| (seen.current == keys::DRAIN_COMPLETE && !answered.contains(name)).then(|| name.clone());
            let done: Vec<String> = states.lock().iter().filter_map(complete).collect();
            answered.extend(done.iter().cloned());
            stream::iter(done).map(|node| ask(node, keys::IDLE)).buffer_unordered(CLIENTS).try_collect::<()>().await?;
            tokio::time::timeout(Duration::from_secs(1), changed.changed()).await.ok();
        }
        let took = begin.elapsed();
        let after = self.requests().await?;
        let cost = after.requests.since(&before.requests);
        let of = |count: f64| count / to_f64(nodes);
        println!(
            "drain of {nodes} nodes: {:.1} s, at most {most} away (allowed {allowed}: {}), a node: {:.1} writes of its state (2 of them the daemon's), \
             {:.1} of its status, {:.1} reads of it, {:.1} requests for its Node and pods",
            took.as_secs_f64(),
            verdict(most <= allowed),
            of(cost.writes),
            of(cost.statuses),
            of(cost.reads),
            of(cost.others)
        );
        Ok(())
    }

    async fn line(&self, what: &str, took: Duration, floor: Cost, count: usize, before: Counted) -> Result<Counted> {
        let server = self.server.processor_seconds()? - before.processor;
        // What comes late counts too.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = self.requests().await?;
        let ratio = took.as_secs_f64() / floor.took.as_secs_f64();
        let cost = after.requests.since(&before.requests);
        let (writes, reads) = (cost.writes / to_f64(count), cost.reads / to_f64(count));
        println!(
            "{what}: {:.2} s, {ratio:.2}x the floor of {:.2} s (goal {RATIO}: {}); {writes:.2} writes (goal {WRITES}: {}) and {reads:.2} reads a node (goal 0: {}); \
             the API server worked {server:.1} s (floor: {:.1} s)",
            took.as_secs_f64(),
            floor.took.as_secs_f64(),
            verdict(ratio <= RATIO),
            verdict(writes <= WRITES),
            verdict(reads < 0.01),
            floor.server,
        );
        Ok(Counted { processor: self.server.processor_seconds()?, ..after })
    }

    async fn requests(&self) -> Result<Counted> {
        Ok(Counted { requests: Requests::of(&self.admin).await?, processor: self.server.processor_seconds()? })
    }
}

fn name(number: usize) -> String {
    format!("node-{number:05}")
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

fn per_second(count: usize, took: Duration) -> f64 {
    to_f64(count) / took.as_secs_f64()
}

fn verdict(is: bool) -> &'static str {
    if is { "pass" } else { "MISS" }
}

/// As many writers as the floor has; answers the time.
async fn each<F>(count: usize, write: impl Fn(usize) -> F) -> Result<Duration>
where
    F: Future<Output = Result<()>>,
{
    let start = Instant::now();
    stream::iter(0..count).map(write).buffer_unordered(CLIENTS).try_collect::<()>().await?;
    if count == 0 {
        bail!("nothing to write");
    }
    Ok(start.elapsed())
}
