//! Pure: which kernel modules a name list brings along, by `modules.dep` and `modules.builtin` (kmod, `depmod`(8)). Files are copied elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

/// Why a module list cannot be satisfied.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum ModuleError {
    /// Neither a module nor built in.
    #[error("find no kernel module {0}: neither modules.dep nor modules.builtin has it")]
    FindNoModule(String),
    /// `modules.dep` names a file that it has no line for.
    #[error("find no line for {0} in modules.dep, which another module needs")]
    FindNoLine(String),
}

/// The modules of one kernel.
pub(crate) struct ModuleIndex {
    /// Path below `/lib/modules/<release>` -> the paths that it needs, as `modules.dep` lists them: what must be loaded first stands last.
    needs: BTreeMap<String, Vec<String>>,
    by_name: BTreeMap<String, String>,
    built_in: BTreeSet<String>,
}

impl ModuleIndex {
    /// Reads the two files' text.
    pub(crate) fn parse(modules_dep: &str, modules_builtin: &str) -> Self {
        let lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
        let needs: BTreeMap<String, Vec<String>> =
            lines.map(|(path, needs)| (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())).collect();
        let by_name = needs.keys().map(|path| (module_name(path), path.clone())).collect();
        let built_in = modules_builtin.lines().map(|line| module_name(line.trim())).collect();
        Self { needs, by_name, built_in }
    }

    /// The paths of the named modules and of all that they need, each once, in an order in which they can be loaded.
    pub(crate) fn closure<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            let name = name.replace('-', "_");
            match self.by_name.get(&name) {
                Some(path) => self.visit(path, &mut seen, &mut order)?,
                None if self.built_in.contains(&name) => {}
                None => return Err(ModuleError::FindNoModule(name)),
            }
        }
        Ok(order)
    }

    fn visit<'a>(&'a self, path: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<String>) -> Result<(), ModuleError> {
        if seen.insert(path) {
            let needs = self.needs.get(path).ok_or_else(|| ModuleError::FindNoLine(path.to_owned()))?;
            for needed in needs.iter().rev() {
                self.visit(needed, seen, order)?;
            }
            order.push(path.to_owned());
        }
        Ok(())
    }
}

/// The names of a module list file: words, `#` starts a comment.
pub(crate) fn names(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace()).collect()
}

/// A module's name from its path: `kernel/drivers/vfio/pci/vfio-pci.ko.xz` is `vfio_pci`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
                       kernel/lib/crc16.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/fs/jbd2/jbd2.ko.xz:\n\
                       kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz kernel/drivers/vfio/vfio.ko.xz\n\
                       kernel/drivers/vfio/pci/vfio-pci-core.ko.xz: kernel/drivers/vfio/vfio.ko.xz\nkernel/drivers/vfio/vfio.ko.xz:\n\
                       kernel/broken.ko: kernel/gone.ko\n";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(DEP, "kernel/drivers/virtio/virtio-pci.ko\n")
    }

    #[test]
    fn what_a_module_needs_stands_before_it_and_only_once() {
        let order = index().closure(["vfio_pci", "vfio-pci-core", "crc16"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/drivers/vfio/vfio.ko.xz",
                "kernel/drivers/vfio/pci/vfio-pci-core.ko.xz",
                "kernel/drivers/vfio/pci/vfio-pci.ko.xz",
                "kernel/lib/crc16.ko.xz",
            ]
        );
    }

    #[test]
    fn a_built_in_module_brings_nothing() {
        assert_eq!(index().closure(["virtio_pci"]), Ok(vec![]));
    }

    #[test]
    fn an_unknown_module_is_an_error_that_names_it() {
        assert_eq!(index().closure(["igbb"]), Err(ModuleError::FindNoModule("igbb".into())));
        assert_eq!(index().closure(["broken"]), Err(ModuleError::FindNoLine("kernel/gone.ko".into())));
    }

    #[test]
    fn a_list_has_words_and_comments() {
        assert_eq!(names("# disks\nvirtio_blk ext4 # root\n\nigb\n"), ["virtio_blk", "ext4", "igb"]);
    }
}
