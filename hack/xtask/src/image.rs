//! I/O: writes container images as OCI archives without a container engine, a registry or a network; no recipes of the product (see `products`).
//!
//! The archive is what `ctr -n k8s.io images import` takes: an OCI image layout (OCI image-spec v1.1, `image-layout.md`) in one tar file, with one
//! uncompressed layer, because unpacking gzip is the slow part of an import on an emulated machine.
//!
//! Invariant: the same [`ImageSpec`] and file contents give the same bytes. Entries are sorted by path, every time is 0 and every owner is root.

pub(crate) mod products;
pub(crate) mod push;
mod sbom;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// `sha256:<64 hexadecimal digits>`, as OCI descriptors write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Digest(String);

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::from("sha256:");
        for byte in Sha256::digest(bytes) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Only the hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        self.0.trim_start_matches("sha256:")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A processor that images are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// `x86_64`.
    Amd64,
    /// `aarch64`.
    Arm64,
}

impl Architecture {
    /// As OCI documents write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust's targets and the names of GNU tools begin.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// `e_machine` of its programs.
    pub(crate) fn elf_machine(self) -> u64 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// Whether this machine is one.
    pub(crate) fn is_here(self) -> bool {
        self.machine() == std::env::consts::ARCH
    }
}

impl Default for Architecture {
    fn default() -> Self {
        if Self::Arm64.is_here() { Self::Arm64 } else { Self::Amd64 }
    }
}

/// What one path of the image holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A folder with this mode.
    Folder(u32),
    /// A copy of a file of this machine, with this mode.
    Copy(PathBuf, u32),
    /// A symbolic link to this target.
    Link(String),
}

/// One image: its name, its files and what a container of it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageSpec {
    /// Full name with tag, `localhost/sriov-node:dev`.
    pub name: String,
    /// `config.Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    pub cmd: Vec<String>,
    /// `config.Env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `config.User`, `uid[:gid]`; `None` is root.
    pub user: Option<String>,
    /// `config.WorkingDir`.
    pub working_dir: Option<String>,
    /// `config.Labels`.
    pub labels: BTreeMap<String, String>,
    /// What its programs run on.
    pub architecture: Architecture,
    /// Without the leading slash. Kept sorted, so a parent stands before what is in it.
    entries: BTreeMap<String, Content>,
}

impl ImageSpec {
    /// An image with nothing but `/tmp` (mode 1777) and the mount points that a runtime needs. No shell, no users, no certificates.
    pub(crate) fn from_scratch(name: impl Into<String>) -> Self {
        let folders = [("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777)];
        let entries = folders.into_iter().map(|(path, mode)| (path.to_owned(), Content::Folder(mode))).collect();
        Self { name: name.into(), entries, ..Self::default() }
    }

    /// Puts `content` at an absolute path of the image; missing parents become folders of mode 0755. Refuses a path that already holds a file or link.
    pub(crate) fn add(&mut self, path: &str, content: Content) -> Result<()> {
        let relative = relative(path)?;
        let mut end = 0;
        while let Some(slash) = relative[end..].find('/') {
            end += slash;
            let parent = self.entries.entry(relative[..end].to_owned()).or_insert(Content::Folder(0o755));
            ensure!(matches!(parent, Content::Folder(_)), "cannot put {path} into the image: /{} is not a folder", &relative[..end]);
            end += 1;
        }
        let both_folders = matches!((self.entries.get(relative), &content), (Some(Content::Folder(_)), Content::Folder(_)) | (None, _));
        ensure!(both_folders, "cannot put {path} into the image twice");
        self.entries.insert(relative.to_owned(), content);
        Ok(())
    }

    /// Bytes of all files that were put in so far.
    pub(crate) fn size(&self) -> Result<u64> {
        let of = |content: &Content| match content {
            Content::Copy(from, _) => Ok(std::fs::metadata(from).with_context(|| format!("look at {}", from.display()))?.len()),
            Content::Folder(_) | Content::Link(_) => Ok(0),
        };
        self.entries.values().map(of).sum()
    }

    /// Copies a file of this machine, keeping its permission bits.
    pub(crate) fn add_file(&mut self, from: &Path, path: &str) -> Result<()> {
        let metadata = std::fs::metadata(from).with_context(|| format!("look at {}", from.display()))?;
        ensure!(metadata.is_file(), "{} is not a file", from.display());
        self.add(path, Content::Copy(from.to_path_buf(), metadata.permissions().mode() & 0o7777))
    }
}

/// Writes the image at `out`, replacing it atomically. Returns the digest of its manifest, which is the image's identity.
pub(crate) fn write_oci_archive(spec: &ImageSpec, out: &Path) -> Result<Digest> {
    let tag = tag(&spec.name)?;
    let layer = layer(spec)?;
    let config = json(&config(spec, &layer))?;
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        config: Descriptor::of(CONFIG_TYPE, &config),
        layers: vec![Descriptor::of(LAYER_TYPE, &layer)],
    })?;
    let mut described = Descriptor::of(MANIFEST_TYPE, &manifest);
    described.platform = Some(Platform { architecture: spec.architecture.name(), os: "linux" });
    // containerd names the image by the first, other tools by the second.
    described.annotations.insert("io.containerd.image.name", spec.name.clone());
    described.annotations.insert("org.opencontainers.image.ref.name", tag.to_owned());
    let identity = described.digest.clone();
    let index = json(&Index { schema_version: 2, media_type: INDEX_TYPE, manifests: vec![described] })?;

