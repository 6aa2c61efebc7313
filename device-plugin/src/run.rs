//! I/O: the loop: config file, machine and kubelet on one side, served pools on the other.
//!
//! Invariant: what is served is a function of the last good file and the last look at the machine. A file that cannot be read as a whole
//! changes nothing; a resource that is wrong is missing, and the others are served.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sriov_host::discover::DiscoverError;
use sriov_host::host_use::HostUse;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};

use crate::config::{self, Config};
use crate::kubelet::KUBELET_SOCKET;
use crate::machine::{Changes, Machine, Wants};
use crate::pod_resources::PodResources;
use crate::pool::{Health, Pool, PoolName};
use crate::select::{select, withheld};
use crate::server::{Node, Serving, folder_of};
use crate::socket::Identity;
use crate::watch::{Events, FolderWatch, WatchError};
use crate::whole_look::WholeLook;
use crate::{cdi, device_info};
use sriov_host::device_id::DeviceId;

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The config file.
    pub config_file: PathBuf,
    /// Prefix of resources that name none.
    pub resource_prefix: String,
    /// Made when the kubelet has taken the pools.
    pub ready_file: Option<PathBuf>,
}

/// What ends the process with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The machine's devices cannot be listed at all.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// A thread of this process died.
    #[error("failed to finish a look at the machine: {0}")]
    Join(#[from] JoinError),
}

/// A config file that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such file, or no permission.
    #[error("failed to read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Not this format.
    #[error(transparent)]
    Parse(#[from] config::ConfigError),
}

impl Settings {
    /// The config file as it is now.
    pub fn load(&self) -> Result<Config, LoadError> {
        let path = &self.config_file;
        let text = fs::read_to_string(path).map_err(|cause| LoadError::Read { path: path.clone(), cause })?;
        Ok(config::parse(&path.display().to_string(), &text, &self.resource_prefix)?)
    }
}

/// Serves until `stop` is ready, then removes its sockets.
pub async fn run(settings: Settings, node: Arc<Node>, pods: Option<PodResources>, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut config_folder = FolderWatch::start(folder_of(&settings.config_file))?;
    let mut socket_folder = FolderWatch::start(&node.sockets)?;
    let mut journals = FolderWatch::start(&node.claims.journals())?;
    let mut events = Events::listen();
    let ready_file = settings.ready_file.clone();
    if let Some(file) = &ready_file {
        // A container that starts again finds that of the one before.
        let _ = fs::remove_file(file);
    }
    let mut plugin = Plugin::start(settings, node, pods).await?;
    if let Some(file) = ready_file {
        tokio::spawn(tell_ready(file, plugin.serving.values().map(Serving::taken).collect()));
    }
    let mut stop = std::pin::pin!(stop);
    loop {
        let mut changes = Changes::default();
        let mut loaded = false;
        let mut found = None;
        tokio::select! {
            () = &mut stop => break,
            told = config_folder.changed() => {
                told?;
                loaded = plugin.load();
            }
            () = events.ready() => {}
            looked = plugin.whole.found() => found = Some(looked),
            told = journals.changed() => {
                told?;
                changes.claims = true;
            }
            told = socket_folder.changed() => {
                told?;
                plugin.serve_sockets();
            }
        }
        // What the file is about happened before it was written, and was announced by then.
        events.drain(&mut changes);
        // A VF may have come into another pool, where it must not be offered while a pod has it; the journal's own event may come after this one.
        changes.claims |= loaded;
        let sweep = changes.claims;
        plugin.whole.note(&changes);
        if let Some(found) = found {
            changes = plugin.adopt(found?, changes);
        }
        plugin.follow(changes).await?;
        if loaded || plugin.whole.is_due() {
            // The new pools are offered by now. This finds what no event told.
            plugin.look_whole();
        }
        if sweep {
            plugin.sweep().await;
        }
    }
    plugin.stop();
    Ok(())
}

/// All that this program knows.
struct Plugin {
    settings: Settings,
    node: Arc<Node>,
    pods: Option<PodResources>,
    /// The last good file.
    config: Arc<Config>,
    /// Why the file is not taken, to say it once.
    refused: Option<String>,
    /// Looked at on threads for blocking calls, one at a time.
    machine: Arc<Mutex<Machine>>,
    whole: WholeLook,
    /// What is not offered because the host uses it, to say it once.
    withheld: BTreeMap<DeviceId, HostUse>,
    /// The kubelet with which the pools are registered.
    kubelet: Option<Identity>,
    serving: BTreeMap<PoolName, Serving>,
}

