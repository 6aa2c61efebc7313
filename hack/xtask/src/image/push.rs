//! I/O: puts images that were written into a registry, through `crane` (a pinned Go module, as Helm is): logins, proxies and authorities are those that a
//! person's other tools use (`~/.docker/config.json`, `HTTPS_PROXY`, the system's certificates).
//!
//! Invariant: what the registry has afterwards has the digest of the archive.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::products::Written;
use crate::workspace::stdout_of;

/// Pushes an image to `<registry>/<last part of its name>:<tag>`; the reference with the digest.
pub(crate) fn push(crane: &Path, image: &Written, registry: &str, tag: &str) -> Result<String> {
    let reference = reference(image.name, registry, tag)?;
    // crane reads an image layout from a folder.
    let layout = image.archive.with_extension("layout");
    let pushed = unpack(&image.archive, &layout).and_then(|()| stdout_of(Command::new(crane).arg("push").arg(&layout).arg(&reference)));
    std::fs::remove_dir_all(&layout).with_context(|| format!("remove {}", layout.display()))?;
    let pushed = pushed.with_context(|| format!("push {} to {reference}", image.archive.display()))?;
    let digest = pushed.trim().rsplit('@').next().unwrap_or_default();
    ensure!(digest == image.digest.to_string(), "{reference} has digest {digest:?} in the registry, and the archive has {}", image.digest);
    Ok(format!("{reference}@{digest}"))
}

fn unpack(archive: &Path, layout: &Path) -> Result<()> {
    let file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    tar::Archive::new(file).unpack(layout).with_context(|| format!("unpack {} into {}", archive.display(), layout.display()))
}

/// Pure: where an image goes.
pub(crate) fn reference(name: &str, registry: &str, tag: &str) -> Result<String> {
    let image = name.rsplit('/').next().unwrap_or(name).split(':').next().unwrap_or_default();
    let registry = registry.trim_end_matches('/');
    ensure!(!registry.is_empty() && !registry.contains("://"), "--push {registry:?}: expected <host>[:<port>][/<path>], without https://");
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    ensure!(!tag.is_empty() && tag.len() <= 128 && tag.chars().all(plain), "--tag {tag:?}: allowed are letters, digits, '.', '_' and '-'");
    Ok(format!("{registry}/{image}:{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_below_the_registry_by_its_own_name() {
        let to = |registry, tag| reference("localhost/sriov-node:dev", registry, tag).map_err(|error| error.to_string());
        assert_eq!(to("registry.example:5000/team/", "0.1.0").unwrap(), "registry.example:5000/team/sriov-node:0.1.0");
        assert!(to("https://registry.example", "1").unwrap_err().contains("without https://"));
        assert!(to("registry.example", "a b").unwrap_err().contains("--tag"));
        assert!(to("", "1").is_err());
    }
}
