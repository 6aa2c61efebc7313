//! Pure: which of the devices that are left go together best for one container (`GetPreferredAllocation`).
//!
//! Invariant: the answer has the devices that must be in it, then others of those that are available, each once, as many as asked for if there are
//! that many. It is a wish: the kubelet may choose otherwise.

use std::collections::{BTreeMap, BTreeSet};

use crate::pool::{Place, Pool, Preference};
use sriov_host::device_id::DeviceId;

/// The ids to take, in order of choice.
pub fn choose(pool: &Pool, available: &[String], must_include: &[String], size: usize) -> Vec<String> {
    let Some(preference) = pool.preference else { return Vec::new() };
    let place_of = |id: &String| id.parse::<DeviceId>().ok().and_then(|address| pool.devices.get(&address)).map(|device| device.place.clone());
    let mut chosen: Vec<(String, Place)> = must_include.iter().map(|id| (id.clone(), place_of(id).unwrap_or_default())).collect();
    let mut taken: BTreeSet<&String> = must_include.iter().collect();
    let mut left: Vec<(String, Place)> = Vec::new();
    for id in available {
        if taken.insert(id) {
            left.push((id.clone(), place_of(id).unwrap_or_default()));
        }
    }
    left.sort();
    while chosen.len() < size && !left.is_empty() {
        let next = best(preference, &chosen, &left, size - chosen.len());
        chosen.push(left.remove(next));
    }
    chosen.into_iter().map(|(id, _)| id).collect()
}

/// The position in `left` of the device to take next, when `wanted` are still to be taken.
fn best(preference: Preference, chosen: &[(String, Place)], left: &[(String, Place)], wanted: usize) -> usize {
    let count = |devices: &[(String, Place)], same: &dyn Fn(&Place) -> bool| devices.iter().filter(|(_, place)| same(place)).count();
    let rank = |place: &Place| -> (usize, usize, usize) {
        let on_pf = |devices| count(devices, &|other| other.pf == place.pf);
        let (used, free) = (on_pf(chosen), on_pf(left));
        let most = usize::MAX;
        // What is too small for the rest comes last, the biggest first; of what is big enough the smallest.
        let fit = |free: usize| if free >= wanted { (0, free) } else { (1, most - free) };
        match preference {
            Preference::Pack => {
                let (small, size) = fit(free);
                // A PF that is begun goes on.
                (usize::from(used == 0), small, size)
            }
            Preference::Spread => (most - free, used, 0),
            Preference::DifferentPf => (used, most - free, 0),
            Preference::SameNuma => together(chosen, left, wanted, &|other| other.numa_node == place.numa_node, place.numa_node.is_none()),
            Preference::SamePcieRoot => together(chosen, left, wanted, &|other| other.root == place.root, place.root.is_none()),
        }
    };
    let ranks: BTreeMap<&Place, (usize, usize, usize)> = left.iter().map(|(_, place)| (place, rank(place))).collect();
    let ranked = left.iter().enumerate().min_by_key(|(position, (_, place))| (ranks.get(place), *position));
    ranked.map_or(0, |(position, _)| position)
}

/// As packing, with another measure of together; a device of which the place is not known comes last.
fn together(
    chosen: &[(String, Place)],
    left: &[(String, Place)],
    wanted: usize,
    same: &dyn Fn(&Place) -> bool,
    unknown: bool,
) -> (usize, usize, usize) {
    let count = |devices: &[(String, Place)]| devices.iter().filter(|(_, place)| same(place)).count();
    let (used, free) = (count(chosen), count(left));
    let small = if free >= wanted { (0, free) } else { (1, usize::MAX - free) };
    (usize::from(used == 0) + usize::from(unknown) * 2, small.0, small.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use sriov_host::pci::PciAddress;

    use super::*;
    use crate::pool::{Device, Health, Needs, PoolName};

    /// PFs 1 and 2 on NUMA node 0, PF 3 on node 1, with this many VFs each; VF `n` of PF `p` is `0000:0p:10.n`.
    fn pool(preference: Preference, vfs: [u8; 3]) -> (Pool, Vec<String>) {
        let mut pool = Pool { preference: Some(preference), ..Pool::empty(PoolName::new("x.io", "a").unwrap()) };
        for (position, vfs) in vfs.into_iter().enumerate() {
            let number = u8::try_from(position).unwrap() + 1;
            for index in 0..vfs {
                let address = PciAddress::new(0, number, 0x10 + index / 8, index % 8).unwrap();
                let node = u16::from(number == 3);
                let place = Place { numa_node: Some(node), root: Some(format!("pci0000:0{node}")), pf: PciAddress::new(0, number, 0, 0) };
                let device =
                    Device { driver: None, numa_node: None, health: Health::Healthy, needs: Needs::default(), place, extra: BTreeMap::new() };
                pool.devices.insert(address.into(), device);
            }
        }
        let ids = pool.devices.keys().map(ToString::to_string).collect();
        (pool, ids)
    }

    /// The choice as PF numbers.
    fn pfs(preference: Preference, vfs: [u8; 3], must: &[&str], size: usize) -> String {
        let (pool, ids) = pool(preference, vfs);
        let must: Vec<String> = must.iter().map(ToString::to_string).collect();
        choose(&pool, &ids, &must, size).iter().map(|id| &id[6..7]).collect()
    }

    #[test]
    fn each_policy_chooses_as_it_says() {
        for (preference, vfs, must, size, expected) in [
            (Preference::Pack, [4, 2, 3], &[][..], 2, "22"),
            (Preference::Pack, [4, 2, 3], &[], 4, "1111"),
            (Preference::Pack, [4, 2, 3], &[], 6, "111122"),
            (Preference::Pack, [4, 2, 3], &["0000:03:10.1"], 2, "33"),
            (Preference::Spread, [4, 2, 3], &[], 3, "131"),
            (Preference::Spread, [2, 2, 2], &[], 3, "123"),
            (Preference::DifferentPf, [9, 1, 1], &[], 3, "123"),
            (Preference::DifferentPf, [9, 1, 0], &[], 3, "121"),
            (Preference::DifferentPf, [9, 2, 1], &["0000:01:10.0"], 2, "12"),
            (Preference::SameNuma, [1, 1, 3], &[], 2, "12"),
            (Preference::SameNuma, [1, 1, 3], &[], 3, "333"),
            (Preference::SamePcieRoot, [2, 2, 3], &["0000:03:10.0"], 3, "333"),
            (Preference::Pack, [1, 0, 0], &[], 3, "1"),
        ] {
            assert_eq!(pfs(preference, vfs, must, size), expected, "{preference:?} {vfs:?} {must:?} {size}");
        }
    }

    proptest! {
        #[test]
        fn the_answer_is_a_choice_of_what_is_available(kind in 0_usize..5, vfs in prop::array::uniform3(0_u8..6), must in 0_usize..3, size in 0_usize..9) {
            let kinds = [Preference::Pack, Preference::Spread, Preference::DifferentPf, Preference::SameNuma, Preference::SamePcieRoot];
            let (pool, ids) = pool(kinds[kind], vfs);
            let must: Vec<String> = ids.iter().take(must).cloned().collect();
            let chosen = choose(&pool, &ids, &must, size);
            let unique: BTreeSet<&String> = chosen.iter().collect();
            prop_assert_eq!(unique.len(), chosen.len());
            prop_assert!(chosen.starts_with(&must) && chosen.iter().all(|id| ids.contains(id)));
            prop_assert_eq!(chosen.len(), size.min(ids.len()).max(must.len()));
        }
    }
}
