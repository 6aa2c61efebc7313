//! I/O: etcd, API server, controller manager and scheduler of one lab, on the host, inside the lab's namespace.
//!
//! What lives here: their flags, the order of their start, stopping the API server for a while, a client. What does not: nodes.
//!
//! Invariant: authorization is as in production (Node and RBAC, NodeRestriction), so a missing permission fails here too.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::GetParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::artifacts::Artifacts;
use super::certificates::Certificates;
use super::process::{Daemon, Processes};
use super::topology::HOST_ADDRESS;

const ETCD: &str = "http://127.0.0.1:2379";

/// How long a daemon gets to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// A running control plane. Fields end in this order.
#[derive(Debug)]
pub struct ControlPlane {
    scheduler: Option<Daemon>,
    controller_manager: Option<Daemon>,
    api_server: Option<Daemon>,
    etcd: Daemon,
    certificates: Certificates,
    api_server_argv: Vec<String>,
    logs: PathBuf,
}

impl ControlPlane {
    /// Starts etcd and the API server; they need seconds, in which the guests can boot.
    pub fn start(processes: &Processes, artifacts: &Artifacts, certificates: Certificates, folder: &Path) -> Result<Self> {
        let data = folder.join("etcd").display().to_string();
        let mut etcd = vec![artifacts.program("etcd")?];
        etcd.extend(flags(&[
            ("data-dir", &data),
            ("listen-client-urls", ETCD),
            ("advertise-client-urls", ETCD),
            ("listen-peer-urls", "http://127.0.0.1:2380"),
            // The data lives as long as the lab.
            ("unsafe-no-fsync", "true"),
            ("log-level", "warn"),
        ]));
        let etcd = processes.daemon("etcd", &etcd, &folder.join("etcd.log"))?;
        let api_server_argv = api_server_argv(artifacts, &certificates)?;
        let api_server = processes.daemon("kube-apiserver", &api_server_argv, &folder.join("kube-apiserver.log"))?;
        let (api_server, logs) = (Some(api_server), folder.to_owned());
        Ok(Self { scheduler: None, controller_manager: None, api_server, etcd, certificates, api_server_argv, logs })
    }

    /// Waits for the API server and then starts the rest: the controller manager ends for good when it meets an API server that has not
    /// made its first roles yet.
    pub async fn complete(&mut self, processes: &Processes, artifacts: &Artifacts, deadline: Instant) -> Result<()> {
        self.wait_until_ready(deadline).await?;
        let (key, ca_key) = (self.certificates.path("sa.key"), self.certificates.path("ca.key"));
        let ca = self.certificates.path("ca.crt");
        let mut argv = self.component_argv(artifacts, "kube-controller-manager", "kcm")?;
        argv.extend(flags(&[
            ("service-account-private-key-file", &key),
            ("root-ca-file", &ca),
            ("use-service-account-credentials", "true"),
            ("cluster-signing-cert-file", &ca),
            ("cluster-signing-key-file", &ca_key),
            ("node-monitor-period", "5s"),
            // Longer than a restart of an emulated guest.
            ("node-monitor-grace-period", "60s"),
        ]));
        self.controller_manager = Some(processes.daemon("kube-controller-manager", &argv, &self.logs.join("kube-controller-manager.log"))?);
        let argv = self.component_argv(artifacts, "kube-scheduler", "scheduler")?;
        self.scheduler = Some(processes.daemon("kube-scheduler", &argv, &self.logs.join("kube-scheduler.log"))?);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        // Pods cannot be made before the controller manager has made the account that they run as.
        self.poll(deadline, "the default service account", async || Ok(accounts.get_opt("default").await?.is_some())).await
    }

