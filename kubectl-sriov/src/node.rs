//! Pure: `kubectl sriov node NAME`: everything about one node: conditions, plan, PFs and their VFs with who holds them.

use std::fmt::Write as _;

use serde::Serialize;
use sriov_crds::node_state::{InterfaceStatus, PlanStatus};

use crate::snapshot::{Snapshot, pf_name};
use crate::table::{Cell, Style, Tone, table};

/// One node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// `active` or `inactive`.
    pub iommu: Option<String>,
    /// Type, status, reason and message of each condition.
    pub conditions: Vec<[String; 4]>,
    /// What is going to be done.
    pub plan: Option<PlanStatus>,
    /// Its PFs, as published.
    pub interfaces: Vec<InterfaceStatus>,
    /// PCI address of a VF and who holds it.
    pub holders: std::collections::BTreeMap<String, String>,
}

/// The view of a node; `None` when it has no node state.
pub fn node(snapshot: &Snapshot, name: &str) -> Option<NodeView> {
    let status = snapshot.state(name)?.status.clone().unwrap_or_default();
    let condition =
        |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| [c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone()];
    let assigned = status.interfaces.iter().flat_map(|pf| &pf.vfs).filter_map(|vf| Some((vf.pci_address.clone(), vf.assigned.clone()?)));
    let mut holders: std::collections::BTreeMap<String, String> = assigned.collect();
    let pods = snapshot.attachments().into_iter().filter(|a| a.node == name);
    holders.extend(pods.map(|a| (a.pci_address, format!("{}/{} {}", a.namespace, a.pod, a.interface))));
    Some(NodeView {
        node: name.to_owned(),
        iommu: status.system.and_then(|system| system.iommu),
        conditions: status.conditions.iter().map(condition).collect(),
        plan: status.plan,
        interfaces: status.interfaces,
        holders,
    })
}

impl NodeView {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        let mut text = format!("node {}, IOMMU {}\n\n", self.node, self.iommu.as_deref().unwrap_or("unknown"));
        let row = |[kind, status, reason, message]: &[String; 4]| {
            let good = (kind == "Ready") == (status == "True");
            let tone = if good { Tone::Good } else { Tone::Bad };
            vec![kind.clone().into(), Cell::toned(status.clone(), tone), reason.clone().into(), message.clone().into()]
        };
        let rows: Vec<Vec<Cell>> = self.conditions.iter().map(row).collect();
        text += &table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &rows, style);
        if let Some(plan) = &self.plan {
            _ = writeln!(text, "\nplan, disruption {}:", plan.disruption.as_deref().unwrap_or("None"));
            for step in &plan.steps {
                _ = writeln!(text, "  {step}");
            }
            for r in &plan.refusals {
                let line = format!("refused: {} {}: {}", r.pci_address, r.reason, r.message);
                _ = writeln!(text, "  {}", style.paint(Tone::Bad, &line));
            }
        }
        for pf in &self.interfaces {
            let supported = if pf.supported == Some(false) { ", not in supported-nic-ids" } else { "" };
            let mtu = pf.mtu.unwrap_or_default();
            _ = writeln!(
                text,
                "\n{} {}, {}, MTU {mtu}, {} of {} VFs{supported}",
                pf_name(pf),
                pf.pci_address,
                pf.driver.as_deref().unwrap_or("no driver"),
                pf.vfs.len(),
                pf.total_vfs
            );
            let rows: Vec<Vec<Cell>> = pf.vfs.iter().map(|vf| self.vf_row(vf)).collect();
            if !rows.is_empty() {
                text += &table(&["VF", "ADDRESS", "DRIVER", "NETDEV", "MAC", "HELD BY"], &rows, style);
            }
        }
        text
    }

    fn vf_row(&self, vf: &sriov_crds::node_state::VfStatus) -> Vec<Cell> {
        let text = |text: &Option<String>| Cell::from(text.clone().unwrap_or_default());
        let holder = self.holders.get(&vf.pci_address).cloned().unwrap_or_default();
        vec![vf.vf_id.to_string().into(), vf.pci_address.clone().into(), text(&vf.driver), text(&vf.name), text(&vf.mac), holder.into()]
    }
}
