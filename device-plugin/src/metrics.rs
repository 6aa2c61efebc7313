//! Pure: what happened, as counters, and the text of `/metrics` (Prometheus exposition format 0.0.4).
//!
//! What does not live here: serving it (`http`), reading counters of VFs (`http`).
//!
//! Invariant: labels are bounded by pools, reasons and devices; nothing of a request or an error text becomes a label.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::PoisonError;

use sriov_host::pci::PciAddress;
use sriov_host::vf::VfCounters;

use crate::pod_resources::Owner;
use crate::pool::{Pool, PoolName};

/// Counters of this process, and what is offered now.
#[derive(Debug, Default)]
pub struct Metrics {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pool -> (taken, refused).
    registrations: BTreeMap<String, (u64, u64)>,
    allocations: BTreeMap<String, u64>,
    refusals: BTreeMap<(String, &'static str), u64>,
    config_errors: u64,
    refused_files: u64,
    withheld: u64,
    pools: BTreeMap<String, BTreeMap<(&'static str, &'static str), u64>>,
}

/// One VF with what passed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VfSample {
    /// Name of the PF's netdev.
    pub pf: String,
    /// Index on the PF.
    pub vf: u16,
    /// PCI address.
    pub address: Option<PciAddress>,
    /// NUMA node.
    pub numa_node: Option<u16>,
    /// The container that has it, if the kubelet counts it to one.
    pub owner: Option<Owner>,
    /// What its PF counts.
    pub counters: Option<VfCounters>,
    /// What the driver of its PF counts beyond that, by the driver's names.
    pub of_driver: Vec<(String, u64)>,
    /// What its RDMA device counts, by the kernel's names.
    pub rdma: Vec<(String, u64)>,
}

impl Metrics {
    fn with(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The kubelet took a registration, or did not.
    pub fn registered(&self, pool: &PoolName, taken: bool) {
        self.with(|state| {
            let (yes, no) = state.registrations.entry(pool.to_string()).or_default();
            *(if taken { yes } else { no }) += 1;
        });
    }

    /// Devices were given to a container.
    pub fn allocated(&self, pool: &PoolName) {
        self.with(|state| *state.allocations.entry(pool.to_string()).or_default() += 1);
    }

    /// Devices were not given to a container.
    pub fn refused(&self, pool: &PoolName, reason: &'static str) {
        self.with(|state| *state.refusals.entry((pool.to_string(), reason)).or_default() += 1);
    }

    /// How many resources of the file are left out, and whether the file as a whole was refused just now.
    pub fn loaded(&self, left_out: usize, refused: bool) {
        self.with(|state| {
            if refused {
                state.refused_files += 1;
            } else {
                state.config_errors = left_out as u64;
            }
        });
    }

    /// What is offered now, and how many devices are not because the host uses them.
    pub fn offered<'a>(&self, pools: impl Iterator<Item = &'a Pool>, withheld: usize) {
        let count = |pool: &Pool| {
            let mut counts = BTreeMap::from([(("Healthy", ""), 0)]);
            for device in pool.devices.values() {
                *counts.entry((device.health.word(), device.health.reason())).or_default() += 1;
            }
            (pool.name.to_string(), counts)
        };
        let pools = pools.map(count).collect();
        self.with(|state| {
            state.pools = pools;
            state.withheld = withheld as u64;
        });
    }

