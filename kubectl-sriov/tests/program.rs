//! I/O: the program itself on a saved cluster: forms for programs, exit codes, colours on a terminal (made by `script`), completion, progress.
//!
//! What views say is in the golden texts of `testdata`.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-sriov");
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/three_nodes/cluster.yaml");
const ALONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/drain_disabled/policy.yaml");
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/three_nodes/policy.yaml");

fn call(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(["--from", CLUSTER]).args(arguments).env_remove("NO_COLOR").output().expect("run kubectl-sriov")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text in UTF-8")
}

/// What a command line prints to a terminal.
fn on_a_terminal(command: &str, no_color: Option<&str>) -> String {
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", command, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    script.envs(no_color.map(|value| ("NO_COLOR", value)));
    text(&script.output().expect("run script").stdout)
}

#[test]
fn every_verb_has_a_form_for_programs_and_both_say_the_same() {
    for verb in [&["status"][..], &["pods"], &["history"], &["node", "node1"], &["plan", "-f", POLICY], &["doctor", "node/node1"]] {
        let json: Value = serde_json::from_slice(&call(&[verb, &["-o", "json"]].concat()).stdout).unwrap();
        let yaml: Value = serde_saphyr::from_str(&text(&call(&[verb, &["-o", "yaml"]].concat()).stdout)).unwrap();
        assert_eq!(json, yaml, "{verb:?}");
        assert!(json.is_object() || json.is_array(), "{verb:?}: {json}");
    }
}

#[test]
fn a_broken_chain_ends_with_1_and_a_mistake_with_2() {
    for (arguments, code) in [
        (&["doctor", "node/node1"][..], 0),
        (&["doctor", "node/node2"], 1),
        (&["doctor", "nonsense"], 2),
        (&["node", "nobody"], 2),
        (&["plan", "-f", "/nowhere.yaml"], 2),
        (&["plan", "-f", POLICY], 1),
        (&["plan", "-f", ALONE], 0),
        (&["status"], 0),
        (&["pods"], 0),
        (&["history"], 0),
        (&["watch"], 0),
    ] {
        let output = call(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(code == 2, !output.stderr.is_empty(), "{arguments:?} tells mistakes, and nothing else, on standard error");
    }
}

#[test]
fn colours_are_for_terminals_of_people_who_want_them() {
    let command = format!("{PROGRAM} --from {CLUSTER} status");
    let coloured = on_a_terminal(&command, None);
    assert!(coloured.contains("\u{1b}[3"), "{coloured}");
    // An empty NO_COLOR is none (no-color.org).
    assert!(on_a_terminal(&command, Some("")).contains("\u{1b}[3"));
    let plain = on_a_terminal(&command, Some("1"));
    assert!(plain.contains("node1") && !plain.contains('\u{1b}'), "{plain}");
    assert!(!text(&call(&["status"]).stdout).contains('\u{1b}'), "a pipe got colours");
}

#[test]
fn shells_complete_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let output = call(&["completion", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        let missing: Vec<_> = ["status", "node", "plan", "pods", "doctor", "history", "watch", "completion"]
            .into_iter()
            .filter(|verb| !script.contains(verb))
            .collect();
        assert!(missing.is_empty(), "{shell} does not complete {missing:?}");
    }
}

/// Exit code and standard error, which is one error.
fn mistake(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM).args(arguments).env_clear().env("HOME", "/nonexistent").output().expect("run kubectl-sriov");
    assert!(output.stdout.is_empty(), "{arguments:?} prints {}", text(&output.stdout));
    (output.status.code(), text(&output.stderr))
}

