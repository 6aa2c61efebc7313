//! I/O: the verbs of CNI as Multus carries them out over a pod's networks; each is the order of steps of the contract's table in the parent module.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::annotation::{self, Selection};
use super::cache::{self, Cache};
use super::cluster::{Cluster, PodFacts};
use super::delegate::{self, Allotment, Attachment, Delegate};
use super::plugin::Runner;
use super::status::{self, NetworkStatus};
use super::{Conf, DEFAULT_NETWORK, MULTUS_NAMESPACE, NETWORKS, PodRef, RESOURCE_NAME};

/// One call of the runtime.
#[derive(Debug, Clone)]
pub struct Request {
    /// Standard input.
    pub conf: Conf,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: Vec<std::path::PathBuf>,
}

impl Request {
    fn runner(&self) -> Runner {
        let mut path = vec![self.conf.bin_dir.clone()];
        path.extend(self.path.iter().filter(|folder| **folder != self.conf.bin_dir).cloned());
        Runner { path, container: self.container.clone(), netns: self.netns.clone() }
    }

    fn cache(&self) -> Result<Cache> {
        Cache::new(&self.conf.cni_dir, &self.container)
    }

    fn pod(&self) -> Result<PodRef> {
        PodRef::from_cni_args(&self.args).with_context(|| format!("find the pod: CNI_ARGS {:?} name none", self.args))
    }
}

/// Attaches the pod to all its networks; the result of the first.
pub fn add(request: &Request, cluster: &dyn Cluster) -> Result<Value> {
    let pod = request.pod()?;
    let Some(mut delegates) = delegates(request, &pod, cluster)? else {
        return Ok(empty_result(request));
    };
    let (runner, cache) = (request.runner(), request.cache()?);
    cache.save(&delegates)?;
    let mut statuses = Vec::new();
    for index in 0..delegates.len() {
        match attach(&runner, &mut delegates[index]) {
            Ok(status) => statuses.push(status),
            Err(error) => {
                // The failure that is reported is the first one; what cannot be undone now is undone by the runtime's DEL.
                let undone = detach(&runner, &delegates[..=index]);
                return Err(undone.into_iter().fold(error, |error, undo| error.context(format!("and could not undo it: {undo:#}"))));
            }
        }
        cache.save(&delegates)?;
    }
    cluster.publish(&pod, &statuses)?;
    let first = delegates.into_iter().next().and_then(|first| first.result);
    first.context("the first network gave no result")
}

