//! I/O: reboots the machine: one call of logind over the system bus, `org.freedesktop.login1.Manager.Reboot(false)`, so that inhibitors (the
//! kubelet's graceful shutdown) are honoured and no program is run.
//!
//! What does not live here: when a reboot is due (`handshake`), how a message looks in bytes (`message`).
//!
//! Invariant: every read and write has a time limit, so that a bus that does not answer is an error and not a daemon that hangs.

mod message;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use message::{Answer, Call};

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(20);
/// Messages that are read while waiting for an answer; the bus sends a signal or two.
const PATIENCE: usize = 64;

/// Knows the way to logind.
#[derive(Clone, Debug)]
pub struct Rebooter {
    socket: PathBuf,
}

/// Why the machine is not rebooted.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// No bus.
    #[error(
        "failed to reboot: no system bus at {path} ({cause}): is systemd's D-Bus running, is its folder mounted? Otherwise reboot this machine by hand"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The bus.
    #[error("failed to reboot: the system bus at {path} does not answer: {cause}")]
    Speak {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// logind.
    #[error("failed to reboot: {what} was refused: {name}: {text}")]
    Refused {
        /// The call.
        what: &'static str,
        /// D-Bus error name.
        name: String,
        /// Its text.
        text: String,
    },
}

impl Rebooter {
    /// The machine whose `/run` is below `root`.
    pub fn new(root: &Path) -> Self {
        Self { socket: root.join("run/dbus/system_bus_socket") }
    }

    /// Asks logind for a reboot. When this succeeds, processes are about to be told to end.
    pub fn reboot(&self) -> Result<(), RebootError> {
        let connect = |cause| RebootError::Connect { path: self.socket.clone(), cause };
        let speak = |cause| RebootError::Speak { path: self.socket.clone(), cause };
        let stream = UnixStream::connect(&self.socket).map_err(connect)?;
        let limits = stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.set_write_timeout(Some(LIMIT)));
        limits.map_err(speak)?;
        let mut reader = BufReader::new(stream);
        authenticate(&mut reader).map_err(speak)?;
        let hello = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            flag: None,
        };
        let reboot = Call {
            destination: "org.freedesktop.login1",
            path: "/org/freedesktop/login1",
            interface: "org.freedesktop.login1.Manager",
            member: "Reboot",
            // Not interactive: nobody is asked for a password.
            flag: Some(false),
        };
        for (serial, call) in [(1, hello), (2, reboot)] {
            if let Answer::Error { name, text } = ask(&mut reader, serial, &call).map_err(speak)? {
                return Err(RebootError::Refused { what: call.member, name, text });
            }
        }
        Ok(())
    }
}

/// D-Bus specification, "Authentication Protocol": EXTERNAL with our own user id, which the socket proves.
fn authenticate(reader: &mut BufReader<UnixStream>) -> io::Result<()> {
    let uid = rustix::process::getuid().as_raw().to_string();
    // The id in ASCII digits, of which each is 3 and itself in hexadecimal.
    let hex: String = uid.chars().flat_map(|digit| ['3', digit]).collect();
    reader.get_mut().write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
    let mut line = String::new();
    reader.take(512).read_line(&mut line)?;
    if !line.starts_with("OK ") {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it refused our user id: {}", line.trim())));
    }
    reader.get_mut().write_all(b"BEGIN\r\n")
}

fn ask(reader: &mut BufReader<UnixStream>, serial: u32, call: &Call<'_>) -> io::Result<Answer> {
    reader.get_mut().write_all(&call.encode(serial))?;
    for _ in 0..PATIENCE {
        let mut head = [0; message::FIXED];
        reader.read_exact(&mut head)?;
        let mut rest = vec![0; message::rest_of(&head)?];
        reader.read_exact(&mut rest)?;
        if let Some(answer) = message::decode(&head, &rest, serial)? {
            return Ok(answer);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "many messages, and no answer"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A bus that answers each call as told and notes what it was asked.
    fn bus(folder: &Path, answers: Vec<Vec<u8>>) -> JoinHandle<Vec<String>> {
        let path = folder.join("run/dbus");
        std::fs::create_dir_all(&path).unwrap();
        let listener = UnixListener::bind(path.join("system_bus_socket")).unwrap();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let mut seen = vec![line.trim_matches(['\0', '\r', '\n']).to_owned()];
            reader.get_mut().write_all(b"OK 1234deadbeef\r\n").unwrap();
            line.clear();
            reader.read_line(&mut line).unwrap();
            seen.push(line.trim().to_owned());
            for answer in answers {
                let mut head = [0; message::FIXED];
                reader.read_exact(&mut head).unwrap();
                let mut rest = vec![0; message::rest_of(&head).unwrap()];
                reader.read_exact(&mut rest).unwrap();
                seen.push(String::from_utf8_lossy(&rest).split('\0').filter(|t| t.len() > 4).collect::<Vec<_>>().join(" "));
                reader.get_mut().write_all(&answer).unwrap();
            }
            seen
        })
    }

    #[test]
    fn logind_is_asked_once_and_signals_in_between_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let hello = [message::tests::signal(), message::tests::reply(1)].concat();
        let served = bus(folder.path(), vec![hello, message::tests::reply(2)]);
        Rebooter::new(folder.path()).reboot().unwrap();
        let seen = served.join().unwrap();
        let uid: String = rustix::process::getuid().as_raw().to_string().chars().flat_map(|digit| ['3', digit]).collect();
        assert_eq!(seen[..2], [format!("AUTH EXTERNAL {uid}"), "BEGIN".to_owned()]);
        assert!(seen[2].contains("Hello"), "{seen:?}");
        assert!(seen[3].contains("Reboot") && seen[3].contains("org.freedesktop.login1.Manager"), "{seen:?}");
    }

    #[test]
    fn a_refusal_is_told_in_logind_s_words() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = message::tests::error(2, "org.freedesktop.DBus.Error.AccessDenied", "Permission denied");
        let served = bus(folder.path(), vec![message::tests::reply(1), refusal]);
        let said = Rebooter::new(folder.path()).reboot().unwrap_err().to_string();
        served.join().unwrap();
        assert_eq!(said, "failed to reboot: Reboot was refused: org.freedesktop.DBus.Error.AccessDenied: Permission denied");
    }

    #[test]
    fn a_machine_without_a_bus_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let said = Rebooter::new(folder.path()).reboot().unwrap_err().to_string();
        assert!(said.contains("run/dbus/system_bus_socket") && said.contains("by hand"), "{said}");
    }
}
