//! I/O: what must hold for any bytes that reach the plugin from outside: its standard input, its journals, the answers of IPAM plugins.
//!
//! Used by the fuzz targets and by `tests/hostile_input.rs`. A property panics when it does not hold.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use sriov_cni::Error;
use sriov_cni::conf::NetConf;
use sriov_cni::error_version;
use sriov_cni::request::Request;
use sriov_cni::result::CniResult;
use sriov_cni::state::Store;
use sriov_cni::version::CniVersion;

/// The VF that the journal belongs to.
const VF: &str = "0000:3b:02.1";

/// Each configuration is either followed as it says or refused with an error that a runtime can read.
pub(crate) fn stdin(data: &[u8]) {
    let version = error_version(data);
    let environment = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => "ADD".to_owned(),
            "CNI_CONTAINERID" | "CNI_IFNAME" => "a".to_owned(),
            "CNI_ARGS" => String::from_utf8_lossy(data).into_owned(),
            _ => "/nowhere".to_owned(),
        })
    };
    if let Err(error) = Request::parse(environment, data.to_vec()) {
        told(&Error::from(error), version);
    }
    let conf = match NetConf::parse(data) {
        Ok(conf) => conf,
        Err(error) => return told(&Error::from(error), version),
    };
    assert_eq!(conf.version, version);
    assert!(conf.state_dir.is_absolute(), "{}", conf.state_dir.display());
    assert!(conf.ipam.as_ref().is_none_or(|plugin| !plugin.contains('/') && !plugin.is_empty()), "{:?}", conf.ipam);
    if let Some(previous) = &conf.prev_result {
        result(previous.to_string().as_bytes());
    }
    match conf.vf_request(None) {
        Err(error) => told(&Error::from(error), version),
        Ok(wanted) => {
            assert_eq!(Some(wanted.device), conf.device);
            assert!(wanted.mac.is_none_or(|mac| !mac.is_zero() && !mac.is_multicast()), "{:?}", wanted.mac);
            assert!(wanted.vlan.is_none_or(|vlan| vlan.id.get() <= 4094 && vlan.qos.get() <= 7), "{:?}", wanted.vlan);
            assert!(wanted.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)), "{:?}", wanted.mtu);
            assert!(wanted.vlan.is_none_or(|vlan| vlan.id.get() != 0 || vlan.qos.get() == 0), "{:?}", wanted.vlan);
        }
    }
}

/// An error has a code, a message and the version that it was asked in.
fn told(error: &Error, version: CniVersion) {
    let json = error.to_json(version);
    assert_eq!(json["cniVersion"], version.as_str());
    assert!(json["code"].as_u64().is_some_and(|code| code > 0), "{json}");
    assert!(json["msg"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
}

/// A journal is read back as it was written, or set aside and stops nobody.
pub(crate) fn journal(data: &[u8], folder: &Path) {
    let store = Store::at(folder);
    let Ok(vf) = VF.parse() else { panic!("{VF} is an address") };
    let made = store.create().and_then(|()| store.lock(vf, Instant::now()));
    let lock = made.unwrap_or_else(|error| panic!("{error}"));
    let file = folder.join("v1").join(format!("{VF}.json"));
    std::fs::write(&file, data).unwrap_or_else(|error| panic!("{error}"));
    let owners = store.all().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(owners.len(), 1);
    match store.read(vf) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(read) => {
            let Some(mut journal) = read else { panic!("a file is a journal or an error") };
            journal.vf = vf;
            store.write(&journal).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(store.read(vf).unwrap_or_else(|error| panic!("{error}")), Some(journal));
        }
    }
    let aside = store.set_aside(vf).unwrap_or_else(|error| panic!("{error}"));
    assert!(aside.exists() && !store.has(vf));
    drop(lock);
}

/// A result that was understood keeps its meaning in the form of the newest version, and has one in each older version.
pub(crate) fn result(data: &[u8]) {
    let Ok(wire) = serde_json::from_slice::<Value>(data) else { return };
    let Ok(result) = CniResult::decode(&wire) else { return };
    for version in CniVersion::ALL {
        let encoded = result.encode(version);
        assert_eq!(encoded["cniVersion"], version.as_str());
        let again = CniResult::decode(&encoded);
        if version == CniVersion::NEWEST {
            assert_eq!(again.unwrap_or_else(|error| panic!("{error}: {encoded}")), result, "{encoded}");
        }
    }
}