/// Gives everything back. Goes on over failures and returns them together.
pub fn del(request: &Request, cluster: &dyn Cluster) -> Result<()> {
    let cache = request.cache()?;
    let delegates = match cache.load()? {
        Some(delegates) => delegates,
        None => delegates(request, &request.pod()?, cluster)?.unwrap_or_default(),
    };
    if !request.conf.retry_delete_on_error {
        cache.remove()?;
    }
    let failures: Vec<String> = detach(&request.runner(), &delegates).iter().map(|failure| format!("{failure:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    cache.remove()
}

/// Asks each plugin of each network whether all is as ADD left it.
pub fn check(request: &Request) -> Result<()> {
    let delegates = request.cache()?.load()?.with_context(|| format!("container {} was never added", request.container))?;
    let runner = request.runner();
    delegates.iter().try_for_each(|delegate| runner.check(delegate))
}

/// STATUS and GC reach only the first network's plugins. `extra` is what the verb adds to a configuration.
pub fn whole_network(request: &Request, verb: &str, extra: &Map<String, Value>) -> Result<()> {
    request.runner().whole_network(verb, &first_network(request)?, extra)
}

/// All networks of the pod, the first one first; `None` if the API does not know the pod.
fn delegates(request: &Request, pod: &PodRef, cluster: &dyn Cluster) -> Result<Option<Vec<Delegate>>> {
    let Some(facts) = cluster.pod(pod)? else { return Ok(None) };
    let mirrored = facts.annotations.contains_key("kubernetes.io/config.mirror");
    if let Some(uid) = pod.uid.as_ref().filter(|uid| **uid != facts.uid && !mirrored) {
        return Err(anyhow!("pod {}/{} has UID {:?}, the runtime asks for {uid:?}", pod.namespace, pod.name, facts.uid));
    }
    let selections = selections(&facts, NETWORKS, &pod.namespace)?;
    let interfaces = delegate::interfaces(&request.interface, &selections)?;
    let search = Search { request, pod, cluster };
    let mut delegates = vec![search.first(&facts)?];
    let mut allotment = None;
    for (selection, interface) in selections.iter().zip(&interfaces) {
        delegates.push(search.one(selection, interface, &mut allotment)?);
    }
    Ok(Some(delegates))
}

fn selections(facts: &PodFacts, annotation: &str, namespace: &str) -> Result<Vec<Selection>> {
    annotation::parse(facts.annotations.get(annotation).map(String::as_str).unwrap_or_default(), namespace)
}

/// One pod's networks being looked up.
struct Search<'a> {
    request: &'a Request,
    pod: &'a PodRef,
    cluster: &'a dyn Cluster,
}

impl Search<'_> {
    /// The cluster's network, or the NAD that the pod has in its place.
    fn first(&self, facts: &PodFacts) -> Result<Delegate> {
        let replacement = selections(facts, DEFAULT_NETWORK, MULTUS_NAMESPACE)?;
        ensure!(replacement.len() <= 1, "annotation {DEFAULT_NETWORK} names {} networks, one is allowed", replacement.len());
        let mut delegate = match replacement.first() {
            // Its devices are counted apart from those of the other networks, as in Multus.
            Some(selection) => self.one(selection, &self.request.interface, &mut None)?,
            None => first_network(self.request)?,
        };
        delegate.is_default = true;
        if replacement.is_empty() {
            self.request.interface.clone_into(&mut delegate.interface);
            delegate.cni_args = delegate::cni_args(self.pod, &self.request.container, None);
            delegate.runtime_config.clone_from(&self.request.conf.runtime_config);
        }
        Ok(delegate)
    }

    /// The delegate of one selected NAD. The devices of the pod are asked for when the first NAD needs one.
    fn one(&self, selection: &Selection, interface: &str, allotment: &mut Option<Allotment>) -> Result<Delegate> {
        let network = self.cluster.network(&selection.namespace, &selection.name)?;
        let config = match network.config.trim() {
            "" => config_from_disk(&self.request.conf.conf_dir, &selection.name)?,
            config => config.to_owned(),
        };
        let resource = network.annotations.get(RESOURCE_NAME);
        if resource.is_some() && allotment.is_none() {
            *allotment = Some(Allotment::new(self.cluster.devices(self.pod)?));
        }
        let device = resource.zip(allotment.as_mut()).and_then(|(resource, allotment)| Some((resource, allotment.next(resource)?)));
        let device = device.as_ref().map(|(resource, device)| (resource.as_str(), device.as_str()));
        let attachment = Attachment { selection, config: &config, device };
        delegate::attach(&attachment, self.pod, &self.request.container, interface, &self.request.conf.device_info_folder)
    }
}

fn first_network(request: &Request) -> Result<Delegate> {
    let path = &request.conf.cluster_network;
    let text = std::fs::read_to_string(path).with_context(|| format!("read the cluster network {}", path.display()))?;
    delegate::network(&text, "cluster-network")
}

/// The first file by name in the folder whose configuration has this name.
fn config_from_disk(folder: &Path, name: &str) -> Result<String> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {} for a configuration named {name:?}", folder.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known)));
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if serde_json::from_str::<Value>(&text).is_ok_and(|conf| conf["name"] == name) {
            return Ok(text);
        }
    }
    Err(anyhow!("{} has no configuration named {name:?}", folder.display()))
}

fn attach(runner: &Runner, delegate: &mut Delegate) -> Result<NetworkStatus> {
    if let Some((original, copy)) = &delegate.device_info {
        copy_device_info(original, copy)?;
    }
    delegate.result = Some(runner.add(delegate)?);
    let info = delegate.device_info.as_ref().and_then(|(_, copy)| std::fs::read(copy).ok());
    Ok(status::of(delegate, info.and_then(|text| serde_json::from_slice(&text).ok())))
}

/// The last network first. All failures.
fn detach(runner: &Runner, delegates: &[Delegate]) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    for delegate in delegates.iter().rev() {
        failures.extend(runner.del(delegate).err());
        if let Some((_, copy)) = &delegate.device_info {
            failures.extend(cache::remove(copy).err());
        }
    }
    failures
}

/// A device without information is fine: not every device plugin writes it.
fn copy_device_info(original: &Path, copy: &Path) -> Result<()> {
    let folder = copy.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    cache::remove(copy)?;
    match std::fs::copy(original, copy) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("copy {} to {}", original.display(), copy.display())),
        _ => Ok(()),
    }
}

/// What a runtime gets for a pod that was deleted before it could start. The address is one of those reserved for documentation.
fn empty_result(request: &Request) -> Value {
    json!({
        "cniVersion": request.conf.cni_version.as_deref().unwrap_or("1.0.0"),
        "interfaces": [{"name": request.interface, "sandbox": request.netns}],
        "ips": [{"address": "192.0.2.1/32", "interface": 0}],
    })
}
