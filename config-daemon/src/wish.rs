//! Pure: what a file asks of this machine: policies or a node state, YAML or JSON, several documents in one text.
//!
//! What lives here: telling the kinds apart, and policies -> node state with the operator's own rules (`sriov_crds::resolve`). What does not:
//! reading the file (`main`), understanding a node state (`desired`).
//!
//! Invariant: a document that is not understood is an error that names it, and nothing is done for the others.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sriov_crds::keys::LEGACY_DEFAULT_POLICY;
use sriov_crds::resolve::{Malformed, Policy, bridges, order, selects, spec};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeStateSpec};

use crate::desired::Desired;
use crate::observed::Observed;
use crate::status::interfaces;

/// Why a file is no wish.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// No YAML, or not of this kind.
    #[error("document {number}: {reason}")]
    Read {
        /// From 1.
        number: usize,
        /// What the parser said.
        reason: String,
    },
    /// Another kind.
    #[error("document {number} is a {kind:?}: expected SriovNetworkNodePolicy (any number) or SriovNetworkNodeState (one)")]
    Kind {
        /// From 1.
        number: usize,
        /// As given.
        kind: String,
    },
    /// Both kinds, or several node states.
    #[error("a file has either policies or one SriovNetworkNodeState")]
    Mixed,
    /// Nothing at all.
    #[error("there is neither a SriovNetworkNodePolicy nor a SriovNetworkNodeState in it")]
    Empty,
    /// A policy that the operator would leave out.
    #[error("policy {name}: {why}")]
    Policy {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: Malformed,
    },
}

/// A wish, and what should be known about it.
#[derive(Debug)]
pub struct Wish {
    /// What is wanted.
    pub desired: Desired,
    /// One sentence each.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct List {
    items: Vec<SriovNetworkNodePolicy>,
}

/// The part of a SriovNetworkNodeState that is a wish.
#[derive(Deserialize)]
struct NodeState {
    spec: SriovNetworkNodeStateSpec,
}

/// Reads the text. `labels` are those of the node that policies are to be chosen for; without them every policy counts.
pub fn read(text: &str, labels: Option<&BTreeMap<String, String>>, observed: &Observed) -> Result<Wish, WishError> {
    let (mut policies, mut states) = (Vec::new(), Vec::new());
    for (number, document) in documents(text) {
        let kind = parse::<Kind>(number, &document)?.kind;
        match kind.as_str() {
            "SriovNetworkNodePolicy" => policies.push(parse::<SriovNetworkNodePolicy>(number, &document)?),
            "List" | "SriovNetworkNodePolicyList" => policies.extend(parse::<List>(number, &document)?.items),
            "SriovNetworkNodeState" => states.push(parse::<NodeState>(number, &document)?.spec),
            _ => return Err(WishError::Kind { number, kind }),
        }
    }
    match (policies.is_empty(), states.as_slice()) {
        (true, []) => Err(WishError::Empty),
        (true, [state]) => Ok(Wish { desired: Desired::read(state), notes: Vec::new() }),
        (false, []) => resolve(policies, labels, observed),
        _ => Err(WishError::Mixed),
    }
}

fn resolve(objects: Vec<SriovNetworkNodePolicy>, labels: Option<&BTreeMap<String, String>>, observed: &Observed) -> Result<Wish, WishError> {
    let (mut policies, mut notes) = (Vec::new(), Vec::new());
    for object in objects {
        let name = object.metadata.name.clone().unwrap_or_else(|| "without a name".to_owned());
        if name == LEGACY_DEFAULT_POLICY {
            notes.push(format!("policy {name} is left out: a policy of that name is never honoured"));
            continue;
        }
        match labels {
            Some(labels) if !selects(&object.spec.node_selector, labels) => {
                notes.push(format!("policy {name} is left out: its nodeSelector does not select these labels"));
                continue;
            }
            None if !object.spec.node_selector.is_empty() => {
                notes.push(format!("policy {name}: its nodeSelector is not looked at (--labels is not given)"));
            }
            _ => {}
        }
        policies.push(Policy::read(&name, &object.spec).map_err(|why| WishError::Policy { name, why })?);
    }
    order(&mut policies);
    let pfs = interfaces(observed);
    for policy in &policies {
        if spec(std::slice::from_ref(policy), &pfs).interfaces.is_empty() {
            let known: Vec<String> = pfs.iter().map(|pf| format!("{} ({})", pf.pci_address, pf.name.as_deref().unwrap_or("no netdev"))).collect();
            notes.push(format!("policy {} wants VFs of none of this machine's PFs: {}", policy.name, known.join(", ")));
        }
    }
    let wanted = SriovNetworkNodeStateSpec { bridges: bridges(&policies, &pfs), ..spec(&policies, &pfs) };
    Ok(Wish { desired: Desired::read(&wanted), notes })
}

