//! I/O: the device plugin's binary and the kubelet: registration, lists, allocation, ends. Tier 1: needs nothing but the build.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher as _;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_tests::kubelet::{Kubelet, Resource};
use sriov_tests::plugin::{Bench, VFS, has, names, pool, pools, until};

#[tokio::test]
async fn each_pool_of_the_file_is_registered_with_its_devices() -> Result<()> {
    let (_bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-1", "igbvf"), pool("rest", "2-3", "igbvf"), pool("none", "9", "igbvf")]))?;
    let nics = kubelet.until_resource("openshift.io/nics", has(&VFS[..2])).await?;
    assert_eq!(nics.request.endpoint, "openshift.io_nics.sock");
    assert_eq!(nics.healthy(), &VFS[..2]);
    kubelet.until_resource("openshift.io/rest", has(&VFS[2..])).await?;
    kubelet.until_resource("openshift.io/none", has(&[])).await?;
    assert_eq!(nics.registrations, 1);
    Ok(())
}

#[tokio::test]
async fn a_changed_file_adds_changes_and_removes_pools_within_a_second_and_without_a_restart() -> Result<()> {
    let (bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-1", "igbvf"), pool("same", "3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..2])).await?;
    kubelet.until_resource("openshift.io/same", has(&VFS[3..])).await?;

    let changed = Instant::now();
    bench.configure(&pools(&[pool("nics", "0", "igbvf"), pool("more", "1-2", "igbvf"), pool("same", "3", "igbvf")]).to_string())?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..1])).await?;
    kubelet.until_resource("openshift.io/more", has(&VFS[1..3])).await?;
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());

    let removed = Instant::now();
    bench.configure(&pools(&[pool("same", "3", "igbvf")]).to_string())?;
    for name in ["openshift.io/nics", "openshift.io/more"] {
        let gone = kubelet.until_resource(name, |resource| !resource.watching).await?;
        assert!(gone.ids().is_empty(), "{name} was told to be empty before its stream ended");
    }
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    assert!(!bench.socket("nics").exists() && !bench.socket("more").exists());

    bench.configure(&pools(&[pool("same", "3", "igbvf"), pool("nics", "0-2", "igbvf")]).to_string())?;
    let again = kubelet.until_resource("openshift.io/nics", has(&VFS[..3])).await?;
    assert_eq!(again.registrations, 2);
    let same = kubelet.now()["openshift.io/same"].clone();
    assert_eq!((same.lists.len(), same.registrations, same.watching), (1, 1, true), "what did not change was not told again");
    Ok(())
}

#[tokio::test]
async fn file_and_folder_may_appear_after_the_start() -> Result<()> {
    let mut bench = Bench::new()?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    bench.start()?;
    until(|| bench.log().contains("the config file is not taken"), || bench.log())?;
    bench.configure(&pools(&[pool("nics", "0-3", "igbvf")]).to_string())?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    Ok(())
}

#[tokio::test]
async fn a_vf_that_loses_its_driver_or_vanishes_is_not_offered_as_healthy() -> Result<()> {
    let config = pools(&[pool("nics", "0-3", "igbvf")]);
    let (bench, kubelet) = Bench::running(&config)?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    bench.bind(VFS[1], Some("vfio-pci"))?;
    bench.bind(VFS[2], None)?;
    fs::remove_file(bench.machine.path().join("sys/bus/pci/devices/0000:01:00.0/virtfn3"))?;
    // A tree sends no device events; the file's replacement is a reason to look as well.
    bench.configure(&config.to_string())?;
    let nics = kubelet.until_resource("openshift.io/nics", has(&VFS[..3])).await?;
    assert_eq!(nics.healthy(), &VFS[..1]);
    let reason = "driver vfio-pci is bound, expected is igbvf";
    assert!(bench.log().contains(reason), "{}", bench.log());
    Ok(())
}

