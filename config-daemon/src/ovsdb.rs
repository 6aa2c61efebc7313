//! I/O: Open vSwitch's database: transactions over its socket (JSON-RPC, RFC 7047 sections 4.1.3 and 4.1.11). One connection for each piece of work:
//! who keeps one has to answer it.
//!
//! What does not live here: how values are written (`notation`), what is asked (`bridges`), being told of changes (`follow`).
//!
//! Invariant: every call ends by the deadline of its connection, whatever the server does.

pub mod follow;
pub mod notation;

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// Where Open vSwitch has it.
pub const DEFAULT_SOCKET: &str = "unix:///var/run/openvswitch/db.sock";
/// The database of switches.
const DATABASE: &str = "Open_vSwitch";
/// Longest answer that is read; the tables of a node with a thousand ports have about one.
const ANSWER_LIMIT: u64 = 64 << 20;
/// Messages that are read while waiting for an answer; the server sends an `echo` now and then.
const PATIENCE: usize = 64;

/// Knows the way to the database.
#[derive(Clone, Debug)]
pub struct Ovsdb {
    /// In the order in which they are tried.
    sockets: Vec<PathBuf>,
}

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum OvsdbError {
    /// Nobody listens.
    #[error("failed to reach Open vSwitch's database at {path} ({cause})")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection broke, or the deadline passed.
    #[error("failed to speak with Open vSwitch's database at {path}: {cause}")]
    Speak {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The database's own words.
    #[error("Open vSwitch's database refused: {name}: {details}")]
    Refuse {
        /// The error's name by RFC 7047.
        name: String,
        /// Its details.
        details: String,
    },
    /// Not an answer of RFC 7047.
    #[error("failed to understand the answer of Open vSwitch's database at {path}: {what}")]
    Understand {
        /// The socket.
        path: PathBuf,
        /// What is odd.
        what: String,
    },
}

impl OvsdbError {
    /// Whether the database says that time ran out in a `wait`.
    pub fn is_timed_out(&self) -> bool {
        matches!(self, Self::Refuse { name, .. } if name == "timed out")
    }
}

impl Ovsdb {
    /// The database whose socket is `socket` (`unix:PATH`, or the path alone) below `root`. What is below `/var/run` is looked for below `/run` too,
    /// which is the same folder on a machine and need not be where its folders are mounted.
    pub fn new(root: &Path, socket: &str) -> Self {
        let path = socket.strip_prefix("unix:").unwrap_or(socket).trim_start_matches('/');
        let other = path.strip_prefix("var/run/").map(|rest| root.join("run").join(rest));
        Self { sockets: [root.join(path)].into_iter().chain(other).collect() }
    }

    /// A connection on which all work is done before the deadline.
    pub fn open(&self, within: Duration) -> Result<Connection, OvsdbError> {
        let deadline = Instant::now() + within;
        let mut failed = None;
        for path in &self.sockets {
            match reach(path) {
                Ok(stream) => {
                    let stream = BufReader::new(Timed { stream, deadline });
                    return Ok(Connection { stream, deadline, path: path.clone(), last_id: 0 });
                }
                // Of several the first is the one that was named.
                Err(cause) => _ = failed.get_or_insert(OvsdbError::Connect { path: path.clone(), cause }),
            }
        }
        let none = || OvsdbError::Connect { path: PathBuf::new(), cause: io::ErrorKind::NotFound.into() };
        Err(failed.unwrap_or_else(none))
    }
}

/// Without waiting: a server that takes no connections any more would hold its clients for ever.
fn reach(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A stream on which every read and write ends by the deadline.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // A limit of zero would mean none.
        if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")) } else { Ok(Some(left)) }
    }
}

fn in_words(cause: io::Error) -> io::Error {
    match cause.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => cause,
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer).map_err(in_words)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer).map_err(in_words)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<Timed>,
    deadline: Instant,
    path: PathBuf,
    last_id: u64,
}

impl Connection {
    /// What is left until the deadline.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Performs operations as one transaction; answers one value for each. When one of them fails none is done.
    pub fn transact(&mut self, operations: Vec<Value>) -> Result<Vec<Value>, OvsdbError> {
        let count = operations.len();
        self.last_id += 1;
        let id = self.last_id;
        let mut params = vec![json!(DATABASE)];
        params.extend(operations);
        self.send(&json!({ "method": "transact", "params": params, "id": id }))?;
        for _ in 0..PATIENCE {
            let message = self.receive()?;
            if message.get("method").and_then(Value::as_str) == Some("echo") {
                self.send(&json!({ "result": message["params"], "error": null, "id": message["id"] }))?;
            } else if message["id"] == json!(id) {
                return self.answers(&message, count);
            }
        }
        Err(self.odd("it speaks of other things"))
    }

