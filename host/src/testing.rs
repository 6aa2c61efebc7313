//! I/O (tests only, feature `testing`): folders that stand for a machine's `/sys` and `/proc`, a bare link, and throw-away network namespaces.
//!
//! What lives here: trees of files and links as values, their text form, and building them in a temporary folder. A tree is not a kernel:
//! it shows reads; what a write does is tested on a kernel or a simulation.
//!
//! Invariant: nothing here touches the machine's own `/sys`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::thread::UnshareFlags;

use crate::Host;
use crate::inventory::{LinkType, Netdev};
use crate::netlink::{Link, Stack};
use crate::netns::{NetNs, NetNsError};

/// What is at a path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File(String),
    Link(String),
    Dir,
}

/// A tree of files and links, as a value.
///
/// Its text form has a line for each path: `path<TAB>value` for a file, `path -> target` for a link, `path/` for a folder; in values `\n`,
/// `\t` and `\\` stand for themselves. Lines that start with `#` are comments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SysfsTree {
    nodes: BTreeMap<String, Node>,
}

/// A tree in a temporary folder, removed with this value.
#[derive(Debug)]
pub struct FakeSysfs {
    root: tempfile::TempDir,
}

/// A line of a tree file that has none of the three forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the tree is {given:?}: expected `path<TAB>value`, `path -> target` or `path/`")]
pub struct TreeParseError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The line.
    pub given: String,
}

impl SysfsTree {
    /// A machine without devices: the folders that every machine has.
    pub fn new() -> Self {
        Self::default().dir("/sys/bus/pci/devices").dir("/sys/bus/pci/drivers").file("/proc/cmdline", "quiet\n")
    }

    /// Adds or replaces a file; `value` is its whole content.
    #[must_use]
    pub fn file(mut self, path: &str, value: &str) -> Self {
        self.nodes.insert(key(path), Node::File(value.to_owned()));
        self
    }

    /// Adds or replaces a link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.nodes.insert(key(path), Node::Link(target.to_owned()));
        self
    }

    /// Adds a folder.
    #[must_use]
    pub fn dir(mut self, path: &str) -> Self {
        self.nodes.insert(key(path), Node::Dir);
        self
    }

    /// Takes a path away, with all below it.
    #[must_use]
    pub fn without(mut self, path: &str) -> Self {
        let path = key(path);
        self.nodes.retain(|found, _| found != &path && !found.starts_with(&format!("{path}/")));
        self
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, TreeParseError> {
        let mut tree = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            tree = if let Some((path, value)) = line.split_once('\t') {
                tree.file(path, &unescape(value))
            } else if let Some((path, target)) = line.split_once(" -> ") {
                tree.link(path, target)
            } else if let Some(path) = line.strip_suffix('/') {
                tree.dir(path)
            } else {
                return Err(TreeParseError { line: number + 1, given: line.to_owned() });
            };
        }
        Ok(tree)
    }

    /// Reads a tree file.
    pub fn load(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Makes the tree in a new temporary folder.
    pub fn build(&self) -> io::Result<FakeSysfs> {
        let root = tempfile::tempdir()?;
        for (path, node) in &self.nodes {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(root.path()))?;
            match node {
                Node::File(value) => fs::write(&path, value)?,
                Node::Link(target) => {
                    symlink(target, &path)?;
                    // Links of sysfs lead to something; a driver that is only linked to is a folder too.
                    if !path.exists() && target.contains("/bus/pci/drivers/") {
                        fs::create_dir_all(normal(&path.parent().unwrap_or(root.path()).join(target)))?;
                    }
                }
                Node::Dir => fs::create_dir_all(&path)?,
            }
        }
        Ok(FakeSysfs { root })
    }
}

impl fmt::Display for SysfsTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, node) in &self.nodes {
            match node {
                Node::File(value) => writeln!(f, "{path}\t{}", escape(value))?,
                Node::Link(target) => writeln!(f, "{path} -> {target}")?,
                Node::Dir => writeln!(f, "{path}/")?,
            }
        }
        Ok(())
    }
}

impl FakeSysfs {
    /// The machine that the tree stands for.
    pub fn host(&self) -> Host {
        Host::at(self.root.path())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.root.path()
    }
}

