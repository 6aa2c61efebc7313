//! Pure: which nodes may be drained now; `rules` reads the pools' objects. Counters of each pool are kept as nodes and pools change, so that a question costs no more with ten
//! thousand nodes than with ten, and no request at all.
//!
//! Invariants: a pool never has more nodes that are away than it allows; a node that two pools select is not drained; a place that was given is
//! counted from that moment, not from when the cache shows it.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{Selector, SelectorExt};

pub(crate) use rules::pools_of;
use rules::{Amount, Rules};
pub(super) use rules::{Invalid, is_for_nodes, rules};

/// Labels of a node.
pub(super) type Labels = BTreeMap<String, String>;

/// Name of the pool of the nodes that no pool selects; no object can have it.
pub(super) const REST: &str = "";

/// What a node's state says about draining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Its daemon asks for a drain.
    pub asks: bool,
    /// It is being drained, or was and is not given back.
    pub away: bool,
    /// Its daemon says that it failed.
    pub failed: bool,
}

/// Why a node may not be drained now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// These pools select it.
    Overlap(Vec<String>),
    /// Its pool means nothing.
    Invalid(String),
    /// As many as may be are away.
    Full { pool: String, allowed: usize },
    /// A stage of the rollout is not through.
    Stage { pool: String, nodes: usize },
    /// This node failed, and the pool stops then.
    Stopped { pool: String, node: String },
}

/// What a pool's status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub nodes: usize,
    pub allowed: Option<usize>,
    pub away: usize,
    pub waiting: usize,
    pub done: usize,
    /// The first failed node, when it stops the pool.
    pub stopped_by: Option<String>,
    /// The first node that another pool selects too, and all its pools.
    pub overlap: Option<(String, Vec<String>)>,
}

#[derive(Debug)]
struct Pool {
    rules: Result<Rules, Invalid>,
    members: BTreeSet<String>,
    away: BTreeSet<String>,
    waiting: BTreeSet<String>,
    failed: BTreeSet<String>,
    shared: BTreeSet<String>,
    done: usize,
}

#[derive(Debug, Default)]
struct Member {
    labels: Labels,
    pools: Vec<String>,
    standing: Standing,
    granted: bool,
}

/// All pools and nodes.
#[derive(Debug)]
pub(super) struct Pools {
    pools: BTreeMap<String, Pool>,
    nodes: BTreeMap<String, Member>,
}

impl Default for Pools {
    fn default() -> Self {
        let rest = Rules { selector: Selector::default(), allowed: Some(Amount::Nodes(1)), stages: vec![], stop_on_failure: false };
        Self { pools: [(REST.to_owned(), Pool::new(Ok(rest)))].into(), nodes: BTreeMap::new() }
    }
}

impl Pool {
    fn new(rules: Result<Rules, Invalid>) -> Self {
        let empty = BTreeSet::new;
        Self { rules, members: empty(), away: empty(), waiting: empty(), failed: empty(), shared: empty(), done: 0 }
    }

    fn selects(&self, labels: &Labels) -> bool {
        self.rules.as_ref().is_ok_and(|rules| rules.selector.matches(labels))
    }

    fn allowed(&self) -> Option<usize> {
        let rules = self.rules.as_ref().ok()?;
        rules.allowed.map(|amount| amount.of(self.members.len()))
    }

    /// The node whose failure stops the pool for `node`; its own does not, or it could never recover.
    fn stopped_for(&self, node: &str) -> Option<&String> {
        let stops = self.rules.as_ref().is_ok_and(|rules| rules.stop_on_failure);
        self.failed.iter().find(|failed| stops && *failed != node)
    }

    /// How many nodes may have begun before the present stage is through; none when all stages are.
    fn stage(&self) -> Option<usize> {
        let stages = self.rules.iter().flat_map(|rules| &rules.stages);
        // A stage of a percentage that comes to nothing would stop everything.
        stages.map(|amount| amount.of(self.members.len()).max(1)).filter(|bound| *bound > self.done).min()
    }