    /// The text of `/metrics` with these VFs.
    pub fn render(&self, vfs: &[VfSample]) -> String {
        let mut text = Text::default();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        text.family("sriov_device_plugin_devices", "gauge", "Devices by pool, health as the kubelet is told it, and reason.");
        for (pool, counts) in &state.pools {
            for ((health, reason), count) in counts {
                text.sample("sriov_device_plugin_devices", &[("pool", pool), ("health", health), ("reason", reason)], *count);
            }
        }
        text.family("sriov_device_plugin_withheld_devices", "gauge", "Devices that selectors take and the host itself uses.");
        text.sample("sriov_device_plugin_withheld_devices", &[], state.withheld);
        text.family("sriov_device_plugin_left_out_resources", "gauge", "Resources of the config file that are wrong and left out.");
        text.sample("sriov_device_plugin_left_out_resources", &[], state.config_errors);
        text.family("sriov_device_plugin_refused_files_total", "counter", "Config files that were refused as a whole.");
        text.sample("sriov_device_plugin_refused_files_total", &[], state.refused_files);
        text.family("sriov_device_plugin_registrations_total", "counter", "Registrations with the kubelet by their result.");
        for (pool, (taken, failed)) in &state.registrations {
            text.sample("sriov_device_plugin_registrations_total", &[("pool", pool), ("result", "taken")], *taken);
            text.sample("sriov_device_plugin_registrations_total", &[("pool", pool), ("result", "failed")], *failed);
        }
        text.family("sriov_device_plugin_allocations_total", "counter", "Containers that were given devices.");
        for (pool, count) in &state.allocations {
            text.sample("sriov_device_plugin_allocations_total", &[("pool", pool)], *count);
        }
        text.family("sriov_device_plugin_refused_allocations_total", "counter", "Containers that were refused devices, by reason.");
        for ((pool, reason), count) in &state.refusals {
            text.sample("sriov_device_plugin_refused_allocations_total", &[("pool", pool), ("reason", reason)], *count);
        }
        drop(state);
        text.vfs(vfs);
        text.0
    }
}