/// What a look at the machine leads to.
struct Offer {
    pools: Vec<Pool>,
    withheld: BTreeMap<DeviceId, HostUse>,
    /// VFs that are gone from the machine and that pods have.
    orphans: Vec<DeviceId>,
}

impl Plugin {
    async fn start(settings: Settings, node: Arc<Node>, pods: Option<PodResources>) -> Result<Self, RunError> {
        // What the file asks for decides how closely is looked. A change from now on wakes the loop.
        let loaded = settings.load();
        let wants = loaded.as_ref().map(|config| Wants::of(&config.pools)).unwrap_or_default();
        let (host, claims) = (node.host.clone(), node.claims.clone());
        let machine = Arc::new(Mutex::new(spawn_blocking(move || Machine::look(host, claims, wants)).await??));
        let kubelet = Identity::of(&node.sockets.join(KUBELET_SOCKET));
        let (config, withheld, serving) = (Arc::new(Config::default()), BTreeMap::new(), BTreeMap::new());
        let mut plugin = Self { settings, node, pods, config, refused: None, machine, whole: WholeLook::default(), withheld, kubelet, serving };
        plugin.take(loaded);
        plugin.follow(Changes::default()).await?;
        plugin.sweep().await;
        Ok(plugin)
    }

    /// Reads the file again, and keeps the last good one if it cannot be read. Whether there is a file to follow.
    fn load(&mut self) -> bool {
        let loaded = self.settings.load();
        self.take(loaded)
    }

    fn take(&mut self, loaded: Result<Config, LoadError>) -> bool {
        match loaded {
            Ok(config) => {
                self.refused = None;
                self.node.metrics.loaded(config.errors.len(), false);
                if config != *self.config {
                    for error in config.errors.iter().filter(|error| !self.config.errors.contains(error)) {
                        tracing::error!(%error, "left out a resource");
                    }
                    tracing::info!(resources = config.pools.len(), left_out = config.errors.len(), "read the config file");
                    self.config = Arc::new(config);
                }
                true
            }
            Err(error) => {
                let reason = error.to_string();
                if self.refused.as_ref() != Some(&reason) {
                    tracing::error!(error = %reason, "the config file is not taken, the resources stay as they are");
                    self.node.metrics.loaded(0, true);
                    self.refused = Some(reason);
                }
                false
            }
        }
    }

    fn look_whole(&mut self) {
        let (host, claims, wants) = (self.node.host.clone(), self.node.claims.clone(), Wants::of(&self.config.pools));
        self.whole.start(move || Machine::look(host, claims, wants));
    }

    /// Takes what a whole look found, and gives what is to be looked at again: all that was told since it began.
    fn adopt(&mut self, looked: Result<Machine, DiscoverError>, later: Changes) -> Changes {
        let mut changes = self.whole.told();
        changes.add(later);
        match looked {
            Ok(found) => *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = found,
            Err(error) => tracing::error!(%error, "failed to look at the machine, its devices stay as they were"),
        }
        changes
    }

    /// Looks at what changed and offers what follows from it. A look that fails leaves all as it was.
    async fn follow(&mut self, changes: Changes) -> Result<(), JoinError> {
        let (machine, config) = (self.machine.clone(), self.config.clone());
        let look = move || {
            let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
            machine.refresh(changes, Wants::of(&config.pools))?;
            let facts = machine.facts();
            let orphans =
                facts.held.keys().filter(|address| !facts.functions.contains_key(address)).map(|address| DeviceId::from(*address)).collect();
            Ok::<_, DiscoverError>(Offer { pools: select(&config.pools, facts), withheld: withheld(&config.pools, facts), orphans })
        };
        match spawn_blocking(look).await? {
            Ok(offer) => self.serve(offer),
            Err(error) => tracing::error!(%error, "failed to look at the machine, its devices stay as they were"),
        }
        Ok(())
    }

