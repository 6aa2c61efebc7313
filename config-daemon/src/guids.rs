//! Pure: the InfiniBand GUIDs that an administrator gives VFs: `/etc/sriov-operator/infiniband/guids`, in the Go operator's form.
//!
//! What lives here: reading the file, and which VF has which GUID. What does not: reading it from the disk (`store`), setting a GUID (`machine`).
//!
//! Invariants: the n-th GUID of an entry is that of VF n; a file that is not understood gives no GUID at all and says why.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sriov_host::guid::Guid;
use sriov_host::inventory::Pf;
use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guids {
    /// One entry a PF.
    pub entries: Vec<Entry>,
    /// Why the file could not be understood; it then has no entries.
    #[serde(default)]
    pub fault: Option<String>,
}

/// The GUIDs of one PF's VFs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The PF.
    pub pf: PfName,
    /// By index of the VF: a list, or all from the first to the last.
    pub guids: Series,
}

/// How the file names a PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PfName {
    /// By its PCI address.
    Address(PciAddress),
    /// By its own GUID.
    Guid(Guid),
}

/// GUIDs in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Series {
    /// One by one.
    List(Vec<Guid>),
    /// The first and the last of consecutive ones.
    Range(Guid, Guid),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    pci_address: Option<String>,
    pf_guid: Option<String>,
    #[serde(default)]
    guids: Vec<String>,
    /// As the Go operator's code reads it.
    range_start: Option<String>,
    range_end: Option<String>,
    /// As its documentation has it.
    guids_range: Option<RawRange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    start: String,
    end: String,
}

impl Guids {
    /// Reads the file's text.
    pub fn read(text: &str) -> Self {
        let raw: Result<Vec<Raw>, String> = serde_json::from_str(text).map_err(|error| error.to_string());
        let entries = raw.and_then(|entries| {
            let read = |(at, raw): (usize, Raw)| Entry::read(raw).map_err(|said| format!("entry {}: {said}", at + 1));
            entries.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
        });
        match entries {
            Ok(entries) => Self { entries, fault: None },
            Err(said) => Self { entries: Vec::new(), fault: Some(said) },
        }
    }

    /// The GUIDs that the file has for a PF's VFs.
    pub fn of(&self, pf: &Pf) -> Option<&Series> {
        let is = |entry: &&Entry| match entry.pf {
            PfName::Address(address) => address == pf.address,
            PfName::Guid(guid) => [pf.facts.port_guid, pf.facts.node_guid].contains(&Some(guid)),
        };
        self.entries.iter().find(is).map(|entry| &entry.guids)
    }
}

impl Entry {
    fn read(raw: Raw) -> Result<Self, String> {
        let pf = match (raw.pci_address, raw.pf_guid) {
            (Some(address), None) => PfName::Address(address.parse().map_err(|_| format!("pciAddress is {address:?}: expected as in 0000:3b:00.0"))?),
            (None, Some(guid)) => PfName::Guid(pf_guid(&guid)?),
            _ => return Err("expected either pciAddress or pfGuid".to_owned()),
        };
        let range = match (raw.range_start, raw.range_end, raw.guids_range) {
            (Some(start), Some(end), None) | (None, None, Some(RawRange { start, end })) => Some((guid(&start)?, guid(&end)?)),
            (None, None, None) => None,
            _ => return Err("expected both rangeStart and rangeEnd, or guidsRange with start and end".to_owned()),
        };
        let guids = match (raw.guids.as_slice(), range) {
            ([], Some((first, last))) if first.0 <= last.0 => Series::Range(first, last),
            ([], Some((first, last))) => return Err(format!("the range ends with {last}, which is before its first, {first}")),
            ([_, ..], None) => Series::List(raw.guids.iter().map(|text| guid(text)).collect::<Result<_, _>>()?),
            _ => return Err("expected either guids or a range of them".to_owned()),
        };
        Ok(Self { pf, guids })
    }
}

impl Series {
    /// The GUID of a VF; `None` when there are too few.
    pub fn get(&self, vf: VfIndex) -> Option<Guid> {
        match self {
            Self::List(guids) => guids.get(usize::from(vf.0)).copied(),
            Self::Range(first, last) => first.0.checked_add(u64::from(vf.0)).filter(|guid| *guid <= last.0).map(Guid),
        }
    }

    /// How many VFs it is for.
    pub fn count(&self) -> u64 {
        match self {
            Self::List(guids) => u64::try_from(guids.len()).unwrap_or(u64::MAX),
            Self::Range(first, last) => (last.0 - first.0).saturating_add(1),
        }
    }
}

fn guid(text: &str) -> Result<Guid, String> {
    let guid: Guid = text.parse().map_err(|error: sriov_host::guid::GuidParseError| error.to_string())?;
    if guid.is_assignable() { Ok(guid) } else { Err(format!("GUID {guid} can belong to nobody")) }
}

