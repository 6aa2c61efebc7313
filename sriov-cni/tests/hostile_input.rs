//! I/O: whatever reaches the plugin from outside is followed or refused, never a panic: the corpus of the fuzz targets, each of its files cut off
//! and disturbed at every byte, and inputs made up from the plugin's own words.
//!
//! What lives here runs in each test run; `fuzz/` looks for what nobody thought of.

#[path = "../fuzz/properties.rs"]
#[expect(clippy::panic, reason = "a property panics when it does not hold")]
mod properties;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The corpus of a target by file name.
fn corpus(target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        files.push((path.display().to_string(), std::fs::read(&path)?));
    }
    ensure!(files.len() >= 9, "the corpus {target} has only {} files", files.len());
    Ok(files)
}

/// The file as it is, cut off at each place, and with each byte replaced by some that mean something in JSON.
fn disturbed(bytes: &[u8], step: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let cut = (0..bytes.len()).step_by(step).map(|end| bytes[..end].to_vec());
    let replaced = (0..bytes.len()).step_by(step).flat_map(|at| {
        [b'"', b'0', b'-', b'{', b'n', 0xff].map(|byte| {
            let mut copy = bytes.to_vec();
            copy[at] = byte;
            copy
        })
    });
    std::iter::once(bytes.to_vec()).chain(cut).chain(replaced)
}

#[test]
fn any_standard_input_is_followed_or_refused() -> Result<()> {
    for (_, bytes) in corpus("stdin")? {
        disturbed(&bytes, 1).for_each(|input| properties::stdin(&input));
    }
    Ok(())
}

#[test]
fn any_journal_is_read_or_set_aside() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("hostile").tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" })?;
    for (_, bytes) in corpus("journal")? {
        disturbed(&bytes, 7).for_each(|input| properties::journal(&input, folder.path()));
    }
    Ok(())
}

#[test]
fn any_answer_of_ipam_is_understood_or_refused() -> Result<()> {
    for (_, bytes) in corpus("result")? {
        disturbed(&bytes, 1).for_each(|input| properties::result(&input));
    }
    Ok(())
}

/// Values of all kinds, some of them right for some key.
fn any_value() -> impl Strategy<Value = Value> {
    let words =
        ["on", "off", "On", "auto", "enable", "802.1q", "802.1ad", "02:00:5e:10:00:01", "ff:ff:ff:ff:ff:ff", "0000:3b:02.1", "/x", "debug", ""];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..70_000).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(words.to_vec()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let keys = prop::sample::select(vec!["type", "mac", "deviceID", "ips", "containerID", "ifname", "x"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..3).prop_map(|map| json!(map))
        ]
    })
}

const KEYS: [&str; 22] = [
    "vlan",
    "vlanQoS",
    "vlanProto",
    "mac",
    "mtu",
    "min_tx_rate",
    "max_tx_rate",
    "spoofchk",
    "trust",
    "link_state",
    "logLevel",
    "logFile",
    "stateDir",
    "ipam",
    "dns",
    "runtimeConfig",
    "args",
    "prevResult",
    "deviceID",
    "cni.dev/valid-attachments",
    "cniVersion",
    "max-tx-rate",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_configuration_of_known_keys_is_followed_or_refused(asked in prop::collection::btree_map(prop::sample::select(KEYS.to_vec()), any_value(), 0..6)) {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "sriov", "deviceID": "0000:3b:02.1"});
        for (key, value) in asked {
            conf[key] = value;
        }
        properties::stdin(conf.to_string().as_bytes());
    }
}
