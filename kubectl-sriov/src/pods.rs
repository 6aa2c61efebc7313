//! Pure: `kubectl sriov pods`: who holds which VF, and what the network set on it.

use serde::Serialize;
use serde_json::Value;

use crate::snapshot::{Attachment, Snapshot, pf_name};
use crate::table::{Cell, Style, table};

/// All VFs in pods.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pods {
    /// In order of node and address.
    pub attachments: Vec<Held>,
}

/// One VF in a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// What Multus reported.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// PF and index of the VF, if the node's daemon has published it.
    pub pf: Option<String>,
    /// Index of the VF on its PF.
    pub vf: Option<i64>,
    /// VLAN of the network; none is untagged.
    pub vlan: Option<u64>,
    /// Lowest transmit rate, Mb/s.
    pub min_tx_rate: Option<u64>,
    /// Highest transmit rate, Mb/s.
    pub max_tx_rate: Option<u64>,
}

/// The view of a cluster; `node` leaves the others out.
pub fn pods(snapshot: &Snapshot, node: Option<&str>) -> Pods {
    let held = |attachment: Attachment| {
        let found = snapshot.vf(&attachment.node, &attachment.pci_address);
        let config = snapshot.nad(&attachment.network).and_then(|nad| nad.spec.config.as_deref());
        let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        // A list of plugins has ours as its first.
        let config = config["plugins"].get(0).unwrap_or(&config);
        let number = |key: &str| config[key].as_u64().filter(|number| *number > 0);
        Held {
            pf: found.map(|(pf, _)| pf_name(pf)),
            vf: found.map(|(_, vf)| vf.vf_id),
            vlan: number("vlan"),
            min_tx_rate: number("min_tx_rate"),
            max_tx_rate: number("max_tx_rate"),
            attachment,
        }
    };
    let chosen = snapshot.attachments().into_iter().filter(|a| node.is_none_or(|node| a.node == node));
    Pods { attachments: chosen.map(held).collect() }
}

impl Pods {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        if self.attachments.is_empty() {
            return "no pod holds a VF that Multus reported\n".to_owned();
        }
        let number = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
        let row = |held: &Held| -> Vec<Cell> {
            let a = &held.attachment;
            let vf = held.vf.map(|vf| format!("{} vf {vf}", held.pf.clone().unwrap_or_default())).unwrap_or_default();
            let rates = [("min", held.min_tx_rate), ("max", held.max_tx_rate)];
            let rates: Vec<String> = rates.into_iter().filter_map(|(which, rate)| Some(format!("{which} {}", rate?))).collect();
            let rates = if rates.is_empty() { String::new() } else { format!("{} Mb/s", rates.join(", ")) };
            [
                a.node.clone(),
                format!("{}/{}", a.namespace, a.pod),
                a.interface.clone(),
                a.network.clone(),
                vf,
                a.pci_address.clone(),
                a.mac.clone().unwrap_or_default(),
                number(held.vlan),
                rates,
                a.addresses.join(","),
            ]
            .map(Cell::from)
            .into()
        };
        let rows: Vec<Vec<Cell>> = self.attachments.iter().map(row).collect();
        table(&["NODE", "POD", "INTERFACE", "NETWORK", "VF", "ADDRESS", "MAC", "VLAN", "RATES", "IP"], &rows, style)
    }
}
