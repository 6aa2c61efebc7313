//! I/O: being told what changes in Open vSwitch's database (RFC 7047, sections 4.1.5 and 4.1.6: `monitor` and `update`).
//!
//! What does not live here: which tables and columns (`bridges`), what is looked at because of a change (`node_state`), changing something (`ovsdb`).
//!
//! Invariants: without names there is no connection; a change of a row that has none of the names wakes nobody; each new connection wakes once, because
//! nobody knows what happened before it. Nothing is asked while a connection stands; a server that is gone is tried again with growing waits.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::select;
use tokio::sync::watch::Receiver;
use tokio::time::sleep;
use tracing::debug;

use super::{ANSWER_LIMIT, DATABASE, Ovsdb};

/// Names of bridges and interfaces.
pub type Names = BTreeSet<String>;

/// First wait for a server that is gone, and the longest one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// A server that is started anew is back after a try or two, which is nobody's business; one that stays away is told after so many.
const TOLD_AFTER: u32 = 3;
/// By what updates are known to be ours.
const MONITOR: &str = "sriov";

impl Ovsdb {
    /// Calls `changed` when a row that has one of the names changes, comes or goes, where `requests` are the tables and columns (RFC 7047, 4.1.5: an
    /// object of monitor requests; each must have the column `name`). Ends when nobody can give names any more.
    pub async fn follow(&self, requests: &Value, mut names: Receiver<Names>, mut changed: impl FnMut()) {
        let mut tries = 0;
        while names.wait_for(|names| !names.is_empty()).await.is_ok() {
            let wanted = names.clone();
            let ended = select! {
                Err(error) = self.listen(requests, &wanted, &mut tries, &mut changed) => error,
                _ = names.wait_for(Names::is_empty) => continue,
            };
            tries += 1;
            debug!("changes of Open vSwitch's database are not told: {ended}");
            if tries == TOLD_AFTER {
                changed();
            }
            let wait = FIRST_WAIT.saturating_mul(1 << (tries - 1).min(10)).min(LONGEST_WAIT);
            select! {
                () = sleep(wait) => {}
                _ = names.wait_for(Names::is_empty) => {}
            }
        }
    }

