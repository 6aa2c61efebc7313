//! I/O: which Kubernetes distribution runs on this machine, and where it therefore looks for CNI configuration, CNI plugins and the kubelet's files.
//!
//! What lives here: the evidence, in the order in which it is believed. What does not: choosing where the CNI plugin goes, which is the chart's
//! (`operator.cniBinPath`); this room says when the chart and the machine disagree.
//!
//! Invariant: nothing is guessed: without evidence there is no answer. Services that run are believed before folders, which an uninstalled distribution
//! leaves behind. In the daemon's pod only the services are seen, because nothing of `/etc` and `/var/lib` is mounted for this.

use std::fmt;
use std::path::Path;

use sriov_host::sysfs::Sysfs;

/// A distribution that differs from others in what is found where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// K3s.
    K3s,
    /// RKE2.
    Rke2,
    /// Kubespray, which is kubeadm with files of its own.
    Kubespray,
    /// kubeadm, or a kubelet that somebody installed by hand.
    Kubeadm,
}

/// What was found, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The distribution.
    pub distribution: Distribution,
    /// Folder of CNI configurations.
    pub cni_config: &'static str,
    /// Folder of CNI plugins.
    pub cni_bin: &'static str,
    /// The kubelet's folder.
    pub kubelet: &'static str,
    /// The path that told.
    pub evidence: String,
}

const K3S_OLDER_BIN: &str = "/var/lib/rancher/k3s/data/current/bin";
const K3S_BIN: &str = "/var/lib/rancher/k3s/data/cni";

/// Services by their systemd names. `kubelet` is kubeadm's and Kubespray's, which are told apart by files.
const SERVICES: [(&str, Distribution); 5] = [
    ("k3s", Distribution::K3s),
    ("k3s-agent", Distribution::K3s),
    ("rke2-server", Distribution::Rke2),
    ("rke2-agent", Distribution::Rke2),
    ("kubelet", Distribution::Kubeadm),
];

/// Folders and files that each distribution writes, the more special first.
const FILES: [(&str, Distribution); 4] = [
    ("/var/lib/rancher/k3s/agent", Distribution::K3s),
    ("/var/lib/rancher/rke2/agent", Distribution::Rke2),
    ("/etc/kubernetes/kubelet.env", Distribution::Kubespray),
    ("/var/lib/kubelet/kubeadm-flags.env", Distribution::Kubeadm),
];

/// Where systemd keeps a service's control group: version 2, then version 1.
const SLICES: [&str; 2] = ["/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/systemd/system.slice"];

/// Looks at a machine's files.
pub fn detect(files: &Sysfs) -> Option<Found> {
    let services = SERVICES.iter().flat_map(|(name, of)| SLICES.map(|slice| (format!("{slice}/{name}.service"), *of)));
    let paths = FILES.iter().map(|(path, of)| ((*path).to_owned(), *of));
    let (evidence, told) = services.chain(paths).find(|(path, _)| files.exists(path))?;
    let distribution = match told {
        // The same service; the file is Kubespray's own.
        Distribution::Kubeadm if files.exists("/etc/kubernetes/kubelet.env") => Distribution::Kubespray,
        told => told,
    };
    let (cni_config, cni_bin) = match distribution {
        // Before v1.28.15, v1.29.10, v1.30.6 and v1.31.2 the plugins were beside K3s's own programs.
        Distribution::K3s if files.exists(K3S_OLDER_BIN) && !files.exists(K3S_BIN) => ("/var/lib/rancher/k3s/agent/etc/cni/net.d", K3S_OLDER_BIN),
        Distribution::K3s => ("/var/lib/rancher/k3s/agent/etc/cni/net.d", K3S_BIN),
        Distribution::Rke2 | Distribution::Kubespray | Distribution::Kubeadm => ("/etc/cni/net.d", "/opt/cni/bin"),
    };
    Some(Found { distribution, cni_config, cni_bin, kubelet: "/var/lib/kubelet", evidence })
}

