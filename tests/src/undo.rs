//! I/O: "apply, then undo = nothing changed": configurations, VFs before them and what containers do meanwhile, all made up from a seed, on the
//! machine without hardware (`cni`). With a PF whose netdev holds attributes of VFs (netdevsim) these are part of it.
//!
//! What does not live here: what each key means (`netns_cni`), undoing an ADD that fails or dies (`netns_cni_races`, `netns_cni_kills`).
//!
//! Invariant: the same seed gives the same cases; a failure names seed and case.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use sriov_cni::io::{DelegateError, Delegation, Io};
use sriov_cni::request::Command;
use sriov_host::mac::MacAddr;
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_host::rate::Mbps;
use sriov_host::vf::{VfAttributes, VfIndex, VfLinkState, VfSetting, VfVlan};
use sriov_host::vlan::{VlanId, VlanProto, VlanQos};

use crate::cni::{Machine, NETDEV, Pod, USERSPACE_VF, VF, host_link};

/// Numbers from a seed (splitmix64, Steele and others, 2014).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to `most`, both included.
    fn between(&mut self, least: u32, most: u32) -> u32 {
        let span = u64::from(most - least) + 1;
        least + u32::try_from(self.next() % span).unwrap_or_default()
    }

    fn coin(&mut self) -> bool {
        self.next().is_multiple_of(2)
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.coin().then(|| make(self))
    }

    fn mac(&mut self) -> MacAddr {
        let bytes = self.next().to_le_bytes();
        MacAddr([0x02, 0x5e, bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn vlan(&mut self) -> VfVlan {
        let id = self.between(0, 4094);
        let proto = if id > 0 && self.coin() { VlanProto::Dot1ad } else { VlanProto::Dot1q };
        let qos = if id > 0 { self.between(0, 7) } else { 0 };
        let (id, qos) = (u16::try_from(id).unwrap_or_default(), u8::try_from(qos).unwrap_or_default());
        VfVlan { id: VlanId::try_from(id).unwrap_or_default(), qos: VlanQos::try_from(qos).unwrap_or_default(), proto }
    }

    fn link_state(&mut self) -> VfLinkState {
        [VfLinkState::Auto, VfLinkState::Enable, VfLinkState::Disable][self.between(0, 2) as usize]
    }
}

/// An IPAM plugin without a process.
struct Addresses;

impl Io for Addresses {
    fn delegate(&self, call: &Delegation<'_>) -> Result<Vec<u8>, DelegateError> {
        let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.7/24"}, {"address": "2001:db8::7/64"}], "routes": [{"dst": "198.51.100.0/24"}]});
        Ok(if call.command == Command::Add { result.to_string().into_bytes() } else { Vec::new() })
    }
}

/// All that must be the same before and after.
#[derive(Clone, Debug, PartialEq)]
struct Snapshot {
    link: Link,
    alt_names: BTreeSet<String>,
    addresses: usize,
    sysctls: Vec<Option<String>>,
    held: Vec<VfAttributes>,
    links: BTreeSet<String>,
}

const SYSCTLS: [&str; 6] = [
    "ipv4/conf/@/arp_notify",
    "ipv4/conf/@/forwarding",
    "ipv6/conf/@/ndisc_notify",
    "ipv6/conf/@/optimistic_dad",
    "ipv6/conf/@/disable_ipv6",
    "ipv6/conf/@/keep_addr_on_down",
];

fn sysctl(name: &str, link: &str) -> String {
    format!("/proc/sys/net/{}", name.replace('@', link))
}

/// The machine's side of all cases.
#[derive(Debug)]
struct Scene<'a> {
    machine: &'a Machine,
    route: Route,
    pf: Option<u32>,
}

impl Scene<'_> {
    fn held(&self) -> Result<Vec<VfAttributes>> {
        self.pf.map(|pf| self.route.vfs(pf)).transpose().map(Option::unwrap_or_default).context("read the VFs")
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut link = host_link(NETDEV)?;
        let addresses = self.route.addresses(link.netdev.ifindex)?.len();
        // The index is the kernel's choice; the carrier follows some time after the state.
        (link.netdev.ifindex, link.netdev.carrier) = (0, false);
        let alt_names = std::mem::take(&mut link.netdev.alt_names).into_iter().collect();
        let sysctls = SYSCTLS.map(|name| std::fs::read_to_string(sysctl(name, NETDEV)).ok()).to_vec();
        let links = self.route.links()?.into_iter().map(|link| link.netdev.name).collect();
        Ok(Snapshot { link, alt_names, addresses, sysctls, held: self.held()?, links })
    }

    /// A netdev and VFs as some administrator left them.
    fn prepare(&self, dice: &mut Dice) -> Result<()> {
        let ifindex = host_link(NETDEV)?.netdev.ifindex;
        let state = LinkChange {
            mtu: dice.maybe(|dice| dice.between(1280, 9000)),
            mac: dice.maybe(Dice::mac),
            up: Some(dice.coin()),
            allmulti: Some(dice.coin()),
            promisc: Some(dice.coin()),
            ..LinkChange::default()
        };
        self.route.change_link(ifindex, &state)?;
        for name in host_link(NETDEV)?.netdev.alt_names {
            self.route.del_alt_name(ifindex, &name)?;
        }
        for number in 0..dice.between(0, 2) {
            self.route.add_alt_name(ifindex, &format!("alternative-name-{number}-{}", dice.between(0, 9)))?;
        }
        for index in 0..2 {
            if let Some(pf) = self.pf {
                let (min, max) = (dice.between(0, 50), dice.between(50, 1000));
                let settings = [
                    VfSetting::Mac(if dice.coin() { dice.mac() } else { MacAddr::ZERO }),
                    VfSetting::Vlan(dice.vlan()),
                    VfSetting::Rate { min: Mbps(min), max: Mbps(max) },
                    VfSetting::SpoofCheck(dice.coin()),
                    VfSetting::LinkState(dice.link_state()),
                    VfSetting::Trust(dice.coin()),
                ];
                self.route.set_vf(pf, VfIndex(index), &settings)?;
            }
        }
        Ok(())
    }

    /// A network's keys, and what the PF must hold then.
    fn ask(&self, dice: &mut Dice, has_netdev: bool, held: &mut VfAttributes) -> Value {
        let mut keys = Map::new();
        let switch = |on: bool| json!(if on { "on" } else { "off" });
        if has_netdev {
            keys.extend(dice.maybe(|dice| ("mtu".to_owned(), json!(dice.between(1280, 9000)))));
            keys.extend(dice.maybe(|dice| ("allmulti".to_owned(), switch(dice.coin()))));
            keys.extend(dice.maybe(|dice| ("promisc".to_owned(), switch(dice.coin()))));
        }
        keys.extend(dice.maybe(|_| ("ipam".to_owned(), json!({"type": "made-up"}))));
        if self.pf.is_none() {
            return keys.into();
        }
        if let Some(mac) = dice.maybe(Dice::mac) {
            held.mac = mac;
            keys.insert("mac".to_owned(), json!(mac.to_string()));
        }
        if let Some(vlan) = dice.maybe(Dice::vlan) {
            held.vlan = vlan;
            keys.extend([("vlan".to_owned(), json!(vlan.id)), ("vlanQoS".to_owned(), json!(vlan.qos)), ("vlanProto".to_owned(), json!(vlan.proto))]);
        }
        if let Some(rate) = dice.maybe(|dice| dice.between(0, 50)) {
            held.min_tx_rate = Mbps(rate);
            keys.insert("min_tx_rate".to_owned(), json!(rate));
        }
        if let Some(rate) = dice.maybe(|dice| dice.between(50, 1000)) {
            held.max_tx_rate = Mbps(rate);
            keys.insert("max_tx_rate".to_owned(), json!(rate));
        }
        if let Some(on) = dice.maybe(Dice::coin) {
            held.spoof_check = Some(on);
            keys.insert("spoofchk".to_owned(), switch(on));
        }
        if let Some(on) = dice.maybe(Dice::coin) {
            held.trust = Some(on);
            keys.insert("trust".to_owned(), switch(on));
        }
        if let Some(state) = dice.maybe(Dice::link_state) {
            held.link_state = Some(state);
            keys.insert("link_state".to_owned(), json!(state));
        }
        keys.into()
    }
}

