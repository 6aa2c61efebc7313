//! I/O: the device-info file (Kubernetes Network Plumbing working group, device-info 1.1.0): what the runtime copies into the pod's network status.
//! The device plugin normally wrote it; then it is left alone.
//!
//! Invariant: a file that was there is never changed or removed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Context;
use crate::device::Device;
use crate::journal::RdmaRecord;

/// Where this call has to write the file; `None` when none is asked for or there is one.
pub(crate) fn wanted(ctx: &Context<'_>) -> Option<PathBuf> {
    let path = ctx.conf.device_info_file.as_ref()?;
    Some(ctx.host.sysfs().resolve(path)).filter(|path| !path.exists())
}

/// What the file says of a device, in the words of the device plugin.
pub(crate) fn content(ctx: &Context<'_>, device: &Device, moved: &[RdmaRecord]) -> Value {
    let mut about = json!({});
    if let Some(pf) = device.pf {
        about["pf-pci-address"] = pf.to_string().into();
    }
    about["pci-address"] = device.vf.to_string().into();
    if let Some(vdpa) = &device.vdpa {
        about["parent-device"] = vdpa.name.clone().into();
        about["driver"] = device.driver.trim_end_matches("_vdpa").into();
        if let Some(node) = &vdpa.node {
            about["path"] = format!("/dev/{node}").into();
        }
        return json!({"type": "vdpa", "version": "1.1.0", "vdpa": about});
    }
    // The host's sysfs does not show what is in the container by now.
    let mut rdma: Vec<String> = moved.iter().map(|device| device.name.clone()).collect();
    if rdma.is_empty() {
        rdma = ctx.host.sysfs().list_opt(format!("{}/infiniband", device.vf.folder())).ok().flatten().unwrap_or_default();
    }
    if !rdma.is_empty() {
        about["rdma-device"] = rdma.join(",").into();
    }
    json!({"type": "pci", "version": "1.1.0", "pci": about})
}

/// Takes back the file of an attachment that ended; the runtime may have done so.
pub(crate) fn remove(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}
