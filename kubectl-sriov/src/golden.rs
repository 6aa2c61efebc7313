//! I/O (tests only): what people and programs see, as files: `testdata/<case>/cluster.yaml` is a cluster, each text there what a view says of it; one whose name
//! begins with `json-` or `yaml-` is the form for programs.
//!
//! `UPDATE_GOLDEN=1` writes the expected texts anew, to be read before they are committed.

use std::fs;
use std::path::Path;

use serde::Deserialize as _;
use serde_json::Value;
use sriov_crds::SriovNetworkNodePolicy;

use crate::snapshot::Snapshot;
use crate::table::Style;
use crate::{doctor, history, node, plan, pods, status};

fn objects(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Name of the file and what must be in it.
fn texts(folder: &Path) -> Vec<(String, String)> {
    let snapshot = Snapshot::read(objects(&folder.join("cluster.yaml")));
    let style = Style::Plain;
    let mut texts = vec![
        ("status.txt".to_owned(), status::status(&snapshot).text(style)),
        ("pods.txt".to_owned(), pods::pods(&snapshot, None).text(style)),
        ("history.txt".to_owned(), history::history(&snapshot, None).text(style)),
    ];
    for name in snapshot.nodes.iter().filter_map(|node| node.metadata.name.clone()) {
        let view = node::node(&snapshot, &name).map_or_else(|| "no node state\n".to_owned(), |view| view.text(style));
        texts.push((format!("node-{name}.txt"), view));
        texts.push((format!("doctor-node-{name}.txt"), doctor::node(&snapshot, &name).text(style)));
    }
    let programs = [
        ("status", serde_json::to_value(status::status(&snapshot))),
        ("pods", serde_json::to_value(pods::pods(&snapshot, None))),
        ("history", serde_json::to_value(history::history(&snapshot, None))),
        ("node", serde_json::to_value(node::node(&snapshot, "node1"))),
        ("doctor", serde_json::to_value([doctor::node(&snapshot, "node2")])),
    ];
    for (name, value) in programs {
        let value = value.unwrap();
        texts.push((format!("json-{name}.txt"), format!("{}\n", serde_json::to_string_pretty(&value).unwrap())));
        texts.push((format!("yaml-{name}.txt"), serde_saphyr::to_string(&value).unwrap()));
    }
    for pod in snapshot.pods.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some("default")) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        texts.push((format!("doctor-pod-{name}.txt"), doctor::pod(&snapshot, "default", &name).unwrap().text(style)));
    }
    let policies = folder.join("policy.yaml");
    if policies.exists() {
        let wanted: Vec<_> = objects(&policies).into_iter().map(|object| SriovNetworkNodePolicy::deserialize(object).unwrap()).collect();
        let plan = plan::plan(&snapshot, &wanted);
        texts.push(("plan.txt".to_owned(), plan.text(style)));
        texts.push(("json-plan.txt".to_owned(), format!("{}\n", serde_json::to_string_pretty(&plan).unwrap())));
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
        let files = fs::read_dir(&folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "txt")).count();
        assert_eq!(files, expected.len(), "{} holds a text that no view writes", folder.display());
    }
    assert!(count > 0, "no case");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
