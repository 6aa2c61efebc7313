//! I/O: what passes on the wire between the PFs, frame by frame.
//!
//! What lives here: running tcpdump in the namespace, its capture format, Ethernet headers and VLAN tags. What does not: protocols above them.
//!
//! Invariant: [`Capture::start`] returns when capturing has begun, so what a test does next is seen.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sriov_host::mac::MacAddr;

use super::process::Processes;

/// One VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Tag protocol: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
    /// VLAN number, 0 to 4095.
    pub vlan: u16,
    /// Priority, 0 to 7.
    pub priority: u8,
}

/// One Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EthernetFrame {
    /// Receiver.
    pub destination: MacAddr,
    /// Sender.
    pub source: MacAddr,
    /// Tags, the outer one first.
    pub tags: Vec<Tag>,
    /// What the payload is, such as 0x0800 (IPv4) or 0x0806 (ARP).
    pub ethertype: u16,
    /// Payload as far as captured.
    pub payload: Vec<u8>,
    /// Length on the wire in bytes, header and tags included.
    pub length: u32,
}

/// A running capture; ends on drop.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    frames: mpsc::Receiver<EthernetFrame>,
    seen: Vec<EthernetFrame>,
}

impl Capture {
    /// Starts to capture on a link of the lab's namespace; `filter` is in tcpdump's language, empty for everything.
    pub fn start(processes: &Processes, link: &str, filter: &str) -> Result<Self> {
        // `-Z root`: a change of user would undo what kills the process together with the lab.
        let argv = ["tcpdump", "-Z", "root", "-i", link, "--immediate-mode", "-U", "-s", "256", "-w", "-"];
        let argv: Vec<_> = argv.into_iter().chain(filter.split_whitespace()).map(str::to_owned).collect();
        let mut child = processes.spawn(&argv, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        })?;
        let mut errors = BufReader::new(child.stderr.take().context("pipe from tcpdump")?);
        let mut said = String::new();
        while !said.contains("listening on") {
            ensure!(errors.read_line(&mut said)? > 0, "tcpdump on {link}: {said}");
        }
        let (sender, frames) = mpsc::channel();
        let pipe = BufReader::new(child.stdout.take().context("pipe from tcpdump")?);
        // Both end with the process.
        thread::spawn(move || errors.lines().for_each(drop));
        thread::spawn(move || read_frames(pipe, &sender));
        Ok(Self { child, frames, seen: Vec::new() })
    }

    /// Waits for a frame that matches, counting those seen before; the error tells what passed instead.
    pub fn wait_for(&mut self, what: &str, matches: impl Fn(&EthernetFrame) -> bool, limit: Duration) -> Result<EthernetFrame> {
        if let Some(frame) = self.seen.iter().find(|frame| matches(frame)) {
            return Ok(frame.clone());
        }
        let until = Instant::now() + limit;
        while let Ok(frame) = self.frames.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.seen.push(frame.clone());
            if matches(&frame) {
                return Ok(frame);
            }
        }
        let headers: Vec<_> = self.seen.iter().map(|f| format!("{} > {} {:?} {:04x}", f.source, f.destination, f.tags, f.ethertype)).collect();
        bail!("no frame on the wire within {limit:?}: {what}; seen: {headers:#?}")
    }

    /// Ends the capture and gives every frame that was seen.
    pub fn stop(mut self) -> Vec<EthernetFrame> {
        self.child.kill().ok();
        let mut seen = std::mem::take(&mut self.seen);
        seen.extend(self.frames.iter());
        seen
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read_frames(mut pipe: impl Read, sender: &mpsc::Sender<EthernetFrame>) {
    let mut header = [0; 24];
    if pipe.read_exact(&mut header).is_err() {
        return;
    }
    // Per frame: seconds, microseconds, captured length, length on the wire; all in the byte order of the host that captures.
    let mut record = [0; 16];
    while pipe.read_exact(&mut record).is_ok() {
        let word = |at: usize| record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let mut bytes = vec![0; word(8) as usize];
        if pipe.read_exact(&mut bytes).is_err() {
            return;
        }
        if let Some(frame) = parse(&bytes, word(12))
            && sender.send(frame).is_err()
        {
            return;
        }
    }
}

fn parse(bytes: &[u8], length: u32) -> Option<EthernetFrame> {
    let (destination, rest) = bytes.split_first_chunk::<6>()?;
    let (source, mut rest) = rest.split_first_chunk::<6>()?;
    let mut tags = Vec::new();
    loop {
        let (kind, after) = rest.split_first_chunk::<2>()?;
        let kind = u16::from_be_bytes(*kind);
        if !matches!(kind, 0x8100 | 0x88a8) {
            let (destination, source) = (MacAddr(*destination), MacAddr(*source));
            return Some(EthernetFrame { destination, source, tags, ethertype: kind, payload: after.to_vec(), length });
        }
        let (control, after) = after.split_first_chunk::<2>()?;
        let control = u16::from_be_bytes(*control);
        tags.push(Tag { protocol: kind, vlan: control & 0xfff, priority: (control >> 13) as u8 });
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_split_into_vlan_and_priority() {
        let mut bytes = vec![0xff; 6];
        bytes.extend([0x52, 0x54, 0, 0xaa, 0, 1, 0x81, 0x00, 0x60, 0x64, 0x08, 0x06, 1, 2]);
        let frame = parse(&bytes, 60).unwrap();
        assert_eq!(frame.tags, [Tag { protocol: 0x8100, vlan: 100, priority: 3 }]);
        assert_eq!((frame.ethertype, frame.payload.as_slice(), frame.length), (0x0806, &[1, 2][..], 60));
        assert_eq!(frame.source.to_string(), "52:54:00:aa:00:01");
    }

    #[test]
    fn a_frame_cut_inside_its_header_is_no_frame() {
        assert_eq!(parse(&[0; 13], 13), None);
    }
}