    /// One connection, until it breaks.
    async fn listen(&self, requests: &Value, names: &Receiver<Names>, tries: &mut u32, changed: &mut impl FnMut()) -> io::Result<()> {
        let mut stream = self.connect().await?;
        let request = json!({ "method": "monitor", "params": [DATABASE, MONITOR, requests], "id": MONITOR });
        stream.write_all(request.to_string().as_bytes()).await?;
        let mut heard = Vec::new();
        loop {
            for message in messages(&mut heard)? {
                match message["method"].as_str() {
                    Some("echo") => {
                        let answer = json!({ "result": message["params"], "error": null, "id": message["id"] });
                        stream.write_all(answer.to_string().as_bytes()).await?;
                    }
                    Some("update") if message["params"][0] == MONITOR && concerns(&message["params"][1], &names.borrow()) => changed(),
                    None if message["id"] == MONITOR => {
                        if !message["error"].is_null() {
                            return Err(io::Error::other(format!("refused: {}", message["error"])));
                        }
                        *tries = 0;
                        changed();
                    }
                    _ => {}
                }
            }
            if heard.len() as u64 > ANSWER_LIMIT {
                return Err(io::Error::other("a message has no end"));
            }
            if stream.read_buf(&mut heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let mut failed = None;
        for path in &self.sockets {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(stream),
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }
}

/// Takes the messages that have come whole.
fn messages(heard: &mut Vec<u8>) -> io::Result<Vec<Value>> {
    let (mut messages, mut end) = (Vec::new(), 0);
    let mut stream = serde_json::Deserializer::from_slice(heard).into_iter::<Value>();
    while let Some(next) = stream.next() {
        match next {
            Ok(message) => messages.push(message),
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error.into()),
        }
        end = stream.byte_offset();
    }
    heard.drain(..end);
    Ok(messages)
}

/// Whether a row with one of the names is among the updates of tables: `{table: {row: {"old": {...}, "new": {...}}}}`. A row that changed has its name
/// among the new columns, one that went among the old ones, one that was renamed in both.
fn concerns(tables: &Value, names: &Names) -> bool {
    let rows = tables.as_object().into_iter().flat_map(serde_json::Map::values).filter_map(Value::as_object).flat_map(serde_json::Map::values);
    let is_ours = |row: &Value, when: &str| row[when]["name"].as_str().is_some_and(|name| names.contains(name));
    rows.into_iter().any(|row| is_ours(row, "new") || is_ours(row, "old"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;
    use std::rc::Rc;

    use tokio::net::UnixListener;
    use tokio::sync::watch;
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    struct Server(UnixStream);

    impl Server {
        async fn accept(listener: &UnixListener) -> Self {
            let mut server = Self(timeout(SOON, listener.accept()).await.unwrap().unwrap().0);
            let asked = server.heard().await;
            assert_eq!((&asked["method"], &asked["params"][0]), (&json!("monitor"), &json!("Open_vSwitch")));
            server
        }

        async fn heard(&mut self) -> Value {
            let mut bytes = Vec::new();
            loop {
                assert!(timeout(SOON, self.0.read_buf(&mut bytes)).await.unwrap().unwrap() > 0, "the client has gone");
                if let Some(message) = messages(&mut bytes).unwrap().pop() {
                    return message;
                }
            }
        }

        async fn say(&mut self, words: &str) {
            self.0.write_all(words.as_bytes()).await.unwrap();
        }

        /// Waits until the client has heard all that was said: it answers in order.
        async fn in_step(&mut self) {
            self.say(r#"{"method":"echo","params":["a"],"id":"echo"}"#).await;
            assert_eq!(self.heard().await, json!({ "result": ["a"], "error": null, "id": "echo" }));
        }
    }

    fn update(row: &str) -> String {
        format!(r#"{{"method":"update","params":["sriov",{{"Bridge":{{"6d1f":{row}}}}}],"id":null}}"#)
    }

    #[tokio::test]
    async fn only_changes_of_what_has_the_names_wake_and_a_server_that_comes_back_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/openvswitch/db.sock");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        LocalSet::new().run_until(scenario(folder.path(), &path)).await;
    }

    async fn scenario(root: &Path, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let (give, names) = watch::channel(Names::new());
        let (ovsdb, woken) = (Ovsdb::new(root, super::super::DEFAULT_SOCKET), Rc::new(Cell::new(0)));
        let count = Rc::clone(&woken);
        let requests = json!({ "Bridge": [{ "columns": ["name"] }] });
        let task = tokio::task::spawn_local(async move { ovsdb.follow(&requests, names, || count.set(count.get() + 1)).await });
        assert!(timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "there is nothing to follow");
        give.send_replace(["br-a".to_owned(), "p0".to_owned()].into());
        let mut server = Server::accept(&listener).await;
        server.say(r#"{"id":"sriov","result":{},"error":null}"#).await;
        server.in_step().await;
        assert_eq!(woken.get(), 1, "what happened before nobody knows");
        server.say(&update(r#"{"new":{"name":"br-of-somebody"},"old":{"name":"br-of-somebody-else"}}"#)).await;
        server.in_step().await;
        assert_eq!(woken.get(), 1, "none of ours");
        for (at, row) in [r#"{"new":{"name":"br-a","external_ids":["map",[]]},"old":{}}"#, r#"{"old":{"name":"br-a"}}"#].iter().enumerate() {
            // In pieces, as a stream may be.
            let words = update(row);
            server.say(&words[..20]).await;
            server.say(&words[20..]).await;
            server.in_step().await;
            assert_eq!(woken.get(), 2 + at, "{row}");
        }
        drop(server);
        let mut server = Server::accept(&listener).await;
        server.say(r#"{"id":"sriov","result":{},"error":null}"#).await;
        server.in_step().await;
        assert_eq!(woken.get(), 4, "what happened meanwhile nobody knows");
        give.send_replace(Names::new());
        let mut rest = Vec::new();
        assert_eq!(timeout(SOON, server.0.read_to_end(&mut rest)).await.unwrap().unwrap(), 0, "nothing to follow any more");
        drop(give);
        timeout(SOON, task).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_away_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let (give, names) = watch::channel(Names::from(["br-a".to_owned()]));
        let (ovsdb, woken) = (Ovsdb::new(folder.path(), super::super::DEFAULT_SOCKET), Cell::new(0));
        let follow = ovsdb.follow(&Value::Null, names, || woken.set(woken.get() + 1));
        assert!(timeout(Duration::from_mins(10), follow).await.is_err(), "it is tried as long as there are bridges");
        assert_eq!(woken.get(), 1);
        drop(give);
    }

    #[test]
    fn words_that_are_no_messages_are_an_error() {
        assert!(messages(&mut b"{}nonsense".to_vec()).is_err());
        let mut half = b"{\"a\":1}{\"b\":".to_vec();
        assert_eq!(messages(&mut half).unwrap(), [json!({ "a": 1 })]);
        assert_eq!(half, b"{\"b\":");
    }
}