/// The documents with their numbers; empty ones (a separator at the beginning or end) count and are left out.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let says_something = |document: &String| document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    documents.into_iter().filter(says_something).enumerate().map(|(position, document)| (position + 1, document)).collect()
}

fn parse<T: DeserializeOwned>(number: usize, document: &str) -> Result<T, WishError> {
    serde_saphyr::from_str(document).map_err(|error| WishError::Read { number, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;
    use crate::plan::plan;

    const TWO: &str = "\
# what people keep in one file
---
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodePolicy
metadata: {name: weak}
spec: {resourceName: a, nodeSelector: {rack: '7'}, nicSelector: {vendor: 8086}, numVfs: 4, priority: 90}
---
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodePolicy
metadata: {name: strong}
spec: {resourceName: b, nodeSelector: {}, nicSelector: {rootDevices: ['0000:01:00.0']}, numVfs: 2, deviceType: vfio-pci, priority: 1}
";

    fn observed() -> Observed {
        Sim::with_pfs(&["0000:01:00.0", "0000:02:00.0"]).observe().unwrap()
    }

    fn refusal(text: &str) -> String {
        read(text, None, &observed()).map_or_else(|error| error.to_string(), |_| "read".to_owned())
    }

    #[test]
    fn policies_are_merged_as_the_operator_merges_them() {
        let wish = read(TWO, None, &observed()).unwrap();
        let counts: Vec<_> = wish.desired.pfs.values().map(|pf| pf.as_ref().unwrap().numvfs).collect();
        assert_eq!(counts, [2, 4], "the stronger policy has its PF, the weaker the other");
        assert!(wish.notes[0].contains("weak: its nodeSelector is not looked at"), "{:?}", wish.notes);
        assert!(plan(&wish.desired, &observed()).to_string().contains("create 2 VFs"));
    }

    #[test]
    fn labels_choose_policies() {
        let labels: BTreeMap<_, _> = [("rack".to_owned(), "8".to_owned())].into();
        let wish = read(TWO, Some(&labels), &observed()).unwrap();
        assert_eq!(wish.desired.pfs.len(), 1);
        assert!(wish.notes[0].contains("left out"), "{:?}", wish.notes);
    }

    #[test]
    fn a_node_state_is_taken_as_it_is() {
        let text = "kind: SriovNetworkNodeState\nspec: {policyRevision: r, interfaces: [{pciAddress: '0000:02:00.0', numVfs: 1}]}";
        assert_eq!(read(text, None, &observed()).unwrap().desired.pfs.len(), 1);
    }

    #[test]
    fn what_is_not_understood_does_nothing_and_says_which_document() {
        assert!(refusal("kind: Pod").contains("document 1 is a \"Pod\""));
        assert_eq!(refusal("---\n# nothing\n"), WishError::Empty.to_string());
        assert_eq!(refusal(&format!("{TWO}---\nkind: SriovNetworkNodeState\nspec: {{}}\n")), WishError::Mixed.to_string());
        assert!(
            refusal(&TWO.replace("numVfs: 4", "numVfs: four")).starts_with("document 1: "),
            "{}",
            refusal(&TWO.replace("numVfs: 4", "numVfs: four"))
        );
        assert!(refusal(&TWO.replace("resourceName: b", "resourceName: -b")).starts_with("policy strong: resourceName"));
    }

    #[test]
    fn a_policy_that_selects_nothing_here_says_so() {
        let wish = read(&TWO.replace("0000:01:00.0", "0000:09:00.0"), None, &observed()).unwrap();
        assert!(wish.notes.iter().any(|note| note.contains("strong wants VFs of none") && note.contains("0000:02:00.0")), "{:?}", wish.notes);
    }
}
