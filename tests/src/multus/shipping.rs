//! Pure but for looking which programs a folder has (I/O): the files that a node needs for Multus, stand-in or real. Putting them there is the lab's part.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// The environment variable that replaces the stand-in: a folder with the programs of real Multus.
pub const LAB_MULTUS_DIR: &str = "LAB_MULTUS_DIR";

const BIN_DIR: &str = "/opt/cni/bin";
const CONF_DIR: &str = "/etc/cni/net.d";
const CNI_VERSION: &str = "1.0.0";
/// Where a client inside a cluster finds its credentials (Kubernetes, "Accessing the API from a Pod").
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Which Multus a cluster runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Ours, for tests only.
    StandIn,
    /// One program that the runtime starts.
    Thin,
    /// A daemon and a small program that the runtime starts.
    Thick,
}

/// What one file on the node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A copy of this host file.
    Copy(PathBuf),
    /// This text.
    Text(String),
}

/// One file on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFile {
    /// Absolute path on the node.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
}

/// A program to start: arguments, and additions to its environment.
pub type Daemon = (Vec<String>, Vec<(String, String)>);

/// Everything that makes a node run Multus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipment {
    /// In the order in which they should be written: the CNI configuration is the last, because a runtime acts on it at once.
    pub files: Vec<NodeFile>,
    /// A daemon to start before pods come.
    pub daemon: Option<Daemon>,
}

/// How Multus reaches the cluster.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Path on the node of a kubeconfig that may get pods and NADs and patch `pods/status`.
    pub kubeconfig: String,
    /// Path on the node of the first network's configuration list. Not in `/etc/cni/net.d`, or the runtime might take it for itself.
    pub cluster_network: String,
    /// What the daemon of thick Multus needs, because it takes no kubeconfig.
    pub in_cluster: Option<InCluster>,
}

/// The credentials of a pod, for a daemon that believes to run in one.
#[derive(Debug, Clone)]
pub struct InCluster {
    /// Host of the API server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// PEM of the cluster's authority.
    pub ca: String,
    /// Bearer token.
    pub token: String,
}

/// The variants that can be tested: the stand-in, or with a folder those whose programs are in it. A folder with none is an error.
pub fn variants(multus: Option<&Path>) -> Result<Vec<Variant>> {
    let Some(folder) = multus else { return Ok(vec![Variant::StandIn]) };
    let has = |name: &str| folder.join(name).is_file();
    let mut variants = Vec::new();
    if has("multus") {
        variants.push(Variant::Thin);
    }
    if has("multus-shim") && has("multus-daemon") {
        variants.push(Variant::Thick);
    }
    ensure!(!variants.is_empty(), "{LAB_MULTUS_DIR}={} has neither `multus` nor both `multus-shim` and `multus-daemon`", folder.display());
    Ok(variants)
}

/// What to put on a node. `stand_in` is our program, `multus` the folder of [`LAB_MULTUS_DIR`].
pub fn shipment(variant: Variant, stand_in: &Path, multus: Option<&Path>, setup: &Setup) -> Result<Shipment> {
    let real = |name: &str| {
        let folder = multus.with_context(|| format!("{variant:?} Multus needs {LAB_MULTUS_DIR}"))?;
        Ok::<_, anyhow::Error>(folder.join(name))
    };
    match variant {
        Variant::StandIn => Ok(thin("multus-standin", stand_in, setup)),
        Variant::Thin => Ok(thin("multus", &real("multus")?, setup)),
        Variant::Thick => thick(&real("multus-shim")?, &real("multus-daemon")?, setup),
    }
}

/// Thin Multus and the stand-in take the same configuration.
fn thin(kind: &str, program: &Path, setup: &Setup) -> Shipment {
    let conf = json!({
        "cniVersion": CNI_VERSION, "name": "multus-cni-network", "type": kind, "capabilities": {"portMappings": true},
        "kubeconfig": setup.kubeconfig, "clusterNetwork": setup.cluster_network, "binDir": BIN_DIR, "cniDir": "/var/lib/cni/multus",
    });
    let files = vec![copy(program, &format!("{BIN_DIR}/{kind}")), text(&format!("{CONF_DIR}/00-{kind}.conf"), 0o600, &conf.to_string())];
    Shipment { files, daemon: None }
}

