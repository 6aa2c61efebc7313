//! I/O: the stand-in for Multus, a CNI plugin for tests only: environment and standard input to a verb, the result to standard output. The contract is
//! in `sriov_tests::multus`.

#![expect(clippy::print_stdout, reason = "a CNI plugin answers on its standard output")]

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use sriov_tests::multus::Conf;
use sriov_tests::multus::cluster::Kubernetes;
use sriov_tests::multus::verbs::{self, Request};

/// CNI §3, "VERSION".
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn main() -> ExitCode {
    match run() {
        Ok(Some(answer)) => println!("{answer}"),
        Ok(None) => {}
        Err(error) => {
            // 999 is the code of an error that no range of the specification describes.
            println!("{}", json!({"cniVersion": "1.0.0", "code": 999, "msg": format!("{error:#}")}));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run() -> Result<Option<Value>> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let command = variable("CNI_COMMAND");
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("read the configuration from standard input")?;
    if command == "VERSION" {
        return Ok(Some(json!({"cniVersion": "1.0.0", "supportedVersions": VERSIONS})));
    }
    let raw: Map<String, Value> = serde_json::from_str(&text).context("parse the configuration on standard input")?;
    let conf: Conf = serde_json::from_str(&text).context("parse the configuration on standard input")?;
    let request = Request {
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
        path: std::env::split_paths(&variable("CNI_PATH")).collect(),
        conf,
    };
    let cluster = Kubernetes::new(&request.conf)?;
    match command.as_str() {
        "ADD" => verbs::add(&request, &cluster).map(Some),
        "DEL" => verbs::del(&request, &cluster).map(|()| None),
        "CHECK" => verbs::check(&request).map(|()| None),
        "STATUS" | "GC" => {
            let kept = raw.into_iter().filter(|(key, _)| key.starts_with("cni.dev/")).collect();
            verbs::whole_network(&request, &command, &kept).map(|()| None)
        }
        other => bail!("CNI_COMMAND {other:?} is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"),
    }
}
