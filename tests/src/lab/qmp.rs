//! I/O: QEMU's monitor: restart a guest from outside, unplug and plug devices.
//!
//! What lives here: one command over the monitor's socket, and telling a fault of the emulation from one of the guest. What does not: what a test means
//! by a command.
//!
//! Invariant: one connection carries one command, so a test that fails in between leaves no half-read monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
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

impl Monitor {
    /// Whether the emulation has lost the acknowledgement of an interrupt on a processor: it sleeps and waits for interrupts while its local APIC still
    /// holds one as in service, so that none of the same or a lower class is ever delivered again. No guest can bring that about: its interrupt handlers
    /// do not sleep. Seen with QEMU 10.0 without hardware virtualisation.
    pub fn lost_acknowledgement(&self, processor: u8) -> Result<Option<String>> {
        let ask = |line: &str| {
            let answer = self.execute("human-monitor-command", &json!({ "command-line": line, "cpu-index": processor }))?;
            Ok::<_, anyhow::Error>(answer.as_str().unwrap_or_default().to_owned())
        };
        // More than once, so that nothing that only passes by counts.
        for _ in 0..3 {
            if stuck(&ask("info registers")?, &ask("info lapic")?).is_none() {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(stuck(&ask("info registers")?, &ask("info lapic")?))
    }
}

/// Pure: the vectors in service on a processor that sleeps with interrupts on; `None` if it does not sleep or none is in service.
fn stuck(registers: &str, apic: &str) -> Option<String> {
    let value = |name: &str| registers.split_whitespace().find_map(|word| word.strip_prefix(name));
    let sleeps = value("HLT=") == Some("1");
    let interrupts_on = value("RFL=").and_then(|flags| u64::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 0x200 != 0);
    let in_service = apic.lines().find_map(|line| line.strip_prefix("ISR"))?.trim();
    (sleeps && interrupts_on && in_service.starts_with(|c: char| c.is_ascii_digit())).then(|| in_service.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEPS: &str = "RIP=ffffffffa04e5fff RFL=00000212 [----A--] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n";
    const RUNS: &str = "RIP=ffffffffa04e5fff RFL=00000212 [----A--] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n";
    const MASKED: &str = "RIP=ffffffffa04e5fff RFL=00000012 [----A--] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n";

    #[test]
    fn only_a_processor_that_sleeps_inside_an_interrupt_is_stuck() {
        let busy = "ESR\t 0x00000000\nISR\t 236 \nIRR\t 37 40 43 236 \n";
        let idle = "ESR\t 0x00000000\nISR\t (none)\nIRR\t (none)\n";
        assert_eq!(stuck(SLEEPS, busy).as_deref(), Some("236"));
        assert_eq!(stuck(SLEEPS, idle), None);
        assert_eq!(stuck(RUNS, busy), None, "it handles the interrupt");
        assert_eq!(stuck(MASKED, busy), None, "it sleeps for ever by its own wish");
    }
}
