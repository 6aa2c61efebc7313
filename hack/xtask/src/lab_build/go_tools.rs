//! I/O: the Go programs of the lab (etcd, Kubernetes, containerd, runc, CNI plugins), each built from its own module in `hack/tools`, whose
//! `go.sum` pins every byte. What they are used for is not known here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::{Cache, Stage};
use super::debian::Package;
use super::key::Inputs;
use crate::workspace::{Workspace, stdout_of};

/// One module of `hack/tools`, also the name of its stage.
struct Module {
    name: &'static str,
    /// Binary and the package that it is built from.
    programs: &'static [(&'static str, &'static str)],
    linking: Linking,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Linking {
    /// Without C.
    Pure,
    /// Without C, and with this build tag.
    Tagged(&'static str),
    /// Without C, and with the module's Kubernetes version stamped in: nodes report it.
    Kubernetes,
    /// Static, position independent, with the C library libseccomp: the kubelet asks for the default seccomp profile for every sandbox.
    Seccomp,
}

const MODULES: [Module; 4] = [
    Module { name: "etcd", programs: &[("etcd", "go.etcd.io/etcd/server/v3")], linking: Linking::Pure },
    Module {
        name: "kubernetes",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ],
        linking: Linking::Kubernetes,
    },
    Module {
        name: "containerd",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
            ("cnitool", "github.com/containernetworking/cni/cnitool"),
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("dhcp", "github.com/containernetworking/plugins/plugins/ipam/dhcp"),
            ("host-device", "github.com/containernetworking/plugins/plugins/main/host-device"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("macvlan", "github.com/containernetworking/plugins/plugins/main/macvlan"),
            ("static", "github.com/containernetworking/plugins/plugins/ipam/static"),
            ("tuning", "github.com/containernetworking/plugins/plugins/meta/tuning"),
        ],
        linking: Linking::Pure,
    },
    Module { name: "runc", programs: &[("runc", "github.com/opencontainers/runc")], linking: Linking::Seccomp },
];

/// Not one of the others: nothing of a node is made from it, so a new version of it leaves the nodes as they are.
const HELM: Module = Module { name: "helm", programs: &[("helm", "helm.sh/helm/v3/cmd/helm")], linking: Linking::Pure };

/// Pushes images; its registry is the one that the tests push to.
const CRANE: Module = Module { name: "crane", programs: &[("crane", "github.com/google/go-containerregistry/cmd/crane")], linking: Linking::Pure };

/// Reads the alerts as Prometheus does. Without what finds targets in clouds, which is most of it.
const PROMETHEUS: Module = Module {
    name: "prometheus",
    programs: &[("promtool", "github.com/prometheus/prometheus/cmd/promtool")],
    linking: Linking::Tagged("remove_all_sd"),
};

/// Makes certificates in the tests. Its own programs are modules that no proxy has, so `main.go` starts its controllers.
const CERT_MANAGER: Module = Module { name: "cert-manager", programs: &[("cert-manager", ".")], linking: Linking::Pure };
const CERT_MANAGER_MODULE: &str = "github.com/cert-manager/cert-manager";

/// The programs that a node's container runtime calls as CNI plugins.
pub(crate) const CNI_PLUGINS: [&str; 8] = ["bridge", "dhcp", "host-device", "host-local", "loopback", "macvlan", "static", "tuning"];

/// The built programs.
pub(crate) struct GoTools {
    /// The stages that hold them, for the keys of what is made from them.
    pub(crate) stages: Vec<Stage>,
    paths: BTreeMap<&'static str, PathBuf>,
}

impl GoTools {
    /// Where a program is.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        self.paths.get(name).map(PathBuf::as_path).with_context(|| format!("the lab builds no program {name}"))
    }
}