    /// RFC 7047, 4.1.3: an error of an operation stands in its place, one of the commit behind all of them.
    fn answers(&self, message: &Value, count: usize) -> Result<Vec<Value>, OvsdbError> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let refusal = |value: &Value| OvsdbError::Refuse { name: text(value, "error"), details: text(value, "details") };
        match message.get("error") {
            None | Some(Value::Null) => {}
            Some(Value::String(name)) => return Err(OvsdbError::Refuse { name: name.clone(), details: String::new() }),
            Some(error) => return Err(refusal(error)),
        }
        let answers = message.get("result").and_then(Value::as_array).ok_or_else(|| self.odd("it has no result"))?;
        if let Some(failed) = answers.iter().find(|answer| answer.get("error").is_some_and(|error| !error.is_null())) {
            return Err(refusal(failed));
        }
        if answers.len() < count { Err(self.odd("it has too few results")) } else { Ok(answers.clone()) }
    }

    fn send(&mut self, message: &Value) -> Result<(), OvsdbError> {
        let path = &self.path;
        let sent = self.stream.get_mut().write_all(message.to_string().as_bytes());
        sent.map_err(|cause| OvsdbError::Speak { path: path.clone(), cause })
    }

    /// Messages follow each other without anything between them.
    fn receive(&mut self) -> Result<Value, OvsdbError> {
        let limited = (&mut self.stream).take(ANSWER_LIMIT);
        Value::deserialize(&mut serde_json::Deserializer::from_reader(limited)).map_err(|error| match error.io_error_kind() {
            Some(kind) => OvsdbError::Speak { path: self.path.clone(), cause: io::Error::new(kind, error) },
            None if error.is_eof() => OvsdbError::Speak { path: self.path.clone(), cause: io::ErrorKind::UnexpectedEof.into() },
            None => OvsdbError::Understand { path: self.path.clone(), what: error.to_string() },
        })
    }

    fn odd(&self, what: &str) -> OvsdbError {
        OvsdbError::Understand { path: self.path.clone(), what: what.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A server that sends these words after the first request, and then nothing.
    fn answering(words: &'static str) -> (tempfile::TempDir, Ovsdb) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("run/openvswitch")).unwrap();
        let listener = UnixListener::bind(folder.path().join("run/openvswitch/db.sock")).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = [0; 4096];
            _ = stream.read(&mut heard);
            _ = stream.write_all(words.as_bytes());
            // Until the client has gone.
            while stream.read(&mut heard).is_ok_and(|length| length > 0) {}
        });
        let ovsdb = Ovsdb::new(folder.path(), DEFAULT_SOCKET);
        (folder, ovsdb)
    }

    fn ask(words: &'static str) -> Result<Vec<Value>, OvsdbError> {
        let (_folder, ovsdb) = answering(words);
        ovsdb.open(Duration::from_millis(500)).unwrap().transact(vec![json!({ "op": "select", "table": "Bridge", "where": [] })])
    }

    #[test]
    fn an_echo_is_answered_and_the_answer_taken() {
        let words = "{\"method\":\"echo\",\"params\":[],\"id\":\"echo\"}{\"id\":1,\"error\":null,\"result\":[{\"rows\":[]}]}";
        assert_eq!(ask(words).unwrap(), [json!({ "rows": [] })]);
    }

    #[test]
    fn errors_are_told_in_the_databases_own_words() {
        let of_operation = ask(r#"{"id":1,"error":null,"result":[{"error":"constraint violation","details":"two rows"}]}"#);
        assert_eq!(of_operation.unwrap_err().to_string(), "Open vSwitch's database refused: constraint violation: two rows");
        let of_commit = ask(r#"{"id":1,"error":null,"result":[{"count":1},{"error":"timed out","details":"x"}]}"#);
        assert!(of_commit.unwrap_err().is_timed_out());
        let of_request = ask(r#"{"id":1,"error":"unknown database","result":null}"#);
        assert!(of_request.unwrap_err().to_string().contains("unknown database"));
    }

    #[test]
    fn a_server_that_says_nothing_or_nonsense_is_an_error_in_time() {
        let start = Instant::now();
        for (words, expected) in [
            ("", "no answer in time"),
            ("{\"id\":1,", "no answer in time"),
            ("nonsense", "failed to understand"),
            (r#"{"id":1,"result":[]}"#, "too few"),
        ] {
            let said = ask(words).unwrap_err().to_string();
            assert!(said.contains(expected), "{words}: {said}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_machine_without_open_vswitch_names_the_socket_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let said = Ovsdb::new(folder.path(), DEFAULT_SOCKET).open(Duration::from_secs(1)).unwrap_err().to_string();
        assert!(said.contains("var/run/openvswitch/db.sock (No such file"), "{said}");
    }
}
