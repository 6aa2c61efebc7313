//! I/O: the certificates of one lab's cluster and the kubeconfigs that carry them.
//!
//! What lives here: one authority, the subjects that Kubernetes' authorizers expect, files per node. What does not: who uses them.
//!
//! Invariant: everything is made anew for each lab and ends with its folder; keys are elliptic-curve, which emulated guests can afford.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process::Processes;
use super::topology::{HOST_ADDRESS, Node, SERVICE_ADDRESS};

/// The certificates of a lab, as files in one folder.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Authority,
    Client,
    Server,
}

impl Certificates {
    /// Makes the authority and everything the control plane needs.
    pub fn make(processes: &Processes, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let certificates = Self { folder: folder.to_owned() };
        certificates.issue(processes, "ca", "/CN=lab-ca", Purpose::Authority, "")?;
        let names = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local";
        let names = format!("IP:{HOST_ADDRESS},IP:{SERVICE_ADDRESS},IP:127.0.0.1,{names}");
        certificates.issue(processes, "apiserver", "/CN=kube-apiserver", Purpose::Server, &names)?;
        for (name, subject) in [
            ("kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client"),
            ("front-proxy", "/CN=front-proxy-client"),
            ("admin", "/O=system:masters/CN=admin"),
            ("kcm", "/CN=system:kube-controller-manager"),
            ("scheduler", "/CN=system:kube-scheduler"),
        ] {
            certificates.issue(processes, name, subject, Purpose::Client, "")?;
        }
        for name in ["admin", "kcm", "scheduler"] {
            certificates.write_kubeconfig(name)?;
        }
        let (key, public) = (certificates.path("sa.key"), certificates.path("sa.pub"));
        processes.output(&words(&["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key]))?;
        processes.output(&words(&["openssl", "pkey", "-in", &key, "-pubout", "-out", &public]))?;
        Ok(certificates)
    }

    /// Makes what one node needs and gives it as files of its initial RAM disk.
    pub fn node_files(&self, processes: &Processes, node: &Node) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let (client, server) = (node.name(), format!("{}-server", node.name()));
        let subject = format!("/O=system:nodes/CN=system:node:{}", node.name());
        self.issue(processes, &client, &subject, Purpose::Client, "")?;
        self.issue(processes, &server, &subject, Purpose::Server, &format!("IP:{},DNS:{}", node.address(), node.name()))?;
        self.write_kubeconfig(&client)?;
        let files = [
            ("node/pki/ca.crt", "ca.crt".to_owned()),
            ("node/pki/kubelet-server.crt", format!("{server}.crt")),
            ("node/pki/kubelet-server.key", format!("{server}.key")),
            ("node/pki/kubelet.kubeconfig", format!("{client}.kubeconfig")),
        ];
        files.into_iter().map(|(path, file)| Ok((path, self.read(&file)?))).collect()
    }

    /// Path of a file in the folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(name)).with_context(|| format!("read {}", self.path(name)))
    }

    fn issue(&self, processes: &Processes, name: &str, subject: &str, purpose: Purpose, names: &str) -> Result<()> {
        let config = self.path(&format!("{name}.conf"));
        fs::write(&config, openssl_config(purpose, names))?;
        let (key, certificate) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.crt")));
        let (ca, ca_key) = (self.path("ca.crt"), self.path("ca.key"));
        let mut argv = words(&["openssl", "req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]);
        argv.extend(words(&["-config", &config, "-subj", subject, "-days", "30", "-keyout", &key, "-out", &certificate]));
        if !matches!(purpose, Purpose::Authority) {
            argv.extend(words(&["-CA", &ca, "-CAkey", &ca_key]));
        }
        processes.output(&argv).map(drop)
    }

    fn write_kubeconfig(&self, name: &str) -> Result<()> {
        let path = |name: &str| self.read(name).map(|bytes| base64(&bytes));
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{HOST_ADDRESS}:443"),
                "certificate-authority-data": path("ca.crt")?,
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": path(&format!("{name}.crt"))?,
                "client-key-data": path(&format!("{name}.key"))?,
            }}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
            "current-context": "lab",
        });
        Ok(fs::write(self.folder.join(format!("{name}.kubeconfig")), serde_json::to_vec_pretty(&config)?)?)
    }
}

fn openssl_config(purpose: Purpose, names: &str) -> String {
    let (authority, usage, extended) = match purpose {
        Purpose::Authority => ("TRUE", "keyCertSign,cRLSign", ""),
        Purpose::Client => ("FALSE", "digitalSignature", "extendedKeyUsage=clientAuth\n"),
        Purpose::Server => ("FALSE", "digitalSignature", "extendedKeyUsage=serverAuth\n"),
    };
    let names = if names.is_empty() { String::new() } else { format!("subjectAltName={names}\n") };
    format!(
        "[req]\ndistinguished_name=name\nx509_extensions=extensions\n[name]\n[extensions]\n\
         basicConstraints=critical,CA:{authority}\nkeyUsage=critical,{usage}\n{extended}{names}"
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= group.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    text
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_vectors_of_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
