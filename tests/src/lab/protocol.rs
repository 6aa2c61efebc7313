//! Pure: what the lab and the agent inside a guest say to each other.
//!
//! What lives here: requests, replies and the framing of both, for any byte stream. What does not: sockets, processes, files.
//!
//! One connection carries one request. The client sends one [`Kind::Request`] frame and, for `exec` and `write`, data frames that end with
//! [`Kind::End`]. The agent answers with output frames and closes with exactly one [`Kind::Reply`] or [`Kind::Failure`].
//!
//! Invariant: a command is an argument vector and file contents are bytes; nothing is quoted or escaped on the way.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// TCP port of the agent on the lab's management network.
pub const PORT: u16 = 2222;

/// Longest payload of one frame, in bytes; a longer one means that the stream is not ours.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// How much file or pipe content goes into one frame, in bytes.
pub const CHUNK: usize = 64 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Client to agent: a [`Request`] in JSON.
    Request,
    /// Client to agent: bytes for the standard input or the file.
    Data,
    /// Client to agent: no more data.
    End,
    /// Agent to client: bytes of the standard output or of the file.
    Output,
    /// Agent to client: bytes of the standard error.
    Error,
    /// Agent to client: a [`Reply`] in JSON; the last frame.
    Reply,
    /// Agent to client: a [`Failure`] in JSON; the last frame.
    Failure,
}

impl Kind {
    const ALL: [(Self, u8); 7] = [
        (Self::Request, b'r'),
        (Self::Data, b'd'),
        (Self::End, b'z'),
        (Self::Output, b'o'),
        (Self::Error, b'e'),
        (Self::Reply, b'R'),
        (Self::Failure, b'F'),
    ];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, byte)| *byte)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == byte).map(|(kind, _)| *kind)
    }
}

/// What the client asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command to its end; input arrives as data frames, output leaves as it is written.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the agent's own environment.
        env: Vec<(String, String)>,
        /// After this many milliseconds the command's process group is killed.
        limit_ms: u64,
    },
    /// Start a command that outlives the connection, its output appended to a file.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the agent's own environment.
        env: Vec<(String, String)>,
        /// Path of the file that takes standard output and error.
        log: String,
    },
    /// Send the content of a file as output frames.
    Read {
        /// Path in the guest.
        path: String,
    },
    /// Replace a file by the data frames, through a temporary file beside it.
    Write {
        /// Path in the guest; missing parent folders are made.
        path: String,
        /// Permission bits, such as 0o755.
        mode: u32,
    },
    /// Send a file from its start and then what is appended, for a time.
    Follow {
        /// Path in the guest; it may appear later.
        path: String,
        /// The agent ends the stream after this many milliseconds.
        limit_ms: u64,
    },
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command exited with this status.
    Exited(i32),
    /// The command was ended by this signal.
    Signalled(i32),
    /// The command was still running at its limit and was killed.
    TimedOut,
    /// The command was started with this process id.
    Spawned(u32),
    /// The file was sent or written, or the time to follow it is over.
    Done,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Names the operation, the object and the system's answer.
    pub message: String,
    /// The system's error number, if there was one.
    pub errno: Option<i32>,
}

/// One frame: a kind byte, the payload's length as 4 bytes big endian, the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Writes one frame and flushes it.
pub fn write_frame(stream: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|length| *length as usize <= MAX_PAYLOAD);
    let length = length
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("frame of {} bytes, at most {MAX_PAYLOAD} allowed", payload.len())))?;
    let mut bytes = Vec::with_capacity(payload.len() + 5);
    bytes.push(kind.byte());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Writes one frame with a value in JSON.
pub fn write_json(stream: &mut impl Write, kind: Kind, value: &impl Serialize) -> io::Result<()> {
    write_frame(stream, kind, &serde_json::to_vec(value)?)
}

/// Reads one frame; an end of the stream inside or before it is `UnexpectedEof`.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0_u8; 5];
    stream.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    let kind = Kind::from_byte(kind).filter(|_| length <= MAX_PAYLOAD);
    let kind = kind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not a frame: {head:02x?}")))?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(Frame { kind, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, _) in Kind::ALL {
            let mut wire = Vec::new();
            write_frame(&mut wire, kind, b"\x00payload\xff").unwrap();
            assert_eq!(read_frame(&mut wire.as_slice()).unwrap(), Frame { kind, payload: b"\x00payload\xff".to_vec() });
        }
    }

    #[test]
    fn kinds_have_distinct_bytes() {
        for (at, (_, byte)) in Kind::ALL.iter().enumerate() {
            assert!(Kind::ALL[at + 1..].iter().all(|(_, other)| other != byte), "{byte} is used twice");
        }
    }

    #[test]
    fn foreign_bytes_are_no_frame() {
        let error = read_frame(&mut b"GET / HTTP/1.1\r\n".as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_cut_short_is_an_unexpected_end() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Output, b"abc").unwrap();
        wire.pop();
        assert_eq!(read_frame(&mut wire.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_payload_above_the_limit_is_refused_before_it_is_sent() {
        let mut wire = Vec::new();
        let error = write_frame(&mut wire, Kind::Data, &vec![0; MAX_PAYLOAD + 1]).unwrap_err();
        assert_eq!((error.kind(), wire.len()), (io::ErrorKind::InvalidInput, 0));
    }
}
