//! Pure: which nodes may be drained now. Counters of each pool are kept as nodes and pools change, so that a question costs no more with ten
//! thousand nodes than with ten, and no request at all.
//!
//! Invariants: a pool never has more nodes that are away than it allows; a node that two pools select is not drained; a place that was given is
//! counted from that moment, not from when the cache shows it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use sriov_crds::SriovNetworkPoolConfig;

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

/// A pool's object, understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rules {
    selector: Selector,
    allowed: Option<Amount>,
    stages: Vec<Amount>,
    stop_on_failure: bool,
}

/// A number of nodes, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Nodes(usize),
    Percent(usize),
}

/// Why a pool means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("{field} {given:?} must be a number from 0, or a percentage from 1% to 100%")]
    Amount { field: &'static str, given: String },
    #[error("nodeSelector: {0}")]
    Selector(String),
    #[error("the object could not be read: {0}")]
    Unreadable(String),
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

impl Amount {
    fn read(field: &'static str, given: &IntOrString) -> Result<Self, Invalid> {
        let wrong = |given: String| Invalid::Amount { field, given };
        match given {
            IntOrString::Int(count) => usize::try_from(*count).map(Self::Nodes).map_err(|_| wrong(count.to_string())),
            IntOrString::String(text) => {
                let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
                let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| (1..=100).contains(percent));
                percent.map(Self::Percent).ok_or_else(|| wrong(text.clone()))
            }
        }
    }

    /// Of so many nodes, rounded down as the Go operator does.
    fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(count) => count,
            Self::Percent(percent) => nodes * percent / 100,
        }
    }
}

/// Whether draining is this pool's affair at all.
pub(super) fn is_for_nodes(pool: &SriovNetworkPoolConfig) -> bool {
    let offload = pool.spec.ovs_hardware_offload_config.as_ref().and_then(|offload| offload.name.as_ref());
    offload.is_none_or(String::is_empty) && pool.metadata.deletion_timestamp.is_none()
}

/// Reads a pool's object.
pub(super) fn rules(pool: &SriovNetworkPoolConfig) -> Result<Rules, Invalid> {
    let spec = &pool.spec;
    let selector = spec.node_selector.clone().unwrap_or_default();
    let rollout = spec.rollout.clone().unwrap_or_default();
    Ok(Rules {
        selector: selector.try_into().map_err(|error: kube::core::ParseExpressionError| Invalid::Selector(error.to_string()))?,
        allowed: spec.max_unavailable.as_ref().map(|given| Amount::read("maxUnavailable", given)).transpose()?,
        stages: rollout.stages.iter().map(|given| Amount::read("rollout.stages", given)).collect::<Result<_, _>>()?,
        stop_on_failure: rollout.stop_on_failure,
    })
}