#[tokio::test]
async fn a_bad_resource_or_a_broken_file_does_not_hide_the_good_pools() -> Result<()> {
    let bad = json!({ "resourceName": "bad", "selectors": [{ "vendor": ["8086"] }] });
    let (bench, kubelet) = Bench::running(&pools(&[bad, pool("nics", "0-1", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..2])).await?;
    let error = format!("{}: resource bad: selectors[0].vendor: not a key of this format", bench.config_file().display());
    assert!(bench.log().contains(&error), "{}", bench.log());

    bench.configure("{\"resourceList\":")?;
    until(|| bench.log().contains("the config file is not taken"), || bench.log())?;
    bench.configure(&pools(&[pool("nics", "0-1", "igbvf"), pool("bad", "2", "igbvf")]).to_string())?;
    kubelet.until_resource("openshift.io/bad", has(&VFS[2..3])).await?;
    let nics = kubelet.now()["openshift.io/nics"].clone();
    assert_eq!((nics.lists.len(), nics.registrations), (1, 1), "the broken file changed nothing");
    Ok(())
}

#[tokio::test]
async fn a_kubelet_that_starts_again_gets_all_pools_again() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("a", "0-1", "igbvf"), pool("b", "2-3", "igbvf")]).to_string())?;
    bench.start()?;
    until(|| bench.log().contains("waiting for the kubelet"), || bench.log())?;
    let process = bench.process_id()?;

    // The first wipes the folder, as the real one does; the second does not, and takes over the name of its socket.
    for wipe in [true, false, true] {
        let kubelet = if wipe { Kubelet::start(&bench.sockets(), 0)? } else { Kubelet::start_without_wiping(&bench.sockets())? };
        kubelet.until_resource("openshift.io/a", has(&VFS[..2])).await.with_context(|| format!("wipe: {wipe}"))?;
        kubelet.until_resource("openshift.io/b", has(&VFS[2..])).await.with_context(|| format!("wipe: {wipe}"))?;
        kubelet.allocate("openshift.io/b", &[VFS[2]]).await?;
    }
    assert_eq!(bench.process_id()?, process);
    ensure!(bench.plugin.as_mut().context("plugin")?.try_wait()?.is_none(), "the plugin ended");
    Ok(())
}

#[tokio::test]
async fn a_refused_registration_is_repeated() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("nics", "0", "igbvf")]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 3)?;
    bench.start()?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..1])).await?;
    assert_eq!(kubelet.refusals_left(), 0);
    assert!(bench.log().contains("the kubelet refused: not now (Unavailable)"), "{}", bench.log());
    Ok(())
}

