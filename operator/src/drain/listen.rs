//! I/O (memory only): which changes concern draining. Counters are moved at once, the work is queued.

use std::collections::BTreeMap;

use kube::ResourceExt;
use sriov_crds::conditions::DRAINED;
use sriov_crds::node_state::SYNC_FAILED;
use sriov_crds::{SriovNetworkPoolConfigSpec, keys};

use super::pools::{self, Standing};
use super::steps::{Phase, Request};
use super::{Controller, Subject};
use crate::cache::Change;
use crate::fleet::{ConfigGuard, Listener, NodeMeta, PoolGuard, StateGuard};

impl Listener for Controller<'_> {
    fn node(&self, change: &Change<'_, NodeMeta>) {
        let Some(name) = change.new.or(change.old).map(ResourceExt::name_any) else { return };
        if change.old.map(ResourceExt::labels) != change.new.map(ResourceExt::labels) {
            let mut touched = self.pools.borrow_mut().set_node(&name, change.new.map(|node| node.labels().clone()));
            // The state may have come before the node.
            if let Some(state) = self.fleet.states.get(&self.key(&name)) {
                touched.extend(self.pools.borrow_mut().set_standing(&name, standing(Some(&state))));
            }
            for pool in &touched {
                self.wake(pool);
            }
            self.queue.add(Subject::Census);
        }
        let mark = |node: Option<&NodeMeta>| node.map(|node| node.annotations().contains_key(keys::CORDONED));
        if mark(change.old).unwrap_or_default() != mark(change.new).unwrap_or_default() {
            self.queue.add(Subject::Node(name));
        }
    }

    fn state(&self, change: &Change<'_, StateGuard>) {
        let Some(name) = change.new.or(change.old).map(ResourceExt::name_any) else { return };
        let (before, now) = (standing(change.old), standing(change.new));
        let touched = self.pools.borrow_mut().set_standing(&name, now);
        for pool in &touched {
            self.queue.add(Subject::Pool(pool.clone()));
            // Only a place that became free is for others; a node that begins to ask is queued itself.
            if (before.away && !now.away) || (before.failed && !now.failed) {
                self.wake(pool);
            }
        }
        // One that is at rest may still have to be marked for the controller that drains instead.
        if matters(change) || (change.old.is_none() && self.context.settings.external_drainer) {
            self.queue.add(Subject::Node(name));
        }
        self.queue.add(Subject::Census);
    }

    fn pool(&self, change: &Change<'_, PoolGuard>) {
        // Of a pool that is not for nodes nothing else is done.
        if let Some(pool) = change.new.filter(|pool| pool.finalizers().iter().any(|f| f == keys::POOL_FINALIZER)) {
            self.queue.add(Subject::Pool(pool.name_any()));
        }
        // A status, which is ours, changes nothing.
        let essence = |pool: Option<&PoolGuard>| {
            pool.map(|pool| pool.0.as_ref().map(|p| (p.spec.clone(), p.metadata.deletion_timestamp.is_some())).map_err(|e| e.error.clone()))
        };
        let (old, new): (Option<Result<(SriovNetworkPoolConfigSpec, bool), String>>, _) = (essence(change.old), essence(change.new));
        if old == new {
            return;
        }
        let mut rules = BTreeMap::new();
        for pool in self.fleet.pools.list() {
            match &pool.0 {
                Ok(object) if pools::is_for_nodes(object) => rules.insert(object.name_any(), pools::rules(object)),
                Ok(_) => None,
                Err(unreadable) => rules.insert(pool.name_any(), Err(pools::Invalid::Unreadable(unreadable.error.clone()))),
            };
        }
        let names: Vec<String> = rules.keys().cloned().chain([pools::REST.to_owned()]).collect();
        self.pools.borrow_mut().set_pools(rules);
        for pool in &names {
            self.wake(pool);
        }
        // Overlap is between pools, so a waiting node may have to say something else now.
        for state in self.fleet.states.list().iter().filter(|state| standing(Some(state)).asks) {
            self.queue.add(Subject::Node(state.name_any()));
        }
    }

    fn config(&self, change: &Change<'_, ConfigGuard>) {
        let disabled = |config: Option<&ConfigGuard>| config.and_then(|c| c.0.as_ref().ok()).is_some_and(|c| c.spec.disable_drain);
        if disabled(change.old) != disabled(change.new) {
            for state in self.fleet.states.list().iter().filter(|state| standing(Some(state)).asks) {
                self.queue.add(Subject::Node(state.name_any()));
            }
        }
    }
}