impl Found {
    /// What is wrong with putting the CNI plugin into `folder`; `None` when that is where it is looked for.
    pub fn objection(&self, folder: &str) -> Option<String> {
        let same = |known: &str| Path::new(known) == Path::new(folder);
        // Which of K3s's two folders counts cannot be seen from the daemon's pod.
        if same(self.cni_bin) || (self.distribution == Distribution::K3s && same(K3S_OLDER_BIN)) {
            return None;
        }
        Some(format!(
            "{} looks for CNI plugins in {}, and the chart puts ours into {folder}: install it with --values deploy/values-{}.yaml, or set operator.cniBinPath",
            self.distribution,
            self.cni_bin,
            self.distribution.preset()
        ))
    }
}

impl Distribution {
    /// Its `deploy/values-<preset>.yaml`.
    fn preset(self) -> &'static str {
        match self {
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Kubespray => "kubespray",
            Self::Kubeadm => "kubeadm",
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K3s => "K3s",
            Self::Rke2 => "RKE2",
            Self::Kubespray => "Kubespray",
            Self::Kubeadm => "kubeadm",
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { distribution, cni_config, cni_bin, kubelet, evidence } = self;
        write!(f, "{distribution} ({evidence}): CNI configuration in {cni_config}, CNI plugins in {cni_bin}, kubelet in {kubelet}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is found on a machine with these folders.
    fn found(folders: &[&str]) -> Option<Found> {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder.trim_start_matches('/'))).unwrap();
        }
        detect(&Sysfs::new(root.path()))
    }

    #[test]
    fn each_distribution_is_known_by_its_files() {
        let cases = [
            ("/var/lib/rancher/k3s/agent/etc", Distribution::K3s, "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
            ("/var/lib/rancher/rke2/agent", Distribution::Rke2, "/etc/cni/net.d", "/opt/cni/bin"),
            ("/etc/kubernetes/kubelet.env", Distribution::Kubespray, "/etc/cni/net.d", "/opt/cni/bin"),
            ("/var/lib/kubelet/kubeadm-flags.env", Distribution::Kubeadm, "/etc/cni/net.d", "/opt/cni/bin"),
        ];
        for (file, distribution, config, bin) in cases {
            let found = found(&[file]).unwrap();
            assert_eq!(
                (found.distribution, found.cni_config, found.cni_bin, found.kubelet),
                (distribution, config, bin, "/var/lib/kubelet"),
                "{file}"
            );
            assert!(found.to_string().contains(&distribution.to_string()), "{found}");
        }
        assert_eq!(found(&["/opt/cni/bin", "/etc/cni/net.d"]), None);
    }

    #[test]
    fn a_service_that_runs_is_believed_before_a_folder_that_was_left() {
        let left = "/var/lib/rancher/k3s/agent";
        for (name, distribution) in SERVICES {
            for slice in SLICES {
                let found = found(&[left, &format!("{slice}/{name}.service")]).unwrap();
                assert_eq!((found.distribution, found.evidence), (distribution, format!("{slice}/{name}.service")));
            }
        }
        let kubespray = found(&["/sys/fs/cgroup/system.slice/kubelet.service", "/etc/kubernetes/kubelet.env"]).unwrap();
        assert_eq!(kubespray.distribution, Distribution::Kubespray);
    }

    #[test]
    fn an_older_k3s_has_its_plugins_beside_its_programs() {
        let agent = "/var/lib/rancher/k3s/agent";
        assert_eq!(found(&[agent, K3S_OLDER_BIN]).unwrap().cni_bin, K3S_OLDER_BIN);
        assert_eq!(found(&[agent, K3S_OLDER_BIN, K3S_BIN]).unwrap().cni_bin, K3S_BIN);
    }

    #[test]
    fn a_chart_for_another_distribution_is_told_with_its_cure() {
        let k3s = found(&["/sys/fs/cgroup/system.slice/k3s-agent.service"]).unwrap();
        assert_eq!(k3s.objection(K3S_BIN), None);
        assert_eq!(k3s.objection(K3S_OLDER_BIN), None);
        let said = k3s.objection("/opt/cni/bin").unwrap();
        assert!(said.contains("values-k3s.yaml") && said.contains(K3S_BIN) && said.contains("/opt/cni/bin"), "{said}");
        let rke2 = found(&["/sys/fs/cgroup/system.slice/rke2-agent.service"]).unwrap();
        assert_eq!(rke2.objection("/opt/cni/bin/"), None);
        assert!(rke2.objection(K3S_BIN).unwrap().contains("values-rke2.yaml"));
    }
}
