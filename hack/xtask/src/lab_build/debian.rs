//! I/O: Debian packages as a source of files for the lab: which versions the archive has, download, unpack. Nothing is installed from here;
//! what must be installed is the list in `hack/debian-packages`.
//!
//! Invariant: what the archive offers is asked once for each state of apt's package lists, so a warm run starts no apt program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::key::{Inputs, Key};
use crate::workspace::stdout_of;

/// The long-term kernel that the lab boots: its igb, igbvf, vfio and netdevsim are the ones that were measured.
pub(crate) const KERNEL_SERIES: &str = "6.12";
const PACKAGE_LISTS: &str = "/var/lib/apt/lists";

/// One exact version of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    /// Package name.
    pub(crate) name: String,
    /// Debian version.
    pub(crate) version: String,
}

impl Package {
    /// `name=version`, as apt takes and keys use it.
    pub(crate) fn exact(&self) -> String {
        format!("{}={}", self.name, self.version)
    }
}

/// The packages that the lab unpacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// `linux-image-<release>`.
    pub(crate) kernel: Package,
    /// `udev` and `libudev1`.
    pub(crate) udev: [Package; 2],
    /// `openvswitch-common` and `openvswitch-switch`.
    pub(crate) openvswitch: [Package; 2],
}

impl Offer {
    /// `uname -r` of the kernel.
    pub(crate) fn kernel_release(&self) -> &str {
        self.kernel.name.trim_start_matches("linux-image-")
    }
}

/// What the archive offers by this machine's package lists; without lists, what the last lists said.
pub(crate) fn offer(cache: &Path) -> Result<Offer> {
    let folder = cache.join("offers");
    fs::create_dir_all(&folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let Some(key) = package_lists()? else {
        let newest = newest_file(&folder)?.with_context(|| format!("no package lists in {PACKAGE_LISTS}: run `apt-get update`"))?;
        eprintln!("lab-build: no package lists in {PACKAGE_LISTS}; using the packages of an earlier build");
        return read_offer(&newest);
    };
    let path = folder.join(format!("{}.json", key.as_str()));
    if !path.exists() {
        let offer = ask_archive()?;
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec(&offer)?).with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))?;
    }
    read_offer(&path)
}

/// Name, size and time of the package lists; `None` if there are none.
fn package_lists() -> Result<Option<Key>> {
    let mut lists = Vec::new();
    for entry in fs::read_dir(PACKAGE_LISTS).with_context(|| format!("list {PACKAGE_LISTS}"))? {
        let entry = entry.with_context(|| format!("list {PACKAGE_LISTS}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("_Packages") {
            let metadata = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
            let time = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            lists.push(format!("{name} {} {time}", metadata.len()));
        }
    }
    lists.sort();
    let inputs = Inputs::new("offer", include_str!("debian.rs")).text("lists", &lists.join("\n"));
    Ok((!lists.is_empty()).then(|| inputs.finish()))
}

fn newest_file(folder: &Path) -> Result<Option<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        if entry.path().extension().is_some_and(|extension| extension == "json") {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(files.into_iter().max().map(|(_, path)| path))
}

fn read_offer(path: &Path) -> Result<Offer> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

fn ask_archive() -> Result<Offer> {
    let names = stdout_of(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{KERNEL_SERIES}.")]))?;
    let kernels = kernel_names(&names);
    let asked = kernels.iter().take(5).copied().chain(["udev", "libudev1", "openvswitch-common", "openvswitch-switch"]);
    let policy = stdout_of(Command::new("apt-cache").arg("policy").args(asked).env("LC_ALL", "C"))?;
    let candidates = candidates(&policy);
    let find = |name: &str| candidates.iter().find(|package| package.name == name).cloned();
    let kernel = kernels.iter().find_map(|name| find(name)).with_context(|| {
        format!("no package source of this machine has a linux-image-{KERNEL_SERIES}.*-amd64; `install_packages` of hack/lib.sh adds backports")
    })?;
    let needed = |name: &str| find(name).with_context(|| format!("no package source of this machine has {name}"));
    let openvswitch = [needed("openvswitch-common")?, needed("openvswitch-switch")?];
    Ok(Offer { kernel, udev: [needed("udev")?, needed("libudev1")?], openvswitch })
}

/// Pure: the plain amd64 kernels among package names, newest first: no cloud, real-time, unsigned or debug build and no metapackage.
fn kernel_names(names: &str) -> Vec<&str> {
    let plain = |name: &&str| {
        let release = name.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix("-amd64")).unwrap_or_default();
        let (version, flavour) = release.split_once('+').unwrap_or((release, ""));
        version.split('.').count() == 3 && version.split('.').all(|part| part.parse::<u32>().is_ok()) && !flavour.contains('-')
    };
    let mut found: Vec<&str> = names.lines().map(str::trim).filter(plain).collect();
    found.sort_by_cached_key(|name| std::cmp::Reverse(numbers(name.trim_end_matches("-amd64"))));
    found
}

/// Pure: the numbers of a text in their order; enough to compare two kernels of one series.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|character: char| !character.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Pure: what `apt-cache policy` prints; packages without a candidate are left out.
fn candidates(policy: &str) -> Vec<Package> {
    let mut found = Vec::new();
    let mut name = "";
    for line in policy.lines() {
        if let Some(version) = line.trim_start().strip_prefix("Candidate: ") {
            if version != "(none)" {
                found.push(Package { name: name.to_owned(), version: version.trim().to_owned() });
            }
        } else if !line.starts_with(' ') {
            name = line.trim_end_matches(':');
        }
    }
    found
}

/// Downloads packages into `dir`; their `.deb` files in the same order.
pub(crate) fn download(packages: &[Package], dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    let mut command = Command::new("apt-get");
    // By exact name and version: apt takes anything else for a pattern and would fetch dozens of kernels. The sandbox user of apt could not
    // write into this folder.
    command.current_dir(dir).args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages.iter().map(Package::exact));
    stdout_of(&mut command)?;
    packages
        .iter()
        .map(|package| {
            let prefix = format!("{}_", package.name);
            let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            let mut files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
            files.find(named).with_context(|| format!("apt-get download left no file of {} in {}", package.exact(), dir.display()))
        })
        .collect()
}