/// Names of the pools that select a node with these labels, from the objects; used where no counters are kept.
pub(crate) fn pools_of<'a>(pools: impl IntoIterator<Item = &'a SriovNetworkPoolConfig>, labels: &Labels) -> Vec<&'a SriovNetworkPoolConfig> {
    let selects = |pool: &&SriovNetworkPoolConfig| {
        is_for_nodes(pool) && Selector::try_from(pool.spec.node_selector.clone().unwrap_or_default()).is_ok_and(|selector| selector.matches(labels))
    };
    pools.into_iter().filter(selects).collect()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn object(spec: &Value) -> SriovNetworkPoolConfig {
        let object =
            json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkPoolConfig", "metadata": { "name": "p" }, "spec": spec });
        serde_json::from_value(object).unwrap()
    }

    fn labels(rack: &str) -> Labels {
        [("rack".to_owned(), rack.to_owned())].into()
    }

    fn pools(specs: &[(&str, Value)], racks: &[(&str, &str)]) -> Pools {
        let mut pools = Pools::default();
        pools.set_pools(specs.iter().map(|(name, spec)| ((*name).to_owned(), rules(&object(spec)))).collect());
        for (node, rack) in racks {
            pools.set_node(node, Some(labels(rack)));
        }
        pools
    }

    const ASKS: Standing = Standing { asks: true, away: false, failed: false };
    const AWAY: Standing = Standing { asks: true, away: true, failed: false };
    const RESTS: Standing = Standing { asks: false, away: false, failed: false };

    fn all_ask(pools: &mut Pools, nodes: &[&str]) {
        for node in nodes {
            pools.set_standing(node, ASKS);
        }
    }

    const FIVE: [(&str, &str); 5] = [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1")];

    fn rack(more: &Value) -> Value {
        let mut spec = json!({ "nodeSelector": { "matchLabels": { "rack": "1" } } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    }

    #[test]
    fn without_pools_one_node_goes_at_a_time() {
        let mut pools = pools(&[], &FIVE);
        all_ask(&mut pools, &["a", "b"]);
        assert_eq!(pools.admit("a"), Ok(()));
        assert_eq!(pools.admit("a"), Ok(()), "asking again changes nothing");
        assert_eq!(pools.admit("b"), Err(Refusal::Full { pool: REST.into(), allowed: 1 }));
        pools.set_standing("a", ASKS);
        assert!(pools.admit("b").is_err(), "the cache is late");
        pools.set_standing("a", AWAY);
        pools.set_standing("a", RESTS);
        assert_eq!(pools.next(REST), ["b"]);
        assert_eq!(pools.admit("b"), Ok(()));
    }

    #[test]
    fn numbers_and_percentages_are_understood_and_others_refused() {
        for (given, expected) in [(json!(2), Some(2)), (json!(0), Some(0)), (json!("40%"), Some(2)), (json!("39%"), Some(1)), (json!("1%"), Some(0))]
        {
            let pools = pools(&[("p", rack(&json!({ "maxUnavailable": given })))], &FIVE);
            assert_eq!(pools.counts("p").unwrap().allowed, expected, "{given}");
        }
        assert_eq!(pools(&[("p", rack(&json!({})))], &FIVE).counts("p").unwrap().allowed, None, "unset is unlimited");
        for given in [json!(-1), json!("0%"), json!("101%"), json!("2"), json!("many"), json!("%"), json!("+5%")] {
            let mut pools = pools(&[("p", rack(&json!({ "maxUnavailable": given })))], &FIVE);
            assert!(pools.invalid("p").unwrap().to_string().contains("maxUnavailable"), "{given}");
            // Its nodes are nobody's then, and one at a time is always safe.
            all_ask(&mut pools, &["a"]);
            assert_eq!(pools.admit("a"), Ok(()));
        }
    }

    #[test]
    fn a_node_of_two_pools_is_not_drained_and_both_say_so() {
        let two = [("p", rack(&json!({}))), ("q", json!({}))];
        let mut pools = pools(&two, &[("a", "1"), ("b", "2")]);
        all_ask(&mut pools, &["a", "b"]);
        assert_eq!(pools.admit("a"), Err(Refusal::Overlap(vec!["p".into(), "q".into()])));
        assert_eq!(pools.admit("b"), Ok(()));
        for pool in ["p", "q"] {
            assert_eq!(pools.counts(pool).unwrap().overlap.unwrap().0, "a");
        }
        pools.set_pools([("p".to_owned(), rules(&object(&two[0].1)))].into());
        assert_eq!(pools.admit("a"), Ok(()));
    }

    #[test]
    fn stages_grow_only_when_the_one_before_is_through() {
        let mut pools = pools(&[("p", rack(&json!({ "rollout": { "stages": [1, "60%"] } })))], &FIVE);
        all_ask(&mut pools, &["a", "b", "c", "d", "e"]);
        assert_eq!(pools.next("p"), ["a"]);
        pools.admit("a").unwrap();
        assert_eq!(pools.admit("b"), Err(Refusal::Stage { pool: "p".into(), nodes: 1 }));
        pools.set_standing("a", AWAY);
        pools.set_standing("a", RESTS);
        assert_eq!(pools.next("p"), ["b", "c"]);
        for node in ["b", "c"] {
            pools.admit(node).unwrap();
            pools.set_standing(node, AWAY);
        }
        assert!(pools.admit("d").is_err());
        pools.set_standing("b", RESTS);
        assert!(pools.admit("d").is_err(), "one of the stage is still away");
        pools.set_standing("c", RESTS);
        assert_eq!(pools.next("p"), ["d", "e"]);
    }

    #[test]
    fn a_failed_node_stops_the_others_and_not_itself() {
        let mut pools = pools(&[("p", rack(&json!({ "maxUnavailable": 5, "rollout": { "stopOnFailure": true } })))], &FIVE);
        all_ask(&mut pools, &["a", "b"]);
        pools.set_standing("a", Standing { failed: true, ..ASKS });
        assert_eq!(pools.admit("b"), Err(Refusal::Stopped { pool: "p".into(), node: "a".into() }));
        assert_eq!(pools.counts("p").unwrap().stopped_by.as_deref(), Some("a"));
        assert_eq!(pools.admit("a"), Ok(()));
        pools.set_standing("a", RESTS);
        assert_eq!(pools.admit("b"), Ok(()));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Ask(u8),
        Admit(u8),
        Seen(u8),
        GiveBack(u8),
        Move(u8, u8),
        Limit(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        let node = 0..8u8;
        prop_oneof![
            node.clone().prop_map(Act::Ask),
            node.clone().prop_map(Act::Admit),
            node.clone().prop_map(Act::Seen),
            node.clone().prop_map(Act::GiveBack),
            (node, 1..3u8).prop_map(|(node, rack)| Act::Move(node, rack)),
            (0..4u8).prop_map(Act::Limit),
        ]
    }

    proptest! {
        /// The slow model counts all nodes anew at every question.
        #[test]
        fn counters_agree_with_counting(acts in proptest::collection::vec(act(), 1..60)) {
            let mut limit = 1u8;
            let mut nodes: BTreeMap<String, (u8, Standing, bool)> = (0..8u8).map(|n| (n.to_string(), (1 + n % 2, RESTS, false))).collect();
            let spec = |limit: u8| [("p", rack(&json!({ "maxUnavailable": limit })))];
            let mut pools = pools(&spec(limit), &[]);
            for (name, (rack, _, _)) in &nodes {
                pools.set_node(name, Some(labels(&rack.to_string())));
            }
            for act in acts {
                match act {
                    Act::Ask(n) => {
                        let node = nodes.get_mut(&n.to_string()).unwrap();
                        node.1.asks = true;
                        pools.set_standing(&n.to_string(), node.1);
                    }
                    Act::Admit(n) => {
                        let name = n.to_string();
                        let (rack, standing, granted) = nodes[&name];
                        if !standing.asks { continue; }
                        let away = nodes.values().filter(|(r, s, g)| *r == rack && (s.away || *g)).count();
                        let allowed = if rack == 1 { usize::from(limit) } else { 1 };
                        let expected = standing.away || granted || away < allowed;
                        prop_assert_eq!(pools.admit(&name).is_ok(), expected, "{:?}", nodes);
                        if expected { nodes.get_mut(&name).unwrap().2 = true; }
                    }
                    Act::Seen(n) => {
                        let node = nodes.get_mut(&n.to_string()).unwrap();
                        if node.2 { node.1.away = true; node.2 = false; pools.set_standing(&n.to_string(), node.1); }
                    }
                    Act::GiveBack(n) => {
                        let node = nodes.get_mut(&n.to_string()).unwrap();
                        node.1 = RESTS; node.2 = false;
                        pools.set_standing(&n.to_string(), RESTS);
                    }
                    Act::Move(n, to) => {
                        nodes.get_mut(&n.to_string()).unwrap().0 = to;
                        pools.set_node(&n.to_string(), Some(labels(&to.to_string())));
                    }
                    Act::Limit(to) => {
                        limit = to;
                        pools.set_pools(spec(to).map(|(name, spec)| (name.to_owned(), rules(&object(&spec)))).into());
                    }
                }
                for (pool, rack) in [("p", 1), (REST, 2)] {
                    let of: Vec<_> = nodes.values().filter(|(r, _, _)| *r == rack).collect();
                    let counts = pools.counts(pool).unwrap();
                    prop_assert_eq!(counts.nodes, of.len());
                    prop_assert_eq!(counts.away, of.iter().filter(|(_, s, g)| s.away || *g).count());
                    prop_assert_eq!(counts.waiting, of.iter().filter(|(_, s, g)| s.asks && !s.away && !*g).count());
                }
            }
        }
    }
}
