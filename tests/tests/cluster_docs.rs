//! I/O, tier 3: the documentation as a new user follows it: each page's commands, from the page itself, on a cluster that has Multus and nothing of ours.
//!
//! The tests run in the order of docs/README.md on one lab with one node; real Helm installs, upgrades and uninstalls the chart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node as KubernetesNode, Pod};
use serde_json::Value;
use sriov_tests::cluster::objects::{CAPABLE_LABEL, OPERATOR_NAMESPACE};
use sriov_tests::cluster::{Cluster, PATIENCE, VfSnapshot, same};
use sriov_tests::lab::Lab;
use sriov_tests::lab::artifacts::workspace;
use sriov_tests::lab::topology::{Node, Topology, WIRE_BRIDGE};
use sriov_tests::pages::Page;

sriov_tests::lab_tests! {
    Topology::cluster([Node { kernel_arguments: vec!["hugepages=16".to_owned()], ..Node::new(1) }]);
    the_chart_installs_as_the_page_says,
    every_preset_is_accepted_by_the_api_server,
    the_operator_exports_what_the_page_lists,
    the_first_policy_gives_the_first_pod_a_vf,
    a_pod_has_a_macvlan_and_an_sriov_network_at_once,
    addresses_come_from_the_plugin_that_the_network_names,
    a_pod_gets_vfs_and_huge_pages_for_a_userspace_driver,
    a_pod_gets_vfs_of_two_pfs,
    a_nic_is_added_to_the_list,
    kubectl_sriov_tells_what_is_there,
    what_does_not_work_is_named_with_its_cure,
    an_upgrade_brings_the_kinds_up_to_date_and_leaves_a_running_pod_its_vf,
    another_operator_is_replaced_under_a_running_pod,
    the_page_of_each_distribution_installs_its_preset_where_that_one_looks,
    the_detector_labels_the_node_and_may_do_nothing_else,
    an_uninstall_leaves_only_what_the_user_made,
}

const NODE: &str = "node1";
const CRD: &str = "sriovnetworknodepolicies.sriovnetwork.openshift.io";
/// In the policy's schema; taken out to stand for an older version of the kind.
const FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/excludeTopology";

/// What differs between clusters, as the pages call it.
const NAMES: [(&str, &str); 6] = [
    ("SOURCE", concat!(env!("CARGO_MANIFEST_DIR"), "/..")),
    ("NODE", NODE),
    ("PF", "enp1s0"),
    ("SECOND_PF", "enp2s0"),
    ("DEVICE", "cni0"),
    ("IMAGE", "localhost/busybox:lab"),
];

/// Everything that a running pod must keep: itself and its VF.
#[derive(Debug, PartialEq)]
struct Kept {
    uid: Option<String>,
    restarts: Vec<i32>,
    device: String,
    vf: VfSnapshot,
}

fn kept(cluster: &Cluster<'_>, name: &str) -> Result<Kept> {
    let pod = cluster.get::<Pod>("default", "pod", name)?.with_context(|| format!("there is no pod {name}"))?;
    let restarts = pod.status.and_then(|status| status.container_statuses).unwrap_or_default().iter().map(|c| c.restart_count).collect();
    let device = cluster.devices_of(name, "fast")?.pop().context("the pod has no VF")?;
    let vf = cluster.vf(1, "enp1s0", cluster.index_of(1, "enp1s0", &device)?)?;
    cluster.exec(name, &["ip", "addr", "show", "dev", "net1"])?;
    Ok(Kept { uid: pod.metadata.uid, restarts, device, vf })
}

/// uids of the pods of the DaemonSets of nodes: the config daemon's and the device plugin's.
fn daemons(cluster: &Cluster<'_>) -> Result<Vec<Option<String>>> {
    Ok(cluster.node_pods(NODE)?.into_iter().map(|pod| pod.metadata.uid).collect())
}

fn wait_new_daemon(cluster: &Cluster<'_>, before: &[Option<String>]) -> Result<()> {
    cluster.wait("the daemon's pod is a new one", PATIENCE, || {
        let now = daemons(cluster)?;
        Ok((now.len() == 2 && now != before).then_some(()))
    })?;
    cluster.wait_allocatable(NODE, "fast", 4, PATIENCE)?;
    cluster.wait_ready(NODE, "True").map(drop)
}