/// What a container with the right to do so does to its interface.
fn meddle(dice: &mut Dice, pod: &Pod) -> Result<()> {
    let route = pod.route()?;
    let ifindex = pod.link("net1")?.netdev.ifindex;
    let change = LinkChange {
        mtu: dice.maybe(|dice| dice.between(1280, 9000)),
        up: dice.maybe(Dice::coin),
        allmulti: dice.maybe(Dice::coin),
        promisc: dice.maybe(Dice::coin),
        ..LinkChange::default()
    };
    route.change_link(ifindex, &change)?;
    if dice.coin() {
        route.add_alt_name(ifindex, "name-of-the-container")?;
    }
    if dice.coin() {
        route.add_address(ifindex, "203.0.113.9".parse()?, 24)?;
    }
    if dice.coin() {
        pod.netns().run_in(|| std::fs::write(sysctl("ipv4/conf/@/forwarding", "net1"), "1"))??;
    }
    Ok(())
}

/// One case: ADD does what is asked, DEL leaves everything as it was.
fn case(scene: &Scene<'_>, pod: &Pod, dice: &mut Dice) -> Result<()> {
    scene.prepare(dice)?;
    let before = scene.snapshot()?;
    let has_netdev = dice.between(0, 3) > 0;
    let (vf, index) = if has_netdev { (VF, 0) } else { (USERSPACE_VF, 1) };
    let mut held = before.held.clone();
    let mut none = nothing(index)?;
    let asked = scene.ask(dice, has_netdev, held.iter_mut().find(|held| held.index.0 == index).unwrap_or(&mut none));
    let mut conf = scene.machine.conf(&asked);
    conf["deviceID"] = json!(vf);

    let result = scene.machine.call_with(Command::Add, pod, &conf, &Addresses).with_context(|| format!("ADD of {asked}"))?.context("a result")?;
    ensure!(scene.held()? == held, "ADD of {asked} left {:?} and not {held:?}", scene.held()?);
    if has_netdev {
        let (inside, own) = (pod.link("net1")?, &before.link);
        let number = |key: &str, own: u32| asked[key].as_u64().map_or(own, |asked| u32::try_from(asked).unwrap_or_default());
        let switch = |key: &str, own: bool| asked[key].as_str().map_or(own, |asked| asked == "on");
        let mac = asked["mac"].as_str().map(str::to_owned).or_else(|| own.netdev.mac.map(|mac| mac.to_string()));
        ensure!(inside.netdev.admin_up && inside.netdev.mtu == number("mtu", own.netdev.mtu), "ADD of {asked}: {inside:?}");
        ensure!(
            (inside.allmulti, inside.promisc) == (switch("allmulti", own.allmulti), switch("promisc", own.promisc)),
            "ADD of {asked}: {inside:?}"
        );
        ensure!(
            inside.netdev.mac.map(|mac| mac.to_string()) == mac && result["interfaces"][0]["mac"] == json!(mac),
            "ADD of {asked}: {inside:?} {result}"
        );
        meddle(dice, pod)?;
    }
    scene.machine.call_with(Command::Del, pod, &conf, &Addresses).with_context(|| format!("DEL of {asked}"))?;
    let after = scene.snapshot()?;
    ensure!(after == before, "after {asked}:\n  {after:?}\nis not what was there before:\n  {before:?}");
    ensure!(scene.machine.journals().is_empty() && pod.links()? == ["lo".to_owned()].into(), "something was left of {asked}");
    Ok(())
}

/// What a machine without a PF's netdev is told about.
fn nothing(index: u16) -> Result<VfAttributes> {
    let zero = json!({"index": index, "mac": MacAddr::ZERO, "vlan": VfVlan::default(), "min_tx_rate": 0, "max_tx_rate": 0});
    serde_json::from_value(zero).context("attributes")
}

/// Performs this many cases on a machine in the calling thread's namespace; `pf` names a netdev there that holds the attributes of two VFs.
pub fn apply_then_undo(machine: &Machine, pf: Option<&str>, cases: u64, seed: u64) -> Result<()> {
    let route = Route::open()?;
    let pf = match pf {
        Some(name) => {
            machine.show_pf(name)?;
            Some(route.link_by_name(name)?.with_context(|| format!("there is no {name}"))?.netdev.ifindex)
        }
        None => None,
    };
    let scene = Scene { machine, route, pf };
    let pod = Pod::new("undo")?;
    for number in 0..cases {
        case(&scene, &pod, &mut Dice(seed.wrapping_add(number))).with_context(|| format!("case {number} of seed {seed}"))?;
    }
    Ok(())
}
