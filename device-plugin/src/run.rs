//! I/O: the loop: config file, machine and kubelet on one side, served pools on the other.
//!
//! Invariant: what is served is a function of the last good file and the last look at the machine. A file that cannot be read as a whole
//! changes nothing; a resource that is wrong is missing, and the others are served.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sriov_host::Host;
use sriov_host::discover::{self, DiscoverError, NetFacts};
use sriov_host::inventory::Inventory;
use sriov_host::netlink::Route;
use tokio::sync::Notify;

use crate::config::{self, Config};
use crate::kubelet::KUBELET_SOCKET;
use crate::pool::{Health, Pool, PoolName};
use crate::select::select;
use crate::server::{Identity, Node, Serving, folder_of};
use crate::watch::{self, FolderWatch, WatchError};

/// What the command line decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The config file.
    pub config_file: PathBuf,
    /// Prefix of resources that name none.
    pub resource_prefix: String,
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
    Join(#[from] tokio::task::JoinError),
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
pub async fn run(settings: Settings, node: Arc<Node>, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut config_folder = FolderWatch::start(folder_of(&settings.config_file))?;
    let mut socket_folder = FolderWatch::start(&node.sockets)?;
    let devices = watch::devices().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot hear of device changes, the machine is looked at when the config file changes");
        Arc::new(Notify::new())
    });
    let mut plugin = Plugin::start(settings, node).await?;
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            changed = config_folder.changed() => {
                changed?;
                plugin.load();
                // The file is written when its devices are ready, and that may be before their events are read here.
                plugin.look().await?;
            }
            () = devices.notified() => plugin.look().await?,
            changed = socket_folder.changed() => changed?,
        }
        plugin.serve();
    }
    plugin.stop();
    Ok(())
}

/// All that this program knows.
struct Plugin {
    settings: Settings,
    node: Arc<Node>,
    /// The last good file.
    config: Config,
    /// Why the file is not taken, to say it once.
    refused: Option<String>,
    /// The last look.
    inventory: Inventory,
    /// The kubelet with which the pools are registered.
    kubelet: Option<Identity>,
    serving: BTreeMap<PoolName, Serving>,
}

impl Plugin {
    async fn start(settings: Settings, node: Arc<Node>) -> Result<Self, RunError> {
        let inventory = inventory(&node).await??;
        let kubelet = Identity::of(&node.sockets.join(KUBELET_SOCKET));
        let (config, serving) = (Config::default(), BTreeMap::new());
        let mut plugin = Self { settings, node, config, refused: None, inventory, kubelet, serving };
        plugin.load();
        plugin.serve();
        Ok(plugin)
    }

    /// Reads the file again, and keeps the last good one if it cannot be read.
    fn load(&mut self) {
        match self.settings.load() {
            Ok(config) => {
                self.refused = None;
                if config == self.config {
                    return;
                }
                for error in config.errors.iter().filter(|error| !self.config.errors.contains(error)) {
                    tracing::error!(%error, "left out a resource");
                }
                tracing::info!(resources = config.pools.len(), left_out = config.errors.len(), "read the config file");
                self.config = config;
            }
            Err(error) => {
                let reason = error.to_string();
                if self.refused.as_ref() != Some(&reason) {
                    tracing::error!(error = %reason, "the config file is not taken, the resources stay as they are");
                    self.refused = Some(reason);
                }
            }
        }
    }

    /// Looks at the machine again, and keeps the last look if it cannot.
    async fn look(&mut self) -> Result<(), RunError> {
        match inventory(&self.node).await? {
            Ok(inventory) => self.inventory = inventory,
            Err(error) => tracing::error!(%error, "failed to look at the machine, its devices stay as they were"),
        }
        Ok(())
    }

    /// Brings what is served in line with what is known. Safe to repeat: it changes only what differs.
    fn serve(&mut self) {
        let pools = select(&self.config.pools, &self.inventory);
        let wanted: Vec<PoolName> = pools.iter().map(|pool| pool.name.clone()).collect();
        let gone: Vec<PoolName> = self.serving.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for name in gone {
            self.retire(&name);
        }
        // Read before sockets are made, so that a kubelet that starts in between is a new one at the next look.
        let kubelet = Identity::of(&self.node.sockets.join(KUBELET_SOCKET));
        let restarted = kubelet.is_some() && kubelet != self.kubelet;
        for pool in pools {
            if let Some(serving) = self.serving.get(&pool.name) {
                let before = serving.pool();
                if serving.offer(pool) {
                    tell(&serving.pool(), Some(&before));
                }
            } else {
                tell(&pool, None);
                self.serving.insert(pool.name.clone(), Serving::new(self.node.clone(), pool));
            }
        }
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

    fn stop(self) {
        for (name, serving) in &self.serving {
            if let Err(error) = serving.unlink() {
                tracing::warn!(pool = %name, %error, "failed to remove the pool's socket");
            }
        }
    }
}

async fn inventory(node: &Arc<Node>) -> Result<Result<Inventory, DiscoverError>, tokio::task::JoinError> {
    let node = node.clone();
    tokio::task::spawn_blocking(move || look(&node.host)).await
}

/// The machine now. Neither VF attributes nor eswitch modes are asked for: no selector needs them, and some drivers answer for their VFs slowly.
pub fn look(host: &Host) -> Result<Inventory, DiscoverError> {
    let facts = NetFacts { links: Route::open()?.links()?, ..NetFacts::default() };
    let survey = discover::survey_with(host, &facts)?;
    for (device, error) in &survey.faults {
        tracing::warn!(%device, %error, "left out a device");
    }
    Ok(survey.inventory)
}

/// One line a change of a pool, and one for each device that became unusable.
fn tell(pool: &Pool, before: Option<&Pool>) {
    tracing::info!(pool = %pool.name, devices = pool.devices.len(), healthy = pool.healthy(), "offering");
    for (address, device) in &pool.devices {
        let known = before.and_then(|before| before.devices.get(address)).map(|device| &device.health);
        if device.health != Health::Healthy && known != Some(&device.health) {
            tracing::warn!(pool = %pool.name, device = %address, reason = %device.health, "unhealthy");
        }
    }
}
