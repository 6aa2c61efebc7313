//! I/O: `sriov doctor`: each attachment that is remembered, compared with the kernel, with the command that puts it right.
//!
//! What does not live here: putting it right. Invariant: nothing is changed.

use std::path::Path;

use serde_json::{Value, json};
use sriov_host::Host;
use sriov_host::netlink::Route;
use sriov_host::netns::NetNs;

use crate::go_plugin;
use crate::journal::{Journal, Phase};
use crate::restore::{boot_id, living_netns};
use crate::state::{StateError, Store};

/// What is the matter with one attachment.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The VF, or the file where that can't be told.
    pub vf: String,
    /// `attached`, `attached-by-go`, `interrupted`, `leaked`, `lost-netdev`, `before-reboot`, `ended-by-go`, `unreadable`.
    pub state: &'static str,
    /// Whose it is, in words.
    pub owner: String,
    /// The command that puts it right; `None` when nothing is wrong, or nothing can be done before the next ADD.
    pub repair: Option<String>,
}

impl Finding {
    /// Whether everything is as it should be.
    pub fn is_fine(&self) -> bool {
        matches!(self.state, "attached" | "attached-by-go")
    }

    /// `{"vf", "state", "owner", "repair"}`.
    pub fn to_json(&self) -> Value {
        json!({"vf": self.vf, "state": self.state, "owner": self.owner, "repair": self.repair})
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.vf, self.state, self.owner)?;
        self.repair.as_ref().map_or(Ok(()), |repair| write!(f, "\n    repair: {repair}"))
    }
}

/// Looks at all that is remembered below `state_dir`. `program` is what the commands call.
pub fn examine(state_dir: &Path, host: &Host, program: &Path) -> Result<Vec<Finding>, StateError> {
    let store = Store::at(state_dir);
    let mut findings = Vec::new();
    for journal in store.all()? {
        findings.push(match journal {
            Ok(journal) => {
                let state = state_of(&store, &journal, host);
                let owner =
                    format!("container {} as {} in {}", journal.owner.container_id, journal.owner.if_name, journal.owner.netns_path.display());
                let finding = Finding { vf: journal.vf.to_string(), state, owner, repair: None };
                let repair = (!finding.is_fine()).then(|| del_command(state_dir, &journal, program));
                Finding { repair, ..finding }
            }
            Err(error) => Finding { vf: "?".to_owned(), state: "unreadable", owner: error.to_string(), repair: None },
        });
    }
    for record in store.go_records()? {
        let Some(vf) = go_plugin::device_of(&record.conf).filter(|vf| !store.has(*vf)) else { continue };
        let netns = store.go_allocation(vf)?.unwrap_or_default();
        let lives = NetNs::open(&netns).is_ok();
        let (container_id, if_name) = record.name.split_once('-').unwrap_or((&record.name, ""));
        let conf = json!({"cniVersion": "1.1.0", "name": record.conf["name"], "type": "sriov", "deviceID": vf.to_string(), "stateDir": state_dir});
        findings.push(Finding {
            vf: vf.to_string(),
            state: if lives { "attached-by-go" } else { "leaked" },
            owner: format!("container {container_id} as {if_name} in {}", netns.display()),
            repair: (!lives).then(|| command(&conf, container_id, if_name, program)),
        });
    }
    Ok(findings)
}

fn state_of(store: &Store, journal: &Journal, host: &Host) -> &'static str {
    if journal.boot_id != boot_id(host) {
        return "before-reboot";
    }
    if go_plugin::ended(store, journal).unwrap_or_default() {
        return "ended-by-go";
    }
    let Some(netns) = living_netns(&journal.owner, None) else { return "leaked" };
    if journal.phase == Phase::Prepared {
        return "interrupted";
    }
    let there = Route::open_in(&netns).ok().and_then(|pod| pod.link_by_name(&journal.owner.if_name).ok().flatten()).is_some();
    if there || journal.userspace_driver.is_some() { "attached" } else { "lost-netdev" }
}

/// DEL as the runtime would call it. It has no IPAM: the journal says which plugin gave addresses.
fn del_command(state_dir: &Path, journal: &Journal, program: &Path) -> String {
    let conf = json!({
        "cniVersion": "1.1.0", "name": journal.network, "type": "sriov", "deviceID": journal.vf.to_string(), "stateDir": state_dir,
    });
    command(&conf, &journal.owner.container_id, &journal.owner.if_name, program)
}

fn command(conf: &Value, container_id: &str, if_name: &str, program: &Path) -> String {
    format!(
        "echo {} | CNI_COMMAND=DEL CNI_CONTAINERID={} CNI_IFNAME={} CNI_PATH=/opt/cni/bin {}",
        quoted(&conf.to_string()),
        quoted(container_id),
        quoted(if_name),
        quoted(&program.to_string_lossy())
    )
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
