//! I/O: the program itself on a saved cluster: forms for programs, exit codes, colours on a terminal (made by `script`), completion, progress.
//!
//! What views say is in the golden texts of `testdata`.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-sriov");
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/three_nodes/cluster.yaml");
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
        let script = text(&call(&["completion", shell]).stdout);
        let missing: Vec<_> = ["status", "node", "plan", "pods", "doctor", "history", "watch", "completion"]
            .into_iter()
            .filter(|verb| !script.contains(verb))
            .collect();
        assert!(missing.is_empty(), "{shell} does not complete {missing:?}");
    }
}

#[test]
fn a_person_is_told_when_reading_takes_more_than_a_second() {
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let server = silent.local_addr().unwrap();
    let document = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&kubeconfig, document).unwrap();
    let show = |path: &Path| path.display().to_string();
    let said = on_a_terminal(&format!("timeout 3 {PROGRAM} --kubeconfig {} status", show(&kubeconfig)), None);
    assert!(said.contains("reading the cluster"), "{said:?}");
}
