//! I/O: puts Multus, stand-in or real, on the nodes of a lab's cluster.
//!
//! What lives here: its account and kubeconfig, copying its files. What does not: which files those are (`crate::multus::shipping`), the contract
//! (`crate::multus`).
//!
//! Invariant: it gets the permissions that Multus documents and no more, so that nothing works here that would not work there.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Cluster;
use crate::lab::artifacts::product;
use crate::lab::topology::HOST_ADDRESS;
use crate::multus::shipping::{Content, InCluster, LAB_MULTUS_DIR, Setup, Variant, shipment, variants};

const ACCOUNT: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: multus, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: multus}
rules:
- {apiGroups: [k8s.cni.cncf.io], resources: ['*'], verbs: ['*']}
- {apiGroups: [''], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [pods/status], verbs: [get, update, patch]}
- {apiGroups: ['', events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: multus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: multus}
subjects: [{kind: ServiceAccount, name: multus, namespace: kube-system}]
";

const KUBECONFIG: &str = "/etc/cni/multus/multus.kubeconfig";

/// Says which kind of real Multus is meant, `thin` or `thick`, where the folder holds both.
const VARIANT_VARIABLE: &str = "LAB_MULTUS_VARIANT";

/// The variant that was asked for, or the first that there is.
fn choose(there: &[Variant], asked: Option<&str>) -> Result<Variant> {
    let wanted = match asked {
        None => return there.first().copied().context("no variant of Multus"),
        Some("thin") => Variant::Thin,
        Some("thick") => Variant::Thick,
        Some(other) => bail!("{VARIANT_VARIABLE}={other}: allowed are thin and thick"),
    };
    ensure!(there.contains(&wanted), "{VARIANT_VARIABLE} asks for {wanted:?} Multus; there is {there:?}: see {LAB_MULTUS_DIR}");
    Ok(wanted)
}

/// Installs the stand-in, or what the folder in `LAB_MULTUS_DIR` holds.
pub(super) fn install(cluster: &Cluster<'_>) -> Result<()> {
    cluster.apply(ACCOUNT)?;
    let token = cluster.kubectl(&["-n", "kube-system", "create", "token", "multus", "--duration=24h"])?.trim().to_owned();
    let authority = cluster.kubectl(&["-n", "default", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"])?;
    let real = std::env::var_os(LAB_MULTUS_DIR).map(PathBuf::from);
    let variant = choose(&variants(real.as_deref())?, std::env::var(VARIANT_VARIABLE).ok().as_deref())?;
    let stand_in = product("multus-standin")?;
    let setup = Setup {
        kubeconfig: KUBECONFIG.to_owned(),
        cluster_network: "/etc/cni/net.d/50-lab.conflist".to_owned(),
        in_cluster: Some(InCluster { host: HOST_ADDRESS.to_string(), port: 443, ca: authority, token: token.clone() }),
    };
    let shipment = shipment(variant, &stand_in, real.as_deref(), &setup)?;
    for guest in cluster.lab.guests() {
        let kubeconfig = kubeconfig(&token);
        guest.write(KUBECONFIG, kubeconfig.as_bytes(), 0o600)?;
        for file in &shipment.files {
            match &file.content {
                Content::Copy(from) => guest.copy_program(from, &file.path)?,
                Content::Text(text) => guest.write(&file.path, text.as_bytes(), file.mode)?,
            }
        }
        if let Some((argv, environment)) = &shipment.daemon {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let command = environment.iter().fold(guest.command(&argv), |command, (name, value)| command.env(name, value));
            command.spawn("/var/log/multus.log")?;
        }
    }
    Ok(())
}

fn kubeconfig(token: &str) -> String {
    // JSON is YAML. The authority's file is on each node anyway.
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("https://{HOST_ADDRESS}:443"), "certificate-authority": "/node/pki/ca.crt"}}],
        "users": [{"name": "multus", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "multus"}}],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_that_is_asked_for_is_never_replaced_by_another() {
        let both = [Variant::Thin, Variant::Thick];
        assert_eq!(choose(&both, None).unwrap(), Variant::Thin);
        assert_eq!(choose(&both, Some("thick")).unwrap(), Variant::Thick);
        assert!(choose(&[Variant::StandIn], Some("thin")).is_err());
        assert!(choose(&both, Some("fat")).unwrap_err().to_string().contains("thin and thick"));
    }
}
