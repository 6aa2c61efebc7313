//! I/O: runs CNI plugins as libcni does: one process each, configuration on standard input, result or error on standard output (CNI §2 to §4).
//! What is in a configuration is decided in `delegate`.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::delegate::{Delegate, plugin_config};

/// What all plugins of one request have in common.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Folders that are searched for programs, in order.
    pub path: Vec<PathBuf>,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; empty at DEL when the namespace is gone.
    pub netns: String,
}

impl Runner {
    /// Runs the network's plugins in order, each with the result of the one before, and returns the last result.
    pub fn add(&self, delegate: &Delegate) -> Result<Value> {
        let mut result = None;
        for index in 0..delegate.plugins.len() {
            let config = plugin_config(delegate, index, result.as_ref())?;
            let output = self.run("ADD", delegate, &config)?;
            result = Some(serde_json::from_slice(&output).with_context(|| format!("parse the result of network {:?}", delegate.name))?);
        }
        result.with_context(|| format!("network {:?} has no plugin", delegate.name))
    }

    /// Runs the network's plugins in the opposite order; the first failure ends it, as in libcni.
    pub fn del(&self, delegate: &Delegate) -> Result<()> {
        (0..delegate.plugins.len()).rev().try_for_each(|index| self.with_result("DEL", delegate, index))
    }

    /// Runs CHECK of each plugin, unless the network says `disableCheck` or is older than the verb.
    pub fn check(&self, delegate: &Delegate) -> Result<()> {
        if delegate.disable_check || !since(delegate, (0, 4)) {
            return Ok(());
        }
        (0..delegate.plugins.len()).try_for_each(|index| self.with_result("CHECK", delegate, index))
    }

    /// Runs STATUS or GC of each plugin of a network that is new enough to know them; `extra` enters each configuration.
    pub fn whole_network(&self, verb: &str, delegate: &Delegate, extra: &Map<String, Value>) -> Result<()> {
        if !since(delegate, (1, 1)) {
            return Ok(());
        }
        for index in 0..delegate.plugins.len() {
            let mut config = plugin_config(delegate, index, None)?;
            config.extend(extra.clone());
            self.run(verb, delegate, &config)?;
        }
        Ok(())
    }

    fn with_result(&self, verb: &str, delegate: &Delegate, index: usize) -> Result<()> {
        let previous = delegate.result.as_ref().filter(|_| since(delegate, (0, 4)));
        self.run(verb, delegate, &plugin_config(delegate, index, previous)?).map(drop)
    }

    /// One process. An error has the plugin's own words.
    fn run(&self, verb: &str, delegate: &Delegate, config: &Map<String, Value>) -> Result<Vec<u8>> {
        let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let what = format!("{verb} of plugin {kind:?} for network {:?}, interface {:?}", delegate.network, delegate.interface);
        let program = self.path.iter().map(|folder| folder.join(&kind)).find(|program| program.is_file());
        let program = program.with_context(|| format!("{what}: no such program in {:?}", self.path))?;
        let path = std::env::join_paths(&self.path).context("join the plugin folders into CNI_PATH")?;
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", path).env("CNI_CONTAINERID", &self.container).env("CNI_NETNS", &self.netns);
        command.env("CNI_IFNAME", &delegate.interface).env("CNI_ARGS", &delegate.cni_args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{what}: start it"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let text = serde_json::to_vec(config).with_context(|| format!("{what}: encode its configuration"))?;
            match stdin.write_all(&text) {
                // A plugin that fails early need not read what it was given; its exit status tells the story.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => bail!("{what}: write its configuration: {error}"),
                _ => {}
            }
        }
        let output = child.wait_with_output().with_context(|| format!("{what}: wait for it"))?;
        if !output.status.success() {
            bail!("{what}: {}", complaint(&output.stdout, &output.stderr).unwrap_or_else(|| output.status.to_string()));
        }
        Ok(output.stdout)
    }
}

/// Pure: the plugin's error (CNI §5, "Error"), or else what it wrote to standard error.
fn complaint(stdout: &[u8], stderr: &[u8]) -> Option<String> {
    let error: Value = serde_json::from_slice(stdout).unwrap_or_default();
    if let Some(message) = error["msg"].as_str() {
        let details = error["details"].as_str().filter(|details| !details.is_empty());
        return Some(format!("{message}{} (code {})", details.map(|details| format!("; {details}")).unwrap_or_default(), error["code"]));
    }
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned()).join("\n");
    Some(said.trim().to_owned()).filter(|said| !said.is_empty())
}

/// Pure: whether the network's CNI version has what came with `first`.
fn since(delegate: &Delegate, first: (u32, u32)) -> bool {
    let version = delegate.cni_version.as_deref().unwrap_or("0.1.0");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= first
}

#[cfg(test)]
mod tests {
    use super::super::delegate::network;
    use super::*;

    #[test]
    fn a_complaint_is_the_plugins_own_words() {
        let error = br#"{"cniVersion":"1.0.0","code":11,"msg":"VF is in use","details":"by container c2"}"#;
        assert_eq!(complaint(error, b"noise").unwrap(), "VF is in use; by container c2 (code 11)");
        assert_eq!(complaint(b"", b"cannot execute\n").unwrap(), "cannot execute");
        assert_eq!(complaint(b"", b" \n"), None);
    }

    #[test]
    fn verbs_are_used_from_the_version_that_has_them() {
        for (version, check, status) in [("0.3.1", false, false), ("0.4.0", true, false), ("1.0.0", true, false), ("1.1.0", true, true)] {
            let delegate = network(&format!(r#"{{"type":"x","cniVersion":"{version}"}}"#), "n").unwrap();
            assert_eq!((since(&delegate, (0, 4)), since(&delegate, (1, 1))), (check, status), "{version}");
        }
        assert!(!since(&network(r#"{"type":"x"}"#, "n").unwrap(), (0, 4)));
    }
}
