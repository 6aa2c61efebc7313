//! I/O: the end of a round: what is left to do is published, what is ready is offered, the handshake goes on, the machine is rebooted.
//!
//! What does not live here: the loop and the steps (`node_state`), wording (`status`, `situation`).
//!
//! Invariant: the machine is rebooted at most once for one cause.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::inputs::Seen;
use super::retry::{Retry, random};
use super::{Daemon, Round, RoundEnd};
use crate::apply::Outcome;
use crate::handshake::{self, Heard, Move, Need};
use crate::observed::Observed;
use crate::plan::refusal::Reason;
use crate::plan::{Plan, plan};
use crate::pools::pools;
use crate::situation::{DriftPolicy, Happening, Situation, moved};
use crate::status::Phase;

/// Longest wait for the reset of a card's firmware.
const RESET: Duration = Duration::from_mins(2);

impl Daemon {
    /// Publishes what is left to do, offers what is ready, and goes on with the handshake. `outcome` is that of this round's plan, if there was one.
    pub(super) async fn finish(&mut self, round: &Round<'_>, observed: &Observed, outcome: Option<&Outcome>) -> RoundEnd {
        let residual = plan(round.desired, observed);
        self.follow_bridges(round, observed);
        let offered = pools(round.desired, observed, &residual);
        let is_offered = self.write_pools(&offered);
        self.metrics.settled(observed, &residual, &offered);
        if let Some(outcome) = outcome {
            self.failures.note(outcome, Instant::now(), random());
        }
        self.failures.keep_only(&residual);
        let failures = self.failures.lines();
        let left_alone = self.drift.is_some() && self.settings.drift != DriftPolicy::Repair;
        let finished = failures.is_empty() && (residual.steps.is_empty() || left_alone);
        if finished && !left_alone {
            self.drift = None;
            // With something refused the machine is not as asked: what then follows a change (pods that end) is no drift.
            self.settled = if residual.is_empty() { self.wish.clone() } else { None };
        }
        let heard = round.object.map(|object| object.heard.clone()).unwrap_or_default();
        let next = match (round.object, round.drains) {
            (Some(_), Some(drains)) => handshake::next(Need::of(&residual), finished, &heard, drains),
            _ => Move::Rest,
        };
        let situation = self.situation(round, &residual, next);
        let told = if left_alone { Phase::Settled(Vec::new()) } else { Phase::Settled(failures) };
        let shown = if left_alone { &Plan { steps: Vec::new(), ..residual.clone() } } else { &residual };
        let written = self.publisher.publish(round.object, observed, shown, &told, &situation).await;
        let answered = self.act(round.object, &residual, &heard, &situation).await;
        // What failed comes back by itself, each PF and VF at its own time.
        let unexplained = !finished && self.failures.next().is_none();
        let retry = if unexplained || !is_offered {
            Some(Retry::Step)
        } else if !written || !answered {
            Some(Retry::Publish)
        } else if !observed.faults.is_empty() || residual.refusals.iter().any(|r| r.reason == Reason::BridgeUnavailable) {
            Some(Retry::Observe)
        } else {
            residual.refusals.iter().any(|r| r.reason == Reason::VfsInUse).then_some(Retry::VfsInUse)
        };
        RoundEnd { retry, held: self.failures.next() }
    }

    /// Changes of bridges are told as long as there are any to keep.
    fn follow_bridges(&self, round: &Round<'_>, observed: &Observed) {
        let wanted = round.desired.bridges.iter().filter_map(|(pf, wanted)| Some((*pf, wanted.as_ref().ok()?)));
        let names = observed.bridges.as_ref().map(|bridges| bridges.names(wanted, &observed.inventory.pfs)).unwrap_or_default();
        self.bridge_names.send_if_modified(|known| {
            let changed = *known != names;
            *known = names;
            changed
        });
    }

    pub(super) fn situation(&self, round: &Round<'_>, planned: &Plan, next: Move) -> Situation {
        let need = Need::of(planned);
        let rebooted = need == Need::Reboot && self.machine.was_rebooted_for(&cause(planned));
        Situation {
            need,
            next: (next != Move::Rest).then_some(next),
            heard: round.object.map(|object| object.heard.clone()).unwrap_or_default(),
            drift: self.drift.as_ref().map(|(_, lines)| lines.clone()).unwrap_or_default(),
            drift_policy: self.settings.drift,
            reboot_did_not_help: rebooted,
        }
    }

    /// The next move of the handshake; answers whether it was made.
    async fn act(&mut self, object: Option<&Seen>, residual: &Plan, heard: &Heard, situation: &Situation) -> bool {
        let Some(object) = object else { return true };
        if situation.need != Need::Reboot && residual.steps.is_empty() {
            self.machine.forget_reboot();
        }
        if situation.reboot_did_not_help {
            return true;
        }
        match situation.next.unwrap_or(Move::Rest) {
            next @ Move::Ask(state) => {
                info!("{}", handshake::sentence(next, heard));
                let asked = self.publisher.ask(object, state).await;
                if asked {
                    self.publisher.tell(Some(object), moved(next, residual, heard).as_slice());
                }
                asked
            }
            next @ Move::Reboot => {
                self.publisher.tell_now(object, moved(next, residual, heard).as_slice()).await;
                self.reboot(object, residual).await
            }
            Move::Wait(_) | Move::Rest => true,
        }
    }

    /// Remembers the cause, then reboots. What could not be remembered is not rebooted for: it might be again and again.
    async fn reboot(&self, object: &Seen, residual: &Plan) -> bool {
        let cause = &cause(residual);
        if let Err(error) = self.machine.remember_reboot(cause) {
            warn!("not rebooting: {error}");
            return false;
        }
        if self.settings.resets_firmware {
            self.reset_firmware(residual).await;
        }
        warn!("rebooting this machine: {cause}");
        let rebooter = self.settings.rebooter.clone();
        match spawn_blocking(move || rebooter.reboot()).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!("{error}");
                self.machine.forget_reboot();
                self.publisher.tell(Some(object), &[Happening::new(true, "RebootFailed", &error.to_string())]);
                false
            }
            Err(_) => false,
        }
    }
}

impl Daemon {
    /// Asks the kernel to have firmware start anew with what it was told, because not every machine takes the power from its NICs when it reboots. The
    /// reboot follows whatever comes of it.
    async fn reset_firmware(&self, residual: &Plan) {
        for pf in residual.reset_firmware.iter().copied() {
            let machine = Arc::clone(&self.machine);
            match timeout(RESET, spawn_blocking(move || machine.reset_firmware(pf))).await {
                Ok(Ok(Ok(performed))) => info!("the firmware of {pf} and its card was reset ({})", performed.join(", ")),
                Ok(Ok(Err(error))) => warn!("the firmware of {pf} is not reset before the reboot: {error}"),
                Ok(Err(error)) => warn!("the firmware of {pf} is not reset before the reboot: {error}"),
                Err(_) => warn!("the firmware of {pf} was not reset within {RESET:?}; the reboot does not wait for it"),
            }
        }
    }
}

/// What a reboot would be for: the same words for the same plan.
fn cause(planned: &Plan) -> String {
    planned.disruption.to_string()
}
