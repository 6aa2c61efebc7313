//! I/O: `sriov-device-plugin`: arguments, log, signals, exit codes (0 after a signal, 1 on a fatal error, 2 for a wrong command line). No logic.

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use clap::Parser;
use sriov_device_plugin::args::{Args, Output, with_two_dashes};
use sriov_device_plugin::claims::Claims;
use sriov_device_plugin::http::{self, Sources};
use sriov_device_plugin::machine::{Machine, Wants};
use sriov_device_plugin::metrics::Metrics;
use sriov_device_plugin::pod_resources::PodResources;
use sriov_device_plugin::pool::PoolName;
use sriov_device_plugin::run::{Settings, run};
use sriov_device_plugin::select::{select, withheld};
use sriov_device_plugin::server::Node;
use sriov_device_plugin::{once, privileges};
use sriov_host::Host;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let args = Args::parse_from(with_two_dashes(std::env::args_os()));
    let level = if args.verbosity >= 5 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<ExitCode> {
    // Any resource name will do to find out about the prefix.
    PoolName::new(&args.resource_prefix, "any").context("--resource-prefix")?;
    let settings =
        Settings { config_file: args.config_file.clone(), resource_prefix: args.resource_prefix.clone(), ready_file: args.ready_file.clone() };
    if let Some(file) = args.ready_file.as_ref().filter(|_| args.is_ready) {
        return Ok(if file.exists() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if args.once {
        return print_once(&args, &settings);
    }
    // Before the first thread, so that it holds for all of them.
    privileges::drop_all()?;
    // Work is rare and small: one thread, and those for blocking calls while they last.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build().context("start the runtime")?;
    runtime.block_on(serve(args, settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Looks at the machine come one after the other; allocations and scrapes may come beside them.
const BLOCKING_THREADS: usize = 4;

async fn serve(args: Args, settings: Settings) -> Result<()> {
    // Before anything that has to be undone is done.
    let stop = stop_signal()?;
    let metrics = Arc::new(Metrics::default());
    let pods = PodResources::at(&args.pod_resources_socket);
    let host = Host::at(&args.root);
    if let Some(address) = args.http_address {
        let sources = Sources { host: host.clone(), metrics: metrics.clone(), pods: pods.clone() };
        let listener = http::listen(address).with_context(|| format!("listen on --http-address {address}"));
        match listener {
            Ok(listener) => drop(tokio::spawn(http::serve(listener, sources))),
            // Devices matter more than numbers about them.
            Err(error) => tracing::error!("no metrics: {error:#}"),
        }
    }
    let node = Node {
        host,
        claims: Claims::new(&args.root, &args.device_info_dir),
        sockets: if args.plugin_watcher { args.plugins_registry_dir } else { args.socket_dir },
        found_by_kubelet: args.plugin_watcher,
        device_info: args.device_info_dir,
        cdi: args.use_cdi.then_some(args.cdi_dir),
        cdi_writes: Mutex::default(),
        metrics,
    };
    run(settings, Arc::new(node), pods, stop).await?;
    Ok(())
}

/// Ready at the first signal that asks the process to end: those of the Go plugin.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("listen for signals");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut quit = listen(SignalKind::quit())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
        tracing::info!("asked to stop");
    })
}

fn print_once(args: &Args, settings: &Settings) -> Result<ExitCode> {
    let config = settings.load()?;
    let machine = Machine::look(Host::at(&args.root), Claims::new(&args.root, &args.device_info_dir), Wants::of(&config.pools))?;
    let (pools, kept) = (select(&config.pools, machine.facts()), withheld(&config.pools, machine.facts()));
    let text = match args.output {
        Output::Table => once::table(&pools, &kept),
        Output::Json => once::json(&pools, &kept, &config.errors),
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
    for error in &config.errors {
        tracing::error!(%error, "left out a resource");
    }
    Ok(if config.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
