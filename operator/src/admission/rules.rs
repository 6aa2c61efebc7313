//! Pure: what a network's CNI configuration asks of a VF, and whether the rules of its namespace (`SriovNamespaceRule`) allow it.
//!
//! Invariant: every object inside the configuration whose `type` is one of our plugins is looked at, however deep, because Multus and other
//! plugins carry whole configurations inside theirs. What cannot be understood in such an object is refused.

use serde_json::{Map, Value};
use sriov_crds::SriovNamespaceRuleSpec;

/// Plugins that set something which a rule is about.
const PLUGINS: [&str; 2] = ["sriov", "ovs"];
/// Highest VLAN id.
const LAST_VLAN: i64 = 4095;

/// What one plugin asks for.
#[derive(Debug, Default, PartialEq)]
struct Ask {
    /// First and last id of each; 0 is untagged.
    vlans: Vec<(i64, i64)>,
    trust: bool,
    spoof_check_off: bool,
    /// Rates in Mbit/s; `None` outside for plugins that know none.
    rates: Option<(i64, i64)>,
}

/// Refuses a configuration that none of `rules` allows; without any, everything is allowed. The text names what is in the way.
pub(super) fn check(config: &str, rules: &[(String, SriovNamespaceRuleSpec)]) -> Result<(), String> {
    if rules.is_empty() {
        return Ok(());
    }
    // Nobody can use what is no JSON, so it asks for nothing.
    let Ok(config) = serde_json::from_str::<Value>(config) else { return Ok(()) };
    let mut asks = vec![];
    collect(&config, &mut asks)?;
    let mut why = vec![];
    for (name, rule) in rules {
        match asks.iter().find_map(|ask| ask.beyond(rule)) {
            None => return Ok(()),
            Some(beyond) => why.push(format!("SriovNamespaceRule {name}: {beyond}")),
        }
    }
    Err(why.join("; "))
}

fn collect(value: &Value, asks: &mut Vec<Ask>) -> Result<(), String> {
    match value {
        Value::Object(object) => {
            if object.get("type").and_then(Value::as_str).is_some_and(|kind| PLUGINS.contains(&kind)) {
                asks.push(Ask::of(object)?);
            }
            object.values().try_for_each(|inner| collect(inner, asks))
        }
        Value::Array(items) => items.iter().try_for_each(|inner| collect(inner, asks)),
        _ => Ok(()),
    }
}

impl Ask {
    fn of(plugin: &Map<String, Value>) -> Result<Self, String> {
        let vlan = number(plugin, "vlan")?.unwrap_or(0);
        let mut vlans = vec![(vlan, vlan)];
        if plugin.get("type").and_then(Value::as_str) == Some("ovs") {
            vlans.extend(trunk(plugin.get("trunk"))?);
            return Ok(Self { vlans, ..Self::default() });
        }
        let rates = (number(plugin, "min_tx_rate")?.unwrap_or(0), number(plugin, "max_tx_rate")?.unwrap_or(0));
        Ok(Self {
            vlans,
            trust: switch(plugin, "trust")? == Some(true),
            spoof_check_off: switch(plugin, "spoofchk")? == Some(false),
            rates: Some(rates),
        })
    }

    /// What the rule does not allow of it.
    fn beyond(&self, rule: &SriovNamespaceRuleSpec) -> Option<String> {
        if let Some(allowed) = &rule.vlans
            && let Some((first, last)) = self.vlans.iter().find(|wanted| !covers(allowed, **wanted))
        {
            let wanted = if first == last { first.to_string() } else { format!("{first}-{last}") };
            return Some(format!(
                "VLAN {wanted} is not among {}",
                if allowed.is_empty() { "those allowed (none)".to_owned() } else { allowed.join(", ") }
            ));
        }
        if self.trust && !rule.allow_trust {
            return Some("trust on is not allowed".to_owned());
        }
        if self.spoof_check_off && !rule.allow_spoof_check_off {
            return Some("spoofchk off is not allowed".to_owned());
        }
        let (min, max) = self.rates?;
        match (rule.max_tx_rate, rule.min_tx_rate) {
            (Some(limit), _) if max < 1 || max > limit => Some(format!("max_tx_rate must be given, from 1 to {limit}, and is {max}")),
            (_, Some(limit)) if min > limit => Some(format!("min_tx_rate {min} is above {limit}")),
            _ => None,
        }
    }
}

/// True when every id is in one of the ranges.
fn covers(allowed: &[String], (first, last): (i64, i64)) -> bool {
    let mut ranges: Vec<_> = allowed.iter().filter_map(|text| range(text)).collect();
    ranges.sort_unstable();
    let mut next = first;
    for (from, to) in ranges {
        if from <= next && next <= to {
            next = to + 1;
        }
    }
    next > last
}

fn range(text: &str) -> Option<(i64, i64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

fn trunk(value: Option<&Value>) -> Result<Vec<(i64, i64)>, String> {
    let entries = match value {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(format!("trunk is {other}: a list is expected")),
    };
    let mut vlans = vec![];
    for entry in entries {
        let entry = entry.as_object().ok_or_else(|| format!("an entry of trunk is {entry}: an object is expected"))?;
        if let Some(id) = number(entry, "id")? {
            vlans.push((id, id));
        }
        match (number(entry, "minID")?, number(entry, "maxID")?) {
            (None, None) => {}
            (first, last) => vlans.push((first.unwrap_or(0), last.unwrap_or(LAST_VLAN))),
        }
    }
    Ok(vlans)
}

fn number(object: &Map<String, Value>, key: &str) -> Result<Option<i64>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or_else(|| format!("{key} is {value}: a number is expected")),
    }
}