fn the_chart_installs_as_the_page_says(lab: &mut Lab) -> Result<()> {
    Cluster::of(lab).install_multus()?;
    let said = Page::read("install.md")?.run(lab, &NAMES)?;
    let node = said.last().context("no output")?;
    ensure!(node.contains("enp1s0 0000:01:00.0, igb"), "kubectl sriov node does not show the PF:\n{node}");
    let cluster = Cluster::of(lab);
    let nads = cluster.kubectl(&["get", "crd", "network-attachment-definitions.k8s.cni.cncf.io", "-o", "name"])?;
    ensure!(nads.contains("network-attachment"), "the chart did not bring the NAD kind where nobody else did");
    // Hooks and their rights are gone again.
    let roles = cluster.kubectl(&["get", "clusterroles", "-o", "name"])?;
    ensure!(!roles.contains("sriov-network-operator-crds"), "the rights of the hook stay:\n{roles}");
    Ok(())
}

fn every_preset_is_accepted_by_the_api_server(lab: &mut Lab) -> Result<()> {
    for preset in ["k3s", "rke2", "kubespray", "kubeadm"] {
        let script = format!(
            "helm template sriov-network-operator \"$SOURCE/deploy/chart\" --namespace {OPERATOR_NAMESPACE} --values \"$SOURCE/deploy/values-{preset}.yaml\" \
             --set sriovOperatorConfig.deploy=true,nodeDetector.enabled=true,grafanaDashboard.enabled=true --no-hooks --kube-version 1.36.0 2>/dev/null \
             | kubectl apply --server-side --dry-run=server --force-conflicts --validate=strict -f -"
        );
        let said = lab.script(&script, &NAMES).with_context(|| format!("preset {preset}"))?;
        for object in ["deployment.apps/sriov-network-operator", "daemonset.apps/sriov-node-detector", "configmap/sriov-dashboard"] {
            ensure!(said.contains(object), "preset {preset} has no {object}:\n{said}");
        }
    }
    Ok(())
}

