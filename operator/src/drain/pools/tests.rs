//! Pure: what pools admit, by example and against a slow model that counts all nodes anew at every question.

use proptest::prelude::*;
use serde_json::{Value, json};

use sriov_crds::SriovNetworkPoolConfig;

use super::*;

fn object(spec: &Value) -> SriovNetworkPoolConfig {
    let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkPoolConfig", "metadata": { "name": "p" }, "spec": spec });
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
    for (given, expected) in [(json!(2), Some(2)), (json!(0), Some(0)), (json!("40%"), Some(2)), (json!("39%"), Some(1)), (json!("1%"), Some(0))] {
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
fn a_rollout_goes_on_with_the_next_leader() {
    let staged = [("p", rack(&json!({ "rollout": { "stages": [2] } })))];
    let mut next = pools(&staged, &FIVE);
    all_ask(&mut next, &["c", "d", "e"]);
    assert_eq!(next.next("p"), ["c", "d"], "as if nothing had been");
    next.resume("p", 2);
    assert_eq!(next.next("p"), ["c", "d", "e"], "the first stage is through");
    let mut at_rest = pools(&staged, &FIVE);
    at_rest.resume("p", 2);
    assert_eq!(at_rest.counts("p").unwrap().done, 0, "the rollout that was is over");
    at_rest.resume("unknown", 2);
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
