//! I/O: two instances of the device plugin's binary, of which one takes over from the other, and when an instance says that it is ready for that. Tier 1:
//! needs nothing but the build.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sriov_tests::kubelet::Kubelet;
use sriov_tests::plugin::{Bench, VFS, has, names, pool, pools, until};

/// [`until`] for what this process's own kubelet has to do meanwhile.
async fn eventually(condition: impl Fn() -> bool, describe: impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        ensure!(Instant::now() < deadline, "not within 10 s: {}", describe());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn it_is_ready_when_the_kubelet_has_taken_all_pools_and_not_before() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.configure(&pools(&[pool("a", "0-1", "igbvf"), pool("b", "2-3", "igbvf")]).to_string())?;
    let file = bench.dir.path().join("ready");
    let file = file.to_str().context("path")?;
    // A container's that ran before.
    fs::write(file, "")?;
    bench.start_with(&["--ready-file", file])?;
    let is_ready = |bench: &Bench| Ok::<_, anyhow::Error>(bench.run(&["--ready-file", file, "--is-ready"])?.status.code());
    until(|| bench.log().matches("waiting for the kubelet").count() == 2, || bench.log())?;
    assert_eq!(is_ready(&bench)?, Some(1));

    // More refusals than either pool asks for while this test looks.
    let refusing = Kubelet::start(&bench.sockets(), 1000)?;
    eventually(|| bench.log().contains("the kubelet refused"), || bench.log()).await?;
    assert_eq!(is_ready(&bench)?, Some(1));
    drop(refusing);

    let kubelet = Kubelet::start(&bench.sockets(), 0)?;
    kubelet.until(|all| all.len() == 2).await?;
    eventually(|| fs::exists(file).unwrap_or(false), || bench.log()).await?;
    assert_eq!(is_ready(&bench)?, Some(0));
    let without = bench.run(&["--is-ready"])?;
    assert_eq!(without.status.code(), Some(2), "{}", String::from_utf8_lossy(&without.stderr));
    Ok(())
}

#[tokio::test]
async fn the_capacity_never_dips_while_one_instance_takes_over_from_another() -> Result<()> {
    let (mut older, kubelet) = Bench::running(&pools(&[pool("nics", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    for round in 1..=2 {
        let before = kubelet.now()["openshift.io/nics"].registrations;
        let log = fs::File::options().append(true).open(older.dir.path().join("log"))?;
        let ready = older.dir.path().join(format!("ready-{round}"));
        let newer = older.command(&["--ready-file", ready.to_str().context("path")?])?.stderr(log).spawn()?;
        // What a DaemonSet with surge waits for before it ends the older one.
        eventually(|| ready.exists(), || older.log()).await?;
        assert_eq!(older.log().matches("taking over from an older instance").count(), round, "{}", older.log());
        kubelet.until_resource("openshift.io/nics", |resource| resource.registrations > before && resource.healthy() == VFS).await?;
        kubelet.allocate("openshift.io/nics", &[VFS[0]]).await?;
        older.terminate()?;
        older.plugin = Some(newer);
        kubelet.allocate("openshift.io/nics", &[VFS[1]]).await?;
        // Once more, when the kubelet has noticed that the older one is gone, so that it will notice the end of this one too.
        kubelet
            .until_resource("openshift.io/nics", |resource| resource.registrations > before + 1 && resource.watching && resource.healthy() == VFS)
            .await?;
        kubelet.allocate("openshift.io/nics", &[VFS[2]]).await?;
    }
    let history = kubelet.history("openshift.io/nics");
    assert!(history.len() >= 5 && history.iter().all(|healthy| *healthy == VFS.len()), "the kubelet had fewer devices: {history:?}");
    assert_eq!(names(&older.sockets())?, ["kubelet.sock", "openshift.io_nics.sock"]);

    older.plugin.as_mut().context("plugin")?.kill()?;
    kubelet.until_resource("openshift.io/nics", |resource| resource.stopped).await?;
    assert_eq!(kubelet.history("openshift.io/nics").last(), Some(&0), "the end without a successor is noticed");
    Ok(())
}

#[tokio::test]
async fn an_instance_that_is_replaced_before_it_could_hand_over_is_followed_by_a_registration() -> Result<()> {
    let (mut older, kubelet) = Bench::running(&pools(&[pool("nics", "0-3", "igbvf")]))?;
    kubelet.until_resource("openshift.io/nics", has(&VFS)).await?;
    let mut newer = older.command(&[])?.stderr(Stdio::null()).spawn()?;
    // Killed at once: the newer one may or may not have found it.
    older.plugin.as_mut().context("plugin")?.kill()?;
    let whole = kubelet
        .until_resource("openshift.io/nics", |resource| {
            resource.registrations > 1 && resource.watching && !resource.stopped && resource.healthy() == VFS
        })
        .await;
    let answer = kubelet.allocate("openshift.io/nics", &[VFS[0]]).await;
    newer.kill()?;
    newer.wait()?;
    whole?;
    answer?;
    Ok(())
}