    let mut blobs = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()), ("index.json".to_owned(), index)];
    blobs.extend([config, manifest, layer].map(|bytes| (format!("blobs/sha256/{}", Digest::of(&bytes).hex()), bytes)));
    replace(out, &blobs).with_context(|| format!("write the image archive {}", out.display()))?;
    Ok(identity)
}

/// `/a/b` as `a/b`.
fn relative(path: &str) -> Result<&str> {
    let relative = path.strip_prefix('/').with_context(|| format!("image path {path:?} is not absolute"))?;
    let plain = relative.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    ensure!(plain, "image path {path:?} has an empty part, `.` or `..`");
    Ok(relative)
}

/// The part behind the last colon, which must not be a registry port.
fn tag(name: &str) -> Result<&str> {
    match name.rsplit_once(':') {
        Some((image, tag)) if !image.is_empty() && !tag.is_empty() && !tag.contains('/') => Ok(tag),
        _ => bail!("image name {name:?} has no tag; expected `<registry>/<name>:<tag>`"),
    }
}

/// The one layer, as an uncompressed tar.
fn layer(spec: &ImageSpec) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in &spec.entries {
        let appended = match content {
            Content::Folder(mode) => append(&mut tar, &format!("{path}/"), tar::EntryType::Directory, *mode, &[]),
            Content::Copy(from, mode) => {
                let bytes = std::fs::read(from).with_context(|| format!("read {} for the image", from.display()))?;
                append(&mut tar, path, tar::EntryType::Regular, *mode, &bytes)
            }
            Content::Link(target) => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)
            }
        };
        appended.with_context(|| format!("add /{path} to the layer"))?;
    }
    tar.into_inner().context("finish the layer")
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = header(kind, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// Writes a tar of the blobs beside `out` and renames it over `out`.
fn replace(out: &Path, blobs: &[(String, Vec<u8>)]) -> Result<()> {
    let partial = out.with_extension("partial");
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&partial)?));
    for (name, bytes) in blobs {
        append(&mut tar, name, tar::EntryType::Regular, 0o644, bytes)?;
    }
    tar.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    std::fs::rename(&partial, out)?;
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("encode an OCI document")
}

fn config(spec: &ImageSpec, layer: &[u8]) -> Config {
    let mut env = vec!["PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin".to_owned()];
    env.extend(spec.env.iter().cloned());
    Config {
        architecture: spec.architecture.name(),
        os: "linux",
        execution: Execution {
            user: spec.user.clone(),
            env,
            entrypoint: spec.entrypoint.clone(),
            cmd: spec.cmd.clone(),
            working_dir: spec.working_dir.clone(),
            labels: spec.labels.clone(),
        },
        rootfs: RootFs { kind: "layers", diff_ids: vec![Digest::of(layer)] },
    }
}

// === the OCI documents, image-spec v1.1: descriptor.md, manifest.md, image-index.md, config.md ===

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

impl Descriptor {
    fn of(media_type: &'static str, bytes: &[u8]) -> Self {
        Self { media_type, digest: Digest::of(bytes), size: bytes.len(), platform: None, annotations: BTreeMap::new() }
    }
}

#[derive(Serialize)]
struct Platform {
    architecture: &'static str,
    os: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
struct Config {
    architecture: &'static str,
    os: &'static str,
    #[serde(rename = "config")]
    execution: Execution,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<Digest>,
}

#[cfg(test)]
mod tests;