impl Controller<'_> {
    /// A pool has places, perhaps: those who are next are asked.
    fn wake(&self, pool: &str) {
        self.queue.add(Subject::Pool(pool.to_owned()));
        for node in self.pools.borrow().next(pool) {
            self.queue.add(Subject::Node(node));
        }
    }
}

/// What a node's state says; one that cannot be read, or is gone, asks for nothing, and what is away stays away as long as it says so.
fn standing(state: Option<&StateGuard>) -> Standing {
    let Some(Ok(state)) = state.map(|state| &state.0) else { return Standing::default() };
    let external = state.annotations().get(keys::USE_EXTERNAL_DRAINER).is_some_and(|value| value == "true");
    Standing {
        asks: !external && Request::of(state) != Request::Nothing,
        // A node that another controller drains is away all the same.
        away: Phase::of(state) != Phase::Idle,
        failed: state.status.as_ref().is_some_and(|status| status.sync_status.as_deref() == Some(SYNC_FAILED)),
    }
}

/// The handshake moved, or what the plan names.
fn matters(change: &Change<'_, StateGuard>) -> bool {
    let essence = |state: Option<&StateGuard>| {
        let state = state?.0.as_ref().ok()?;
        let resources = state.status.as_ref().and_then(|s| s.plan.as_ref()).map(|p| p.evict_resources.clone());
        let external = state.annotations().get(keys::USE_EXTERNAL_DRAINER).cloned();
        // A condition that was written while the cache was late is taken away when it shows.
        let says = state.status.iter().flat_map(|s| &s.conditions).any(|c| c.type_ == DRAINED) && Request::of(state) == Request::Nothing;
        let essence = (Request::of(state), Phase::of(state), external, resources.filter(|r| !r.is_empty()), says);
        // The one that is at rest is as good as none; at a start that is nearly all of them.
        (essence != (Request::Nothing, Phase::Idle, None, None, false)).then_some(essence)
    };
    essence(change.old) != essence(change.new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn state(annotations: &Value, status: &Value) -> StateGuard {
        let object = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState",
            "metadata": { "name": "n", "annotations": annotations }, "spec": {}, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn change(old: Option<&StateGuard>, new: Option<&StateGuard>) -> bool {
        matters(&Change { old, new })
    }

    #[test]
    fn only_the_handshake_and_the_plan_matter() {
        let none = json!({});
        let rest = state(&none, &none);
        let asks = state(&json!({ keys::DESIRED_STATE: "Drain_Required" }), &none);
        assert!(!change(None, Some(&rest)), "a node at rest, at the start");
        assert!(!change(Some(&rest), Some(&state(&none, &json!({ "syncStatus": "Succeeded" })))));
        assert!(change(Some(&rest), Some(&asks)));
        assert!(change(Some(&asks), Some(&rest)));
        assert!(change(None, Some(&asks)));
        let named = state(&json!({ keys::DESIRED_STATE: "Drain_Required" }), &json!({ "plan": { "evictResources": ["a/b"] } }));
        assert!(change(Some(&asks), Some(&named)));
    }

    #[test]
    fn an_external_drainers_node_counts_as_away_and_does_not_wait() {
        let external = json!({ keys::DESIRED_STATE: "Drain_Required", keys::CURRENT_STATE: "Draining", keys::USE_EXTERNAL_DRAINER: "true" });
        assert_eq!(standing(Some(&state(&external, &json!({})))), Standing { asks: false, away: true, failed: false });
        let failed = state(&json!({}), &json!({ "syncStatus": "Failed" }));
        assert_eq!(standing(Some(&failed)), Standing { asks: false, away: false, failed: true });
    }
}
