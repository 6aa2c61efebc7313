//! Pure: the command line. All flags of the Go plugin with their names and defaults, in Go's spelling (`-config-file=x`) too.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};

/// Offers SR-IOV virtual functions to the kubelet as extended resources.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "sriov-device-plugin", version)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line are independent")]
pub struct Args {
    /// JSON file with the resources; it may appear, change and disappear at any time.
    #[arg(long, default_value = "/etc/pcidp/config.json")]
    pub config_file: PathBuf,
    /// Prefix of the extended resources; a resource's own `resourcePrefix` goes first.
    #[arg(long, default_value = "intel.com")]
    pub resource_prefix: String,
    /// Give device nodes by the Container Device Interface, not one by one.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set)]
    pub use_cdi: bool,
    /// Where the host's file system is mounted, for /sys.
    #[arg(long, default_value = "/")]
    pub root: PathBuf,
    /// The kubelet's device plugin folder.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    pub socket_dir: PathBuf,
    /// Be found by the kubelet in its folder `plugins_registry`, instead of calling it in the device plugin folder.
    #[arg(long)]
    pub plugin_watcher: bool,
    /// The folder that the kubelet watches for plugins.
    #[arg(long, default_value = "/var/lib/kubelet/plugins_registry")]
    pub plugins_registry_dir: PathBuf,
    /// The folder of the device-info files that Multus reads.
    #[arg(long, default_value = "/var/run/k8s.cni.cncf.io/devinfo/dp")]
    pub device_info_dir: PathBuf,
    /// Folder of the Container Device Interface's specs.
    #[arg(long, default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,
    /// The kubelet's socket that tells which pod has which device.
    #[arg(long, default_value = "/var/lib/kubelet/pod-resources/kubelet.sock")]
    pub pod_resources_socket: PathBuf,
    /// Address of `/metrics` and `/healthz`, such as 0.0.0.0:9808; without it there are none.
    #[arg(long)]
    pub http_address: Option<std::net::SocketAddr>,
    /// File that is made when the kubelet has taken all pools that there are at the start, so that an older instance may end.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Exit with 0 if there is `--ready-file`, else with 1: for startup probes.
    #[arg(long, requires = "ready_file")]
    pub is_ready: bool,
    /// Print what would be offered and exit; the exit code is 1 when a resource had to be left out.
    #[arg(long)]
    pub once: bool,
    /// The form of what `--once` prints.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Log verbosity: from 5 on, debug messages too.
    #[arg(long = "v", alias = "log-level", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: i32,
    #[command(flatten)]
    glog: Glog,
}

/// The form of what `--once` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line a device, for people.
    Table,
    /// One object, for programs.
    Json,
}

/// Flags of Go's glog that existing manifests carry. They are accepted and change nothing: the log goes to standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
struct Glog {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    logtostderr: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    alsologtostderr: Option<bool>,
    #[arg(long, hide = true)]
    stderrthreshold: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long = "log_backtrace_at", alias = "log-backtrace-at", hide = true)]
    log_backtrace_at: Option<String>,
    #[arg(long = "log_dir", alias = "log-dir", hide = true)]
    log_dir: Option<String>,
    #[arg(long = "log_link", alias = "log-link", hide = true)]
    log_link: Option<String>,
    #[arg(long, hide = true)]
    logbuflevel: Option<i32>,
}

/// What Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("allowed is true or false".to_owned()),
    }
}

/// Writes `-flag` as `--flag`: Go's flag package takes both. `-h` and `-V` stay.
pub fn with_two_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let rewrite = |arg: OsString| match arg.to_str() {
        Some("-h" | "-V") => arg,
        Some(text) if text.starts_with('-') && text[1..].starts_with(|first: char| first.is_ascii_alphabetic()) => OsString::from(format!("-{text}")),
        _ => arg,
    };
    args.into_iter().map(rewrite).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("sriov-device-plugin").chain(line.split_whitespace()).map(OsString::from);
        Args::try_parse_from(with_two_dashes(words))
    }

    #[test]
    fn defaults_are_the_fields() {
        let args = parse("").unwrap();
        assert_eq!(args.config_file.to_str(), Some("/etc/pcidp/config.json"));
        assert_eq!(args.resource_prefix, "intel.com");
        assert_eq!(args.socket_dir.to_str(), Some("/var/lib/kubelet/device-plugins"));
        assert!(!args.use_cdi && !args.once);
    }

    #[test]
    fn go_spelling_is_taken() {
        let expected = parse("--config-file /a.json --resource-prefix=x.io --use-cdi --v 10").unwrap();
        assert!(expected.use_cdi);
        assert_eq!(expected.verbosity, 10);
        for line in [
            "-config-file=/a.json -resource-prefix x.io -use-cdi -v=10",
            "-config-file /a.json -resource-prefix=x.io -use-cdi=true -v 10",
            "--config-file=/a.json --resource-prefix=x.io --use-cdi=1 --log-level=10",
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
        assert!(!parse("-use-cdi=false").unwrap().use_cdi);
    }

    #[test]
    fn glog_flags_of_existing_manifests_are_taken() {
        parse("-logtostderr -alsologtostderr=false -stderrthreshold=INFO -log_dir /tmp --log-dir=/tmp -v 4").unwrap_err();
        parse("-logtostderr -alsologtostderr=false -stderrthreshold=INFO -log_dir /tmp -vmodule=a=2 -log_backtrace_at=a.go:1 -v 4").unwrap();
        parse("--log-dir=/var/log --log-level=10 --logtostderr=true").unwrap();
    }

    #[test]
    fn other_flags_are_refused() {
        for line in ["-config", "--no-such-flag", "stray", "-use-cdi=maybe"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
