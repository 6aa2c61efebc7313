//! Pure: `kubectl sriov history`: what happened to our objects, oldest first: Events, and the last change of each condition.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::snapshot::Snapshot;
use crate::table::{Cell, Style, Tone, table};

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    /// Oldest first.
    pub entries: Vec<Entry>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// When, in UTC.
    pub time: Timestamp,
    /// `<kind> <name>`.
    pub object: String,
    /// One word.
    pub reason: String,
    /// What was said.
    pub message: String,
    /// Whether it is a warning.
    pub warning: bool,
}

/// The view of a cluster; `node` leaves everything out that is not of its node state.
pub fn history(snapshot: &Snapshot, node: Option<&str>) -> History {
    let mut entries = Vec::new();
    for event in &snapshot.events {
        let Some(regarding) = &event.regarding else { continue };
        let ours = regarding.api_version.as_deref().is_some_and(|version| version.starts_with(sriov_crds::keys::GROUP));
        let time = event
            .series
            .as_ref()
            .map(|s| s.last_observed_time.0)
            .or(event.event_time.as_ref().map(|t| t.0))
            .or(event.deprecated_last_timestamp.as_ref().map(|t| t.0));
        let (kind, name) = (regarding.kind.clone().unwrap_or_default(), regarding.name.clone().unwrap_or_default());
        let wanted = node.is_none_or(|node| kind == "SriovNetworkNodeState" && name == node);
        if let Some(time) = time.filter(|_| ours && wanted) {
            let warning = event.type_.as_deref() == Some("Warning");
            entries.push(Entry {
                time,
                object: format!("{kind} {name}"),
                reason: event.reason.clone().unwrap_or_default(),
                message: event.note.clone().unwrap_or_default(),
                warning,
            });
        }
    }
    for state in snapshot.states.iter().filter(|state| node.is_none_or(|node| state.metadata.name.as_deref() == Some(node))) {
        let object = format!("SriovNetworkNodeState {}", state.metadata.name.clone().unwrap_or_default());
        for condition in state.status.iter().flat_map(|status| &status.conditions) {
            let reason = format!("{}={} {}", condition.type_, condition.status, condition.reason);
            let warning = (condition.type_ == "Ready") == (condition.status == "False");
            entries.push(Entry {
                time: condition.last_transition_time.0,
                object: object.clone(),
                reason,
                message: condition.message.clone(),
                warning: warning && condition.type_ != "Progressing",
            });
        }
    }
    entries.sort();
    History { entries }
}

impl History {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        if self.entries.is_empty() {
            return "nothing is recorded: the API server keeps Events for an hour\n".to_owned();
        }
        let row = |entry: &Entry| -> Vec<Cell> {
            let tone = if entry.warning { Tone::Warning } else { Tone::Plain };
            vec![
                format!("{:.0}", entry.time).into(),
                entry.object.clone().into(),
                Cell::toned(entry.reason.clone(), tone),
                entry.message.clone().into(),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.entries.iter().map(row).collect();
        table(&["TIME", "OBJECT", "REASON", "MESSAGE"], &rows, style)
    }
}
