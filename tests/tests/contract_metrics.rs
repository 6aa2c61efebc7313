//! I/O (reads committed files), tier 1: what the dashboard, the alerts and the documentation call by name is what the programs export, and the other way
//! round. Each program makes all of its metrics in one file, which is read as text: a family without samples is not in what a program that just started
//! says. `cluster_docs` compares the page with an operator that runs.
//!
//! A counter is compared without the `_total` of its samples.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;
use sriov_tests::lab::artifacts::{Artifacts, workspace};

fn text(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).expect(path)
}

/// What stands between quotes after each `before`.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

/// The metrics that the programs' own files make.
fn programs() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for path in ["operator/src/metrics.rs", "config-daemon/src/metrics.rs"] {
        let text = text(path);
        let prefix = quoted(&text, "Registry::with_prefix(");
        let names = quoted(&text, "registry.register(");
        assert!(prefix.len() == 1 && names.len() > 5, "{path} is not written as this test reads it: {prefix:?}, {names:?}");
        all.extend(names.iter().map(|name| format!("{}_{name}", prefix[0])));
    }
    let plugin = sriov_device_plugin::metrics::Metrics::default().render(&[]);
    all.extend(plugin.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(bare));
    all
}

fn bare(name: &str) -> String {
    name.strip_suffix("_total").unwrap_or(name).to_owned()
}

/// Every metric that a text names; the parts of a histogram count as the histogram.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let whole = |word: &str| bare(["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word));
    let prefixes = ["sriov_operator_", "sriov_config_daemon_", "sriov_device_plugin_", "sriov_vf_", "sriov_kubepoddevice"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).map(whole).collect()
}

#[test]
fn every_metric_of_the_dashboard_and_the_rules_is_exported() {
    let exported = programs();
    for path in ["deploy/chart/files/rules.yaml", "deploy/chart/files/dashboard.json"] {
        let named = named(&text(path));
        assert!(named.len() > 8, "{path} names {named:?}");
        let unknown: Vec<_> = named.difference(&exported).collect();
        assert!(unknown.is_empty(), "{path} names metrics that no program exports: {unknown:?}");
    }
}

#[test]
fn the_page_lists_every_metric_and_every_alert() {
    let page = text("docs/metrics.md");
    assert_eq!(named(&page), programs(), "docs/metrics.md (left) and the programs (right)");
    let rules: Value = serde_saphyr::from_str(&text("deploy/chart/files/rules.yaml")).unwrap();
    let alerts: BTreeSet<&str> = rules["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    let listed: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("| `Sriov")).filter_map(|line| line.split('`').next()).collect();
    assert_eq!(listed, alerts.iter().map(|alert| alert.trim_start_matches("Sriov")).collect(), "alerts of the page (left) and of the rules (right)");
    for rule in rules["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .filter(|rule| rule["alert"].is_string())
    {
        assert!(rule["labels"]["severity"].is_string() && rule["annotations"]["summary"].is_string(), "{rule}");
    }
}

/// Prometheus's own program runs the rules on made-up measurements: nothing fires when all is well, each alert fires when it must, and the recordings join.
#[test]
fn the_rules_fire_when_they_must_and_only_then() {
    let promtool = Artifacts::load().unwrap().program("promtool").unwrap();
    let run = |arguments: &[&str]| Command::new(&promtool).args(arguments).current_dir(workspace()).output().expect("run promtool");
    let checked = run(&["check", "rules", "deploy/chart/files/rules.yaml"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let tested = run(&["test", "rules", "deploy/testdata/rules/rules_test.yaml"]);
    assert!(tested.status.success(), "{}{}", String::from_utf8_lossy(&tested.stdout), String::from_utf8_lossy(&tested.stderr));
    // Each alert is in the cases.
    let cases = text("deploy/testdata/rules/rules_test.yaml");
    let rules = text("deploy/chart/files/rules.yaml");
    let forgotten: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).filter(|name| !cases.contains(*name)).collect();
    assert!(forgotten.is_empty(), "rules_test.yaml has no case for {forgotten:?}");
}
