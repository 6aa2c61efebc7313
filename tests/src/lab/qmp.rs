//! I/O: QEMU's monitor: restart a guest from outside, unplug and plug devices.
//!
//! What lives here: one command over the monitor's socket. What does not: what a test means by it.
//!
//! Invariant: one connection carries one command, so a test that fails in between leaves no half-read monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers at once; a longer silence means that it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// The monitor of one guest.
#[derive(Debug, Clone)]
pub struct Monitor {
    socket: PathBuf,
}

impl Monitor {
    /// The monitor behind this socket.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Carries out one command and gives what it returns.
    pub fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let stream = UnixStream::connect(&self.socket).with_context(|| format!("connect to QEMU's monitor {}", self.socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        call(&stream, &mut reader, "qmp_capabilities", &json!({}))?;
        call(&stream, &mut reader, command, arguments)
    }

    /// Restarts the guest without warning, as a power switch does.
    pub fn reset(&self) -> Result<()> {
        self.execute("system_reset", &json!({})).map(drop)
    }

    /// Asks the guest to give up a device; it does so some time later.
    pub fn unplug(&self, device_id: &str) -> Result<()> {
        self.execute("device_del", &json!({ "id": device_id })).map(drop)
    }

    /// Plugs a device; `arguments` as for `device_add`.
    pub fn plug(&self, arguments: &Value) -> Result<()> {
        self.execute("device_add", arguments).map(drop)
    }
}

fn call(mut stream: &UnixStream, reader: &mut impl BufRead, command: &str, arguments: &Value) -> Result<Value> {
    writeln!(stream, "{}", json!({ "execute": command, "arguments": arguments }))?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor during {command}");
        }
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("read QEMU's answer to {command}: {line}"))?;
        if let Some(value) = answer.get("return") {
            return Ok(value.clone());
        }
        if let Some(error) = answer.get("error") {
            bail!("QEMU refused {command} {arguments}: {error}");
        }
        // Anything else is an event, which nobody here waits for.
    }
}