fn the_operator_exports_what_the_page_lists(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let pods: Vec<Pod> = cluster.list(OPERATOR_NAMESPACE, "pods", "app=sriov-network-operator")?;
    let names: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
    // Only the one that leads counts what controllers do, and only once they did something.
    let text = cluster.wait("one of the operators exports what its controllers did", PATIENCE, || {
        let pages = names
            .iter()
            .map(|name| cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics")]));
        let text = pages.collect::<Result<Vec<String>>>()?.concat();
        ensure!(text.contains("sriov_operator_leader 1") && text.contains("# TYPE sriov_operator_reconcile counter"), "{text}");
        Ok(Some(text))
    })?;
    let page = std::fs::read_to_string(workspace().join("docs/metrics.md"))?;
    // A counter's samples have a suffix that its family has not.
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let exported: Vec<String> =
        families.map(|(name, kind)| if kind == "counter" { format!("`{name}_total`") } else { format!("`{name}`") }).collect();
    let unlisted: Vec<&String> = exported.iter().filter(|name| !page.contains(name.as_str())).collect();
    ensure!(unlisted.is_empty(), "of {exported:?} docs/metrics.md does not list {unlisted:?}");
    Ok(())
}

fn the_first_policy_gives_the_first_pod_a_vf(lab: &mut Lab) -> Result<()> {
    let said = Page::read("first-policy.md")?.run(lab, &NAMES)?;
    ensure!(said[0].contains("VFs 0 -> 4"), "the plan does not tell the change:\n{}", said[0]);
    ensure!(said[1].contains("4/7"), "the status does not show four of seven VFs:\n{}", said[1]);
    let pods = said.last().context("no output")?;
    ensure!(pods.contains("192.0.2.10") && pods.contains("default/first") && pods.contains(" 100 "), "kubectl sriov pods:\n{pods}");
    Ok(())
}

fn a_pod_has_a_macvlan_and_an_sriov_network_at_once(lab: &mut Lab) -> Result<()> {
    Page::read("several-networks.md")?.run(lab, &NAMES).map(drop)
}

/// The DHCP daemon is the plugin's own, on the node; the server is busybox's, on the wire between the PFs.
fn addresses_come_from_the_plugin_that_the_network_names(lab: &mut Lab) -> Result<()> {
    let folder = lab.run_dir().path().to_owned();
    let (conf, leases) = (folder.join("udhcpd.conf"), folder.join("udhcpd.leases"));
    std::fs::write(&leases, "")?;
    let text = format!(
        "start 198.18.0.100\nend 198.18.0.120\ninterface {WIRE_BRIDGE}\nlease_file {}\npidfile {}\nopt subnet 255.255.255.0\nopt lease 600\n",
        leases.display(),
        folder.join("udhcpd.pid").display()
    );
    std::fs::write(&conf, text)?;
    let argv = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    lab.processes().output(&argv(&["ip", "address", "add", "198.18.0.1/24", "dev", WIRE_BRIDGE]))?;
    let server = lab.processes().daemon("udhcpd", &argv(&["busybox", "udhcpd", "-f", &conf.display().to_string()]), &folder.join("udhcpd.log"))?;
    let process = lab.guest(1)?.command(&["/opt/cni/bin/dhcp", "daemon"]).spawn("/var/log/dhcp.log")?;
    let said = Page::read("ipam.md")?.run(lab, &NAMES)?;
    ensure!(said[1].contains("198.18.0.1"), "the pod has no address of the server:\n{}", said[1]);
    lab.guest(1)?.run(&["kill", &process.to_string()])?;
    drop(server);
    lab.processes().output(&argv(&["ip", "address", "del", "198.18.0.1/24", "dev", WIRE_BRIDGE])).map(drop)
}

fn a_pod_gets_vfs_and_huge_pages_for_a_userspace_driver(lab: &mut Lab) -> Result<()> {
    Page::read("iommu.md")?.run(lab, &NAMES)?;
    Page::read("dpdk.md")?.run(lab, &NAMES).map(drop)
}

fn a_pod_gets_vfs_of_two_pfs(lab: &mut Lab) -> Result<()> {
    let said = Page::read("bonds.md")?.run(lab, &NAMES)?;
    let pods = &said[1];
    ensure!(pods.contains("enp1s0") && pods.contains("enp2s0"), "the pod has no VF of each PF:\n{pods}");
    Ok(())
}

fn a_nic_is_added_to_the_list(lab: &mut Lab) -> Result<()> {
    Page::read("supported-nics.md")?.run(lab, &NAMES).map(drop)
}

fn kubectl_sriov_tells_what_is_there(lab: &mut Lab) -> Result<()> {
    // What the page before took away is still on its way, and `doctor` would say so.
    let cluster = Cluster::of(lab);
    cluster.wait_node_state(NODE, "one PF is wanted", |state| state.spec.interfaces.len() == 1)?;
    cluster.wait_ready(NODE, "True")?;
    let said = Page::read("kubectl-sriov.md")?.run(lab, &NAMES)?.join("\n");
    ensure!(said.contains("default/first") && !said.contains("BROKEN"), "kubectl sriov:\n{said}");
    ensure!(!said.contains('\u{1b}'), "a pipe got colours:\n{said}");
    // It ends only by a signal, and prints again after a change.
    let watched = lab.script(
        "kubectl sriov watch >watch.txt & watch=$!; for i in $(seq 60); do test -s watch.txt && break; sleep 0.5; done; before=$(wc -l <watch.txt)
         kubectl label node \"$NODE\" changed=yes >/dev/null; kubectl -n sriov-network-operator annotate sriovnetworknodestate \"$NODE\" seen=yes >/dev/null
         for i in $(seq 60); do test $(wc -l <watch.txt) -gt $before && break; sleep 0.5; done
         kill $watch; kubectl label node \"$NODE\" changed- >/dev/null; test $(wc -l <watch.txt) -gt $before && cat watch.txt",
        &NAMES,
    )?;
    ensure!(watched.matches("enp1s0").count() >= 2, "watch did not print again:\n{watched}");
    // A chain that is broken ends with 1 and names the link; a node that is labelled and has no node state is told so by `plan`.
    let broken = lab.script("kubectl sriov doctor node/nobody && exit 9 || test $? = 1; kubectl sriov doctor node/nobody || true", &NAMES)?;
    ensure!(broken.contains("BROKEN") && broken.contains("cure:"), "doctor does not name the broken link:\n{broken}");
    Ok(())
}

fn what_does_not_work_is_named_with_its_cure(lab: &mut Lab) -> Result<()> {
    let said = Page::read("troubleshooting.md")?.run(lab, &NAMES)?;
    ensure!(said[1].contains("BROKEN") && said[1].contains("openshift.io/fast"), "doctor does not say what the pod lacks:\n{}", said[1]);
    ensure!(said[2].contains("distribution"), "the daemon does not say what it found:\n{}", said[2]);
    Ok(())
}

/// Takes a field out of the policy kind, as a chart of an earlier version would have left it.
fn make_kind_older(cluster: &Cluster<'_>) -> Result<()> {
    let patch = format!(r#"[{{"op": "remove", "path": "{FIELD}"}}]"#);
    cluster.kubectl(&["patch", "crd", CRD, "--type=json", "-p", &patch]).map(drop)
}

fn check_kind_is_new(cluster: &Cluster<'_>) -> Result<()> {
    let crd: Value = cluster.get("", "crd", CRD)?.context("no kind of policies")?;
    ensure!(crd.pointer(FIELD).is_some(), "the older kind was left");
    Ok(())
}

fn an_upgrade_brings_the_kinds_up_to_date_and_leaves_a_running_pod_its_vf(lab: &mut Lab) -> Result<()> {
    let page = Page::read("upgrade-and-uninstall.md")?;
    let cluster = Cluster::of(lab);
    make_kind_older(&cluster)?;
    let (pod, before) = (kept(&cluster, "first")?, daemons(&cluster)?);
    // Every number of devices that the kubelet offers from here on.
    let offered = lab.run_dir().path().join("offered.txt");
    let number = r#"jsonpath={.status.allocatable.openshift\.io/fast}{"\n"}"#;
    let watch = lab.kubectl_beside("kubectl-watch", &["get", "node", NODE, "--watch", "--output", number], &offered)?;
    page.run_block(lab, 0, &NAMES)?;
    let cluster = Cluster::of(lab);
    wait_new_daemon(&cluster, &before)?;
    drop(watch);
    let offered = std::fs::read_to_string(offered)?;
    // The first line is the command.
    let numbers: Vec<&str> = offered.lines().filter(|line| !line.starts_with('#')).collect();
    ensure!(
        !numbers.is_empty() && numbers.iter().all(|number| *number == "4"),
        "the node did not offer four VFs at each moment of the upgrade:\n{offered}"
    );
    check_kind_is_new(&cluster)?;
    same("the pod and its VF", &kept(&cluster, "first")?, &pod)?;
    let added: Value = cluster.get(OPERATOR_NAMESPACE, "configmap", "supported-nic-ids")?.context("no list of NICs")?;
    same("the user's entry in the list", &added["data"]["my-nic"].as_str(), &Some("8086 1521 1520"))
}

fn another_operator_is_replaced_under_a_running_pod(lab: &mut Lab) -> Result<()> {
    let page = Page::read("migration.md")?;
    let cluster = Cluster::of(lab);
    make_kind_older(&cluster)?;
    let pod = kept(&cluster, "first")?;
    let said = page.run_block(lab, 0, &NAMES)?;
    ensure!(said.contains("unchanged: node1") && !said.contains("->"), "the plan of what is there:\n{said}");
    page.run_block(lab, 1, &NAMES)?;
    same("the pod and its VF without an operator", &kept(&Cluster::of(lab), "first")?, &pod)?;
    // What a DaemonSet of the other operator would be.
    let left = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: sriov-network-metrics-exporter, namespace: sriov-network-operator}\nspec:\n  selector: {matchLabels: {app: left}}\n  \
                template:\n    metadata: {labels: {app: left}}\n    spec:\n      nodeSelector: {nowhere: 'true'}\n      containers: [{name: c, image: localhost/busybox:lab}]\n";
    Cluster::of(lab).apply(left)?;
    page.run_block(lab, 2, &NAMES)?;
    page.run_block(lab, 3, &NAMES)?;
    let cluster = Cluster::of(lab);
    ensure!(
        cluster.get::<Value>(OPERATOR_NAMESPACE, "daemonset", "sriov-network-metrics-exporter")?.is_none(),
        "the other operator's DaemonSet is left"
    );
    cluster.wait_allocatable(NODE, "fast", 4, PATIENCE)?;
    check_kind_is_new(&cluster)?;
    same("the pod and its VF", &kept(&cluster, "first")?, &pod)?;
    cluster.wait("the network has its NAD again", PATIENCE, || {
        cluster.get::<Value>("default", "network-attachment-definitions.k8s.cni.cncf.io", "blue")
    })?;
    Ok(())
}

/// What the daemons said since their pods began.
fn daemon_log(cluster: &Cluster<'_>) -> Result<String> {
    cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "logs", "-l", "app=sriov-network-config-daemon", "-c", "config-daemon", "--tail=-1"])
}