    fn free(&self) -> usize {
        let by_limit = self.allowed().map_or(usize::MAX, |allowed| allowed.saturating_sub(self.away.len()));
        let by_stage = self.stage().map_or(usize::MAX, |bound| bound.saturating_sub(self.done + self.away.len()));
        by_limit.min(by_stage)
    }
}

impl Pools {
    /// Replaces all pools' rules; nodes keep what they are. Costs one look at each node.
    pub(super) fn set_pools(&mut self, rules: BTreeMap<String, Result<Rules, Invalid>>) {
        let done: BTreeMap<String, usize> = self.pools.iter().map(|(name, pool)| (name.clone(), pool.done)).collect();
        let rest = self.pools.remove(REST).and_then(|pool| pool.rules.ok());
        self.pools = rules.into_iter().map(|(name, rules)| (name, Pool::new(rules))).collect();
        if let Some(rest) = rest {
            self.pools.insert(REST.to_owned(), Pool::new(Ok(rest)));
        }
        for (name, pool) in &mut self.pools {
            pool.done = done.get(name).copied().unwrap_or(pool.done);
        }
        let nodes = std::mem::take(&mut self.nodes);
        for (name, member) in nodes {
            self.nodes.insert(name.clone(), Member { pools: vec![], ..member });
            self.join(&name);
        }
    }

    /// Goes on with a rollout that another process began, of which so many nodes are through: what its pool's status says. Asked once, when all nodes
    /// are known; a pool at rest has no rollout.
    pub(super) fn resume(&mut self, name: &str, done: usize) {
        if let Some(pool) = self.pools.get_mut(name).filter(|pool| !pool.away.is_empty() || !pool.waiting.is_empty()) {
            pool.done = pool.done.max(done.min(pool.members.len()));
        }
    }

    /// A node's labels, or that it is gone. Answers the pools that it left or joined.
    pub(super) fn set_node(&mut self, name: &str, labels: Option<Labels>) -> BTreeSet<String> {
        let mut touched: BTreeSet<String> = self.leave(name).into_iter().collect();
        match labels {
            Some(labels) => {
                self.nodes.entry(name.to_owned()).or_default().labels = labels;
                touched.extend(self.join(name));
            }
            None => {
                self.nodes.remove(name);
            }
        }
        touched
    }

    /// What a node's state says now. Answers the pools in which something changed.
    pub(super) fn set_standing(&mut self, name: &str, standing: Standing) -> Vec<String> {
        let Some(member) = self.nodes.get_mut(name) else { return vec![] };
        // The cache may not show yet what was granted.
        if standing.away || !standing.asks {
            member.granted = false;
        }
        let before = std::mem::replace(&mut member.standing, standing);
        let (pools, away) = (member.pools.clone(), standing.away || member.granted);
        if before == standing && !away {
            return vec![];
        }
        for pool in &pools {
            self.count(pool, name, standing, away);
        }
        // At rest, the next rollout begins with its first stage.
        for name in &pools {
            let Some(pool) = self.pools.get_mut(name) else { continue };
            if pool.away.is_empty() && pool.waiting.is_empty() {
                pool.done = 0;
            }
        }
        pools
    }

    /// Gives the node a place, or says why not. A node that has one keeps it.
    pub(super) fn admit(&mut self, name: &str) -> Result<(), Refusal> {
        let Some(member) = self.nodes.get_mut(name) else { return Err(Refusal::Invalid(format!("there is no node {name}"))) };
        let [pool_name] = member.pools.as_slice() else { return Err(Refusal::Overlap(member.pools.clone())) };
        let Some(pool) = self.pools.get_mut(pool_name) else { return Err(Refusal::Invalid(pool_name.clone())) };
        let pool_name = pool_name.clone();
        if pool.away.contains(name) {
            return Ok(());
        }
        if let Err(invalid) = &pool.rules {
            return Err(Refusal::Invalid(format!("pool {pool_name}: {invalid}")));
        }
        if let Some(node) = pool.stopped_for(name) {
            return Err(Refusal::Stopped { pool: pool_name, node: node.clone() });
        }
        if let Some(allowed) = pool.allowed().filter(|allowed| pool.away.len() >= *allowed) {
            return Err(Refusal::Full { pool: pool_name, allowed });
        }
        if let Some(nodes) = pool.stage().filter(|bound| pool.done + pool.away.len() >= *bound) {
            return Err(Refusal::Stage { pool: pool_name, nodes });
        }
        member.granted = true;
        pool.away.insert(name.to_owned());
        pool.waiting.remove(name);
        Ok(())
    }

