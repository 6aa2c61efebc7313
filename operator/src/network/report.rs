//! I/O: what became of a network, as its conditions.

use sriov_crds::conditions::{DEGRADED, Outcome, PROGRESSING, READY, network as reason};

use super::kinds::Network;
use super::validate::Refusal;
use crate::context::Context;
use crate::resources::{self, RequestFailed};

pub(super) async fn network<N: Network>(context: &Context, network: &N, result: Result<(), Refusal>) -> Result<(), RequestFailed> {
    resources::report(context, network, network.conditions(), &verdict(result)).await
}

/// `Ready`, `Progressing` and `Degraded`. A namespace that is not there yet is waited for; everything else is for a person to mend.
fn verdict(result: Result<(), Refusal>) -> [Outcome; 3] {
    let outcome = |kind, status, reason, message: String| Outcome { kind, status, reason, message };
    match result {
        Ok(()) => [
            outcome(READY, true, reason::READY, "the NetworkAttachmentDefinition is in place".to_owned()),
            outcome(PROGRESSING, false, reason::READY, String::new()),
            outcome(DEGRADED, false, reason::READY, String::new()),
        ],
        Err(Refusal { reason, message }) => {
            let waits = reason == reason::NAMESPACE_NOT_FOUND;
            let told = |is: bool| if is { message.clone() } else { String::new() };
            [
                outcome(READY, false, reason, message.clone()),
                outcome(PROGRESSING, waits, reason, told(waits)),
                outcome(DEGRADED, !waits, reason, told(!waits)),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_not_degraded_and_what_is_refused_is() {
        let says = |reason| {
            let [ready, progressing, degraded] = verdict(Err(Refusal { reason, message: "why".into() }));
            (ready.status, progressing.status, degraded.status, degraded.message)
        };
        assert_eq!(says(reason::NAMESPACE_NOT_FOUND), (false, true, false, String::new()));
        assert_eq!(says(reason::NAD_INVALID), (false, false, true, "why".to_owned()));
        assert!(verdict(Ok(())).iter().all(|outcome| outcome.status == (outcome.kind == READY)));
    }
}
