//! I/O: `sriov explain`: what ADD would do with a configuration, or why it would refuse it.
//!
//! What does not live here: doing any of it. Invariant: nothing is changed, no file is made, no other program runs.

use std::path::PathBuf;

use serde_json::{Value, json};
use sriov_host::Host;
use sriov_host::netlink::{Link, Route};

use crate::attach::{self, AttachError};
use crate::conf::{NetConf, VfRequest};
use crate::device::Device;
use crate::errors::Error;
use crate::restore::{boot_id, living_netns};
use crate::state::Store;
use crate::version::CniVersion;
use crate::vlan_set::VlanSet;
use crate::{infiniband, rdma, vf_plan};

/// What ADD would do.
#[derive(Debug, Default)]
pub struct Explanation {
    /// Facts and steps, in order.
    pub steps: Vec<String>,
    /// Why it would stop after them.
    pub refusal: Option<Error>,
}

/// Explains the configuration `stdin`. `args_mac` is the `MAC` of CNI_ARGS.
pub fn explain(stdin: &[u8], args_mac: Option<&str>, host: &Host) -> Explanation {
    let mut steps = Vec::new();
    let refusal = look(stdin, args_mac, host, &mut steps).err();
    Explanation { steps, refusal }
}

impl Explanation {
    /// `{"steps": [text], "refusal": CNI error or null}`.
    pub fn to_json(&self) -> Value {
        json!({"steps": self.steps, "refusal": self.refusal.as_ref().map(|refusal| refusal.to_json(CniVersion::NEWEST))})
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        match &self.refusal {
            None => f.write_str("ADD would go through, as far as can be told without doing it"),
            Some(refusal) => write!(f, "ADD would be refused (code {}): {refusal}", refusal.code()),
        }
    }
}

fn look(stdin: &[u8], args_mac: Option<&str>, host: &Host, steps: &mut Vec<String>) -> Result<(), Error> {
    let conf = NetConf::parse(stdin)?;
    let wanted = conf.vf_request(args_mac)?;
    let vf = wanted.device;
    let store = Store::at(&conf.state_dir);
    match store.read(vf)? {
        Some(journal) if journal.boot_id == boot_id(host) && living_netns(&journal.owner, None).is_some() => {
            return Err(Error::Taken { vf, container_id: journal.owner.container_id, if_name: journal.owner.if_name });
        }
        Some(journal) => steps.push(format!("restore VF {vf}, which container {} left behind", journal.owner.container_id)),
        None => {}
    }
    let route = Route::open()?;
    let device = Device::find(host, &route, vf)?;
    let alone = if vf.pci().is_some() { "without a PF here" } else { "a sub-function" };
    let of_pf = device.pf.map_or_else(|| alone.to_owned(), |pf| format!("VF {} of PF {pf}", device.index));
    steps.push(format!("use {vf}, {of_pf}, with driver {}", device.driver));
    through_the_pf(host, &route, &device, &wanted, steps)?;
    if let Some(trunk) = &wanted.trunk {
        let current = attach::original_trunk(host, &device, trunk)?;
        steps.push(format!(
            "let the VLANs {trunk} through to VF {}, now {}",
            device.index,
            if current == VlanSet::default() { "none".to_owned() } else { current.to_string() }
        ));
    }
    attach::check_mtu(host, &route, &device, wanted.mtu)?;
    let plugins: Vec<PathBuf> = std::env::var_os("CNI_PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let rdma = rdma::to_move(host, &device, wanted.rdma_isolation, &plugins).map_err(AttachError::from)?;
    if let Some(link) = &device.netdev {
        attach::refuse_netdev(&wanted, &device)?;
        on_the_netdev(link, &wanted, steps);
        steps.extend(rdma.into_iter().map(|rdma| format!("move the RDMA device {} into the container", rdma.name)));
    } else {
        attach::refuse_without_netdev(&wanted, &device)?;
        steps.push("leave the device with its driver: a program in the container uses it".to_owned());
    }
    if let Some(plugin) = &conf.ipam {
        steps.push(format!("ask the IPAM plugin {plugin} for addresses{}", if device.netdev.is_some() { " and set them" } else { "" }));
    }
    Ok(())
}

fn on_the_netdev(link: &Link, wanted: &VfRequest, steps: &mut Vec<String>) {
    let netdev = &link.netdev;
    steps.push(format!("move {} into the container under the name CNI_IFNAME", netdev.name));
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    let changes = [
        ("mac", wanted.mac.filter(|mac| netdev.mac != Some(*mac)).map(|mac| mac.to_string())),
        ("mtu", wanted.mtu.filter(|mtu| netdev.mtu != *mtu).map(|mtu| mtu.to_string())),
        ("allmulti", wanted.allmulti.filter(|on| link.allmulti != *on).map(switch)),
        ("promisc", wanted.promisc.filter(|on| link.promisc != *on).map(switch)),
    ];
    steps.extend(changes.into_iter().filter_map(|(key, value)| Some(format!("set {key} of the netdev to {}", value?))));
    steps.push("set the netdev up".to_owned());
}

fn through_the_pf(host: &Host, route: &Route, device: &Device, wanted: &VfRequest, steps: &mut Vec<String>) -> Result<(), Error> {
    let without_mac = VfRequest { mac: None, ..wanted.clone() };
    if !vf_plan::asks_the_pf(if device.pf.is_some() || device.netdev.is_none() { wanted } else { &without_mac }) {
        return Ok(());
    }
    let (pf, current) = device.attributes(host, route)?;
    attach::check_guid(&pf, wanted.guid)?;
    for setting in vf_plan::asked(wanted, &current) {
        let in_place = vf_plan::changes(&[setting], &current).is_empty();
        let verb = if in_place { "leave, because it is so already:" } else { "set" };
        steps.push(format!("{verb} {setting} of VF {} through {}", device.index, pf.netdev.name));
    }
    if infiniband::needs_probe(device.kernel_driver(), &vf_plan::changes(&vf_plan::asked(wanted, &current), &current)) {
        steps.push(format!("bind VF {} anew to {}, so that it takes its GUIDs over", device.vf, device.driver));
    }
    Ok(())
}
