//! Pure: feature gates: the names of the Go operator, and what each does here. What does not live here: carrying them out.
//!
//! Invariant: every gate that is set to something is either carried out or told about; none is dropped in silence.

use std::collections::BTreeMap;

/// A gate of the Go operator.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Its name in `featureGates`.
    pub name: &'static str,
    /// Its value when it is not named (pkg/featuregate of the Go operator).
    pub default: bool,
    /// What setting it does here.
    effect: Effect,
}

/// What setting a gate does here.
#[derive(Debug)]
enum Effect {
    /// It switches something.
    Switches,
    /// What it switches on is always so; the text says why nothing else is offered.
    Always(&'static str),
}

/// Daemons make and remove the Open vSwitch bridges that policies name.
pub(crate) const BRIDGES: &str = "manageSoftwareBridges";
/// Before a reboot for settings of a NIC's firmware, daemons ask the kernel to reset the NIC.
pub(crate) const FIRMWARE_RESET: &str = "mellanoxFirmwareReset";
/// Pods that name networks are refused while the injector does not answer.
pub(crate) const MATCH_CONDITION: &str = "resourceInjectorMatchCondition";

/// What is said of a policy that names a bridge while the gate is off.
pub(crate) const BRIDGE_IGNORED: &str = "its bridge is not made, because the feature gate manageSoftwareBridges is off: set it to true in \
     SriovOperatorConfig default, or remove bridge from the policy; all else is carried out";

/// All gates, in the order of their names.
pub(crate) const GATES: [Gate; 6] = [
    Gate { name: "blockDevicePluginUntilConfigured", default: true, effect: Effect::Always("devices are offered only after they are configured") },
    Gate { name: BRIDGES, default: false, effect: Effect::Switches },
    Gate { name: FIRMWARE_RESET, default: true, effect: Effect::Switches },
    Gate { name: "metricsExporter", default: false, effect: Effect::Always("the pods of the node DaemonSet serve their metrics themselves") },
    Gate { name: "parallelNicConfig", default: false, effect: Effect::Always("VFs are made as fast as the driver of their PF allows") },
    Gate { name: MATCH_CONDITION, default: false, effect: Effect::Switches },
];

/// Whether a gate is on.
pub(crate) fn is_on(gates: &BTreeMap<String, bool>, name: &str) -> bool {
    gates.get(name).copied().unwrap_or_else(|| GATES.iter().any(|gate| gate.name == name && gate.default))
}

/// Gates that change nothing although they are set, and names that mean nothing; for the person who writes them.
pub(crate) fn remarks(gates: &BTreeMap<String, bool>) -> Vec<String> {
    let remark = |(name, value): (&String, &bool)| match GATES.iter().find(|gate| gate.name == *name) {
        None => {
            let known: Vec<_> = GATES.iter().map(|gate| gate.name).collect();
            Some(format!("feature gate {name:?} is not known and does nothing; there are {}", known.join(", ")))
        }
        Some(Gate { effect: Effect::Always(so), default: true, .. }) if !value => Some(format!("feature gate {name} cannot be switched off: {so}")),
        Some(_) => None,
    };
    gates.iter().filter_map(remark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(pairs: &[(&str, bool)]) -> BTreeMap<String, bool> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn a_gate_that_is_not_named_has_the_go_operators_default() {
        let none = gates(&[]);
        let on: Vec<_> = GATES.iter().filter(|gate| is_on(&none, gate.name)).map(|gate| gate.name).collect();
        assert_eq!(on, ["blockDevicePluginUntilConfigured", "mellanoxFirmwareReset"]);
        assert!(is_on(&gates(&[(MATCH_CONDITION, true)]), MATCH_CONDITION));
        assert!(!is_on(&none, "noSuchGate"));
    }

    #[test]
    fn every_gate_that_is_set_is_carried_out_or_told_about() {
        let defaults: Vec<_> = GATES.iter().map(|gate| (gate.name, gate.default)).collect();
        assert_eq!(remarks(&gates(&defaults)), Vec::<String>::new(), "what the Go operator's users have by default needs no word");
        for gate in &GATES {
            let told = remarks(&gates(&[(gate.name, !gate.default)]));
            let expected = match gate.effect {
                Effect::Switches => 0,
                // Switching on what is always on is what was asked for.
                Effect::Always(_) => usize::from(gate.default),
            };
            assert_eq!(told.len(), expected, "{}: {told:?}", gate.name);
        }
        assert!(remarks(&gates(&[("paralelNicConfig", true)]))[0].contains("not known"));
        assert!(remarks(&gates(&[(BRIDGES, true)])).is_empty(), "it is carried out");
    }
}
