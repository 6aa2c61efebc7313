//! I/O: STATUS: whether ADD could work now.

use crate::Context;
use crate::errors::Error;
use crate::ipam::{self, IpamError};
use crate::request::Command;
use crate::state::Store;

/// Checks that a journal can be written and that IPAM is ready.
pub(crate) fn status(ctx: &Context<'_>) -> Result<(), Error> {
    Store::at(&ctx.conf.state_dir).probe().map_err(Error::Unavailable)?;
    let Some(plugin) = &ctx.conf.ipam else { return Ok(()) };
    match ipam::call_if_known(ctx, plugin, Command::Status) {
        Err(error @ IpamError::Run(_)) => Err(Error::IpamUnavailable(error)),
        done => Ok(done?),
    }
}