#[test]
fn a_file_that_is_no_policy_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name).display().to_string()
    };
    let policy = "apiVersion: sriovnetwork.openshift.io/v1\nkind: SriovNetworkNodePolicy\nmetadata: {name: fast}\n";
    for (path, said) in [
        ("/nowhere.yaml".to_owned(), "No such file"),
        (folder.path().display().to_string(), "Is a directory"),
        (file("binary", b"\xff\xfe\x00"), "UTF-8"),
        (file("broken", b"kind: [\n"), "read the YAML of"),
        (file("empty", b""), "it holds nothing"),
        (file("others", b"kind: Pod\n---\nkind: ConfigMap\n"), "holds no SriovNetworkNodePolicy; it holds ConfigMap, Pod"),
        (file("text", b"kind: 4\n"), "it holds objects without a kind"),
        (file("nameless", b"kind: SriovNetworkNodePolicy\n"), "without metadata.name"),
        (
            file("words", format!("{policy}spec: {{resourceName: fast, nodeSelector: {{}}, nicSelector: {{}}, numVfs: many}}\n").as_bytes()),
            "SriovNetworkNodePolicy fast",
        ),
    ] {
        let (code, error) = mistake(&["--from", CLUSTER, "plan", "-f", &path]);
        assert_eq!(code, Some(2), "{path}: {error}");
        assert!(error.starts_with("error: ") && error.contains(said) && error.contains(&path), "{path}: {error}");
    }
}

#[test]
fn policies_come_from_standard_input_too() {
    let mut command = Command::new(PROGRAM);
    command.args(["--from", CLUSTER, "plan", "-f", "-"]).stdin(std::fs::File::open(POLICY).unwrap());
    let given = command.output().expect("run kubectl-sriov");
    assert_eq!(text(&given.stdout), text(&call(&["plan", "-f", POLICY]).stdout));
    assert_eq!(given.status.code(), Some(1), "one of them is malformed");
}

#[test]
fn a_saved_cluster_that_is_none_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.yaml").display().to_string();
    std::fs::write(&path, "kind: ConfigMap\n").unwrap();
    let (code, error) = mistake(&["--from", &path, "status"]);
    assert_eq!(code, Some(2));
    assert!(error.contains(&path) && error.contains("holds no object that a view shows"), "{error}");
}

#[test]
fn a_cluster_that_cannot_be_found_is_a_mistake_that_says_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    // The port is free again, so nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let kubeconfig = kubeconfig(folder.path(), &nobody);
    for (arguments, said) in [
        (&["status"][..], "kubeconfig"),
        (&["--kubeconfig", "/nowhere/config", "status"], "/nowhere/config"),
        (&["--kubeconfig", &kubeconfig, "--context", "other", "status"], "other"),
        (&["--kubeconfig", &kubeconfig, "status"], "refused"),
    ] {
        let (code, error) = mistake(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(said) && error.lines().count() == 1, "{arguments:?}: {error}");
    }
}

/// Answers every request like an API server that refuses it.
fn refusing(status: u16, message: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a connection");
    let address = listener.local_addr().expect("a connection").to_string();
    let body = serde_json::json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "No", "code": status })
        .to_string();
    // Ends with this process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut request) = (stream.expect("a connection"), [0; 4096]);
            let read = stream.read(&mut request).expect("a connection");
            assert!(read > 0);
            let answer = format!(
                "HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).expect("a connection");
        }
    });
    address
}

#[test]
fn what_the_api_server_refuses_is_said_in_its_words_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let forbidden = "nodes is forbidden: User \"x\" cannot list resource \"nodes\" in API group \"\" at the cluster scope";
    for (status, message, said) in [
        (401, "Unauthorized", "Unauthorized: the cluster does not take the credentials"),
        (403, forbidden, "cannot list resource \"nodes\" in API group \"\" at the cluster scope; which rights"),
        (500, "etcdserver: leader changed", "etcdserver: leader changed"),
        (404, "404 page not found", "does not know Node objects"),
    ] {
        let kubeconfig = kubeconfig(folder.path(), &refusing(status, message));
        let (code, error) = mistake(&["--kubeconfig", &kubeconfig, "status"]);
        assert_eq!(code, Some(2), "{status}: {error}");
        assert!(error.starts_with("error: ") && error.contains(said) && error.lines().count() == 1, "{status}: {error}");
    }
}

/// Of a server on plain HTTP.
fn kubeconfig(folder: &Path, server: &str) -> String {
    let path = folder.join(format!("kubeconfig-{server}"));
    let document = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&path, document).expect("write the kubeconfig");
    path.display().to_string()
}

#[test]
fn a_person_is_told_when_reading_takes_more_than_a_second() {
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(folder.path(), &silent.local_addr().unwrap().to_string());
    let said = on_a_terminal(&format!("timeout 3 {PROGRAM} --kubeconfig {kubeconfig} status"), None);
    assert!(said.contains("reading the cluster"), "{said:?}");
}
