//! I/O: tier 1: the certificates of the admission server, as a real API server meets them: moved on under load, made by somebody else, made by
//! cert-manager. Certificates live for seconds here.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use sriov_tests::apiserver::admission::Admission;
use sriov_tests::apiserver::cluster::{NAMESPACE, SOON};
use sriov_tests::apiserver::{Operator, User, apply, eventually, workspace};
use sriov_tests::lab::artifacts::Artifacts;
use sriov_tests::lab::process::last_lines;
use tokio::process::Command;
use tokio::sync::Mutex;

const SECRET: &str = "operator-webhook-cert";
const CONFIGURATION: &str = "sriov-operator-webhook-config";
/// Certificates are moved on every third of this.
const SHORT: [(&str, &str); 1] = [("WEBHOOK_CERTIFICATE_SECONDS", "9")];

/// They would listen at the same address.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn no_write_goes_unjudged_whoever_makes_the_certificates() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Admission::start().await?;
    let operator = cluster.operator(0, &SHORT).await?;
    cluster.configure(json!({ "enableOperatorWebhook": true, "enableInjector": true })).await?;
    operator.explain(cluster.judged().await)?;
    operator.explain(no_write_goes_unjudged_while_certificates_move_on(&cluster).await)?;
    operator.check_rights()?;
    operator.stop().await?;
    let again = certificates_of_someone_else_are_used_and_left_alone(&cluster).await?;
    again.check_rights()?;
    again.stop().await?;
    with_cert_manager_no_certificate_and_no_authority_is_ours(&cluster).await
}

async fn no_write_goes_unjudged_while_certificates_move_on(cluster: &Admission) -> Result<()> {
    let secrets: Api<Secret> = cluster.ours();
    let end = Instant::now() + Duration::from_secs(11);
    let watch = async {
        let mut seen = BTreeSet::new();
        while Instant::now() < end {
            let data = secrets.get(SECRET).await?.data.context("no data")?;
            seen.insert(data.get("tls.crt").context("no tls.crt")?.0.clone());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(seen.len())
    };
    let write = async || {
        let mut count = 0_u32;
        while Instant::now() < end {
            let (_, warnings) = cluster.try_policy(&json!({ "nodeSelector": { "none": "such" } })).await?.map_err(anyhow::Error::msg)?;
            ensure!(warnings.iter().any(|w| w.contains("no managed node matches")), "a write was not judged (warnings: {warnings:?})");
            count += 1;
        }
        anyhow::Ok(count)
    };
    let (certificates, a, b, c, d) = futures::try_join!(watch, write(), write(), write(), write())?;
    let count = a + b + c + d;
    ensure!(certificates >= 3 && count > 20, "{certificates} certificates, {count} writes");
    eprintln!("{count} writes were judged over {certificates} certificates");
    Ok(())
}

/// As cert-manager or a person makes it.
async fn certificates_of_someone_else_are_used_and_left_alone(cluster: &Admission) -> Result<Operator> {
    let secrets: Api<Secret> = cluster.ours();
    // Not the ones of the test before, which live for seconds.
    secrets.delete(SECRET, &DeleteParams::default()).await?;
    let maker = cluster.operator(0, &[]).await?;
    eventually(SOON, "there are certificates", async || Ok(secrets.get(SECRET).await.map(drop)?)).await?;
    maker.stop().await?;
    let mut theirs = secrets.get(SECRET).await?;
    theirs.metadata.annotations = None;
    theirs.metadata.managed_fields = None;
    let data = theirs.data.as_mut().context("no data")?;
    data.retain(|key, _| ["tls.crt", "tls.key", "ca.crt"].contains(&key.as_str()));
    let theirs = secrets.replace(SECRET, &PostParams::default(), &theirs).await?;
    let operator = cluster.operator(0, &SHORT).await?;
    operator.explain(cluster.judged().await)?;
    let now = secrets.get(SECRET).await?;
    ensure!(now.resource_version() == theirs.resource_version(), "someone else's Secret was written");
    Ok(operator)
}

/// The bundles of all webhooks.
async fn bundles(cluster: &Admission) -> Result<Vec<Option<Vec<u8>>>> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let mutating = mutating.get(CONFIGURATION).await?.webhooks.unwrap_or_default().into_iter().map(|w| w.client_config);
    let validating = validating.get(CONFIGURATION).await?.webhooks.unwrap_or_default().into_iter().map(|w| w.client_config);
    Ok(mutating.chain(validating).map(|client| client.ca_bundle.map(|bundle| bundle.0)).collect())
}

