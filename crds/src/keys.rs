//! Pure: names that objects carry besides their fields: annotations, labels, finalizers, well-known objects. Values are the Go operator's,
//! except where "ours" is said. No logic here.

/// API group of all our kinds.
pub const GROUP: &str = "sriovnetwork.openshift.io";
/// Version of all our kinds.
pub const VERSION: &str = "v1";

/// Name of the one `SriovOperatorConfig` that is honoured, in the operator's namespace.
pub const DEFAULT_CONFIG: &str = "default";
/// Name of policies that are ignored: the Go operator once created one itself.
pub const LEGACY_DEFAULT_POLICY: &str = "default";
/// ConfigMap in the operator's namespace: key -> `"<vendor> <PF device> <VF device>"`, hexadecimal.
pub const SUPPORTED_NIC_IDS: &str = "supported-nic-ids";
/// Name of the DaemonSet with the config daemon, on selected nodes.
pub const NODE_DAEMON_SET: &str = "sriov-network-config-daemon";
/// Name of the DaemonSet with the device plugin, on the same nodes.
pub const PLUGIN_DAEMON_SET: &str = "sriov-device-plugin";

/// On a node state: RFC 3339 time after which it is deleted when its node is not selected any more.
pub const KEEP_STATE_UNTIL: &str = "sriovnetwork.openshift.io/keep-state-until";
/// On a node state: what the daemon asks of the drain controller: `Idle`, `Drain_Required`, `Reboot_Required`.
pub const DESIRED_STATE: &str = "sriovnetwork.openshift.io/desired-state";
/// On a node state: what the drain controller did: `Idle`, `Draining`, `DrainComplete`.
pub const CURRENT_STATE: &str = "sriovnetwork.openshift.io/current-state";
/// On a node state: `true` when somebody else than our drain controller answers the daemon.
pub const USE_EXTERNAL_DRAINER: &str = "sriovnetwork.openshift.io/use-external-drainer";
/// On a Node: the value of [`DESIRED_STATE`], for programs that watch nodes. Ours: the operator copies it there, because the daemon has no right to
/// change nodes (in the Go operator the daemon writes both).
pub const NODE_DRAIN_STATE: &str = "sriovnetwork.openshift.io/state";
/// Value of [`DESIRED_STATE`] and [`CURRENT_STATE`]: nothing is asked, nothing was done.
pub const IDLE: &str = "Idle";
/// Value of [`DESIRED_STATE`]: pods that use VFs must leave the node.
pub const DRAIN_REQUIRED: &str = "Drain_Required";
/// Value of [`DESIRED_STATE`]: all pods must leave the node, it is going to be rebooted.
pub const REBOOT_REQUIRED: &str = "Reboot_Required";
/// Value of [`CURRENT_STATE`]: the node is cordoned, pods are being evicted.
pub const DRAINING: &str = "Draining";
/// Value of [`CURRENT_STATE`]: the pods are gone; the daemon may go on.
pub const DRAIN_COMPLETE: &str = "DrainComplete";
/// On a node, ours: `"true"` says that the operator made it unschedulable, so that a user's own cordon is never taken back.
pub const CORDONED: &str = "sriovnetwork.openshift.io/cordoned";
/// On a NAD: `Kind.group/namespace/name` of the network object that it was rendered from.
pub const NAD_OWNER_REF: &str = "sriovnetwork.openshift.io/owner-ref";
/// On a NAD: the extended resource whose devices it hands out (read by Multus).
pub const NAD_RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";
/// On a pod: the networks that it is attached to (read by Multus).
pub const POD_NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// On a pod: the network that takes the place of the cluster's (read by Multus).
pub const POD_DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// On a network object: the namespace of the NAD that was rendered last.
pub const LAST_NETWORK_NAMESPACE: &str = "operator.sriovnetwork.openshift.io/last-network-namespace";

/// Finalizer of a network object whose NAD no garbage collection reaches.
pub const NETWORK_FINALIZER: &str = "netattdef.finalizers.sriovnetwork.openshift.io";
/// Finalizer that the Go operator puts on its configuration. Here nothing needs it, so it is taken off wherever it is found.
pub const CONFIG_FINALIZER: &str = "operatorconfig.finalizers.sriovnetwork.openshift.io";
/// Finalizer that the Go operator puts on pools. Here nothing needs it, so it is taken off wherever it is found.
pub const POOL_FINALIZER: &str = "poolconfig.finalizers.sriovnetwork.openshift.io";
/// Label of what the operator makes among objects of others; its value is [`FIELD_MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Label (and value `"true"`) of the nodes that are managed when the operator configuration selects none.
pub const CAPABLE_LABEL: &str = "feature.node.kubernetes.io/network-sriov.capable";
/// Label with the node's operating system, set by the kubelet.
pub const OS_LABEL: &str = "kubernetes.io/os";

/// Field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "sriov-network-operator";
