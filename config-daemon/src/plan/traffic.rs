//! Pure: which steps would take a port away from the host itself, and the refusal of those.
//!
//! What lives here: the line between a port that carries the host's own traffic and what may be done to it. What does not: finding that traffic
//! (`sriov_host::host_use`), what drivers do to it (`family`).
//!
//! Invariant: no step that stops the traffic of a port which the host uses leaves this file.

use sriov_host::inventory::Pf;

use super::family::{Family, Traffic};
use super::refusal::{Reason, Refusal};
use super::step::Step;

/// Steps that may be done, and why the rest may not.
pub(crate) fn spare(pf: &Pf, steps: Vec<Step>) -> (Vec<Step>, Option<Refusal>) {
    if pf.facts.uses.is_empty() {
        return (steps, None);
    }
    let harmful: Vec<&Step> = steps.iter().filter(|step| disturbs(pf, step)).collect();
    let Some(first) = harmful.first() else { return (steps, None) };
    let whole = harmful.iter().any(|step| !matches!(step, Step::SetPfMtu { .. } | Step::MakeBridge { .. }));
    let refusal = refusal(pf, first, whole);
    // All else stands on the number of VFs and the mode; an MTU or a bridge can be left out alone.
    let left = if whole { Vec::new() } else { steps.into_iter().filter(|step| !disturbs(pf, step)).collect() };
    (left, Some(refusal))
}

/// Whether a step stops the traffic of its PF, or changes what the host may send.
fn disturbs(pf: &Pf, step: &Step) -> bool {
    match step {
        Step::SetNumVfs { .. } => Family::of(pf).traffic == Traffic::Stops,
        // Drivers take the netdev apart to change the mode. A larger MTU than the network's makes the host's packets vanish, and most drivers stop
        // the port to change it.
        // Packets of a bridge's uplink go to the bridge.
        Step::SetEswitchMode { .. } | Step::SetPfMtu { .. } | Step::MakeBridge { .. } => true,
        _ => false,
    }
}

fn refusal(pf: &Pf, step: &Step, whole: bool) -> Refusal {
    let uses: Vec<String> = pf.facts.uses.iter().map(ToString::to_string).collect();
    let name = pf.netdev.as_ref().map_or("", |n| n.name.as_str());
    let (what, cure) = match step {
        Step::SetPfMtu { to, .. } => (
            format!("its MTU is not raised to {to}"),
            format!("set MTU {to} in the host's own network configuration, where it belongs to what uses the port, or remove mtu from the policy"),
        ),
        Step::MakeBridge { wanted, .. } => (
            format!("it is not made the uplink of bridge {}, which would take that traffic away", wanted.name),
            "move what uses the port to another one, or remove bridge from the policy".to_owned(),
        ),
        Step::SetEswitchMode { .. } => (
            "its eswitch mode is not changed, because that takes the port's netdev away for a moment".to_owned(),
            "move what uses the port to another one, or set the mode and the VFs before the host's network starts and say externallyManaged: true"
                .to_owned(),
        ),
        _ => (
            format!("its number of VFs is not changed, because driver {} stops the port for that", pf.driver.as_deref().unwrap_or("?")),
            "move what uses the port to another one, or make the VFs before the host's network starts and say externallyManaged: true".to_owned(),
        ),
    };
    let rest = if whole { "nothing is changed on it" } else { "all else is done" };
    Refusal::of(pf.address, name, Reason::PfInUse, &format!("the host uses it ({}): {what}, {rest}: {cure}", uses.join("; ")))
}
