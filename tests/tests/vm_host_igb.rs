//! I/O: tier 2: the facts about the machine that everything else rests on, on a real kernel with an emulated igb.
//!
//! What lives here: the lab's own guest and what the kernel does with its PFs and VFs. What does not: our programs (`vm_daemon_igb`,
//! `vm_cni_igb`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sriov_tests::lab::Lab;
use sriov_tests::lab::guest::Guest;
use sriov_tests::lab::protocol::Reply;
use sriov_tests::lab::topology::{Nic, Topology};

sriov_tests::lab_tests! { Topology::one_guest();
    the_agent_keeps_status_and_both_streams,
    the_agent_ends_a_command_at_its_limit,
    files_pass_through_the_agent_unchanged,
    each_pf_has_its_name_its_driver_and_seven_vfs,
    every_pci_function_has_an_iommu_group,
    vfs_appear_with_netdevs_named_after_their_pf,
    the_kernel_refuses_to_change_one_vf_count_into_another,
    the_kernel_refuses_more_vfs_than_the_pf_has,
    a_look_at_what_events_named_finds_what_a_whole_look_finds,
    a_restart_of_the_guest_forgets_the_vfs,
}

fn igb(nic: Nic) -> String {
    format!("/sys/bus/pci/devices/{}", nic.pci_address())
}

fn nics(lab: &Lab) -> Result<(&Guest, Vec<Nic>)> {
    let guest = lab.guest(1)?;
    Ok((guest, guest.node().nics().collect()))
}

fn set_vfs(guest: &Guest, nic: Nic, count: u8) -> Result<()> {
    guest.write_attribute(&format!("{}/sriov_numvfs", igb(nic)), &count.to_string())
}

fn links(guest: &Guest) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&guest.run(&["/usr/sbin/ip", "-j", "-d", "link"])?)?)
}

fn the_agent_keeps_status_and_both_streams(lab: &mut Lab) -> Result<()> {
    let outcome = lab.guest(1)?.command(&["/bin/sh", "-c", "cat; echo 'to \"err\"' >&2; exit 7"]).stdin("a $b\n").outcome()?;
    assert_eq!((outcome.reply.clone(), outcome.text(), outcome.errors()), (Reply::Exited(7), "a $b\n".to_owned(), "to \"err\"\n".to_owned()));
    Ok(())
}

fn the_agent_ends_a_command_at_its_limit(lab: &mut Lab) -> Result<()> {
    let started = Instant::now();
    let outcome = lab.guest(1)?.command(&["sleep", "100"]).limit(Duration::from_secs(1)).outcome()?;
    assert_eq!(outcome.reply, Reply::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(20));
    Ok(())
}

fn files_pass_through_the_agent_unchanged(lab: &mut Lab) -> Result<()> {
    let content: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    let guest = lab.guest(1)?;
    guest.write("/tmp/new folder/a 'file'", &content, 0o640)?;
    assert_eq!(guest.read("/tmp/new folder/a 'file'")?, content);
    assert_eq!(guest.run(&["stat", "-c", "%a", "/tmp/new folder/a 'file'"])?.trim(), "640");
    Ok(())
}

fn each_pf_has_its_name_its_driver_and_seven_vfs(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    assert_eq!(nics.len(), 2);
    for nic in nics {
        assert_eq!(guest.read_text(&format!("{}/sriov_totalvfs", igb(nic)))?, "7");
        assert_eq!(guest.read_text(&format!("{}/vendor", igb(nic)))?, "0x8086");
        assert_eq!(guest.read_text(&format!("{}/net/{}/address", igb(nic), nic.netdev()))?, nic.mac().to_string());
        assert!(guest.run(&["readlink", &format!("{}/driver", igb(nic))])?.trim().ends_with("/igb"));
    }
    Ok(())
}

fn every_pci_function_has_an_iommu_group(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    for nic in nics {
        let group = guest.run(&["readlink", &format!("{}/iommu_group", igb(nic))])?;
        ensure!(group.contains("/kernel/iommu_groups/"), "{group}");
    }
    Ok(())
}

fn vfs_appear_with_netdevs_named_after_their_pf(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    for &nic in &nics {
        set_vfs(guest, nic, 2)?;
    }
    for &nic in &nics {
        for index in 0..2 {
            let name = format!("{}v{index}", nic.netdev());
            let found = || Ok(links(guest)?.into_iter().find(|link| link["ifname"] == name.as_str()));
            let link = guest.poll(Instant::now() + Duration::from_secs(30), &format!("{name} exists"), found)?;
            // igb numbers its VFs from 16 devices above the PF, every second function.
            assert_eq!(link["parentdev"], format!("0000:{:02x}:10.{}", nic.index + 1, 2 * index));
        }
        let pf = links(guest)?.into_iter().find(|link| link["ifname"] == nic.netdev()).context("the PF has gone")?;
        assert_eq!(pf["vfinfo_list"].as_array().map(Vec::len), Some(2), "{pf}");
    }
    nics.iter().try_for_each(|&nic| set_vfs(guest, nic, 0))
}

