//! I/O: devices that are no plain VF with a netdev: sub-functions, vDPA devices, VFs that programs use; trunks; and addresses of attachments whose network
//! has changed since. On a real kernel without such hardware, as `netns_cni`: sysfs is a folder, the netdev one end of a veth pair. Needs root.
//!
//! What does not live here: InfiniBand and moving RDMA devices, for which there is neither hardware nor a simulation.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sriov_cni::Error;
use sriov_cni::explain::explain;
use sriov_cni::request::Command::{Add, Check, Del, Gc};
use sriov_host::netlink::Link;
use sriov_tests::cni::{Machine, NETDEV, Pod, USERSPACE_VF, VF, as_host, host_link};

const SUB_FUNCTION: &str = "mlx5_core.sf.4";

/// A folder or file of the machine's sysfs.
fn below(machine: &Machine, path: &str) -> PathBuf {
    machine.host().root().join("sys").join(path)
}

fn bind(machine: &Machine, device: &str, driver: &str) -> Result<()> {
    let link = below(machine, device).join("driver");
    let _ = fs::remove_file(&link);
    Ok(symlink(format!("../../drivers/{driver}"), link)?)
}

/// Gives the machine a sub-function instead of its VF's netdev.
fn with_sub_function(machine: &Machine) -> Result<()> {
    fs::remove_dir_all(below(machine, &format!("bus/pci/devices/{VF}/net")))?;
    fs::create_dir_all(below(machine, &format!("bus/auxiliary/devices/{SUB_FUNCTION}/net/{NETDEV}")))?;
    bind(machine, &format!("bus/auxiliary/devices/{SUB_FUNCTION}"), "mlx5_core.sf")
}

/// Makes a vDPA device of the VF, used by this driver of its bus.
fn with_vdpa(machine: &Machine, name: &str, driver: Option<&str>) -> Result<String> {
    let device = format!("bus/pci/devices/{VF}/{name}");
    fs::create_dir_all(below(machine, "bus/vdpa"))?;
    fs::create_dir_all(below(machine, &device))?;
    driver.map_or(Ok(()), |driver| bind(machine, &device, driver))?;
    Ok(device)
}

fn refusal(result: Result<Option<Value>, Error>) -> (u64, String) {
    let error = result.expect_err("the call must fail");
    (error.code(), error.to_string())
}

fn assert_untouched(machine: &Machine, before: &Link) -> Result<()> {
    let mut link = host_link(NETDEV)?;
    link.netdev.ifindex = before.netdev.ifindex;
    link.netdev.carrier = before.netdev.carrier;
    assert_eq!(link, *before);
    assert!(machine.journals().is_empty());
    Ok(())
}

#[test]
fn a_sub_function_goes_in_and_comes_back_as_it_was() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        with_sub_function(&machine)?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"deviceID": SUB_FUNCTION, "mac": "02:00:00:00:00:2a", "mtu": 1400, "ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("ADD prints a result")?;
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:2a");
        assert_eq!(result["interfaces"][0].get("pciID"), None, "it has no PCI address");
        assert_eq!(pod.link("net1")?.netdev.mtu, 1400);
        assert_eq!(machine.journals(), [format!("{SUB_FUNCTION}.json")]);
        machine.call(Check, &pod, &conf)?;
        let (code, text) = refusal(machine.call(Add, &Pod::new("b")?, &conf));
        assert!(code == 11 && text.contains(SUB_FUNCTION), "{text}");
        machine.call(Del, &pod, &conf)?;
        machine.call(Del, &pod, &conf)?;
        assert_eq!(machine.leases(), [""; 0]);
        assert_untouched(&machine, &before)
    })
}

#[test]
fn what_only_vfs_have_is_refused_for_a_sub_function_before_anything_changes() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        with_sub_function(&machine)?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        for asked in [
            json!({"vlan": 5}),
            json!({"trust": "on"}),
            json!({"max_tx_rate": 5}),
            json!({"vlanTrunk": "1-5"}),
            json!({"runtimeConfig": {"infinibandGUID": "c2:11:22:33:44:55:66:77"}}),
        ] {
            let mut conf = machine.conf(&asked);
            conf["deviceID"] = SUB_FUNCTION.into();
            let (code, text) = refusal(machine.call(Add, &pod, &conf));
            assert!(code == 100 && text.starts_with("mlx5_core.sf.4 is a sub-function"), "{asked}: {text}");
            assert_untouched(&machine, &before)?;
        }
        let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({"deviceID": "mlx5_core.sf.5"}))));
        assert!(code == 100 && text.contains("no such device on the auxiliary bus"), "{text}");
        Ok(())
    })
}

