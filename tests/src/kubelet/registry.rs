//! I/O: the part of the kubelet's stand-in that watches `plugins_registry` (`pkg/kubelet/pluginmanager`).
//!
//! Invariant: as in the real one, a name that appears (or is replaced) is a new plugin: what is registered under that name is
//! deregistered first. It looks by polling, faster than the real one's reconciler, which looks once a second.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sriov_device_plugin::api::{deviceplugin_v1beta1 as v1beta1, pluginregistration_v1 as v1};
use tonic::transport::Endpoint;
use v1::registration_client::RegistrationClient;

use super::Shared;

const EVERY: Duration = Duration::from_millis(10);

/// Which file is behind a name. A name that was away and came back has another time of change.
type Seen = (u64, i64, i64);

/// Registers what appears in the folder, and deregisters what goes.
pub(super) async fn follow(shared: Arc<Shared>, folder: PathBuf) {
    let mut seen: BTreeMap<PathBuf, (Seen, String)> = BTreeMap::new();
    loop {
        let now = sockets(&folder);
        let gone: Vec<PathBuf> = seen.iter().filter(|(path, (file, _))| now.get(*path) != Some(file)).map(|(path, _)| path.clone()).collect();
        for path in gone {
            if let Some((_, name)) = seen.remove(&path) {
                shared.disconnect(&name);
            }
        }
        for (path, file) in now {
            if !seen.contains_key(&path)
                && let Ok(name) = register(&shared, &path).await
            {
                seen.insert(path, (file, name));
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    let socket = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(|metadata| metadata.file_type().is_socket())?;
        Some((entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())))
    };
    visible.filter_map(socket).collect()
}

/// The name of what is behind a socket, once it is registered; refused, it is told so.
async fn register(shared: &Arc<Shared>, path: &Path) -> Result<String> {
    let channel = Endpoint::from_shared(format!("unix:{}", path.display()))?.connect().await?;
    let mut plugin = RegistrationClient::new(channel);
    let info = plugin.get_info(v1::InfoRequest {}).await?.into_inner();
    ensure!(info.r#type == "DevicePlugin" && info.supported_versions.contains(&"v1beta1".to_owned()), "{info:?}");
    let endpoint = if info.endpoint.is_empty() { path.display().to_string() } else { info.endpoint.clone() };
    let refused = shared.refusals.send_if_modified(|left| {
        let refuse = *left > 0;
        *left = left.saturating_sub(1);
        refuse
    });
    let request = v1beta1::RegisterRequest { version: "v1beta1".to_owned(), endpoint, resource_name: info.name.clone(), options: None };
    let outcome = if refused { Err(tonic::Status::unavailable("not now")) } else { shared.connect_client(request).await };
    let error = outcome.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
    plugin.notify_registration_status(v1::RegistrationStatus { plugin_registered: outcome.is_ok(), error }).await?;
    outcome.context("the plugin was refused")?;
    Ok(info.name)
}
