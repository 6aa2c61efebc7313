//! I/O: what became of a network, as its `Ready` condition.

use sriov_crds::conditions::{self, Outcome};

use super::kinds::Network;
use super::validate::Refusal;
use crate::context::Context;
use crate::resources::{self, RequestFailed};

pub(super) async fn network<N: Network>(context: &Context, network: &N, result: Result<(), Refusal>) -> Result<(), RequestFailed> {
    let outcome = match result {
        Ok(()) => Outcome {
            kind: conditions::READY,
            status: true,
            reason: conditions::network::READY,
            message: "the NetworkAttachmentDefinition is in place".to_owned(),
        },
        Err(Refusal { reason, message }) => Outcome { kind: conditions::READY, status: false, reason, message },
    };
    resources::report(context, network, network.conditions(), outcome).await
}