/// The test does what cert-manager does: it puts the certificate into the Secret, and its authority into configurations that ask for it.
async fn with_cert_manager_no_certificate_and_no_authority_is_ours(cluster: &Admission) -> Result<()> {
    let secrets: Api<Secret> = cluster.ours();
    let mut theirs = secrets.get(SECRET).await?;
    theirs.metadata = kube::api::ObjectMeta { name: Some(SECRET.to_owned()), ..kube::api::ObjectMeta::default() };
    // As the operator marks its own; cert-manager leaves annotations of a Secret that it takes over.
    theirs.annotations_mut().insert("sriovnetwork.openshift.io/certificate-rotate-at".to_owned(), "2020-01-01T00:00:00Z".to_owned());
    secrets.delete(SECRET, &DeleteParams::default()).await?;
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let operator = cluster.operator(0, &[SHORT[0], ("ADMISSION_CONTROLLERS_CERTIFICATES_CERT_MANAGER_ENABLED", "true")]).await?;
    let from = format!("{NAMESPACE}/{SECRET}");
    let asked = eventually(SOON, "the configurations ask cert-manager for the authority", async || {
        let found = mutating.get(CONFIGURATION).await?.annotations().get("cert-manager.io/inject-ca-from").cloned();
        ensure!(found.as_ref() == Some(&from), "{found:?}");
        let bundles = bundles(cluster).await?;
        ensure!(bundles.iter().all(Option::is_none), "an authority of the operator's is left");
        Ok(())
    });
    operator.explain(asked.await)?;
    ensure!(secrets.get_opt(SECRET).await?.is_none(), "the operator made certificates");

    let authority = theirs.data.as_ref().and_then(|data| data.get("ca.crt")).context("no ca.crt")?.clone();
    secrets.create(&PostParams::default(), &theirs).await?;
    let inject: Value = json!([{ "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": authority }]);
    let inject: Patch<()> = Patch::Json(serde_json::from_value(inject)?);
    mutating.patch(CONFIGURATION, &PatchParams::default(), &inject).await?;
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    validating.patch(CONFIGURATION, &PatchParams::default(), &inject).await?;
    operator.explain(cluster.judged().await)?;

    // An edit makes the operator write them again, and cert-manager's field stays.
    let edit = json!([{ "op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail" }]);
    let edit: Patch<()> = Patch::Json(serde_json::from_value(edit)?);
    mutating.patch(CONFIGURATION, &PatchParams::default(), &edit).await?;
    eventually(SOON, "the edit is undone", async || {
        let webhooks = mutating.get(CONFIGURATION).await?.webhooks.unwrap_or_default();
        ensure!(webhooks.iter().all(|w| w.failure_policy.as_deref() == Some("Ignore")), "edited");
        Ok(())
    })
    .await?;
    let bundles = bundles(cluster).await?;
    ensure!(bundles.iter().all(|bundle| bundle.as_ref() == Some(&authority.0)), "cert-manager's authority was taken away");
    let now = secrets.get(SECRET).await?;
    ensure!(now.data == theirs.data, "cert-manager's Secret was written");
    operator.check_rights()?;
    operator.stop().await
}

/// Longest time for what several of cert-manager's controllers do one after the other.
const ISSUED: Duration = Duration::from_mins(1);

/// cert-manager's own controllers, the objects of the chart, and a renewal as its users ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn cert_manager_makes_the_certificates_and_renews_them() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Admission::start().await?;
    let artifacts = Artifacts::load()?;
    apply(&cluster.admin, fs::read_to_string(artifacts.program("cert-manager-crds")?)?.trim()).await?;
    let path = cluster.server.kubeconfig(User::Admin).with_file_name("cert-manager.log");
    let log = fs::File::create(&path)?;
    let mut command = Command::new(artifacts.program("cert-manager")?);
    let _cert_manager = command.arg(cluster.server.kubeconfig(User::Admin)).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?;
    let operator = cluster.operator(0, &[("ADMISSION_CONTROLLERS_CERTIFICATES_CERT_MANAGER_ENABLED", "true")]).await?;
    cluster.configure(json!({ "enableOperatorWebhook": true, "enableInjector": true })).await?;
    let rendered = fs::read_to_string(workspace().join("deploy/testdata/options.yaml"))?;
    let theirs: Vec<&str> = rendered.split("\n---\n").filter(|document| document.contains("apiVersion: cert-manager.io/v1")).collect();
    ensure!(theirs.len() == 2, "an Issuer and a Certificate: {theirs:?}");
    let theirs = theirs.join("\n---\n");
    eventually(ISSUED, "its kinds are served", async || apply(&cluster.admin, &theirs).await.map(drop)).await?;

    let result = renewed(&cluster).await.with_context(|| format!("the end of cert-manager's log:\n{}", last_lines(&path, 20)));
    operator.explain(result)?;
    operator.check_rights()?;
    operator.stop().await
}

async fn renewed(cluster: &Admission) -> Result<()> {
    let secrets: Api<Secret> = cluster.ours();
    let certificate = async || {
        let data = secrets.get(SECRET).await?.data.context("no data")?;
        data.get("tls.crt").map(|text| text.0.clone()).context("no tls.crt")
    };
    // Its authority is itself. cert-manager may make two at first.
    let in_force = async |not: Option<&Vec<u8>>| {
        let mut found = vec![];
        eventually(ISSUED, "the authority of the certificate is in all configurations", async || {
            found = certificate().await?;
            ensure!(Some(&found) != not, "the certificate is the one before");
            let bundles = bundles(cluster).await?;
            // cert-manager leaves the one before in it, so that nobody is in between.
            let trusts = |bundle: &Vec<u8>| bundle.windows(found.len()).any(|part| part == found);
            let strange = bundles.iter().filter(|bundle| !bundle.as_ref().is_some_and(trusts)).count();
            ensure!(strange == 0, "{strange} of {} have others only, or none", bundles.len());
            Ok(())
        })
        .await?;
        cluster.judged().await?;
        Ok::<_, anyhow::Error>(found)
    };
    let first = in_force(None).await?;

    // As `cmctl renew` does it.
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let certificates: Api<DynamicObject> = Api::namespaced_with(cluster.admin.clone(), NAMESPACE, &kind);
    let mut asked = certificates.get(SECRET).await?;
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({ "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "a test", "lastTransitionTime": now });
    asked.data["status"]["conditions"].as_array_mut().context("no conditions")?.push(condition);
    certificates.replace_status(SECRET, &PostParams::default(), &asked).await?;
    in_force(Some(&first)).await?;
    let annotations = secrets.get(SECRET).await?.annotations().clone();
    ensure!(annotations.contains_key("cert-manager.io/certificate-name"), "not cert-manager's: {annotations:?}");
    Ok(())
}
