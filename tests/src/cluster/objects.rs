//! Pure: the objects that tests and the demo give to the cluster, as YAML text in the form in which a user writes them.
//!
//! What lives here: texts. What does not: sending them (`cluster`).

use std::fmt::Write;

/// The namespace that the operator runs in.
pub const OPERATOR_NAMESPACE: &str = "sriov-network-operator";

/// The label that makes the operator care for a node.
pub const CAPABLE_LABEL: &str = "feature.node.kubernetes.io/network-sriov.capable";

/// Prefix of the extended resources that deploy/ asks for.
pub const RESOURCE_PREFIX: &str = "openshift.io";

/// A `SriovNetworkNodePolicy`, not yet written down.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    resource: String,
    numvfs: u32,
    nic_selector: String,
    node: Option<String>,
    device_type: Option<&'static str>,
    priority: Option<u8>,
    mtu: Option<u32>,
}

impl Policy {
    /// A policy for `numvfs` VFs on the PFs of all labelled nodes that `nic_selector` (a YAML flow mapping) selects.
    pub fn new(name: &str, resource: &str, numvfs: u32, nic_selector: &str) -> Self {
        Self {
            name: name.to_owned(),
            resource: resource.to_owned(),
            numvfs,
            nic_selector: nic_selector.to_owned(),
            node: None,
            device_type: None,
            priority: None,
            mtu: None,
        }
    }

    /// Only for the node of this name.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// `netdevice` or `vfio-pci`.
    #[must_use]
    pub fn device_type(mut self, device_type: &'static str) -> Self {
        self.device_type = Some(device_type);
        self
    }

    /// 0 is strongest.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The object.
    pub fn yaml(&self) -> String {
        let selector =
            self.node.as_ref().map_or_else(|| format!("{{{CAPABLE_LABEL}: \"true\"}}"), |node| format!("{{kubernetes.io/hostname: {node}}}"));
        let mut text = format!(
            "apiVersion: sriovnetwork.openshift.io/v1\nkind: SriovNetworkNodePolicy\nmetadata: {{name: {}, namespace: {OPERATOR_NAMESPACE}}}\nspec:\n  \
             resourceName: {}\n  nodeSelector: {selector}\n  nicSelector: {}\n  numVfs: {}\n",
            self.name, self.resource, self.nic_selector, self.numvfs
        );
        let lines = [
            self.device_type.map(|value| format!("deviceType: {value}")),
            self.priority.map(|value| format!("priority: {value}")),
            self.mtu.map(|value| format!("mtu: {value}")),
        ];
        for line in lines.into_iter().flatten() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {line}");
        }
        text
    }
}

/// A `SriovNetwork` whose NAD goes to the namespace `default`. `spec` holds further lines of the spec, each `key: value`.
pub fn network(name: &str, resource: &str, ipam: &str, spec: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: sriovnetwork.openshift.io/v1\nkind: SriovNetwork\nmetadata: {{name: {name}, namespace: {OPERATOR_NAMESPACE}}}\nspec:\n  \
         resourceName: {resource}\n  networkNamespace: default\n  ipam: |\n    {ipam}\n"
    );
    for line in spec {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// IPAM text for `host-local` on one /24 with the addresses `first` to `last`.
pub fn host_local(subnet: &str, first: &str, last: &str) -> String {
    format!(r#"{{"type": "host-local", "subnet": "{subnet}", "rangeStart": "{first}", "rangeEnd": "{last}"}}"#)
}

/// IPAM text for `static`; addresses come with the pod's annotation (capability `ips`).
pub fn static_addresses() -> String {
    r#"{"type": "static"}"#.to_owned()
}

/// A pod that sleeps, on one node, with the annotation `networks` and `count` VFs of `resource`.
pub fn pod(name: &str, node: &str, networks: &str, resource: &str, count: u32) -> String {
    let networks = networks.replace('\'', "''");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{k8s.v1.cni.cncf.io/networks: '{networks}'}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: localhost/busybox:lab\n    imagePullPolicy: Never\n    \
         command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']\n    resources:\n      requests: {{{RESOURCE_PREFIX}/{resource}: '{count}'}}\n      \
         limits: {{{RESOURCE_PREFIX}/{resource}: '{count}'}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_yaml_with_what_was_asked() {
        let policy = Policy::new("p", "pool", 4, "{pfNames: ['enp1s0#0-1']}").on("node1").device_type("vfio-pci").priority(10).mtu(9000);
        let value: serde_json::Value = serde_saphyr::from_str(&policy.yaml()).unwrap();
        assert_eq!(value["spec"]["nicSelector"]["pfNames"][0], "enp1s0#0-1");
        assert_eq!(value["spec"]["priority"], 10);
        assert_eq!(value["spec"]["nodeSelector"]["kubernetes.io/hostname"], "node1");
        let value: serde_json::Value =
            serde_saphyr::from_str(&network("n", "pool", &host_local("192.0.2.0/24", "192.0.2.1", "192.0.2.9"), &["vlan: 100", "spoofChk: \"on\""]))
                .unwrap();
        assert_eq!(value["spec"]["vlan"], 100);
        assert!(value["spec"]["ipam"].as_str().unwrap().contains("host-local"));
        let value: serde_json::Value = serde_saphyr::from_str(&pod("a", "node1", r#"[{"name":"n","ips":["192.0.2.7/24"]}]"#, "pool", 1)).unwrap();
        assert_eq!(value["spec"]["containers"][0]["resources"]["limits"]["openshift.io/pool"], "1");
    }
}
