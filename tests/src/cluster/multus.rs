//! I/O: puts Multus, stand-in or real, on the nodes of a lab's cluster.
//!
//! What lives here: its account and kubeconfig, copying its files. What does not: which files those are (`crate::multus::shipping`), the contract
//! (`crate::multus`).
//!
//! Invariant: it gets the permissions that Multus documents and no more, so that nothing works here that would not work there.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::Cluster;
use crate::lab::artifacts::product;
use crate::lab::topology::HOST_ADDRESS;
use crate::multus::shipping::{Content, InCluster, LAB_MULTUS_DIR, Setup, shipment, variants};

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

/// Installs the first variant that there is: the stand-in, or what the folder in `LAB_MULTUS_DIR` holds.
pub(super) fn install(cluster: &Cluster<'_>) -> Result<()> {
    cluster.apply(ACCOUNT)?;
    let token = cluster.kubectl(&["-n", "kube-system", "create", "token", "multus", "--duration=24h"])?.trim().to_owned();
    let authority = cluster.kubectl(&["-n", "default", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"])?;
    let real = std::env::var_os(LAB_MULTUS_DIR).map(PathBuf::from);
    let variant = variants(real.as_deref())?.into_iter().next().context("no variant of Multus")?;
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
