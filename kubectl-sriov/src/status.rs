//! Pure: `kubectl sriov status`: the cluster on one screen, what is wrong first.

use std::fmt::Write as _;

use serde::Serialize;
use sriov_crds::conditions::{DEGRADED, PROGRESSING, READY};

use crate::snapshot::{Snapshot, condition, pf_name};
use crate::table::{Cell, Style, Tone, table};

/// The cluster on one screen.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What is wrong, each with the object that says so.
    pub problems: Vec<Problem>,
    /// Nodes on which work is under way.
    pub plans: Vec<PlanInProgress>,
    /// All PFs of managed nodes.
    pub pfs: Vec<PfLine>,
}

/// Something that is not as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `<kind> <name>`.
    pub object: String,
    /// One word.
    pub reason: String,
    /// What a person needs to know.
    pub message: String,
}

/// A plan that is being carried out or waits.
#[derive(Clone, Debug, Serialize)]
pub struct PlanInProgress {
    /// The node.
    pub node: String,
    /// What it costs the node.
    pub disruption: String,
    /// Its steps.
    pub steps: Vec<String>,
    /// What it waits for, if it does.
    pub waiting: Option<String>,
}

/// One PF.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PfLine {
    /// The node.
    pub node: String,
    /// Netdev name, or PCI address of a PF without one.
    pub pf: String,
    /// PCI address.
    pub pci_address: String,
    /// Kernel driver.
    pub driver: String,
    /// Speed of the link, or its state.
    pub link: String,
    /// VFs that there are.
    pub vfs: usize,
    /// VFs that the PF can have.
    pub total_vfs: i64,
    /// VFs that pods hold.
    pub used: usize,
    /// VFs that nobody holds.
    pub free: usize,
    /// `Ready`, or the reason why it is not.
    pub state: String,
}

/// The view of a cluster.
pub fn status(snapshot: &Snapshot) -> Status {
    let mut view = Status { problems: problems(snapshot), ..Status::default() };
    let mut ordered: Vec<_> = snapshot.states.iter().collect();
    ordered.sort_by_key(|state| state.metadata.name.clone());
    for state in ordered {
        let node = state.metadata.name.clone().unwrap_or_default();
        let Some(status) = &state.status else { continue };
        let progressing = condition(&status.conditions, PROGRESSING).filter(|c| c.status == "True");
        if let Some(plan) = status.plan.as_ref().filter(|plan| !plan.steps.is_empty()) {
            let disruption = plan.disruption.clone().unwrap_or_else(|| "None".to_owned());
            let waiting = progressing.map(|c| c.message.clone()).filter(|message| !message.is_empty());
            view.plans.push(PlanInProgress { node: node.clone(), disruption, steps: plan.steps.clone(), waiting });
        }
        let ready = condition(&status.conditions, READY)
            .map_or_else(|| "Unknown".to_owned(), |c| if c.status == "True" { READY.to_owned() } else { c.reason.clone() });
        for pf in &status.interfaces {
            let used = snapshot.used(&node, pf).len();
            let refused =
                status.plan.as_ref().and_then(|plan| plan.refusals.iter().find(|r| r.pci_address == pf.pci_address)).map(|r| r.reason.clone());
            view.pfs.push(PfLine {
                node: node.clone(),
                pf: pf_name(pf),
                pci_address: pf.pci_address.clone(),
                driver: pf.driver.clone().unwrap_or_default(),
                link: pf.link_speed.clone().or_else(|| pf.link_admin_state.clone()).unwrap_or_default(),
                vfs: pf.vfs.len(),
                total_vfs: pf.total_vfs,
                used,
                free: pf.vfs.len() - used,
                state: refused.unwrap_or_else(|| ready.clone()),
            });
        }
    }
    view
}

fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    let problem = |object: String, reason: &str, message: &str| Problem { object, reason: reason.to_owned(), message: message.to_owned() };
    let mut found: Vec<Problem> = snapshot.unreadable.iter().map(|text| problem("object".to_owned(), "Unreadable", text)).collect();
    for state in &snapshot.states {
        let node = format!("node {}", state.metadata.name.as_deref().unwrap_or_default());
        let conditions = state.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let degraded = condition(conditions, DEGRADED).filter(|c| c.status == "True");
        let not_ready = condition(conditions, READY).filter(|c| c.status == "False");
        let working = condition(conditions, PROGRESSING).is_some_and(|c| c.status == "True");
        match (degraded, not_ready) {
            (Some(c), _) => found.push(problem(node, &c.reason, &c.message)),
            (None, Some(c)) if !working => found.push(problem(node, &c.reason, &c.message)),
            (None, None) if conditions.is_empty() => {
                found.push(problem(node, "NoStatus", "the config daemon has not answered yet: does its pod run?"));
            }
            _ => {}
        }
    }
    for policy in &snapshot.policies {
        let conditions = policy.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        if let Some(c) = condition(conditions, READY).filter(|c| c.status == "False") {
            found.push(problem(format!("policy {}", policy.metadata.name.as_deref().unwrap_or_default()), &c.reason, &c.message));
        }
    }
    for node in snapshot.nodes.iter().filter(|node| snapshot.is_managed(node)) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if snapshot.state(name).is_none() {
            found.push(problem(
                format!("node {name}"),
                "NoNodeState",
                "it is labelled but has no node state: does the operator run, and in this namespace (--operator-namespace)?",
            ));
        }
    }
    found
}

impl Status {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            let head = style.paint(Tone::Bad, &format!("{}: {}", problem.object, problem.reason));
            _ = writeln!(text, "{head}: {}", problem.message);
        }
        for plan in &self.plans {
            let head = style.paint(Tone::Warning, &format!("node {}: plan of {} steps, disruption {}", plan.node, plan.steps.len(), plan.disruption));
            let waiting = plan.waiting.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            _ = writeln!(text, "{head}{waiting}");
        }
        if !text.is_empty() {
            text.push('\n');
        }
        if self.pfs.is_empty() {
            return text + "no node has published its PFs: label nodes with feature.node.kubernetes.io/network-sriov.capable=true\n";
        }
        let rows: Vec<Vec<Cell>> = self.pfs.iter().map(PfLine::row).collect();
        text + &table(&["NODE", "PF", "ADDRESS", "DRIVER", "LINK", "VFS", "USED", "FREE", "STATE"], &rows, style)
    }
}

impl PfLine {
    fn row(&self) -> Vec<Cell> {
        let tone = if self.state == READY { Tone::Good } else { Tone::Bad };
        let free = if self.vfs > 0 && self.free == 0 { Tone::Warning } else { Tone::Plain };
        let plain = [&self.node, &self.pf, &self.pci_address, &self.driver, &self.link].map(|text| Cell::from(text.clone()));
        let mut row = Vec::from(plain);
        row.extend([format!("{}/{}", self.vfs, self.total_vfs).into(), self.used.to_string().into(), Cell::toned(self.free.to_string(), free)]);
        row.push(Cell::toned(self.state.clone(), tone));
        row
    }
}
