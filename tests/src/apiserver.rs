//! I/O: a real etcd and kube-apiserver on loopback, for tests of what speaks to the Kubernetes API and to nothing else.
//!
//! What lives here: starting and ending both, users with tokens, applying manifests, running the operator against it. What does not: the tests.
//! No controller manager runs, so nothing is scheduled or garbage-collected; RBAC is in force.
//!
//! Invariants: only loopback is addressed; both servers end with the [`ApiServer`] value and with the thread that started them, whatever ends
//! first; a missing binary is an error that says where it was looked for.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, oneshot};
use kube::{Client, Config};
use rustix::process::Signal;
use serde_json::json;
use sriov_crds::SriovOperatorConfig;
use tempfile::TempDir;

use crate::lab::artifacts::{Artifacts, product};

pub mod admission;
pub mod cluster;
pub mod faults;
pub mod process;
pub mod requests;

use process::Server;
pub use process::{Operator, RunningDaemon};

/// Folder with `etcd` and `kube-apiserver`, as the tools of the Go field name it.
const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// Longest time from start to ready. It is about 4 s on a calm machine.
const READY_DEADLINE: Duration = Duration::from_mins(1);
/// Two processes may be given the same free port; then another try helps.
const ATTEMPTS: usize = 3;

/// Who speaks to the API server. Rights are those that `deploy/` gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Cluster administrator.
    Admin,
    /// The operator's ServiceAccount.
    Operator,
    /// The config daemon's ServiceAccount.
    Daemon,
}

impl User {
    const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::Daemon];

    fn identity(self) -> (&'static str, &'static str) {
        let groups = "system:serviceaccounts,system:serviceaccounts:sriov-network-operator,system:authenticated";
        match self {
            Self::Admin => ("admin", "system:masters"),
            Self::Operator => ("system:serviceaccount:sriov-network-operator:sriov-network-operator", groups),
            Self::Daemon => ("system:serviceaccount:sriov-network-operator:sriov-network-config-daemon", groups),
        }
    }
}

/// A running API server. Fields end in this order.
#[derive(Debug)]
pub struct ApiServer {
    server: Server,
    etcd: Server,
    folder: TempDir,
}

