//! I/O: network functions on the auxiliary bus: subfunctions (`mlx5_core.sf.4`), which a driver cuts out of a PCI function without SR-IOV.
//!
//! What lives here: finding them and saying how one is used. Making them (devlink ports) does not.
//!
//! Invariant: a subfunction is told as the PCI function that it would be: as a VF of its parent whose index is its `sfnum`.

use std::collections::BTreeMap;

use crate::Host;
use crate::device_id::SfName;
use crate::discover::{self, DiscoverError};
use crate::function::{self, Access, Folder, Function, NETWORK_CLASS};
use crate::pci::PciAddress;
use crate::vf::VfIndex;

pub(crate) const DEVICES: &str = "/sys/bus/auxiliary/devices";

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The subfunctions.
    pub subfunctions: BTreeMap<SfName, Function>,
    /// Those that could not be read, each with its reason.
    pub faults: Vec<(SfName, DiscoverError)>,
}

/// All subfunctions, and those that could not be read. A kernel without the bus has none.
pub fn scan(host: &Host) -> Result<Scan, DiscoverError> {
    let mut scan = Scan::default();
    for name in host.sysfs().list_opt(DEVICES)?.unwrap_or_default().iter().filter_map(|name| name.parse::<SfName>().ok()) {
        match read(host, name) {
            Ok(Some(function)) => drop(scan.subfunctions.insert(name, function)),
            Ok(None) => {}
            Err(error) => scan.faults.push((name, error)),
        }
    }
    Ok(scan)
}

/// One subfunction; `None` when there is none, or its parent is no network function.
pub fn read(host: &Host, name: SfName) -> Result<Option<Function>, DiscoverError> {
    let (sysfs, device) = (host.sysfs(), name.folder());
    let Some(folder) = Folder::open(sysfs, &device)? else { return Ok(None) };
    let is_pci = |part: std::path::Component<'_>| part.as_os_str().to_str()?.parse::<PciAddress>().ok();
    let Some(parent) = sysfs.read_link(&device)?.and_then(|target| target.components().filter_map(is_pci).next_back()) else { return Ok(None) };
    let number_file = format!("{device}/sfnum");
    let number = folder.read("sfnum")?.unwrap_or_default();
    let number = discover::parse(&number_file, &number, "a number up to 65535", |text| text.parse().ok())?;
    let Some(base) = function::read(host, parent, &[NETWORK_CLASS])? else { return Ok(None) };
    let rdma = folder.list("infiniband")?;
    Ok(Some(Function {
        driver: folder.link_name("driver")?,
        has_group: false,
        vf_of: Some((parent, VfIndex(number))),
        numvfs: 0,
        acpi_index: None,
        netdevs: folder.list("net")?,
        pkey: function::first_pkey(&folder, &rdma)?,
        rdma,
        vdpa: function::vdpa(&folder)?,
        root: None,
        ..base
    }))
}

/// How a subfunction is used right now; `None` when it is not there.
pub fn access(host: &Host, name: SfName) -> Result<Option<Access>, DiscoverError> {
    function::access_of(host, &name.folder())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SysfsTree, igb_pf, subfunction};

    #[test]
    fn a_subfunction_is_told_as_a_vf_of_its_parent() {
        let tree = subfunction(igb_pf(SysfsTree::new(), 1), "0000:01:00.0", 4, 88).dir("/sys/bus/auxiliary/devices/mlx5_core.eth.4");
        let fake = tree.build().unwrap();
        let Scan { subfunctions: found, faults } = scan(&fake.host()).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        let function = &found[&"mlx5_core.sf.4".parse().unwrap()];
        assert_eq!(found.len(), 1);
        assert_eq!(function.vf_of, Some(("0000:01:00.0".parse().unwrap(), VfIndex(88))));
        assert_eq!((function.driver.as_deref(), function.netdevs.as_slice()), (Some("mlx5_core.sf"), &["enp1s0f0s88".to_owned()][..]));
        let parent = function::read(&fake.host(), "0000:01:00.0".parse().unwrap(), &[NETWORK_CLASS]).unwrap().unwrap();
        assert_eq!((function.vendor, function.device, function.class), (parent.vendor, parent.device, NETWORK_CLASS));
        assert_eq!(access(&fake.host(), "mlx5_core.sf.4".parse().unwrap()).unwrap().unwrap().driver.as_deref(), Some("mlx5_core.sf"));
        assert_eq!(access(&fake.host(), "mlx5_core.sf.5".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_subfunction_without_a_number_is_a_fault_and_a_kernel_without_the_bus_has_none() {
        let fake =
            subfunction(igb_pf(SysfsTree::new(), 1), "0000:01:00.0", 4, 88).without("/sys/devices/pci0000:00/0000:01:00.0/mlx5_core.sf.4/sfnum");
        let Scan { subfunctions: found, faults } = scan(&fake.build().unwrap().host()).unwrap();
        assert_eq!((found.len(), faults.len()), (0, 1));
        assert!(faults[0].1.to_string().contains("/sfnum holds \"\", expected a number up to 65535"), "{}", faults[0].1);
        let Scan { subfunctions: found, faults } = scan(&igb_pf(SysfsTree::new(), 1).build().unwrap().host()).unwrap();
        assert_eq!((found.len(), faults.len()), (0, 0));
    }
}