/// Builds all of them. A folder of ready-made binaries (`KUBEBUILDER_ASSETS`) replaces etcd and the API server.
pub(crate) fn build(cache: &Cache, workspace: &Workspace, installed: &[Package]) -> Result<GoTools> {
    let mut tools = GoTools { stages: Vec::new(), paths: ready_made(std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).as_deref()) };
    for module in &MODULES {
        let programs: Vec<_> = module.programs.iter().filter(|(name, _)| !tools.paths.contains_key(name)).copied().collect();
        if programs.is_empty() {
            continue;
        }
        let stage = module_stage(cache, workspace, module, &programs, installed)?;
        tools.paths.extend(programs.iter().map(|(name, _)| (*name, stage.path(name))));
        tools.stages.push(stage);
    }
    Ok(tools)
}

/// Helm, which installs the chart in the tests and renders the plain manifest from it.
pub(crate) fn helm(cache: &Cache, workspace: &Workspace) -> Result<PathBuf> {
    let stage = module_stage(cache, workspace, &HELM, HELM.programs, &[])?;
    Ok(stage.path("helm"))
}

/// What speaks to registries.
pub(crate) fn crane(cache: &Cache, workspace: &Workspace) -> Result<PathBuf> {
    let stage = module_stage(cache, workspace, &CRANE, CRANE.programs, &[])?;
    Ok(stage.path("crane"))
}

/// What tests the alerts.
pub(crate) fn promtool(cache: &Cache, workspace: &Workspace) -> Result<PathBuf> {
    let stage = module_stage(cache, workspace, &PROMETHEUS, PROMETHEUS.programs, &[])?;
    Ok(stage.path("promtool"))
}

