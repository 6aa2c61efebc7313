//! I/O: the device-info file (Kubernetes Network Plumbing working group, device-info 1.1.0): what the runtime copies into the pod's network status.
//! The device plugin normally wrote it; then it is left alone.
//!
//! Invariant: a file that was there is never changed or removed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Context;
use crate::device::Device;

/// Where this call has to write the file; `None` when none is asked for or there is one.
pub(crate) fn wanted(ctx: &Context<'_>) -> Option<PathBuf> {
    let path = ctx.conf.device_info_file.as_ref()?;
    Some(ctx.host.sysfs().resolve(path)).filter(|path| !path.exists())
}

/// What the file says of a VF.
pub(crate) fn content(ctx: &Context<'_>, device: &Device) -> Value {
    let mut pci = json!({"pci-address": device.vf.to_string()});
    if let Some(pf) = device.pf {
        pci["pf-pci-address"] = pf.to_string().into();
    }
    let rdma = ctx.host.sysfs().list_opt(format!("/sys/bus/pci/devices/{}/infiniband", device.vf)).ok().flatten();
    if let Some(rdma) = rdma.and_then(|names| names.into_iter().next()) {
        pci["rdma-device"] = rdma.into();
    }
    json!({"type": "pci", "version": "1.1.0", "pci": pci})
}

/// Takes back the file of an attachment that ended; the runtime may have done so.
pub(crate) fn remove(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}