fn the_kernel_refuses_to_change_one_vf_count_into_another(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    set_vfs(guest, nics[0], 2)?;
    let error = set_vfs(guest, nics[0], 4).err().context("4 VFs were accepted where 2 were")?;
    ensure!(format!("{error:#}").contains("Device or resource busy"), "{error:#}");
    set_vfs(guest, nics[0], 0)?;
    set_vfs(guest, nics[0], 4)?;
    set_vfs(guest, nics[0], 0)
}

fn the_kernel_refuses_more_vfs_than_the_pf_has(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    let error = set_vfs(guest, nics[1], 8).err().context("8 VFs were accepted")?;
    ensure!(format!("{error:#}").contains("out of range"), "{error:#}");
    assert_eq!(guest.read_text(&format!("{}/sriov_numvfs", igb(nics[1])))?, "0");
    Ok(())
}

/// Each command with the PFs that are read again because of it, where that is all that may be read.
fn a_look_at_what_events_named_finds_what_a_whole_look_finds(lab: &mut Lab) -> Result<()> {
    const PROGRAM: &str = "/usr/local/bin/kept-survey";
    let (guest, nics) = nics(lab)?;
    let [first, second, ..] = nics.as_slice() else { bail!("the guest has {} PFs", nics.len()) };
    lab.install(guest, "kept-survey", PROGRAM)?;
    let (pf, device, name) = (first.pci_address(), igb(*first), first.netdev());
    let vf = format!("$(basename $(readlink {device}/virtfn0))");
    let commands = [
        (format!("ip link set {name} up mtu 1400"), true),
        (format!("echo 2 > {device}/sriov_numvfs"), true),
        (format!("ip link set {name} vf 1 mac 02:00:00:00:00:2a"), true),
        (format!("ip link property add dev {name} altname other"), true),
        (format!("ip netns add pod; ip link set $(ls {device}/virtfn1/net) netns pod"), true),
        ("ip netns del pod".to_owned(), true),
        (format!("echo {vf} > {device}/virtfn0/driver/unbind"), true),
        (format!("echo {vf} > /sys/bus/pci/drivers_probe"), true),
        (format!("ip link add link {name} name {name}.7 type vlan id 7; ip link set {name}.7 up; ip addr add 192.0.2.1/24 dev {name}.7"), true),
        (format!("ip link del {name}.7"), true),
        (format!("echo 0 > {device}/sriov_numvfs"), true),
        (format!("echo 1 > {}/remove", igb(*second)), false),
        ("echo 1 > /sys/bus/pci/rescan".to_owned(), false),
        (format!("ip link set {name} mtu 1500"), true),
    ];
    // The first question about RDMA devices loads a module, which may be of anything.
    let input: String = std::iter::once("true\n".to_owned()).chain(commands.iter().map(|(command, _)| format!("{command}\n"))).collect();
    let outcome = guest.command(&[PROGRAM]).stdin(input).limit(Duration::from_mins(3)).outcome()?;
    let (text, errors) = (outcome.text(), outcome.errors());
    ensure!(outcome.reply == Reply::Exited(0), "{text}\n{errors}");
    ensure!(text.lines().count() == commands.len() + 1, "{text}\n{errors}");
    for ((command, of_first_alone), read) in commands.iter().zip(text.lines().skip(1)) {
        ensure!(!read.contains("everything"), "{command}: read {read}; all:\n{text}\n{errors}");
        ensure!(!of_first_alone || read.split(' ').all(|pfs| pfs.is_empty() || pfs == pf), "{command}: read {read}; all:\n{text}\n{errors}");
    }
    ensure!(text.lines().filter(|read| read.contains(&pf)).count() > 8, "{text}");
    Ok(())
}

fn a_restart_of_the_guest_forgets_the_vfs(lab: &mut Lab) -> Result<()> {
    let (guest, nics) = nics(lab)?;
    set_vfs(guest, nics[0], 1)?;
    guest.reset(Instant::now() + Duration::from_mins(3))?;
    assert_eq!(guest.read_text(&format!("{}/sriov_numvfs", igb(nics[0])))?, "0");
    Ok(())
}