/// Makes the node look like one of another distribution, whose service has a control group of its own, to a daemon that starts.
fn pretend(cluster: &Cluster<'_>, service: &str) -> Result<()> {
    let slice = "/sys/fs/cgroup/system.slice";
    let script = format!("mkdir -p {slice}; rmdir {slice}/*.service 2>/dev/null || true; test -z '{service}' || mkdir {slice}/{service}.service");
    cluster.guest(1)?.sh(&script)?;
    cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "delete", "pod", "-l", "app=sriov-network-config-daemon", "--timeout=60s"]).map(drop)
}

fn the_page_of_each_distribution_installs_its_preset_where_that_one_looks(lab: &mut Lab) -> Result<()> {
    let pages = [
        ("k3s.md", "k3s-agent", "found K3s", "/var/lib/rancher/k3s/data/cni"),
        ("rke2.md", "rke2-agent", "found RKE2", "/opt/cni/bin"),
        ("kubespray.md", "kubelet", "found kubeadm", "/opt/cni/bin"),
    ];
    // The defaults on a node of K3s: said, with the cure.
    let cluster = Cluster::of(lab);
    cluster.guest(1)?.sh("test ! -e /var/lib/rancher")?;
    pretend(&cluster, "k3s-agent")?;
    cluster.wait("the daemon objects to the chart's folder", PATIENCE, || {
        let log = daemon_log(&cluster)?;
        Ok(log.contains("--values deploy/values-k3s.yaml").then_some(()))
    })?;
    for (page, service, found, folder) in pages {
        let cluster = Cluster::of(lab);
        cluster.guest(1)?.sh("rm -f /opt/cni/bin/sriov")?;
        pretend(&cluster, service)?;
        Page::read(page)?.run(lab, &NAMES)?;
        let cluster = Cluster::of(lab);
        cluster.wait_allocatable(NODE, "fast", 4, PATIENCE)?;
        // The daemon that ran before the preset was installed may still say its piece.
        cluster.wait("the daemon finds what the page is about, and its folders", PATIENCE, || {
            let log = daemon_log(&cluster)?;
            ensure!(log.contains(found) && !log.contains("--values"), "{page}:\n{log}");
            Ok(Some(()))
        })?;
        // It runs where the container runtime of that distribution starts it.
        let said = cluster.guest(1)?.sh(&format!("CNI_COMMAND=VERSION {folder}/sriov </dev/null"))?;
        ensure!(said.contains("supportedVersions"), "{page}: {folder}/sriov says {said}");
    }
    let cluster = Cluster::of(lab);
    pretend(&cluster, "")?;
    cluster.wait_allocatable(NODE, "fast", 4, PATIENCE)?;
    cluster.guest(1)?.sh("rm -r /var/lib/rancher").map(drop)
}