fn thick(shim: &Path, daemon: &Path, setup: &Setup) -> Result<Shipment> {
    let access = setup.in_cluster.as_ref().context("thick Multus needs the credentials of a pod")?;
    let daemon_path = "/usr/local/bin/multus-daemon";
    let daemon_conf = "/etc/cni/multus/daemon-config.json";
    let conf = json!({
        "cniVersion": CNI_VERSION, "name": "multus-cni-network", "type": "multus-shim", "capabilities": {"portMappings": true},
        "clusterNetwork": setup.cluster_network, "daemonSocketDir": "/run/multus", "logToStderr": true,
    });
    let daemon_text = json!({
        "cniVersion": CNI_VERSION, "chrootDir": "", "socketDir": "/run/multus", "binDir": BIN_DIR, "cniDir": "/var/lib/cni/multus",
        "cniConfigDir": CONF_DIR, "confDir": "/etc/cni/multus/net.d", "logToStderr": true, "logLevel": "verbose",
    });
    let files = vec![
        copy(shim, &format!("{BIN_DIR}/multus-shim")),
        copy(daemon, daemon_path),
        text(daemon_conf, 0o600, &daemon_text.to_string()),
        text(&format!("{CREDENTIALS}/ca.crt"), 0o600, &access.ca),
        text(&format!("{CREDENTIALS}/token"), 0o600, &access.token),
        text(&format!("{CONF_DIR}/00-multus.conf"), 0o600, &conf.to_string()),
    ];
    let environment = [("KUBERNETES_SERVICE_HOST", access.host.clone()), ("KUBERNETES_SERVICE_PORT", access.port.to_string())];
    let argv = vec![daemon_path.to_owned(), format!("-config={daemon_conf}")];
    Ok(Shipment { files, daemon: Some((argv, environment.map(|(name, value)| (name.to_owned(), value)).to_vec())) })
}

fn copy(from: &Path, path: &str) -> NodeFile {
    NodeFile { path: path.to_owned(), mode: 0o755, content: Content::Copy(from.to_path_buf()) }
}

fn text(path: &str, mode: u32, text: &str) -> NodeFile {
    NodeFile { path: path.to_owned(), mode, content: Content::Text(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::super::Conf;
    use super::*;

    fn setup(in_cluster: bool) -> Setup {
        let access = InCluster { host: "192.0.2.1".into(), port: 443, ca: "ca".into(), token: "t".into() };
        Setup {
            kubeconfig: "/etc/lab/multus.kubeconfig".into(),
            cluster_network: "/etc/lab/net.conflist".into(),
            in_cluster: in_cluster.then_some(access),
        }
    }

    fn content<'a>(shipment: &'a Shipment, path: &str) -> &'a Content {
        &shipment.files.iter().find(|file| file.path == path).unwrap().content
    }

    #[test]
    fn the_stand_in_understands_the_configuration_that_is_shipped_for_it() {
        let shipment = shipment(Variant::StandIn, Path::new("/built/multus-standin"), None, &setup(false)).unwrap();
        assert_eq!(content(&shipment, "/opt/cni/bin/multus-standin"), &Content::Copy("/built/multus-standin".into()));
        let Content::Text(text) = content(&shipment, "/etc/cni/net.d/00-multus-standin.conf") else { panic!("no configuration") };
        let conf: Conf = serde_json::from_str(text).unwrap();
        assert_eq!(conf.cluster_network, Path::new("/etc/lab/net.conflist"));
        assert_eq!(conf.kubeconfig, Path::new("/etc/lab/multus.kubeconfig"));
        assert_eq!(shipment.daemon, None);
        assert!(shipment.files.last().unwrap().path.starts_with("/etc/cni/net.d/"), "the runtime's signal comes last");
    }

    #[test]
    fn real_multus_takes_the_place_of_the_stand_in() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(variants(None).unwrap(), [Variant::StandIn]);
        assert!(variants(Some(folder.path())).is_err(), "an empty folder must not fall back to the stand-in");
        std::fs::write(folder.path().join("multus"), "").unwrap();
        std::fs::write(folder.path().join("multus-shim"), "").unwrap();
        assert_eq!(variants(Some(folder.path())).unwrap(), [Variant::Thin]);
        std::fs::write(folder.path().join("multus-daemon"), "").unwrap();
        assert_eq!(variants(Some(folder.path())).unwrap(), [Variant::Thin, Variant::Thick]);
        let thin = shipment(Variant::Thin, Path::new("/x"), Some(folder.path()), &setup(false)).unwrap();
        assert_eq!(content(&thin, "/opt/cni/bin/multus"), &Content::Copy(folder.path().join("multus")));
        let thick = shipment(Variant::Thick, Path::new("/x"), Some(folder.path()), &setup(true)).unwrap();
        assert_eq!(thick.daemon.unwrap().0[0], "/usr/local/bin/multus-daemon");
    }

    #[test]
    fn what_is_missing_for_real_multus_is_an_error() {
        assert!(shipment(Variant::Thin, Path::new("/x"), None, &setup(false)).is_err());
        assert!(shipment(Variant::Thick, Path::new("/x"), Some(Path::new("/y")), &setup(false)).is_err());
    }
}
