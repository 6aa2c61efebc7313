//! I/O: STATUS: whether ADD could work now.

use crate::Context;
use crate::errors::Error;
use crate::ipam::{self, Attachment, IpamError};
use crate::request::Command;
use crate::state::Store;

/// Checks that a journal can be written and that IPAM is ready.
pub(crate) fn status(ctx: &Context<'_>) -> Result<(), Error> {
    Store::at(&ctx.conf.state_dir).probe().map_err(Error::Unavailable)?;
    let Some(plugin) = &ctx.conf.ipam else { return Ok(()) };
    let whole_network = Attachment { container_id: "", if_name: "", netns: None };
    match ipam::call(ctx, plugin, Command::Status, whole_network) {
        // A plugin from before CNI 1.1 does not know the verb, which says nothing about its health.
        Ok(_) | Err(IpamError::Refused { code: 1 | 4, .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
