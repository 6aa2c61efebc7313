//! I/O: Open vSwitch's database server and its daemon, unpacked for tests: installed as Debian has it they would run on this machine. The libraries that
//! they load are in `hack/debian-packages`.

use anyhow::{Result, ensure};

use super::cache::{Cache, Stage};
use super::debian::{self, Offer};
use super::key::Inputs;

/// The name in `artifacts.json`, and the file.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("ovsdb-server", "usr/sbin/ovsdb-server"),
    ("ovsdb-tool", "usr/bin/ovsdb-tool"),
    ("ovs-vswitchd", "usr/lib/openvswitch-switch/ovs-vswitchd"),
    ("vswitch.ovsschema", "usr/share/openvswitch/vswitch.ovsschema"),
];

/// The programs and the schema of the database.
pub(crate) fn programs(cache: &Cache, offer: &Offer) -> Result<Stage> {
    let [common, switch] = &offer.openvswitch;
    let key = Inputs::new("openvswitch", include_str!("openvswitch.rs")).text("common", &common.exact()).text("switch", &switch.exact()).finish();
    cache.stage("openvswitch", key, |dir| {
        for deb in debian::download(&offer.openvswitch, &dir.join("deb"))? {
            debian::unpack(&deb, dir)?;
        }
        for (name, file) in FILES {
            ensure!(dir.join(file).is_file(), "the packages of Open vSwitch have no {name} at {file}");
        }
        Ok(())
    })
}