/// cert-manager's controllers, and its CustomResourceDefinitions in one file.
pub(crate) fn cert_manager(cache: &Cache, workspace: &Workspace) -> Result<[(&'static str, PathBuf); 2]> {
    const CRDS: &str = "cert-manager-crds.yaml";
    let folder = workspace.path("hack/tools").join(CERT_MANAGER.name);
    let program = module_stage(cache, workspace, &CERT_MANAGER, CERT_MANAGER.programs, &[])?;
    let inputs = Inputs::new("cert-manager-crds", "the module's deploy/crds").file("go.mod", &folder.join("go.mod"))?;
    let crds = cache.stage("cert-manager-crds", inputs.finish(), |dir| {
        // In the cache since the program was built.
        let mut command = Command::new("go");
        let module = stdout_of(command.current_dir(&folder).args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", CERT_MANAGER_MODULE]))?;
        let mut files =
            std::fs::read_dir(Path::new(module.trim()).join("deploy/crds"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        let texts = files
            .iter()
            .map(|path| Ok(std::fs::read_to_string(path)?.trim().trim_start_matches("---").trim().to_owned()))
            .collect::<Result<Vec<_>>>()?;
        ensure!(!texts.is_empty(), "{CERT_MANAGER_MODULE} has no deploy/crds");
        std::fs::write(dir.join(CRDS), texts.join("\n---\n") + "\n").context("write cert-manager's CustomResourceDefinitions")
    })?;
    Ok([("cert-manager", program.path("cert-manager")), ("cert-manager-crds", crds.path(CRDS))])
}

/// Builds the wanted programs of one module.
fn module_stage(cache: &Cache, workspace: &Workspace, module: &Module, programs: &[(&str, &str)], installed: &[Package]) -> Result<Stage> {
    let folder = workspace.path("hack/tools").join(module.name);
    let arguments = arguments(module.linking, &folder)?;
    // The whole recipe is the command line, which is in the key; this file's text is not, because linking all again takes minutes.
    let own = folder.join("main.go");
    let mut inputs = Inputs::new(module.name, "go build")
        .text("go", &stdout_of(Command::new("go").arg("version").current_dir(&folder))?)
        .text("arguments", &arguments.join(" "))
        .text("programs", &format!("{programs:?}"))
        .file("go.mod", &folder.join("go.mod"))?
        .file("go.sum", &folder.join("go.sum"))?;
    if own.is_file() {
        inputs = inputs.file("main.go", &own)?;
    }
    if module.linking == Linking::Seccomp {
        for package in installed.iter().filter(|package| ["libseccomp-dev", "gcc", "libc6-dev"].contains(&package.name.as_str())) {
            inputs = inputs.text("C", &package.exact());
        }
    }
    cache.stage(module.name, inputs.finish(), |dir| compile(&folder, module.linking, &arguments, programs, dir))
}

/// etcd and the API server of a folder that has both, as the test tools of controller-runtime name it.
fn ready_made(assets: Option<&Path>) -> BTreeMap<&'static str, PathBuf> {
    let both = assets.map(|assets| ["etcd", "kube-apiserver"].map(|name| (name, assets.join(name))));
    both.filter(|both| both.iter().all(|(_, path)| path.is_file())).into_iter().flatten().collect()
}

fn arguments(linking: Linking, folder: &Path) -> Result<Vec<String>> {
    let mut arguments = vec!["build".to_owned(), "-trimpath".to_owned(), "-buildvcs=false".to_owned()];
    match linking {
        Linking::Pure => arguments.extend(["-ldflags", "-s -w"].map(str::to_owned)),
        Linking::Tagged(tag) => arguments.extend(["-tags", tag, "-ldflags", "-s -w"].map(str::to_owned)),
        Linking::Kubernetes => {
            let path = folder.join("go.mod");
            let go_mod = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let version =
                required_version(&go_mod, "k8s.io/kubernetes").with_context(|| format!("{} requires no k8s.io/kubernetes", path.display()))?;
            let stamp = |package: &str| format!("-X {package}.gitVersion={version}");
            let flags = format!("-s -w {} {}", stamp("k8s.io/component-base/version"), stamp("k8s.io/client-go/pkg/version"));
            arguments.extend(["-ldflags".to_owned(), flags]);
        }
        Linking::Seccomp => arguments.extend(
            ["-buildmode=pie", "-tags", "seccomp urfave_cli_no_docs netgo osusergo", "-ldflags", "-s -w -linkmode external -extldflags -static-pie"]
                .map(str::to_owned),
        ),
    }
    Ok(arguments)
}

fn compile(folder: &Path, linking: Linking, arguments: &[String], programs: &[(&str, &str)], dir: &Path) -> Result<()> {
    let mut command = Command::new("go");
    command.current_dir(folder).args(arguments).env("CGO_ENABLED", if linking == Linking::Seccomp { "1" } else { "0" });
    // A single package may have another name than its program.
    let output = if let [(name, _)] = programs { dir.join(name) } else { dir.join("") };
    stdout_of(command.arg("-o").arg(output).args(programs.iter().map(|(_, package)| package)))?;
    for (name, _) in programs {
        ensure!(dir.join(name).is_file(), "go build left no program {name} in {}", dir.display());
    }
    Ok(())
}

/// Pure: the version that a `go.mod` requires of a module.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    let mut lines = go_mod.lines().map(|line| line.trim().trim_start_matches("require ").trim());
    lines.find_map(|line| line.strip_prefix(module)?.strip_prefix(' ')?.split_whitespace().next().filter(|version| version.starts_with('v')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_required_version_is_that_of_the_module_itself() {
        let go_mod = "replace k8s.io/kubernetes => x\n\nrequire (\n\tk8s.io/kubernetes/extra v9.0.0\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n";
        assert_eq!(required_version(go_mod, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(required_version("require k8s.io/kubernetes v1.36.4\n", "k8s.io/kubernetes"), Some("v1.36.4"));
        assert_eq!(required_version(go_mod, "k8s.io/api"), None);
    }

    #[test]
    fn ready_made_binaries_count_only_if_both_are_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("etcd"), "").unwrap();
        assert!(ready_made(Some(folder.path())).is_empty());
        std::fs::write(folder.path().join("kube-apiserver"), "").unwrap();
        assert_eq!(ready_made(Some(folder.path())).len(), 2);
        assert!(ready_made(None).is_empty());
    }

    #[test]
    fn every_cni_plugin_is_a_program_that_is_built() {
        for plugin in CNI_PLUGINS {
            assert!(MODULES.iter().any(|module| module.programs.iter().any(|(name, _)| *name == plugin)), "{plugin}");
        }
    }
}