#[test]
fn a_sub_function_that_was_removed_meanwhile_is_nothing_to_restore() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        with_sub_function(&machine)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"deviceID": SUB_FUNCTION}));
        machine.call(Add, &pod, &conf)?;
        fs::remove_dir_all(below(&machine, &format!("bus/auxiliary/devices/{SUB_FUNCTION}")))?;
        machine.call(Del, &pod, &conf)?;
        assert!(machine.journals().is_empty());
        Ok(())
    })
}

#[test]
fn a_vdpa_device_for_programs_stays_where_it_is_and_is_described() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let device = with_vdpa(&machine, &format!("vdpa:{VF}"), Some("vhost_vdpa"))?;
        fs::create_dir_all(below(&machine, &device).join("vhost-vdpa-3"))?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let info = machine.state().join("info.json");
        let runtime = json!({"CNIDeviceInfoFile": info});
        let conf = machine.conf(&json!({"deviceID": format!("vdpa:{VF}"), "runtimeConfig": runtime, "ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("ADD prints a result")?;
        assert_eq!(result["interfaces"][0]["pciID"], VF);
        assert_eq!(pod.links()?, ["lo".to_owned()].into(), "nothing moves");
        let written: Value = serde_json::from_slice(&fs::read(machine.host().sysfs().resolve(&info))?)?;
        let vdpa = json!({
            "parent-device": format!("vdpa:{VF}"), "driver": "vhost", "path": "/dev/vhost-vdpa-3", "pci-address": VF, "pf-pci-address": "0000:01:00.0"
        });
        assert_eq!(written, json!({"type": "vdpa", "version": "1.1.0", "vdpa": vdpa}));
        machine.call(Check, &pod, &conf)?;
        machine.call(Del, &pod, &conf)?;
        assert_eq!(machine.leases(), [""; 0]);
        assert_untouched(&machine, &before)
    })
}

#[test]
fn the_netdev_of_a_vdpa_device_goes_in_and_comes_back_as_it_was() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        fs::remove_dir_all(below(&machine, &format!("bus/pci/devices/{VF}/net")))?;
        let device = with_vdpa(&machine, "vdpa0", Some("virtio_vdpa"))?;
        fs::create_dir_all(below(&machine, &device).join(format!("virtio3/net/{NETDEV}")))?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"mtu": 1400}));
        machine.call(Add, &pod, &conf)?;
        assert_eq!(pod.link("net1")?.netdev.mtu, 1400);
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_vdpa_device_that_nothing_uses_is_refused_with_what_it_needs() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        for (driver, words) in [(None, "has no driver"), (Some("vdpa_test"), "has driver vdpa_test")] {
            with_vdpa(&machine, "vdpa0", driver)?;
            let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({}))));
            assert_eq!(code, 100);
            assert_eq!(text, format!("the vDPA device vdpa0 of VF {VF} {words}: expected vhost_vdpa or virtio_vdpa"));
        }
        assert_untouched(&machine, &before)
    })
}

#[test]
fn an_mtu_for_a_vf_that_a_program_uses_is_told_and_flags_are_refused() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"deviceID": USERSPACE_VF, "mtu": 9000}));
        let result = machine.call(Add, &pod, &conf)?.context("ADD prints a result")?;
        assert_eq!(result["interfaces"][0]["mtu"], 9000);
        machine.call(Del, &pod, &conf)?;
        let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({"deviceID": USERSPACE_VF, "allmulti": "on"}))));
        assert!(code == 7 && text.starts_with("allmulti is on: VF 0000:01:10.2 is held by vfio-pci"), "{text}");
        assert!(machine.journals().is_empty());
        Ok(())
    })
}