fn the_detector_labels_the_node_and_may_do_nothing_else(lab: &mut Lab) -> Result<()> {
    let account = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:sriov-node-detector");
    let command = format!(
        "helm upgrade sriov-network-operator \"$SOURCE/deploy/chart\" --namespace {OPERATOR_NAMESPACE} --wait --set nodeDetector.enabled=true"
    );
    Cluster::of(lab).set_capable(NODE, false)?;
    lab.script(&command, &NAMES)?;
    let cluster = Cluster::of(lab);
    cluster.wait("the detector labels the node", PATIENCE, || {
        let node = cluster.get::<KubernetesNode>("", "node", NODE)?.context("there is no node")?;
        Ok(node.metadata.labels.unwrap_or_default().get(CAPABLE_LABEL).filter(|value| *value == "true").map(drop))
    })?;
    cluster.wait_allocatable(NODE, "fast", 4, PATIENCE)?;
    // What is not bound to a node may label none, whatever RBAC says, and the account has no other right.
    let label = cluster.kubectl(&["--as", &account, "--as-group", "system:serviceaccounts", "label", "node", NODE, "other=label"]);
    let refusal = format!("{:#}", label.err().context("a detector without a node may label nodes")?);
    ensure!(refusal.contains("sriov-node-detector"), "refused by somebody else: {refusal}");
    let list = cluster.kubectl(&["--as", &account, "auth", "can-i", "list", "secrets", "-n", OPERATOR_NAMESPACE]);
    ensure!(list.is_err(), "a detector may list secrets");
    Ok(())
}

