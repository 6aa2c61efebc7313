//! I/O (tests only): what people and programs see, as files: `testdata/<case>/cluster.yaml` is a cluster, `policy.yaml` what is planned there, each text what a
//! view says of it; one whose name begins with `json-` or `yaml-` is the form for programs, with `colour-` that for terminals, `<ESC>` for the character.
//!
//! `UPDATE_GOLDEN=1` writes the expected texts anew, to be read before they are committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use sriov_crds::SriovNetworkNodePolicy;

use crate::snapshot::Snapshot;
use crate::table::Style;
use crate::{doctor, history, node, plan, pods, status};

fn objects(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// What a view says to people, on a terminal with colours, and to programs.
fn forms<V: Serialize>(name: &str, view: &V, text: impl Fn(&V, Style) -> String) -> [(String, String); 4] {
    let value = serde_json::to_value(view).unwrap();
    [
        (format!("{name}.txt"), text(view, Style::Plain)),
        (format!("colour-{name}.txt"), text(view, Style::Coloured).replace('\u{1b}', "<ESC>")),
        (format!("json-{name}.txt"), format!("{}\n", serde_json::to_string_pretty(&value).unwrap())),
        (format!("yaml-{name}.txt"), serde_saphyr::to_string(&value).unwrap()),
    ]
}

/// Name of the file and what must be in it.
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let snapshot = Snapshot::read(objects(&folder.join("cluster.yaml")));
    let mut texts = BTreeMap::new();
    texts.extend(forms("status", &status::status(&snapshot), status::Status::text));
    texts.extend(forms("pods", &pods::pods(&snapshot, None), pods::Pods::text));
    texts.extend(forms("history", &history::history(&snapshot, None), history::History::text));
    let wanted: Vec<_> = match folder.join("policy.yaml") {
        file if file.exists() => objects(&file).into_iter().map(|object| SriovNetworkNodePolicy::deserialize(object).unwrap()).collect(),
        _ => vec![],
    };
    texts.extend(forms("plan", &plan::plan(&snapshot, &wanted), plan::Plan::text));
    let names: Vec<String> = snapshot.nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let diagnosed = names.iter().map(|name| (format!("doctor-node-{name}"), doctor::node(&snapshot, name)));
    let pods = snapshot.pods.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some("default")).filter_map(|pod| pod.metadata.name.clone());
    let diagnosed = diagnosed.chain(pods.map(|name| (format!("doctor-pod-{name}"), doctor::pod(&snapshot, "default", &name).unwrap())));
    let diagnosed: Vec<_> = diagnosed.collect();
    // All chains of a case in one text; the forms of one are those of all.
    let all = diagnosed.iter().map(|(_, diagnosis)| diagnosis.text(Style::Plain)).collect::<Vec<_>>().join("\n");
    texts.insert("doctor.txt".to_owned(), all);
    if let Some((name, broken)) = diagnosed.iter().find(|(_, diagnosis)| !diagnosis.is_whole()) {
        texts.extend(forms(name, broken, doctor::Diagnosis::text));
    }
    let views: Vec<_> = names.iter().filter_map(|name| Some((name, node::node(&snapshot, name)?))).collect();
    texts.insert("node.txt".to_owned(), views.iter().map(|(_, view)| view.text(Style::Plain)).collect::<Vec<_>>().join("\n"));
    if let Some((name, view)) = views.first() {
        texts.extend(forms(&format!("node-{name}"), view, node::NodeView::text));
    }
    texts
}

#[test]
fn every_view_says_what_is_written_down() {
    let mut wrong = vec![];
    let mut count = 0;
    for case in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")).unwrap() {
        let folder = case.unwrap().path();
        let expected = texts(&folder);
        for (name, got) in &expected {
            let file = folder.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&file, got).unwrap();
            }
            let written = fs::read_to_string(&file).unwrap_or_default();
            if written != *got {
                wrong.push(format!("{}:\n--- expected\n{written}\n--- got\n{got}", file.display()));
            }
            count += 1;
        }
        // What is not written any more would stay as if it were checked.
        let files = fs::read_dir(&folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "txt")).count();
        assert_eq!(files, expected.len(), "{} holds a text that no view writes", folder.display());
    }
    assert!(count > 0, "no case");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