#[test]
fn a_trunk_is_set_where_the_driver_has_the_file_and_taken_back() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"vlanTrunk": "200,100-102"}));
        let (code, text) = refusal(machine.call(Add, &pod, &conf));
        assert!(code == 7 && text.starts_with("vlanTrunk is 100-102,200: the driver of PF 0000:01:00.0 has no interface for it"), "{text}");
        assert_untouched(&machine, &before)?;

        let file = below(&machine, "bus/pci/devices/0000:01:00.0/sriov/0/trunk");
        fs::create_dir_all(file.parent().context("a file has a folder")?)?;
        fs::write(&file, "")?;
        let explanation = explain(conf.to_string().as_bytes(), None, &machine.host());
        assert!(explanation.steps.contains(&"let the VLANs 100-102,200 through to VF 0, now none".to_owned()), "{explanation}");
        machine.call(Add, &pod, &conf)?;
        // A file is no driver: it keeps what was written, which reads as the VLANs that were added.
        assert_eq!(fs::read_to_string(&file)?, "add 100-102,200");
        machine.call(Check, &pod, &conf)?;
        fs::write(&file, "100-102\n")?;
        let (code, text) = refusal(machine.call(Check, &pod, &conf));
        assert!(code == 104 && text.starts_with("vlanTrunk of VF 0 on 0000:01:00.0 is 100-102: ADD left 100-102,200"), "{text}");
        machine.call(Del, &pod, &conf)?;
        assert_eq!(fs::read_to_string(&file)?, "rem 100-102");
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_trunk_that_the_driver_does_not_take_over_is_an_error_and_is_undone() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let file = below(&machine, "bus/pci/devices/0000:01:00.0/sriov/0/trunk");
        fs::create_dir_all(file.parent().context("a file has a folder")?)?;
        // What is written to it is lost.
        symlink("/dev/null", &file)?;
        let (code, text) = refusal(machine.call(Add, &Pod::new("a")?, &machine.conf(&json!({"vlanTrunk": "5"}))));
        assert!(code == 101 && text.starts_with("VF 0 of 0000:01:00.0: the driver accepted vlanTrunk (5) but has"), "{text}");
        assert_untouched(&machine, &before)
    })
}

#[test]
fn an_rdma_device_that_has_to_go_along_and_cannot_is_an_error_before_anything_changes() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"rdmaIsolation": true}));
        let (code, text) = refusal(machine.call(Add, &pod, &conf));
        assert_eq!((code, text.as_str()), (102, "rdmaIsolation is true, but 0000:01:10.0 has no RDMA device"));
        // This kernel has no RDMA core, or shares its devices: exclusive mode is set by nobody on a machine that runs tests.
        fs::create_dir_all(below(&machine, &format!("bus/pci/devices/{VF}/infiniband/mlx5_7")))?;
        let (code, text) = refusal(machine.call(Add, &pod, &conf));
        assert!(code == 102 && text.contains("RDMA devices are shared by all network namespaces here"), "{text}");
        assert_untouched(&machine, &before)?;
        machine.call(Add, &pod, &machine.conf(&json!({})))?;
        machine.call(Del, &pod, &machine.conf(&json!({})))?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn check_misses_an_rdma_device_that_went_along() -> Result<()> {
    as_host(|| {
        let (machine, pod) = (Machine::new()?, Pod::new("a")?);
        let conf = machine.conf(&json!({}));
        machine.call(Add, &pod, &conf)?;
        machine.call(Check, &pod, &conf)?;
        let file = machine.state().join("v1").join(format!("{VF}.json"));
        let mut journal: Value = serde_json::from_slice(&fs::read(&file)?)?;
        // Of a number that no RDMA core has given away.
        journal["rdma"] = json!([{"index": 4_000_000, "name": "mlx5_7"}]);
        fs::write(&file, journal.to_string())?;
        let (code, text) = refusal(machine.call(Check, &pod, &conf));
        assert_eq!((code, text.as_str()), (104, "RDMA device mlx5_7 of VF 0000:01:10.0 is not there: ADD left it in the container"));
        Ok(())
    })
}

#[test]
fn addresses_go_back_to_the_plugin_that_gave_them_whatever_the_network_says_by_then() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let then = machine.conf(&json!({"ipam": machine.host_local()}));
        for now in [json!({}), json!({"ipam": {"type": "static", "addresses": [{"address": "203.0.113.5/24"}]}})] {
            let pod = Pod::new("a")?;
            machine.call(Add, &pod, &then)?;
            assert_eq!(machine.leases().len(), 1);
            let mut conf = machine.conf(&now);
            conf["cni.dev/valid-attachments"] = json!([]);
            machine.call(Gc, &pod, &conf)?;
            assert_eq!(machine.leases(), [""; 0], "GC with {now}");
            assert_untouched(&machine, &before)?;
        }
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &then)?;
        machine.call(Del, &pod, &machine.conf(&json!({})))?;
        assert_eq!(machine.leases(), [""; 0], "DEL without IPAM");
        assert_untouched(&machine, &before)
    })
}