impl ApiServer {
    /// Starts both and waits until the API server is ready. Keep the value on the thread that called this.
    pub async fn start() -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt().await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    async fn attempt() -> Result<Self> {
        let folder = TempDir::with_prefix("sriov-apiserver-")?;
        let file = |name: &str| folder.path().join(name);
        let text = |path: &Path| path.display().to_string();
        let [etcd_port, peer_port, port] = free_ports()?;
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let arguments = [
            format!("--data-dir={}", text(&file("etcd"))),
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=default={peer_url}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=error".to_owned(),
        ];
        let etcd = Server::start(&asset("etcd")?, &arguments, &[], file("etcd.log"))?;

        let (key, public) = (text(&file("service-account.key")), text(&file("service-account.pub")));
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key])?;
        openssl(&["pkey", "-in", &key, "-pubout", "-out", &public])?;
        let tokens = write_users(folder.path(), port)?;
        let arguments = [
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", text(folder.path())),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={public}"),
            format!("--service-account-signing-key-file={key}"),
            format!("--token-auth-file={}", text(&tokens)),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
            // Without a controller manager no namespace has a default ServiceAccount.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let server = Server::start(&asset("kube-apiserver")?, &arguments, &[], file("apiserver.log"))?;
        let mut started = Self { server, etcd, folder };
        started.wait_ready().await?;
        Ok(started)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            self.server.check()?;
            self.etcd.check()?;
            let why = match self.is_ready().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            ensure!(Instant::now() < deadline, "kube-apiserver is not ready after {} s: {why:#}", READY_DEADLINE.as_secs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn is_ready(&self) -> Result<()> {
        // The certificate is made by the server itself when it starts.
        let client = self.client(User::Admin).await?;
        let request = kube::core::Request::new("/readyz").list(&kube::api::ListParams::default())?;
        client.request_text(request).await?;
        Ok(())
    }

    /// The kubeconfig of a user, as a file.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.folder.path().join(format!("{user:?}.kubeconfig"))
    }

    /// A client that is this user.
    pub async fn client(&self, user: User) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user))?;
        Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
    }

    /// Installs our CustomResourceDefinitions and waits until they serve; answers the API server's warnings.
    pub async fn install_crds(&self) -> Result<Vec<String>> {
        let client = self.client(User::Admin).await?;
        let mut warnings = vec![];
        let folder = workspace().join("crds/yaml");
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            warnings.extend(apply(&client, &fs::read_to_string(entry?.path())?).await?);
        }
        let served = sriov_crds::manifests().into_iter().map(|crd| {
            let kind = GroupVersionKind::gvk(&crd.spec.group, "v1", &crd.spec.names.kind);
            let client = &client;
            async move { eventually(Duration::from_secs(30), "all kinds are served", async || is_served(client, &kind).await).await }
        });
        try_join_all(served).await?;
        Ok(warnings)
    }

    /// Applies `deploy/operator.yaml`, which nothing runs here; answers the API server's warnings. The rule that a daemon writes its own node's
    /// state only is left out, because [`User::Daemon`] speaks for the daemons of all nodes: see [`Self::install_node_rule`]. Webhook and injector are
    /// switched off: no Service leads anywhere here, and the API server would wait for it at each write.
    pub async fn install_deploy(&self) -> Result<Vec<String>> {
        let warnings = self.install_where(|document| !is_node_rule(document)).await?;
        let configs: Api<SriovOperatorConfig> = Api::namespaced(self.client(User::Admin).await?, "sriov-network-operator");
        let off = json!({ "spec": { "enableInjector": null, "enableOperatorWebhook": null } });
        configs.patch("default", &PatchParams::default(), &Patch::Merge(off)).await?;
        Ok(warnings)
    }

    /// Applies the rule of `deploy/operator.yaml` that a daemon writes its own node's state only.
    pub async fn install_node_rule(&self) -> Result<Vec<String>> {
        self.install_where(is_node_rule).await
    }

    async fn install_where(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let text = fs::read_to_string(workspace().join("deploy/operator.yaml"))?;
        let documents: Vec<&str> = text.split("\n---\n").filter(|document| wanted(document)).collect();
        ensure!(!documents.is_empty(), "deploy/operator.yaml has no such object");
        apply(&self.client(User::Admin).await?, &documents.join("\n---\n")).await
    }

    /// A kubeconfig with a token as the kubelet gets it for the daemon's pod on this node, which is made if need be.
    pub async fn daemon_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        const NAMESPACE: &str = "sriov-network-operator";
        const ACCOUNT: &str = "sriov-network-config-daemon";
        let admin = self.client(User::Admin).await?;
        let pods: Api<Pod> = Api::namespaced(admin.clone(), NAMESPACE);
        let name = format!("daemon-{node}");
        let container = json!({ "name": "config-daemon", "image": "localhost/sriov-node:test" });
        let spec = json!({ "nodeName": node, "serviceAccountName": ACCOUNT, "automountServiceAccountToken": false, "containers": [container] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        let pod = pods.patch(&name, &PatchParams::apply("tests"), &Patch::Apply(pod)).await?;
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod.metadata.uid });
        let request = serde_json::from_value(json!({ "spec": { "audiences": [], "boundObjectRef": bound, "expirationSeconds": 3600 } }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(admin, NAMESPACE);
        let token = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?.status.context("no token")?.token;
        let mut kubeconfig: serde_json::Value = serde_json::from_str(&fs::read_to_string(self.kubeconfig(User::Admin))?)?;
        kubeconfig["users"][0]["user"] = json!({ "token": token });
        let path = self.folder.path().join(format!("daemon-{node}.kubeconfig"));
        fs::write(&path, kubeconfig.to_string())?;
        Ok(path)
    }

    /// Starts the config daemon of a node, whose machine is the folder `root`, with the token of its pod.
    pub async fn daemon(&self, node: &str, root: &Path, http_port: u16) -> Result<RunningDaemon> {
        self.daemon_with(node, &self.daemon_kubeconfig(node).await?, root, http_port)
    }

    /// The same with a kubeconfig that was made before, which needs no API server that answers.
    pub fn daemon_with(&self, node: &str, kubeconfig: &Path, root: &Path, http_port: u16) -> Result<RunningDaemon> {
        self.daemon_in(node, kubeconfig, root, http_port, &[])
    }

    /// The same with more variables in its environment.
    pub fn daemon_in(&self, node: &str, kubeconfig: &Path, root: &Path, http_port: u16, more: &[(&str, &str)]) -> Result<RunningDaemon> {
        self.daemon_told(node, kubeconfig, (root, http_port), more, &[])
    }

    /// The same with more arguments too.
    pub fn daemon_told(
        &self,
        node: &str,
        kubeconfig: &Path,
        (root, http_port): (&Path, u16),
        more: &[(&str, &str)],
        arguments: &[&str],
    ) -> Result<RunningDaemon> {
        let kubeconfig = kubeconfig.display().to_string();
        let mut variables = vec![("KUBECONFIG", kubeconfig.as_str()), ("RUST_LOG", "info,kube=warn")];
        variables.extend(more);
        let text = |path: &Path| path.display().to_string();
        let mut all = vec![
            "run".to_owned(),
            format!("--node-name={node}"),
            "--namespace=sriov-network-operator".to_owned(),
            format!("--root={}", text(root)),
            format!("--pools-file={}", text(&root.join("pools.json"))),
            format!("--http-bind-address=127.0.0.1:{http_port}"),
        ];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let log = self.folder.path().join(format!("{node}.log"));
        Ok(RunningDaemon { server: Server::start(&product("sriov-config-daemon")?, &all, &variables, log)? })
    }

    /// Seconds of a processor that the API server used so far: what requests cost it, also on a machine with other work.
    pub fn processor_seconds(&self) -> Result<f64> {
        self.server.processor_seconds()
    }

    /// Stops answering, as an API server that is away: its process is stopped, its port stays.
    pub fn freeze(&self) -> Result<()> {
        self.server.signal(Signal::STOP)
    }

    /// Goes on after [`Self::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.server.signal(Signal::CONT)
    }

    /// Starts the operator with the rights of its ServiceAccount and nothing else.
    pub fn operator(&self, name: &str, environment: &[(&str, &str)]) -> Result<Operator> {
        self.operator_at(&operator_binary()?, name, environment)
    }

    /// As [`ApiServer::operator`], of another program.
    pub fn operator_at(&self, program: &Path, name: &str, environment: &[(&str, &str)]) -> Result<Operator> {
        let kubeconfig = self.kubeconfig(User::Operator).display().to_string();
        let mut variables = vec![
            ("KUBECONFIG", kubeconfig.as_str()),
            ("POD_NAME", name),
            ("SRIOV_NETWORK_CONFIG_DAEMON_IMAGE", "localhost/sriov-node:test"),
            ("RUST_LOG", "info,kube=warn"),
            // Several run on one machine.
            ("WEBHOOK_ADDRESS", "127.0.0.1:0"),
        ];
        variables.extend_from_slice(environment);
        let arguments = ["run".to_owned(), "--namespace".to_owned(), "sriov-network-operator".to_owned()];
        let log = self.folder.path().join(format!("{name}.log"));
        Ok(Operator { server: Server::start(program, &arguments, &variables, log)? })
    }
}