fn an_uninstall_leaves_only_what_the_user_made(lab: &mut Lab) -> Result<()> {
    let page = Page::read("upgrade-and-uninstall.md")?;
    // With admission there is more to take away.
    lab.script(
        &format!(
            "helm upgrade sriov-network-operator \"$SOURCE/deploy/chart\" --namespace {OPERATOR_NAMESPACE} --wait --reuse-values \
             --set sriovOperatorConfig.deploy=true --set operator.admissionControllers.enabled=true"
        ),
        &NAMES,
    )?;
    let cluster = Cluster::of(lab);
    cluster
        .wait("webhooks are configured", PATIENCE, || cluster.get::<Value>("", "validatingwebhookconfiguration", "sriov-operator-webhook-config"))?;
    let pod = kept(&cluster, "first")?;
    page.run_block(lab, 1, &NAMES)?;
    let cluster = Cluster::of(lab);
    cluster.wait("nothing of the operator is left", Duration::from_mins(1), || {
        let kinds = "deployments,daemonsets,jobs,pods,services,secrets,configmaps,serviceaccounts,roles,rolebindings,leases,sriovnetworknodestates,sriovoperatorconfigs";
        let inside = cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "get", kinds, "-o", "name"])?;
        let wide = "clusterroles,clusterrolebindings,validatingwebhookconfigurations,mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let outside = cluster.kubectl(&["get", wide, "-o", "name"])?;
        let nads = cluster.kubectl(&["get", "network-attachment-definitions.k8s.cni.cncf.io", "-A", "-o", "name"])?;
        let inside = inside.lines().filter(|name| !["configmap/kube-root-ca.crt", "serviceaccount/default"].contains(name));
        let left: Vec<&str> = inside.chain(outside.lines().filter(|name| name.contains("sriov") || name.contains("injector"))).chain(nads.lines()).collect();
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        Ok(Some(()))
    })?;
    let node: KubernetesNode = cluster.get("", "node", NODE)?.context("there is no node")?;
    let marks: Vec<String> = node.metadata.annotations.unwrap_or_default().into_keys().filter(|key| key.contains("sriovnetwork")).collect();
    ensure!(marks.is_empty(), "marks on the node are left: {marks:?}");
    for (kind, name) in [("sriovnetworknodepolicies", "fast"), ("sriovnetworks", "blue")] {
        cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "get", kind, name])?;
    }
    // The pod has its VF, and gives it back although nobody of us runs.
    same("the pod and its VF", &kept(&cluster, "first")?, &pod)?;
    cluster.delete("default", "pod", "first")?;
    let index = cluster.index_of(1, "enp1s0", &pod.device)?;
    cluster.wait("the VF is on the node again", PATIENCE, || Ok(cluster.vf(1, "enp1s0", index)?.netdev))?;
    page.run_block(lab, 2, &NAMES)?;
    let left = Cluster::of(lab).kubectl(&["get", "crds,namespaces", "-o", "name"])?;
    ensure!(!left.contains("sriov"), "left:\n{left}");
    Ok(())
}
