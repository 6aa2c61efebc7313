//! I/O: `sriov-device-plugin`: arguments, log, signals, exit codes (0 after a signal, 1 on a fatal error, 2 for a wrong command line). No logic.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Parser;
use sriov_device_plugin::args::{Args, Output, with_two_dashes};
use sriov_device_plugin::once;
use sriov_device_plugin::pool::PoolName;
use sriov_device_plugin::run::{Settings, look, run};
use sriov_device_plugin::select::select;
use sriov_device_plugin::server::Node;
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
    if args.use_cdi {
        bail!("--use-cdi is not implemented yet: start without it, devices are then given as device nodes");
    }
    // Any resource name will do to find out about the prefix.
    PoolName::new(&args.resource_prefix, "any").context("--resource-prefix")?;
    let settings = Settings { config_file: args.config_file.clone(), resource_prefix: args.resource_prefix.clone() };
    if args.once {
        return print_once(&args, &settings);
    }
    // Work is rare and small: one thread, and those for blocking calls while they last.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(args, settings))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: Args, settings: Settings) -> Result<()> {
    // Before anything that has to be undone is done.
    let stop = stop_signal()?;
    let node = Node { host: Host::at(args.root), sockets: args.socket_dir, device_info: args.device_info_dir };
    run(settings, Arc::new(node), stop).await?;
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
    let pools = select(&config.pools, &look(&Host::at(&args.root))?);
    let text = match args.output {
        Output::Table => once::table(&pools),
        Output::Json => once::json(&pools, &config.errors),
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
    for error in &config.errors {
        tracing::error!(%error, "left out a resource");
    }
    Ok(if config.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