#[tokio::test]
async fn a_kernel_vf_is_allocated_with_environment_and_device_info_only() -> Result<()> {
    let (bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    let answer = kubelet.allocate("openshift.io/nics", &[VFS[2], VFS[0]]).await?;
    let info = r#"{"0000:01:10.0":{"generic":{"deviceID":"0000:01:10.0"}},"0000:01:10.4":{"generic":{"deviceID":"0000:01:10.4"}}}"#;
    let expected = [("PCIDEVICE_OPENSHIFT_IO_NICS", "0000:01:10.4,0000:01:10.0"), ("PCIDEVICE_OPENSHIFT_IO_NICS_INFO", info)];
    assert_eq!(answer.envs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert!(answer.devices.is_empty() && answer.mounts.is_empty() && answer.annotations.is_empty());

    let file = bench.dir.path().join("devinfo/openshift.io-nics-0000:01:10.4-device.json");
    assert_eq!(fs::read_to_string(&file)?, r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:10.4"}}"#);
    assert_eq!(fs::metadata(&file)?.mode() & 0o7777, 0o444);
    Ok(())
}

#[tokio::test]
async fn a_vfio_vf_is_allocated_with_the_group_that_it_has_now() -> Result<()> {
    let bench = Bench::new()?;
    bench.bind(VFS[0], Some("vfio-pci"))?;
    let mut bench = bench;
    bench.configure(&pools(&[pool("dpdk", "0", "vfio-pci")]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    bench.start()?;
    kubelet.until_resource("openshift.io/dpdk", has(&VFS[..1])).await?;
    // A group number is not kept from the time of the offer.
    let group = bench.machine.path().join("sys/bus/pci/devices/0000:01:10.0/iommu_group");
    fs::remove_file(&group)?;
    symlink("../../../../kernel/iommu_groups/77", &group)?;

    let answer = kubelet.allocate("openshift.io/dpdk", &[VFS[0]]).await?;
    let nodes: Vec<_> =
        answer.devices.iter().map(|node| (node.host_path.as_str(), node.container_path.as_str(), node.permissions.as_str())).collect();
    assert_eq!(nodes, [("/dev/vfio/vfio", "/dev/vfio/vfio", "rw"), ("/dev/vfio/77", "/dev/vfio/77", "rw")]);
    let info = r#"{"0000:01:10.0":{"generic":{"deviceID":"0000:01:10.0"},"vfio":{"dev-mount":"/dev/vfio/77","mount":"/dev/vfio/vfio"}}}"#;
    assert_eq!(answer.envs["PCIDEVICE_OPENSHIFT_IO_DPDK_INFO"], info);
    Ok(())
}

#[tokio::test]
async fn a_device_that_is_not_what_was_offered_is_refused() -> Result<()> {
    let (bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-2", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..3])).await?;
    bench.bind(VFS[0], Some("vfio-pci"))?;
    fs::remove_dir_all(bench.machine.path().join("sys/bus/pci/devices/0000:01:10.2"))?;
    for (id, reason) in [
        (VFS[0], "0000:01:10.0 of openshift.io/nics has driver vfio-pci, it was offered with igbvf"),
        (VFS[1], "0000:01:10.2 of openshift.io/nics is no longer on this node"),
        (VFS[3], "0000:01:10.6 is not a device of openshift.io/nics"),
    ] {
        let status = kubelet.allocate("openshift.io/nics", &[id]).await.err().with_context(|| format!("{id} was given"))?;
        assert_eq!(status.message(), reason);
    }
    kubelet.allocate("openshift.io/nics", &[VFS[2]]).await?;
    Ok(())
}

#[tokio::test]
async fn a_termination_signal_ends_with_code_0_and_without_sockets() -> Result<()> {
    let (mut bench, kubelet) = Bench::running(&pools(&[pool("a", "0", "igbvf"), pool("b", "1", "igbvf")]))?;
    for name in ["openshift.io/a", "openshift.io/b"] {
        kubelet.until_resource(name, |resource| !resource.lists.is_empty()).await?;
    }
    assert!(fs::metadata(bench.socket("a"))?.file_type().is_socket());
    let status = bench.terminate()?;
    assert_eq!(status.code(), Some(0), "{}", bench.log());
    assert_eq!(names(&bench.sockets())?, ["kubelet.sock"]);
    // The next instance offers the same: nothing tells the kubelet in between that the devices are gone.
    let a = kubelet.until_resource("openshift.io/a", |resource| !resource.watching).await?;
    assert_eq!(a.ids(), &VFS[..1]);
    Ok(())
}

#[tokio::test]
async fn an_instance_that_ends_leaves_the_sockets_of_the_one_that_replaced_it() -> Result<()> {
    let (mut older, kubelet) = Bench::running(&pools(&[pool("nics", "0", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", |resource| resource.registrations == 1).await?;
    let mut newer = older.command(&[])?.stderr(Stdio::null()).spawn()?;
    let registered = kubelet.until_resource("openshift.io/nics", |resource| resource.registrations == 2).await;
    let socket = older.socket("nics");
    let identity = || fs::metadata(&socket).map(|socket| (socket.ino(), socket.ctime(), socket.ctime_nsec()));
    let before = identity();
    let ended = older.terminate();
    let after = identity();
    let answer = kubelet.allocate("openshift.io/nics", &[VFS[0]]).await;
    newer.kill()?;
    newer.wait()?;
    registered.and(ended)?;
    answer?;
    assert_eq!(before?, after?, "the newer instance did not have to make its socket again");
    Ok(())
}

#[test]
fn fatal_errors_end_with_a_code_that_is_not_0_and_say_why() -> Result<()> {
    let bench = Bench::new()?;
    bench.configure(&pools(&[]).to_string())?;
    for (arguments, code, reason) in [
        (&["--http-address", "here"][..], 2, "http-address"),
        (&["-no-such-flag"], 2, "no-such-flag"),
        (&["--root", "/nonexistent"], 2, "cannot be used multiple times"),
    ] {
        let output = bench.run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    fs::remove_dir_all(bench.machine.path().join("sys"))?;
    let output = bench.run(&[])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/sys/bus/pci/devices"), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn once_prints_what_would_be_offered_and_tells_by_its_code_whether_all_is_well() -> Result<()> {
    let bench = Bench::new()?;
    bench.bind(VFS[1], Some("vfio-pci"))?;
    bench.configure(&pools(&[pool("nics", "0-1", "igbvf")]).to_string())?;
    let output = bench.run(&["--once"])?;
    let expected = "\
RESOURCE           DEVICE        DRIVER    NUMA  HEALTH
openshift.io/nics  0000:01:10.0  igbvf     -     healthy
openshift.io/nics  0000:01:10.2  vfio-pci  -     driver vfio-pci is bound, expected is igbvf
";
    assert_eq!((String::from_utf8(output.stdout)?.as_str(), output.status.code()), (expected, Some(0)));
    assert!(names(&bench.sockets())?.is_empty(), "nothing was served");

    bench.configure(&pools(&[json!({ "resourceName": "bad" })]).to_string())?;
    let output = bench.run(&["--once", "--output=json"])?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((value["pools"].clone(), output.status.code()), (json!([]), Some(1)));
    assert!(value["errors"][0].as_str().is_some_and(|error| error.contains("resource bad: selectors: missing")), "{value}");
    Ok(())
}

#[tokio::test]
async fn a_registration_that_is_refused_after_the_kubelet_connected_back_is_repeated() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("nics", "0", "igbvf")]).to_string())?;
    let kubelet = Kubelet::start(&bench.sockets(), 1)?;
    kubelet.refuse_late(2);
    bench.start()?;
    kubelet.until_resource("openshift.io/nics", has(&VFS[..1])).await?;
    assert_eq!((kubelet.refusals_left(), kubelet.late_refusals_left()), (0, 0));
    assert!(bench.log().contains("the kubelet refused: not after all (Aborted)"), "{}", bench.log());
    Ok(())
}

/// A kubelet that watches `plugins_registry`, and the plugin that waits there to be found.
fn found(config: &Value, refusals: usize) -> Result<(Bench, Kubelet, PathBuf)> {
    let mut bench = Bench::new()?;
    bench.configure(&config.to_string())?;
    let registry = bench.dir.path().join("plugins_registry");
    let mut kubelet = Kubelet::start(&bench.sockets(), refusals)?;
    kubelet.watch_plugins(&registry)?;
    bench.start_with(&["--plugin-watcher", "--plugins-registry-dir", &registry.display().to_string()])?;
    Ok((bench, kubelet, registry))
}

#[tokio::test]
async fn a_kubelet_that_watches_its_folder_of_plugins_finds_the_pools_there() -> Result<()> {
    let (mut bench, kubelet, registry) = found(&pools(&[pool("a", "0-1", "igbvf"), pool("b", "2-3", "igbvf")]), 2)?;
    kubelet.until_resource("openshift.io/a", has(&VFS[..2])).await?;
    kubelet.until_resource("openshift.io/b", has(&VFS[2..])).await?;
    assert_eq!(kubelet.refusals_left(), 0, "refused, it was found again");
    assert!(bench.log().contains("the kubelet refused the registration"), "{}", bench.log());
    assert_eq!(kubelet.allocate("openshift.io/b", &[VFS[3]]).await?.envs["PCIDEVICE_OPENSHIFT_IO_B"], VFS[3]);
    assert_eq!(names(&bench.sockets())?, ["kubelet.sock"], "not both ways at once");
    assert_eq!(names(&registry)?, ["openshift.io_a.sock", "openshift.io_b.sock"]);

    bench.configure(&pools(&[pool("a", "0-2", "igbvf")]).to_string())?;
    kubelet.until_resource("openshift.io/a", has(&VFS[..3])).await?;
    kubelet.until_resource("openshift.io/b", |resource| resource.stopped && resource.ids().is_empty()).await?;
    assert_eq!(kubelet.now()["openshift.io/a"].registrations, 1);

    // A kubelet that starts again finds what is there.
    drop(kubelet);
    let mut kubelet = Kubelet::start(&bench.sockets(), 0)?;
    kubelet.watch_plugins(&registry)?;
    kubelet.until_resource("openshift.io/a", has(&VFS[..3])).await?;
    kubelet.allocate("openshift.io/a", &[VFS[0]]).await?;
    bench.terminate()?;
    assert!(names(&registry)?.is_empty());
    Ok(())
}

/// The kubelet's client of this folder sends the socket's path as `:authority`, as no client here would: byte for byte.
#[tokio::test]
async fn found_by_the_kubelet_it_answers_a_client_that_names_no_host() -> Result<()> {
    let (_bench, kubelet, registry) = found(&pools(&[pool("nics", "0-3", "igbvf")]), 0)?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    let socket = registry.join("openshift.io_nics.sock");
    let answer = tokio::task::spawn_blocking(move || -> Result<Vec<u8>> {
        let text = |text: &[u8]| -> Result<Vec<u8>> { Ok([&[u8::try_from(text.len())?][..], text].concat()) };
        let path = text(b"/pluginregistration.Registration/GetInfo")?;
        let fields = [&[0x83, 0x86, 0x44][..], &path, &[0x41], &text(b"/var/lib/kubelet/x.sock")?, &[0x5f], &text(b"application/grpc")?].concat();
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| -> Result<Vec<u8>> {
            Ok([&u32::try_from(payload.len())?.to_be_bytes()[1..], &[kind, flags, 0, 0, 0, stream], payload].concat())
        };
        let mut connection = std::os::unix::net::UnixStream::connect(socket)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])?, frame(1, 4, 1, &fields)?, frame(0, 1, 1, &[0; 5])?];
        connection.write_all(&request.concat())?;
        // The frame of data of this stream, or the one that ends it.
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head)?;
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            connection.read_exact(&mut payload)?;
            match (head[3], head[8]) {
                (0, 1) => return Ok(payload),
                (3, 1) => anyhow::bail!("the request was refused: {payload:?}"),
                _ => {}
            }
        }
    })
    .await??;
    let told = String::from_utf8_lossy(&answer).into_owned();
    assert!(told.contains("DevicePlugin") && told.contains("openshift.io/nics") && told.contains("v1beta1"), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn found_by_the_kubelet_it_registers_again_when_it_was_disconnected_or_its_options_change() -> Result<()> {
    let mut config = pools(&[pool("nics", "0-3", "igbvf")]);
    let (mut bench, kubelet, registry) = found(&config, 0)?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    config["resourceList"][0]["allocationPolicy"] = "pack".into();
    bench.configure(&config.to_string())?;
    kubelet.until_resource("openshift.io/nics", |resource| resource.registrations > 1 && !resource.stopped && resource.healthy() == VFS).await?;
    assert_eq!(kubelet.preferred("openshift.io/nics", &[VFS[3], VFS[1]], 1).await?, [VFS[1]]);

    // Another instance takes the socket's place; when the first ends, the kubelet disconnects the second, which comes back.
    let arguments = ["--plugin-watcher", "--plugins-registry-dir", &registry.display().to_string()];
    let newer = bench.command(&arguments)?.stderr(Stdio::null()).spawn()?;
    let before = kubelet.now()["openshift.io/nics"].registrations;
    kubelet.until_resource("openshift.io/nics", |resource| resource.registrations > before && !resource.stopped).await?;
    bench.terminate()?;
    bench.plugin = Some(newer);
    let whole = |resource: &Resource| resource.watching && !resource.stopped && resource.healthy() == VFS;
    kubelet.until_resource("openshift.io/nics", whole).await?;
    kubelet.allocate("openshift.io/nics", &[VFS[0]]).await?;
    Ok(())
}

#[tokio::test]
async fn killed_at_any_moment_under_load_it_comes_back_and_gives_nothing_twice() -> Result<()> {
    let (mut bench, kubelet) = Bench::running(&pools(&[pool("nics", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    for _ in 0..8 {
        // Told by the failure's output, so that it can be put here in the place of chance.
        let pause = RandomState::new().hash_one(()) % 60;
        eprintln!("killed after {pause} ms");
        let deadline = Instant::now() + Duration::from_millis(pause);
        let mut given = 0;
        while Instant::now() < deadline {
            let answer = kubelet.allocate("openshift.io/nics", &[VFS[given % 4]]).await?;
            assert_eq!(answer.envs["PCIDEVICE_OPENSHIFT_IO_NICS"], VFS[given % 4]);
            given += 1;
        }
        let last = tokio::join!(kubelet.allocate("openshift.io/nics", &[VFS[0]]), async { bench.plugin.as_mut().map(std::process::Child::kill) }).0;
        // Answered whole or not at all.
        assert!(last.is_err() || last.is_ok_and(|answer| answer.envs.len() == 2));
        bench.plugin.as_mut().context("plugin")?.wait()?;
        let before = kubelet.now()["openshift.io/nics"].registrations;
        bench.start()?;
        kubelet.until_resource("openshift.io/nics", |resource| resource.registrations > before && resource.ids() == VFS).await?;
        let left: Vec<_> = names(&bench.dir.path().join("devinfo")).unwrap_or_default();
        assert!(left.iter().all(|name| name.ends_with("-device.json") || name.starts_with('.')), "{left:?}");
        kubelet.allocate("openshift.io/nics", &[VFS[0]]).await?;
    }
    Ok(())
}