/// Whether objects of a kind can be followed. The API server makes the storage of a new kind when it is first asked for, and ends watches that began before
/// as too old: a program under test would be away for a second, which only a test of that should see.
async fn is_served(client: &Client, kind: &GroupVersionKind) -> Result<()> {
    let (resource, _) = oneshot::pinned_kind(client, kind).await?;
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let version = api.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a list without version")?;
    let mut events = std::pin::pin!(api.watch_metadata(&WatchParams::default().timeout(1), &version).await?);
    while let Some(event) = events.try_next().await? {
        if let WatchEvent::Error(status) = event {
            bail!("{}: {}", kind.kind, status.message);
        }
    }
    Ok(())
}

fn is_node_rule(document: &str) -> bool {
    document.contains("kind: ValidatingAdmissionPolicy") && document.contains("name: sriov-network-config-daemon.")
}

/// Tries until it succeeds; fails with the last error and `what` after `limit`. Answers the time that it took.
pub async fn eventually(limit: Duration, what: &str, mut attempt: impl AsyncFnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let error = match attempt().await {
            Ok(()) => return Ok(start.elapsed()),
            Err(error) => error,
        };
        if start.elapsed() > limit {
            return Err(error.context(format!("not within {} ms: {what}", limit.as_millis())));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Server-side apply of all objects of a YAML text, unknown fields refused; answers the API server's warnings.
pub async fn apply(client: &Client, yaml: &str) -> Result<Vec<String>> {
    let mut warnings = vec![];
    for document in yaml.split("\n---\n") {
        let object: DynamicObject = serde_saphyr::from_str(document)?;
        let types = object.types.as_ref().context("an object without kind")?;
        let name = object.metadata.name.clone().context("an object without name")?;
        let (resource, capabilities) =
            oneshot::pinned_kind(client, &types.try_into()?).await.with_context(|| format!("find the kind of {} {name}", types.kind))?;
        let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
            (Scope::Namespaced, namespace) => Api::namespaced_with(client.clone(), namespace.as_deref().unwrap_or("default"), &resource),
            (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
        };
        let params = PatchParams::apply("tests").force().validation_strict();
        let request = kube::core::Request::new(api.resource_url()).patch(&name, &params, &Patch::Apply(&object))?;
        let response = client.send(request.map(kube::client::Body::from)).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        ensure!(status.is_success(), "{} {name}: {status}", types.kind);
        let said = headers.get_all("warning").iter().filter_map(|value| value.to_str().ok());
        warnings.extend(said.map(|text| format!("{} {name}: {text}", types.kind)));
    }
    Ok(warnings)
}

/// The folder of the whole source tree.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asks cargo once; each asking waits for whatever else is built.
fn operator_binary() -> Result<PathBuf> {
    static BINARY: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut known = BINARY.lock().unwrap_or_else(PoisonError::into_inner);
    if known.is_none() {
        *known = Some(product("sriov-operator")?);
    }
    known.clone().context("no path")
}

fn asset(name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(ASSETS_VARIABLE) {
        Some(folder) => PathBuf::from(folder).join(name),
        None => PathBuf::from(Artifacts::load()?.program(name)?),
    };
    ensure!(
        path.is_file(),
        "there is no {}: set {ASSETS_VARIABLE} to a folder with etcd and kube-apiserver, or run cargo xtask lab-build",
        path.display()
    );
    Ok(path)
}

fn openssl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(arguments).output().context("run openssl")?;
    ensure!(output.status.success(), "openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// All are held until each is known, so that they differ.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = [bind()?, bind()?, bind()?];
    let [a, b, c] = listeners.each_ref().map(|listener| listener.local_addr().map(|address| address.port()));
    Ok([a?, b?, c?])
}

/// Writes the token file and one kubeconfig a user; answers the former.
fn write_users(folder: &Path, port: u16) -> Result<PathBuf> {
    let mut lines = vec![];
    for user in User::ALL {
        let token = random_hex()?;
        let (name, groups) = user.identity();
        lines.push(format!("{token},{name},{name},\"{groups}\""));
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": folder.join("apiserver.crt"),
            } }],
        });
        fs::write(folder.join(format!("{user:?}.kubeconfig")), kubeconfig.to_string())?;
    }
    let tokens = folder.join("tokens.csv");
    fs::write(&tokens, lines.join("\n"))?;
    Ok(tokens)
}

/// 128 bits, so that no other user of the machine can guess them.
fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