    /// Brings what is served in line with what is known. Safe to repeat: it changes only what differs.
    fn serve(&mut self, offer: Offer) {
        let gone: Vec<PoolName> = self.serving.keys().filter(|name| offer.pools.iter().all(|pool| pool.name != **name)).cloned().collect();
        for name in gone {
            self.retire(&name);
        }
        for (device, reason) in offer.withheld.iter().filter(|(device, reason)| self.withheld.get(device) != Some(reason)) {
            tracing::warn!(%device, %reason, "not offered, the host uses it");
        }
        self.withheld = offer.withheld;
        for mut pool in offer.pools {
            if let Some(serving) = self.serving.get(&pool.name) {
                let before = serving.pool();
                let orphans = offer.orphans.iter().filter_map(|id| Some((*id, before.devices.get(id)?.clone())));
                pool.devices.extend(orphans.map(|(id, device)| (id, crate::pool::Device { health: Health::Vanished, ..device })));
                if serving.offer(pool) {
                    tell(&serving.pool(), Some(&before));
                }
            } else {
                tell(&pool, None);
                self.serving.insert(pool.name.clone(), Serving::new(self.node.clone(), pool));
            }
        }
        let pools: Vec<Arc<Pool>> = self.serving.values().map(Serving::pool).collect();
        self.node.metrics.offered(pools.iter().map(Arc::as_ref), self.withheld.len());
        self.serve_sockets();
    }

    /// Makes sockets that are missing, and registers with a kubelet that is new.
    fn serve_sockets(&mut self) {
        // Read before sockets are made, so that a kubelet that starts in between is a new one at the next look.
        let kubelet = Identity::of(&self.node.sockets.join(KUBELET_SOCKET));
        let restarted = kubelet.is_some() && kubelet != self.kubelet;
        for (name, serving) in &mut self.serving {
            match serving.ensure_bound() {
                Ok(false) if restarted => serving.register_again(),
                Ok(_) => {}
                Err(error) => tracing::error!(pool = %name, %error, "failed to open the pool's socket"),
            }
        }
        self.kubelet = kubelet.or(self.kubelet.take());
    }

    fn retire(&mut self, name: &PoolName) {
        if let Some(serving) = self.serving.remove(name) {
            tracing::info!(pool = %name, "retiring the pool");
            if let Err(error) = serving.retire() {
                tracing::warn!(pool = %name, %error, "failed to remove the pool's socket");
            }
        }
    }

    /// Removes the files of devices that no container has, and of pools that nobody needs: only when the kubelet says who has what.
    async fn sweep(&self) {
        let Some(pods) = &self.pods else { return };
        let owners = match pods.owners().await {
            Ok(owners) => owners,
            Err(status) => {
                tracing::debug!(error = status.message(), "the kubelet does not tell which pods have which devices, no file is removed");
                return;
            }
        };
        let stems: Vec<(String, &String)> = owners.keys().map(|(resource, id)| (resource.replace('/', "-"), id)).collect();
        match device_info::sweep(&self.node.device_info, |stem, id| stems.iter().any(|(pool, device)| pool == stem && *device == id)) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed device-info files of devices that no container has"),
            Err(error) => tracing::warn!(%error, "failed to remove a device-info file"),
        }
        if let Some(folder) = &self.node.cdi {
            let is_needed = |stem: &str| self.serving.keys().any(|name| name.stem() == stem) || stems.iter().any(|(pool, _)| pool == stem);
            if let Err(error) = cdi::sweep(folder, is_needed) {
                tracing::warn!(%error, "failed to remove a CDI spec");
            }
        }
    }

    fn stop(self) {
        for (name, serving) in &self.serving {
            if let Err(error) = serving.unlink() {
                tracing::warn!(pool = %name, %error, "failed to remove the pool's socket");
            }
        }
    }
}

/// Makes the file when the kubelet has taken all these pools; one that has gone meanwhile is not waited for.
async fn tell_ready(file: PathBuf, pools: Vec<watch::Receiver<bool>>) {
    for mut taken in pools {
        let _ = taken.wait_for(|taken| *taken).await;
    }
    if let Err(error) = fs::write(&file, "") {
        tracing::error!(file = %file.display(), %error, "failed to make the file that says that all pools are registered");
    }
}

/// One line a change of a pool, and one for each device that became unusable or usable again, or went.
fn tell(pool: &Pool, before: Option<&Pool>) {
    tracing::info!(pool = %pool.name, devices = pool.devices.len(), healthy = pool.healthy(), "offering");
    let known = |address| before.and_then(|before| before.devices.get(address)).map(|device| &device.health);
    for (address, device) in &pool.devices {
        if device.health != Health::Healthy && known(address) != Some(&device.health) {
            tracing::warn!(pool = %pool.name, device = %address, reason = %device.health, "unhealthy");
        }
        if device.health == Health::Healthy && known(address).is_some_and(|before| *before != Health::Healthy) {
            tracing::info!(pool = %pool.name, device = %address, "healthy again");
        }
    }
    for address in before.into_iter().flat_map(|before| before.devices.keys()).filter(|address| !pool.devices.contains_key(address)) {
        tracing::info!(pool = %pool.name, device = %address, "no longer in the pool");
    }
}