/// Adds an igb PF `0000:01:00.0` of 7 possible VFs, with `numvfs` of them bound to igbvf, each in an IOMMU group of its own. Values as the
/// emulated 82576 shows them (VFs at offset 128, stride 2); written by hand, not captured.
pub fn igb_pf(tree: SysfsTree, numvfs: u8) -> SysfsTree {
    let pf = "0000:01:00.0";
    let device = format!("/sys/bus/pci/devices/{pf}");
    let mut tree = pci_function(tree, pf, "0x10c9", "igb")
        .file(&format!("{device}/sriov_totalvfs"), "7\n")
        .file(&format!("{device}/sriov_numvfs"), &format!("{numvfs}\n"))
        .file(&format!("{device}/sriov_offset"), "128\n")
        .file(&format!("{device}/sriov_stride"), "2\n")
        .file(&format!("{device}/sriov_vf_device"), "10ca\n")
        .file(&format!("{device}/sriov_drivers_autoprobe"), "1\n")
        .file("/sys/class/iommu/dmar0/version", "1\n");
    for index in 0..numvfs {
        let vf = format!("0000:01:{:02x}.{}", 0x10 + index / 4, index % 4 * 2);
        let group = 8 + index;
        tree = pci_function(tree, &vf, "0x10ca", "igbvf")
            .link(&format!("{device}/virtfn{index}"), &format!("../{vf}"))
            .link(&format!("/sys/bus/pci/devices/{vf}/physfn"), &format!("../{pf}"))
            .link(&format!("/sys/bus/pci/devices/{vf}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"))
            .dir(&format!("/sys/kernel/iommu_groups/{group}"));
    }
    tree
}

/// Adds an Intel network function with this device id and driver.
fn pci_function(tree: SysfsTree, address: &str, id: &str, driver: &str) -> SysfsTree {
    let device = format!("/sys/bus/pci/devices/{address}");
    tree.file(&format!("{device}/vendor"), "0x8086\n")
        .file(&format!("{device}/device"), &format!("{id}\n"))
        .file(&format!("{device}/class"), "0x020000\n")
        .file(&format!("{device}/numa_node"), "-1\n")
        .file(&format!("{device}/driver_override"), "(null)\n")
        .link(&format!("{device}/driver"), &format!("../../../../bus/pci/drivers/{driver}"))
}

/// Adds a subfunction of a PCI function, with the names that mlx5 gives: device `mlx5_core.sf.<number>`, netdev `enp1s0f0s<sfnum>`.
#[must_use]
pub fn subfunction(tree: SysfsTree, parent: &str, number: u32, sfnum: u16) -> SysfsTree {
    let name = format!("mlx5_core.sf.{number}");
    let folder = format!("/sys/devices/pci0000:00/{parent}/{name}");
    tree.file(&format!("{folder}/sfnum"), &format!("{sfnum}\n"))
        .link(&format!("{folder}/driver"), "../../../../bus/auxiliary/drivers/mlx5_core.sf")
        .dir(&format!("{folder}/net/enp1s0f0s{sfnum}"))
        .link(&format!("/sys/bus/auxiliary/devices/{name}"), &format!("../../../devices/pci0000:00/{parent}/{name}"))
}

/// An Ethernet link that is up and has nothing more to say; a test changes what it is about.
#[must_use]
pub fn link(ifindex: u32, name: &str) -> Link {
    Link {
        netdev: Netdev {
            ifindex,
            name: name.to_owned(),
            alt_names: Vec::new(),
            mac: None,
            mtu: 1500,
            max_mtu: None,
            admin_up: true,
            carrier: true,
            link_type: LinkType::Ether,
        },
        parent: None,
        parent_device: None,
        phys_port_name: None,
        permanent_mac: None,
        port_guid: None,
        promisc: false,
        allmulti: false,
        stack: Stack::default(),
    }
}

/// A network namespace of its own, with only a loopback that is down. It ends with the value and all that was opened in it. Needs root.
pub fn new_netns() -> Result<NetNs, NetNsError> {
    let make = || {
        #[expect(deprecated, reason = "the form without deprecation is unsafe; a new network namespace shares no memory or files with anything")]
        let unshared = rustix::thread::unshare(UnshareFlags::NEWNET);
        unshared.map_err(|errno| NetNsError::Enter { path: PathBuf::from("a new network namespace"), cause: errno.into() })?;
        NetNs::current()
    };
    std::thread::spawn(make).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn key(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

fn unescape(value: &str) -> String {
    let mut text = String::new();
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (character, if character == '\\' { characters.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some('t')) => text.push('\t'),
            ('\\', Some(other)) | (other, _) => text.push(other),
        }
    }
    text
}

/// The path without `..`, by its text: what it leads to may not exist yet.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_survives_its_text_form() {
        let tree = igb_pf(SysfsTree::new(), 2).file("/sys/x/uevent", "A=1\nB=c\\d\te\n");
        assert_eq!(SysfsTree::parse(&tree.to_string()).unwrap(), tree);
    }

    #[test]
    fn other_lines_are_refused() {
        let error = SysfsTree::parse("# captured\nsys/a\t1\nsys/b 2\n").unwrap_err();
        assert_eq!((error.line, error.given.as_str()), (3, "sys/b 2"));
    }
}
