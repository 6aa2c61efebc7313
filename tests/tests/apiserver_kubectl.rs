//! I/O: tier 1: `kubectl sriov` against a real API server, as a user with the rights that its page names, with fewer, and behind a proxy that takes a kind away.
//! What the views say is in the golden texts of its crate.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use sriov_tests::apiserver::cluster::Cluster;
use sriov_tests::apiserver::faults::FaultyProxy;
use sriov_tests::apiserver::{self, ApiServer, User, eventually};
use sriov_tests::lab::artifacts::product;
use sriov_tests::pages;
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_secs(20);

fn sriov(kubeconfig: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(product("kubectl-sriov")?);
    command.arg("--kubeconfig").arg(kubeconfig).args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Exit code, standard output, standard error.
async fn said(kubeconfig: &Path, arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = tokio::time::timeout(SOON, sriov(kubeconfig, arguments)?.output()).await.context("it does not end")??;
    Ok((output.status.code().context("it ended by a signal")?, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// The administrator's kubeconfig, for somebody else.
fn kubeconfig_of(user: &str, server: &ApiServer, folder: &Path) -> Result<PathBuf> {
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(server.kubeconfig(User::Admin))?)?;
    kubeconfig["users"][0]["user"]["as"] = user.into();
    let path = folder.join(user);
    fs::write(&path, kubeconfig.to_string())?;
    Ok(path)
}

async fn make_state(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.create_node(node).await?;
    let spec = json!({ "policyRevision": "abc" });
    apiserver::cluster::apply(&cluster.states, "SriovNetworkNodeState", node, spec).await?;
    cluster.report(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_rights_of_the_page_sees_everything_and_changes_nothing() -> Result<()> {
    let (server, folder) = (ApiServer::start().await?, tempfile::tempdir()?);
    let admin = server.kubeconfig(User::Admin);
    let (code, _, errors) = said(&admin, &["status"]).await?;
    ensure!(code == 2 && errors.contains("the cluster does not know SriovNetworkNodeState objects"), "without the kinds: {code} {errors}");

    let cluster = Cluster::install(&server).await?;
    make_state(&cluster, "n1").await?;
    let reader = kubeconfig_of("reader", &server, folder.path())?;
    let (code, shown, errors) = said(&reader, &["status"]).await?;
    ensure!(code == 2 && shown.is_empty() && errors.lines().count() == 1, "without rights: {code} {shown} {errors}");
    ensure!(errors.contains("\"reader\" cannot list") && errors.contains("docs/kubectl-sriov.md"), "without rights: {errors}");

    grant(&cluster, "reader").await?;
    eventually(SOON, "the rights are known", async || {
        let (code, _, errors) = said(&reader, &["status"]).await?;
        ensure!(code == 0, "{errors}");
        Ok(())
    })
    .await?;
    let before = written(&cluster).await?;
    let policy = folder.path().join("policy.yaml");
    let spec = json!({ "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 4 });
    let object =
        json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "nics" }, "spec": spec });
    fs::write(&policy, object.to_string())?;
    let policy = policy.display().to_string();
    for (arguments, code, part) in [
        (&["status"][..], 0, "eth0"),
        (&["node", "n1"], 0, "0 of 7 VFs"),
        (&["plan", "-f", &policy], 0, "VFs 0 -> 4"),
        (&["pods"], 0, "no pod holds a VF"),
        (&["history"], 0, "nothing is recorded"),
        (&["doctor", "node/n1"], 1, "sriov-network-config-daemon"),
    ] {
        let (ended, shown, errors) = said(&reader, arguments).await?;
        ensure!(ended == code && shown.contains(part) && errors.is_empty(), "{arguments:?} ended with {ended}:\n{shown}{errors}");
    }
    ensure!(written(&cluster).await? == before, "somebody wrote");

    // The operator of a cluster may be elsewhere.
    let (code, shown, _) = said(&reader, &["status", "--operator-namespace", "other"]).await?;
    ensure!(code == 0 && shown.contains("--operator-namespace"), "in another namespace: {code} {shown}");
    Ok(())
}

/// Gives a user the ClusterRole of the page.
async fn grant(cluster: &Cluster, user: &str) -> Result<()> {
    let role = pages::object("kubectl-sriov.md", "ClusterRole")?;
    let binding = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: \"{user}\"}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sriov-reader}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: \"{user}\"}}]\n"
    );
    let warnings = apiserver::apply(&cluster.admin, &format!("{role}\n---\n{binding}")).await?;
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

/// Names and versions of what `kubectl sriov` reads of the operator.
async fn written(cluster: &Cluster) -> Result<Vec<(String, Option<String>)>> {
    let all = ListParams::default();
    let mut versions: Vec<_> = cluster.states.list(&all).await?.iter().map(|state| (state.name_any(), state.resource_version())).collect();
    versions.extend(cluster.policies.list(&all).await?.iter().map(|policy| (policy.name_any(), policy.resource_version())));
    versions.extend(cluster.configs.list(&all).await?.iter().map(|config| (config.name_any(), config.resource_version())));
    Ok(versions)
}

/// `kubectl sriov watch`, with its two outputs in files.
struct Watch {
    process: Child,
    shown: PathBuf,
    errors: PathBuf,
}

impl Watch {
    fn start(kubeconfig: &Path, folder: &Path) -> Result<Self> {
        let (shown, errors) = (folder.join("shown"), folder.join("errors"));
        let process = sriov(kubeconfig, &["watch"])?.stdout(File::create(&shown)?).stderr(File::create(&errors)?).spawn()?;
        Ok(Self { process, shown, errors })
    }

    async fn expect(&mut self, what: &str, part: &str, errors: bool) -> Result<()> {
        let file = if errors { &self.errors } else { &self.shown };
        let process = &mut self.process;
        eventually(SOON, what, async || {
            ensure!(process.try_wait()?.is_none(), "watch has ended");
            let text = fs::read_to_string(file)?;
            ensure!(text.contains(part), "{text}");
            Ok(())
        })
        .await
        .map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_changes_outlives_an_api_server_in_trouble_and_ends_with_its_reader() -> Result<()> {
    let (server, folder) = (ApiServer::start().await?, tempfile::tempdir()?);
    let cluster = Cluster::install(&server).await?;
    make_state(&cluster, "n1").await?;
    grant(&cluster, "system:serviceaccount:sriov-network-operator:sriov-network-operator").await?;
    let proxy = FaultyProxy::start(&server, User::Operator).await?;
    let kubeconfig = PathBuf::from(proxy.kubeconfig());
    eventually(SOON, "the rights are known", async || {
        let (code, _, errors) = said(&kubeconfig, &["status"]).await?;
        ensure!(code == 0, "{errors}");
        Ok(())
    })
    .await?;
    let mut watch = Watch::start(&kubeconfig, folder.path())?;
    watch.expect("the cluster is shown", "eth0", false).await?;
    let pf = |name: &str| json!({ "interfaces": [{ "pciAddress": "0000:01:00.0", "name": name, "totalvfs": 7 }] });
    cluster.status("n1", pf("changed0")).await?;
    watch.expect("a change is shown", "changed0", false).await?;
    proxy.away("sriovnetworknodestates");
    cluster.status("n1", pf("troubled0")).await?;
    watch.expect("trouble is told", "trying again", true).await?;
    proxy.back();
    watch.expect("what changed meanwhile is shown", "troubled0", false).await?;

    // Who reads the first line only is not written to for ever.
    let program = product("kubectl-sriov")?;
    let pipe = format!("'{}' --kubeconfig '{}' watch | head -n 1", program.display(), kubeconfig.display());
    let mut process = Command::new("sh").args(["-c", &pipe]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut number = 0;
    eventually(SOON, "it ends when nobody reads", async || {
        number += 1;
        cluster.status("n1", pf(&format!("eth{number}"))).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(process.try_wait()?.is_some(), "it still runs");
        Ok(())
    })
    .await
    .map(drop)
}