/// A PF's GUID; also as part of its hardware address of twenty bytes, which is how the Go operator compares it.
fn pf_guid(text: &str) -> Result<Guid, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() == 20 { guid(&parts[12..].join(":")) } else { guid(text) }
}

/// A GUID that is the same each time this VF is made on this machine, and differs from all others: locally administered, as those that the Go operator
/// draws by lot.
pub fn stable_guid(machine_id: &str, pf: PciAddress, vf: VfIndex) -> Guid {
    let digest = Sha256::digest(format!("sriov guid\n{}\n{pf}\n{vf}", machine_id.trim()));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    bytes[0] = (bytes[0] & 0xfc) | 0x02;
    Guid(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_guid_of_an_entry_is_that_of_vf_n() {
        let text = r#"[
            {"pciAddress": "0000:3b:00.0", "guids": ["02:00:00:00:00:00:00:01", "02:00:00:00:00:00:00:09"]},
            {"pfGuid": "00:00:10:49:fe:80:00:00:00:00:00:00:0c:42:a1:03:00:16:05:4c", "rangeStart": "02:00:00:00:00:aa:00:02", "rangeEnd": "02:00:00:00:00:aa:00:04"},
            {"pfGuid": "0c:42:a1:03:00:16:05:4d", "guidsRange": {"start": "02:00:00:00:00:bb:00:02", "end": "02:00:00:00:00:bb:00:02"}}
        ]"#;
        let guids = Guids::read(text);
        assert_eq!(guids.fault, None);
        let shown =
            |entry: usize| (0..4).map(|n| guids.entries[entry].guids.get(VfIndex(n)).map(|g| g.to_string()).unwrap_or_default()).collect::<Vec<_>>();
        assert_eq!(shown(0), ["02:00:00:00:00:00:00:01", "02:00:00:00:00:00:00:09", "", ""]);
        assert_eq!(shown(1), ["02:00:00:00:00:aa:00:02", "02:00:00:00:00:aa:00:03", "02:00:00:00:00:aa:00:04", ""]);
        assert_eq!(shown(2), ["02:00:00:00:00:bb:00:02", "", "", ""]);
        assert_eq!(guids.entries.iter().map(|entry| entry.guids.count()).collect::<Vec<_>>(), [2, 3, 1]);
        assert_eq!(guids.entries[1].pf, PfName::Guid(Guid(0x0c42_a103_0016_054c)), "the last eight of the hardware address");
        assert_eq!(guids.entries[2].pf, PfName::Guid(Guid(0x0c42_a103_0016_054d)));
    }

    #[test]
    fn a_file_that_is_not_understood_gives_nothing_and_says_why() {
        for (text, word) in [
            ("{", "line 1"),
            (r#"[{"guids": ["02:00:00:00:00:00:00:01"]}]"#, "entry 1: expected either pciAddress or pfGuid"),
            (r#"[{"pciAddress": "3b:00.0", "guids": ["02:00:00:00:00:00:00:01"]}]"#, "0000:3b:00.0"),
            (r#"[{"pciAddress": "0000:3b:00.0"}]"#, "either guids or a range"),
            (r#"[{"pciAddress": "0000:3b:00.0", "rangeStart": "02:00:00:00:00:00:00:01"}]"#, "both rangeStart and rangeEnd"),
            (
                r#"[{"pciAddress": "0000:3b:00.0", "rangeStart": "02:00:00:00:00:00:00:02", "rangeEnd": "02:00:00:00:00:00:00:01"}]"#,
                "before its first",
            ),
            (r#"[{"pciAddress": "0000:3b:00.0", "guids": ["00:00:00:00:00:00:00:00"]}]"#, "belong to nobody"),
            (r#"[{"pciAddress": "0000:3b:00.0", "guids": ["x"]}]"#, "is not a GUID"),
            (r#"[{"pciAddress": "0000:3b:00.0", "guid": ["x"]}]"#, "unknown field"),
        ] {
            let guids = Guids::read(text);
            assert!(guids.entries.is_empty() && guids.fault.as_ref().is_some_and(|fault| fault.contains(word)), "{text}: {:?}", guids.fault);
        }
    }

    #[test]
    fn guids_of_no_file_are_stable_local_and_all_different() {
        let pf = "0000:3b:00.0".parse().unwrap();
        let all: std::collections::BTreeSet<Guid> = (0..64).map(|n| stable_guid("a", pf, VfIndex(n))).collect();
        assert_eq!(all.len(), 64);
        assert!(all.iter().all(|guid| guid.is_assignable() && guid.0 >> 56 & 3 == 2));
        assert_eq!(stable_guid("a\n", pf, VfIndex(3)), stable_guid("a", pf, VfIndex(3)));
        assert_ne!(stable_guid("b", pf, VfIndex(3)), stable_guid("a", pf, VfIndex(3)));
    }
}
