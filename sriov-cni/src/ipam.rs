//! I/O: what a delegated IPAM plugin is asked and what its answers mean. Running it is `io`'s.

use std::path::Path;

use serde_json::Value;

use crate::Context;
use crate::conf::plugin_of;
use crate::io::{DelegateError, Delegation};
use crate::log::Level;
use crate::request::Command;
use crate::result::{CniResult, ResultError};
use crate::state::Store;

/// An IPAM plugin that did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// It could not be run, or failed without a CNI error.
    #[error("IPAM: {0}")]
    Run(#[from] DelegateError),
    /// It answered with a CNI error, whose code is handed on.
    #[error("IPAM plugin {plugin} refused {verb} (code {code}): {message}")]
    Refused {
        /// The plugin.
        plugin: String,
        /// The verb.
        verb: &'static str,
        /// Its code.
        code: u64,
        /// Its message and details.
        message: String,
    },
    /// Its result can't be read.
    #[error("IPAM plugin {plugin}: {cause}")]
    Result {
        /// The plugin.
        plugin: String,
        /// Why.
        cause: ResultError,
    },
    /// Its result holds no address.
    #[error("IPAM plugin {plugin} gave no address")]
    NoAddress {
        /// The plugin.
        plugin: String,
    },
}

/// Whose addresses a call is about.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// Container id.
    pub container_id: &'a str,
    /// Interface name.
    pub if_name: &'a str,
    /// Network namespace, if it is known.
    pub netns: Option<&'a Path>,
    /// `ipam` of the configuration that it was made with, where that may be another than the call's.
    pub ipam: Option<&'a Value>,
}

impl<'a> Attachment<'a> {
    /// The attachment that the call itself is about.
    pub(crate) fn of(ctx: &'a Context<'_>) -> Self {
        Self { container_id: &ctx.request.container_id, if_name: &ctx.request.if_name, netns: ctx.request.netns.as_deref(), ipam: None }
    }
}

/// Asks for addresses. They belong to the only interface of the result.
pub(crate) fn add(ctx: &Context<'_>, plugin: &str) -> Result<CniResult, IpamError> {
    let printed = call(ctx, plugin, Command::Add, Attachment::of(ctx))?;
    let decode = || CniResult::decode(&serde_json::from_slice::<Value>(&printed)?);
    let mut result = decode().map_err(|cause| IpamError::Result { plugin: plugin.to_owned(), cause })?;
    if result.ips.is_empty() {
        return Err(IpamError::NoAddress { plugin: plugin.to_owned() });
    }
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    Ok(result)
}

/// Calls the plugin for one verb and returns what it printed.
pub(crate) fn call(ctx: &Context<'_>, plugin: &str, command: Command, attachment: Attachment<'_>) -> Result<Vec<u8>, IpamError> {
    let Attachment { container_id, if_name, netns, ipam } = attachment;
    let other = ipam.filter(|ipam| ctx.conf.wire().get("ipam") != Some(*ipam)).map(|ipam| {
        let mut conf = ctx.conf.wire().clone();
        conf.insert("ipam".to_owned(), ipam.clone());
        Value::Object(conf).to_string().into_bytes()
    });
    let conf = other.as_deref().unwrap_or(&ctx.request.stdin);
    let delegation = Delegation { plugin, command, container_id, if_name, netns, args: &ctx.request.args, path: &ctx.request.path, conf };
    let printed = ctx.deadline.paused(|| ctx.io.delegate(&delegation)).map_err(|error| refusal(plugin, command, error))?;
    if command == Command::Del
        && let Err(error) = Store::at(&ctx.conf.state_dir).settled(container_id, if_name)
    {
        // It will be asked once more, which changes nothing.
        ctx.log.write(Level::Warning, &error);
    }
    Ok(printed)
}

/// Asks the plugin that gave an attachment its addresses to take them back: by the configuration that the attachment was made with, else by the
/// call's. Without either there are none.
pub(crate) fn take_back(ctx: &Context<'_>, attachment: Attachment<'_>) -> Result<(), IpamError> {
    let then = attachment.ipam.and_then(plugin_of);
    match then.as_ref().or(ctx.conf.ipam.as_ref()) {
        Some(plugin) => call(ctx, plugin, Command::Del, attachment).map(drop),
        None => Ok(()),
    }
}

/// As [`call`] for a verb that plugins from before CNI 1.1 do not know, which says nothing about their health: they answer with error 1 or 4.
pub(crate) fn call_if_known(ctx: &Context<'_>, plugin: &str, command: Command) -> Result<(), IpamError> {
    let whole_network = Attachment { container_id: "", if_name: "", netns: None, ipam: None };
    match call(ctx, plugin, command, whole_network) {
        Ok(_) | Err(IpamError::Refused { code: 1 | 4, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A failure with the CNI error that the plugin printed, if it printed one.
fn refusal(plugin: &str, command: Command, error: DelegateError) -> IpamError {
    let DelegateError::Failed { stdout, .. } = &error else { return IpamError::Run(error) };
    let Ok(printed) = serde_json::from_slice::<Value>(stdout) else { return IpamError::Run(error) };
    let Some(code) = printed.get("code").and_then(Value::as_u64) else { return IpamError::Run(error) };
    let texts = ["msg", "details"].map(|key| printed.get(key).and_then(Value::as_str).unwrap_or_default());
    let message = texts.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
    IpamError::Refused { plugin: plugin.to_owned(), verb: command.as_str(), code, message }
}