    /// Takes a place back that was given and not used.
    pub(super) fn withdraw(&mut self, name: &str) {
        let Some(member) = self.nodes.get_mut(name) else { return };
        member.granted = false;
        let standing = member.standing;
        for pool in member.pools.clone() {
            self.count(&pool, name, standing, standing.away);
        }
    }

    /// The nodes that a free place of this pool is for, as many as there are places.
    pub(super) fn next(&self, pool: &str) -> Vec<String> {
        let Some(pool) = self.pools.get(pool) else { return vec![] };
        pool.waiting.iter().take(pool.free()).cloned().collect()
    }

    /// For a pool's status.
    pub(super) fn counts(&self, name: &str) -> Option<Counts> {
        let pool = self.pools.get(name)?;
        let shared = pool.shared.first();
        Some(Counts {
            nodes: pool.members.len(),
            allowed: pool.allowed(),
            away: pool.away.len(),
            waiting: pool.waiting.len(),
            done: pool.done,
            stopped_by: pool.stopped_for(REST).cloned(),
            overlap: shared.map(|node| (node.clone(), self.nodes.get(node).map(|m| m.pools.clone()).unwrap_or_default())),
        })
    }

    /// What is wrong with a pool, if anything is.
    pub(super) fn invalid(&self, name: &str) -> Option<&Invalid> {
        self.pools.get(name)?.rules.as_ref().err()
    }

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn leave(&mut self, name: &str) -> Vec<String> {
        let Some(member) = self.nodes.get_mut(name) else { return vec![] };
        let left = std::mem::take(&mut member.pools);
        for pool in &left {
            let Some(pool) = self.pools.get_mut(pool) else { continue };
            for set in [&mut pool.members, &mut pool.away, &mut pool.waiting, &mut pool.failed, &mut pool.shared] {
                set.remove(name);
            }
        }
        left
    }

    fn join(&mut self, name: &str) -> Vec<String> {
        let Some(member) = self.nodes.get_mut(name) else { return vec![] };
        let selecting = |(_, pool): &(&String, &Pool)| pool.selects(&member.labels);
        let mut pools: Vec<String> = self.pools.iter().filter(|(n, _)| *n != REST).filter(selecting).map(|(n, _)| n.clone()).collect();
        if pools.is_empty() {
            pools.push(REST.to_owned());
        }
        member.pools.clone_from(&pools);
        let (standing, away) = (member.standing, member.standing.away || member.granted);
        for pool_name in &pools {
            if let Some(pool) = self.pools.get_mut(pool_name) {
                pool.members.insert(name.to_owned());
                if pools.len() > 1 {
                    pool.shared.insert(name.to_owned());
                }
            }
            self.count(pool_name, name, standing, away);
        }
        pools
    }

    fn count(&mut self, pool: &str, name: &str, standing: Standing, away: bool) {
        let Some(pool) = self.pools.get_mut(pool) else { return };
        let put = |set: &mut BTreeSet<String>, is: bool| if is { set.insert(name.to_owned()) } else { set.remove(name) };
        let was_away = pool.away.contains(name);
        put(&mut pool.away, away);
        put(&mut pool.waiting, standing.asks && !away);
        put(&mut pool.failed, standing.failed);
        if was_away && !away && !standing.failed && !standing.asks {
            pool.done += 1;
        }
    }
}