fn switch(object: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_str() {
            Some("") => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            _ => Err(format!("{key} is {value}: \"on\" or \"off\" is expected")),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rule(spec: &Value) -> (String, SriovNamespaceRuleSpec) {
        let mut whole = json!({ "namespaceSelector": {} });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        ("r".to_owned(), serde_json::from_value(whole).unwrap())
    }

    fn said(config: &Value, rules: &[(String, SriovNamespaceRuleSpec)]) -> String {
        check(&config.to_string(), rules).err().unwrap_or_default()
    }

    #[test]
    fn a_network_is_held_to_what_the_rule_allows() {
        let tenant = [rule(&json!({ "vlans": ["0", "100-199"], "maxTxRate": 1000, "minTxRate": 10 }))];
        let sriov = |more: Value| {
            let mut config = json!({ "type": "sriov", "vlan": 100, "max_tx_rate": 1000 });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            said(&config, &tenant)
        };
        assert_eq!(sriov(json!({})), "");
        assert_eq!(sriov(json!({ "trust": "off", "spoofchk": "on", "min_tx_rate": 10 })), "");
        assert_eq!(sriov(json!({ "vlan": 200 })), "SriovNamespaceRule r: VLAN 200 is not among 0, 100-199");
        assert!(sriov(json!({ "trust": "on" })).contains("trust on"));
        assert!(sriov(json!({ "spoofchk": "off" })).contains("spoofchk off"));
        assert!(sriov(json!({ "max_tx_rate": 1001 })).contains("from 1 to 1000, and is 1001"));
        assert!(sriov(json!({ "max_tx_rate": 0 })).contains("must be given"), "0 is no limit");
        assert!(sriov(json!({ "min_tx_rate": 11 })).contains("above 10"));
        assert!(sriov(json!({ "vlan": "100" })).contains("a number is expected"));
        assert!(sriov(json!({ "trust": true })).contains("is expected"));
    }

    #[test]
    fn one_rule_that_allows_all_is_enough_and_none_is_freedom() {
        let two = [rule(&json!({ "vlans": ["1"] })), rule(&json!({ "vlans": ["2"], "allowTrust": true }))];
        assert_eq!(said(&json!({ "type": "sriov", "vlan": 2, "trust": "on" }), &two), "");
        assert!(said(&json!({ "type": "sriov", "vlan": 1, "trust": "on" }), &two).contains("; "), "rules are not mixed");
        assert_eq!(said(&json!({ "type": "sriov", "vlan": 3, "trust": "on" }), &[]), "");
        assert!(said(&json!({ "type": "sriov" }), &[rule(&json!({ "vlans": [] }))]).contains("none"), "an empty list allows not even untagged");
    }

    #[test]
    fn a_plugin_does_not_hide_inside_another() {
        let none = [rule(&json!({ "vlans": ["0"] }))];
        let hidden = json!({ "type": "multus", "delegates": [{ "plugins": [{ "type": "tuning" }, { "type": "sriov", "vlan": 7 }] }] });
        assert!(said(&hidden, &none).contains("VLAN 7"));
        assert!(check(r#"{"plugins":[{"type":"s\u0072iov","vlan":7}]}"#, &none).is_err(), "escapes are read");
        assert_eq!(said(&json!({ "type": "bridge", "vlan": 7 }), &none), "");
        assert_eq!(check("not json", &none), Ok(()));
    }

    #[test]
    fn a_trunk_asks_for_all_of_its_ids() {
        let some = [rule(&json!({ "vlans": ["0", "10-20", "21-30"] }))];
        let trunk = |trunk: Value| said(&json!({ "type": "ovs", "trunk": trunk }), &some);
        assert_eq!(trunk(json!([{ "minID": 10, "maxID": 30 }, { "id": 15 }])), "", "adjacent ranges join");
        assert!(trunk(json!([{ "minID": 10, "maxID": 31 }])).contains("10-31"));
        assert!(trunk(json!([{ "minID": 30 }])).contains("30-4095"), "an open end is the last");
        assert!(trunk(json!({})).contains("a list is expected"));
    }

    proptest! {
        #[test]
        fn a_range_is_covered_exactly_when_each_id_is(
            allowed in proptest::collection::vec((0_i64..40, 0_i64..40), 0..5), a in 0_i64..40, b in 0_i64..40,
        ) {
            let allowed: Vec<_> = allowed.into_iter().map(|(x, y)| (x.min(y), x.max(y))).collect();
            let texts: Vec<_> = allowed.iter().map(|(x, y)| format!("{x}-{y}")).collect();
            let (first, last) = (a.min(b), a.max(b));
            let model = (first..=last).all(|id| allowed.iter().any(|(x, y)| (*x..=*y).contains(&id)));
            prop_assert_eq!(covers(&texts, (first, last)), model);
        }
    }
}
