//! I/O: what a failed test leaves behind for a person to read.
//!
//! What lives here: one folder per failure, one file per question asked of the guests, the cluster and the host. What does not: judging.
//!
//! Invariant: collecting never fails and ends within a minute or two; a question without an answer leaves the reason in its file.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Lab;
use super::artifacts::workspace;
use super::guest::Guest;

const QUESTION_LIMIT: Duration = Duration::from_secs(15);

/// Shell is fine here: nothing is decided by these.
const GUEST_QUESTIONS: [(&str, &str); 9] = [
    ("ip-d-link.txt", "ip -d link"),
    ("ip-addr.txt", "ip addr; ip route"),
    (
        "sriov.txt",
        "for d in /sys/bus/pci/devices/*/sriov_totalvfs; do d=${d%/*}; echo $d; grep . $d/sriov_* $d/net/*/mtu; ls -l $d | grep virtfn; done",
    ),
    ("pci-drivers.txt", "ls -l /sys/bus/pci/devices/*/driver; ls -l /sys/kernel/iommu_groups/*/devices"),
    ("cni-journals.txt", "ls -lR /var/lib/cni; grep -r . /var/lib/cni/sriov"),
    ("device-plugin.txt", "grep -r . /run/sriov-operator /etc/sriov-operator; ls -l /var/lib/kubelet/device-plugins"),
    ("processes.txt", "ps -o pid,ppid,stat,time,args"),
    ("netns.txt", "for n in /run/netns/*; do echo $n; nsenter --net=$n ip -d link; done"),
    ("dmesg.txt", "dmesg"),
];

const GUEST_LOGS: [&str; 4] = ["/var/log/kubelet.log", "/var/log/containerd.log", "/var/log/import.log", "/var/log/guest-agent.log"];

const CLUSTER_QUESTIONS: [(&str, &[&str]); 9] = [
    ("nodes.yaml", &["get", "nodes", "-o", "yaml"]),
    ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
    ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
    ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    ("workloads.yaml", &["get", "deployments,daemonsets", "-A", "-o", "yaml"]),
    ("node-states.yaml", &["get", "sriovnetworknodestates.sriovnetwork.openshift.io", "-A", "-o", "yaml"]),
    ("policies.yaml", &["get", "sriovnetworknodepolicies.sriovnetwork.openshift.io", "-A", "-o", "yaml"]),
    ("networks.yaml", &["get", "sriovnetworks.sriovnetwork.openshift.io", "-A", "-o", "yaml"]),
    ("nads.yaml", &["get", "network-attachment-definitions.k8s.cni.cncf.io", "-A", "-o", "yaml"]),
];

/// Where failures of this program's tests are kept.
pub fn base() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let program = program.unwrap_or_else(|| "lab".to_owned());
    // Cargo appends a hash to the names of test programs.
    let name = program.rsplit_once('-').filter(|(_, hash)| hash.len() == 16).map_or(program.as_str(), |(name, _)| name);
    target.join("lab-artifacts").join(name)
}

/// Asks everything and gives the folder with the answers; an older one of the same name is replaced.
pub fn collect(lab: &Lab, name: &str) -> PathBuf {
    let folder = base().join(name);
    fs::remove_dir_all(&folder).ok();
    if let Err(error) = fs::create_dir_all(&folder) {
        eprintln!("lab: make {}: {error}", folder.display());
        return folder;
    }
    copy_logs(lab.run_dir().path(), &folder);
    thread::scope(|scope| {
        for guest in lab.guests() {
            scope.spawn(|| ask_guest(guest, &folder.join(guest.name())));
        }
        scope.spawn(|| ask_cluster(lab, &folder.join("cluster")));
        keep(&folder, "host-links.txt", lab.processes().output(&["ip", "-d", "-s", "link"].map(str::to_owned)));
    });
    folder
}

fn keep(folder: &Path, name: &str, answer: Result<String>) {
    let text = answer.unwrap_or_else(|error| format!("(no answer) {error:#}\n"));
    if let Err(error) = fs::write(folder.join(name), text) {
        eprintln!("lab: write {}: {error}", folder.join(name).display());
    }
}

fn copy_logs(run: &Path, folder: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log" || extension == "console") {
            fs::copy(&path, folder.join(entry.file_name())).ok();
        }
    }
}

fn ask_guest(guest: &Guest, folder: &Path) {
    let ask = |argv: &[&str]| guest.command(argv).limit(QUESTION_LIMIT).outcome();
    fs::create_dir_all(folder).ok();
    if let Err(error) = ask(&["true"]) {
        keep(folder, "unreachable.txt", Err(error));
        return;
    }
    for (name, script) in GUEST_QUESTIONS {
        let answer = ask(&["/bin/sh", "-c", script]).map(|outcome| format!("# {script}\n{}{}", outcome.text(), outcome.errors()));
        keep(folder, name, answer);
    }
    for path in GUEST_LOGS {
        let name = path.rsplit('/').next().unwrap_or(path);
        if let Ok(content) = guest.read(path) {
            keep(folder, name, Ok(String::from_utf8_lossy(&content).into_owned()));
        }
    }
}

fn ask_cluster(lab: &Lab, folder: &Path) {
    let ask = |arguments: &[&str]| lab.kubectl(&[&["--request-timeout=10s"], arguments].concat());
    if lab.kubectl_argv(&[]).is_err() {
        return;
    }
    fs::create_dir_all(folder).ok();
    for (name, arguments) in CLUSTER_QUESTIONS {
        keep(folder, name, ask(arguments));
    }
    let pods = ask(&["get", "pods", "-A", "--no-headers", "-o", "custom-columns=:metadata.namespace,:metadata.name"]).unwrap_or_default();
    for line in pods.lines() {
        if let [namespace, pod] = line.split_whitespace().collect::<Vec<_>>()[..] {
            let logs = ask(&["logs", "--namespace", namespace, pod, "--all-containers", "--prefix", "--tail=2000"]);
            keep(folder, &format!("{namespace}.{pod}.log"), logs);
        }
    }
}