/// Whether a driver's name can be a part of a metric's.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The exposition text so far.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A family for each name.
    fn by_name<'a>(&mut self, prefix: &str, help: &str, samples: impl Iterator<Item = (&'a str, &'a VfSample, u64)>) {
        let mut families: BTreeMap<&str, Vec<(&VfSample, u64)>> = BTreeMap::new();
        for (name, vf, value) in samples {
            families.entry(name).or_default().push((vf, value));
        }
        for (name, values) in families {
            let name = format!("{prefix}{name}");
            self.family(&name, "counter", help);
            for (vf, value) in values {
                self.vf(&name, vf, value);
            }
        }
    }

    /// The families of the field's exporter, with the pod beside each value.
    fn vfs(&mut self, vfs: &[VfSample]) {
        type Get = fn(&VfCounters) -> u64;
        let families: [(&str, Get); 8] = [
            ("rx_bytes", |counters| counters.rx_bytes),
            ("tx_bytes", |counters| counters.tx_bytes),
            ("rx_packets", |counters| counters.rx_packets),
            ("tx_packets", |counters| counters.tx_packets),
            ("rx_dropped", |counters| counters.rx_dropped),
            ("tx_dropped", |counters| counters.tx_dropped),
            ("rx_broadcast", |counters| counters.rx_broadcast),
            ("rx_multicast", |counters| counters.rx_multicast),
        ];
        for (name, get) in families {
            let title = format!("sriov_vf_{name}");
            self.family(&title, "counter", "What the PF counts of the VF, with the container that has it.");
            for vf in vfs {
                let of_driver = || vf.of_driver.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
                if let Some(value) = vf.counters.as_ref().map(get).or_else(of_driver) {
                    self.vf(&title, vf, value);
                }
            }
        }
        let told = |name: &str| families.iter().any(|(known, _)| *known == name) || !is_plain(name);
        let more =
            vfs.iter().flat_map(|vf| vf.of_driver.iter().filter(|(name, _)| !told(name)).map(move |(name, value)| (name.as_str(), vf, *value)));
        self.by_name("sriov_vf_", "What the driver of the PF counts of the VF.", more);
        let rdma = vfs.iter().flat_map(|vf| vf.rdma.iter().filter(|(name, _)| is_plain(name)).map(move |(name, value)| (name.as_str(), vf, *value)));
        self.by_name("sriov_vf_rdma_", "What the VF's RDMA device counts at its port 1.", rdma);
        self.family("sriov_kubepoddevice", "gauge", "1 for each device that the kubelet counts to a container.");
        for vf in vfs {
            if let (Some(owner), Some(address)) = (&vf.owner, vf.address) {
                let labels = [("pciAddr", address.to_string()), ("dev_type", owner.resource.clone())];
                let of_pod = [("pod", &owner.pod), ("namespace", &owner.namespace), ("container", &owner.container)];
                let labels: Vec<(&str, &str)> =
                    labels.iter().map(|(key, value)| (*key, value.as_str())).chain(of_pod.map(|(key, value)| (key, value.as_str()))).collect();
                self.sample("sriov_kubepoddevice", &labels, 1);
            }
        }
    }

    fn vf(&mut self, name: &str, vf: &VfSample, value: u64) {
        let index = vf.vf.to_string();
        let address = vf.address.map(|address| address.to_string()).unwrap_or_default();
        let numa = vf.numa_node.map(|node| node.to_string()).unwrap_or_default();
        let none = Owner::default();
        let owner = vf.owner.as_ref().unwrap_or(&none);
        let labels = [
            ("pf", vf.pf.as_str()),
            ("vf", &index),
            ("pciAddr", &address),
            ("numa_node", &numa),
            ("namespace", &owner.namespace),
            ("pod", &owner.pod),
            ("container", &owner.container),
        ];
        self.sample(name, &labels, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_counted_where_it_belongs() {
        let metrics = Metrics::default();
        let pool = PoolName::new("x.io", "a").unwrap();
        metrics.registered(&pool, false);
        metrics.registered(&pool, true);
        metrics.allocated(&pool);
        metrics.refused(&pool, "LoseDriver");
        metrics.loaded(2, false);
        metrics.loaded(0, true);
        metrics.offered([Pool::empty(pool)].iter(), 3);
        let text = metrics.render(&[]);
        for line in [
            "sriov_device_plugin_devices{pool=\"x.io/a\",health=\"Healthy\",reason=\"\"} 0",
            "sriov_device_plugin_withheld_devices 3",
            "sriov_device_plugin_left_out_resources 2",
            "sriov_device_plugin_refused_files_total 1",
            "sriov_device_plugin_registrations_total{pool=\"x.io/a\",result=\"taken\"} 1",
            "sriov_device_plugin_registrations_total{pool=\"x.io/a\",result=\"failed\"} 1",
            "sriov_device_plugin_allocations_total{pool=\"x.io/a\"} 1",
            "sriov_device_plugin_refused_allocations_total{pool=\"x.io/a\",reason=\"LoseDriver\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_vf_has_its_pod_beside_its_traffic_and_labels_are_escaped() {
        let owner = Owner { namespace: "n".into(), pod: "p\"\\".into(), container: "c".into(), resource: "x.io/a".into() };
        let counters = VfCounters { rx_bytes: 7, tx_dropped: 2, ..VfCounters::default() };
        let vf = VfSample {
            pf: "ens1f0".into(),
            vf: 3,
            address: "0000:01:10.6".parse().ok(),
            numa_node: Some(1),
            owner: Some(owner),
            counters: Some(counters),
            of_driver: vec![("rx_bytes".into(), 1), ("tx_errors".into(), 4), ("not a name".into(), 1)],
            rdma: vec![("port_rcv_data".into(), 9)],
        };
        let only_driver = VfSample { vf: 5, of_driver: vec![("rx_packets".into(), 6)], ..VfSample::default() };
        let text = Metrics::default().render(&[vf, VfSample { vf: 4, counters: Some(counters), ..VfSample::default() }, only_driver]);
        let of_pod = "pf=\"ens1f0\",vf=\"3\",pciAddr=\"0000:01:10.6\",numa_node=\"1\",namespace=\"n\",pod=\"p\\\"\\\\\",container=\"c\"";
        for line in [
            format!("sriov_vf_rx_bytes{{{of_pod}}} 7"),
            format!("sriov_vf_tx_dropped{{{of_pod}}} 2"),
            format!("sriov_vf_rdma_port_rcv_data{{{of_pod}}} 9"),
            format!("sriov_vf_tx_errors{{{of_pod}}} 4"),
            "sriov_vf_rx_packets{pf=\"\",vf=\"5\",pciAddr=\"\",numa_node=\"\",namespace=\"\",pod=\"\",container=\"\"} 6".to_owned(),
            "sriov_vf_rx_bytes{pf=\"\",vf=\"4\",pciAddr=\"\",numa_node=\"\",namespace=\"\",pod=\"\",container=\"\"} 7".to_owned(),
            "sriov_kubepoddevice{pciAddr=\"0000:01:10.6\",dev_type=\"x.io/a\",pod=\"p\\\"\\\\\",namespace=\"n\",container=\"c\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
