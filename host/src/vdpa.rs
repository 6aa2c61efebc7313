//! I/O: the vDPA bus in sysfs: which devices PCI functions carry, which driver each has, binding one.
//!
//! What does not live here: making and removing devices (`netlink::vdpa`), device nodes of pods (`function`).
//!
//! Invariant: a device that has the wanted driver is not touched.

use std::collections::{BTreeMap, BTreeSet};

use crate::Host;
use crate::function::Vdpa;
use crate::pci::PciAddress;
use crate::sysfs::SysfsError;

const BUS: &str = "/sys/bus/vdpa";

/// The name that the Go operator gives the device of a VF, by which it is known as the operator's.
pub fn name_of(address: PciAddress) -> String {
    format!("vdpa:{address}")
}

/// Whether the kernel has a driver of this name on the vDPA bus.
pub fn is_loaded(host: &Host, driver: &str) -> bool {
    host.sysfs().exists(format!("{BUS}/drivers/{driver}"))
}

/// The devices that PCI functions carry, by function. One that vanishes meanwhile is left out.
pub fn by_function(host: &Host) -> Result<BTreeMap<PciAddress, Vdpa>, SysfsError> {
    by_function_but(host, &BTreeSet::new())
}

/// As [`by_function`], without the devices of these names, which are not read.
pub(crate) fn by_function_but(host: &Host, known: &BTreeSet<String>) -> Result<BTreeMap<PciAddress, Vdpa>, SysfsError> {
    let sysfs = host.sysfs();
    let mut devices = BTreeMap::new();
    for name in sysfs.list_opt(format!("{BUS}/devices"))?.unwrap_or_default().into_iter().filter(|name| !known.contains(name)) {
        let device = format!("{BUS}/devices/{name}");
        // `../../../devices/pci0000:64/0000:64:00.0/0000:65:00.2/vdpa0`
        let target = sysfs.read_link(&device)?.unwrap_or_default();
        let carrier = target.parent().and_then(|parent| parent.file_name()).and_then(|carrier| carrier.to_str()?.parse().ok());
        let Some(carrier) = carrier else { continue };
        let node = sysfs.list_opt(&device)?.unwrap_or_default().into_iter().find(|entry| entry.starts_with("vhost-vdpa-"));
        devices.insert(carrier, Vdpa { driver: driver_of(host, &name)?, name, node });
    }
    Ok(devices)
}

/// The driver of a device; `None` when it has none or is not there.
pub fn driver_of(host: &Host, name: &str) -> Result<Option<String>, SysfsError> {
    host.sysfs().read_link_name(format!("{BUS}/devices/{name}/driver"))
}

/// Gives a device this driver, whatever it has now. Returns when it is bound: the kernel binds within the write.
pub fn bind(host: &Host, name: &str, driver: &str) -> Result<(), SysfsError> {
    let found = driver_of(host, name)?;
    if found.as_deref() == Some(driver) {
        return Ok(());
    }
    if found.is_some() {
        host.sysfs().write(format!("{BUS}/devices/{name}/driver/unbind"), name)?;
    }
    host.sysfs().write(format!("{BUS}/drivers/{driver}/bind"), name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    #[test]
    fn devices_are_found_by_the_function_that_carries_them() {
        let carried = "/sys/devices/pci0000:64/0000:64:00.0/0000:65:00.2/vdpa:0000:65:00.2";
        let tree = SysfsTree::new()
            .link(&format!("{BUS}/devices/vdpa:0000:65:00.2"), "../../../devices/pci0000:64/0000:64:00.0/0000:65:00.2/vdpa:0000:65:00.2")
            .link(&format!("{carried}/driver"), "../../../../../bus/vdpa/drivers/vhost_vdpa")
            .file(&format!("{carried}/vhost-vdpa-3/dev"), "250:3")
            .link(&format!("{BUS}/devices/vdpa9"), "../../../devices/vdpasim_net/vdpa9")
            .file("/sys/devices/vdpasim_net/vdpa9/uevent", "")
            .file(&format!("{BUS}/drivers/vhost_vdpa/uevent"), "");
        let fake = tree.build().unwrap();
        let address: PciAddress = "0000:65:00.2".parse().unwrap();
        let found = by_function(&fake.host()).unwrap();
        let vdpa = Vdpa { name: name_of(address), driver: Some("vhost_vdpa".to_owned()), node: Some("vhost-vdpa-3".to_owned()) };
        assert_eq!(found, BTreeMap::from([(address, vdpa)]), "a device that no PCI function carries is nobody's");
        assert!(is_loaded(&fake.host(), "vhost_vdpa") && !is_loaded(&fake.host(), "virtio_vdpa"));
        bind(&fake.host(), "vdpa:0000:65:00.2", "vhost_vdpa").unwrap();
        assert!(!fake.path().join("sys/bus/vdpa/drivers/vhost_vdpa/bind").exists(), "it has it already");
    }

    #[test]
    fn a_kernel_without_the_bus_has_no_devices() {
        let fake = SysfsTree::new().build().unwrap();
        assert!(by_function(&fake.host()).unwrap().is_empty());
    }
}