/// Unpacks a package below `dir` without installing it.
pub(crate) fn unpack(deb: &Path, dir: &Path) -> Result<()> {
    stdout_of(Command::new("dpkg").arg("-x").arg(deb).arg(dir)).map(drop)
}

/// The first of some paths that exists below `dir`: Debian 13 moved files from `/lib` to `/usr/lib`.
pub(crate) fn find_below(dir: &Path, candidates: &[&str]) -> Result<PathBuf> {
    let found = candidates.iter().map(|candidate| dir.join(candidate)).find(|path| path.exists());
    found.with_context(|| format!("{} has none of {}", dir.display(), candidates.join(", ")))
}

/// The packages of `hack/debian-packages`.
pub(crate) fn listed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Every installed package with its version.
pub(crate) fn installed() -> Result<Vec<Package>> {
    let text = stdout_of(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\\n"]))?;
    let mut found = Vec::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["installed", name, version] => found.push(Package { name: name.to_owned(), version: version.to_owned() }),
            [_, _, _] => {}
            _ => bail!("dpkg-query printed {line:?}"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_comes_first() {
        let names = "linux-image-6.12.86+deb12-rt-amd64\nlinux-image-6.12-amd64\nlinux-image-6.12.95+deb12-amd64\n\
                     linux-image-6.12.117+deb12-amd64-unsigned\nlinux-image-6.12.117+deb12-amd64\nlinux-image-6.12.117+deb12-cloud-amd64\n\
                     linux-image-6.12.117+deb12-amd64-dbg\nlinux-image-6.12.90+deb12.1-amd64\nlinux-image-6.12-amd64-signed-template\n\
                     linux-image-6.12.90+deb12-amd64\n";
        assert_eq!(
            kernel_names(names),
            [
                "linux-image-6.12.117+deb12-amd64",
                "linux-image-6.12.95+deb12-amd64",
                "linux-image-6.12.90+deb12.1-amd64",
                "linux-image-6.12.90+deb12-amd64",
            ]
        );
    }

    #[test]
    fn a_package_without_candidate_is_not_offered() {
        let policy = "linux-image-6.12.117+deb12-amd64:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n\
                      udev:\n  Installed: (none)\n  Candidate: 252.39-1~deb12u2\n  Version table:\n     252.39-1~deb12u2 500\n        500 mirror bookworm/main\n";
        assert_eq!(candidates(policy), [Package { name: "udev".into(), version: "252.39-1~deb12u2".into() }]);
    }

    #[test]
    fn the_kernel_release_is_the_package_name_without_its_prefix() {
        let package = |name: &str| Package { name: name.into(), version: "1".into() };
        let offer = Offer {
            kernel: package("linux-image-6.12.117+deb12-amd64"),
            udev: [package("udev"), package("libudev1")],
            openvswitch: [package("openvswitch-common"), package("openvswitch-switch")],
        };
        assert_eq!(offer.kernel_release(), "6.12.117+deb12-amd64");
    }

    #[test]
    fn the_package_list_has_comments_and_blank_lines() {
        assert_eq!(listed("# why\n\nkmod\n  make \n"), ["kmod", "make"]);
    }
}