    fn component_argv(&self, artifacts: &Artifacts, program: &str, user: &str) -> Result<Vec<String>> {
        let kubeconfig = self.certificates.path(&format!("{user}.kubeconfig"));
        let mut argv = vec![artifacts.program(program)?];
        argv.extend(flags(&[
            ("kubeconfig", &kubeconfig),
            ("authentication-kubeconfig", &kubeconfig),
            ("authorization-kubeconfig", &kubeconfig),
            ("leader-elect", "false"),
            ("bind-address", "127.0.0.1"),
            ("v", "1"),
        ]));
        Ok(argv)
    }

    /// A client with all permissions; call and use it on the lab's runtime only.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // From the caller's environment, and it cannot be reached from the lab.
        config.proxy_url = None;
        Ok(Client::try_from(config)?)
    }

    /// Path of a kubeconfig with all permissions, usable inside the namespace.
    pub fn kubeconfig(&self) -> String {
        self.certificates.path("admin.kubeconfig")
    }

    /// The certificates, for the nodes' share.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Ends the API server as a crash of its machine would be seen: nothing listens any more.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.api_server.take().context("the API server does not run")?.stop(GRACE).map(drop)
    }

    /// Starts the API server again and waits until it is ready.
    pub async fn start_api_server(&mut self, processes: &Processes, deadline: Instant) -> Result<()> {
        ensure!(self.api_server.is_none(), "the API server runs already");
        let log = self.logs.join("kube-apiserver.log");
        self.api_server = Some(processes.daemon("kube-apiserver", &self.api_server_argv, &log)?);
        self.wait_until_ready(deadline).await
    }

    async fn wait_until_ready(&mut self, deadline: Instant) -> Result<()> {
        let client = self.client().await?;
        self.poll(deadline, "the API server is ready", async || {
            let request = kube::core::Request::new("").get("readyz", &GetParams::default())?;
            Ok(client.request_text(request).await? == "ok")
        })
        .await
    }

    async fn poll(&mut self, deadline: Instant, what: &str, mut ask: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        loop {
            let daemons = [Some(&mut self.etcd), self.api_server.as_mut(), self.controller_manager.as_mut(), self.scheduler.as_mut()];
            daemons.into_iter().flatten().try_for_each(Daemon::check)?;
            let answer = ask().await;
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited for: {what}; at the deadline: {answer:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn api_server_argv(artifacts: &Artifacts, certificates: &Certificates) -> Result<Vec<String>> {
    let file = |name: &str| certificates.path(name);
    let address = HOST_ADDRESS.to_string();
    let mut argv = vec![artifacts.program("kube-apiserver")?];
    argv.extend(flags(&[
        ("etcd-servers", ETCD),
        ("bind-address", "0.0.0.0"),
        ("secure-port", "443"),
        ("advertise-address", &address),
        ("tls-cert-file", &file("apiserver.crt")),
        ("tls-private-key-file", &file("apiserver.key")),
        ("client-ca-file", &file("ca.crt")),
        ("kubelet-certificate-authority", &file("ca.crt")),
        ("kubelet-client-certificate", &file("kubelet-client.crt")),
        ("kubelet-client-key", &file("kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP"),
        ("service-account-issuer", "https://kubernetes.default.svc"),
        ("service-account-key-file", &file("sa.pub")),
        ("service-account-signing-key-file", &file("sa.key")),
        ("service-cluster-ip-range", "10.96.0.0/16"),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("requestheader-client-ca-file", &file("ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client"),
        ("requestheader-username-headers", "X-Remote-User"),
        ("requestheader-group-headers", "X-Remote-Group"),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ("proxy-client-cert-file", &file("front-proxy.crt")),
        ("proxy-client-key-file", &file("front-proxy.key")),
        // Webhooks are dialled at their pods' addresses: there is no kube-proxy.
        ("enable-aggregator-routing", "true"),
        ("allow-privileged", "true"),
        ("profiling", "false"),
        ("v", "1"),
    ]));
    Ok(argv)
}

fn flags(flags: &[(&str, &str)]) -> Vec<String> {
    flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
