//! I/O: loading kernel modules as `modprobe` does, without running it: what depends on what is read from `modules.dep`, files go to `finit_module(2)`.
//!
//! What does not live here: options of modprobe.d (they are `modprobe`'s), and which module is needed (the planner).
//!
//! Invariant: a module that is loaded, or built into the kernel, is not loaded again; what a module needs is loaded before it.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::Host;
use crate::sysfs::SysfsError;

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The lists of the running kernel's modules could not be read.
    #[error("cannot find kernel module {module}: {cause}")]
    List {
        /// The module.
        module: String,
        /// The kernel's answer.
        cause: SysfsError,
    },
    /// The running kernel has no such module.
    #[error(
        "cannot load kernel module {module}: {folder}/modules.dep does not list it; install the kernel's extra modules (for example linux-modules-extra)"
    )]
    Missing {
        /// The module.
        module: String,
        /// Where it was looked for.
        folder: String,
    },
    /// The kernel refused it.
    #[error("cannot load kernel module {module} from {path}: {cause}{hint}")]
    Load {
        /// The module.
        module: String,
        /// Its file.
        path: String,
        /// The kernel's answer.
        cause: std::io::Error,
        /// What to try; begins with "; " or is empty.
        hint: &'static str,
    },
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] SysfsError),
}

/// `MODULE_INIT_COMPRESSED_FILE` of include/uapi/linux/module.h: the kernel unpacks the file itself.
const COMPRESSED: i32 = 4;

/// Whether a module is loaded or built in.
pub fn is_present(host: &Host, module: &str) -> bool {
    host.sysfs().exists(format!("/sys/module/{}", normal(module)))
}

/// Whether the running kernel has a module of this name that could be loaded.
pub fn is_available(host: &Host, module: &str) -> bool {
    is_present(host, module) || dependencies(host, module).is_ok()
}

/// The value of a parameter of a module that is loaded; `None` when it is not, or has no such parameter.
pub fn parameter(host: &Host, module: &str, name: &str) -> Option<String> {
    host.sysfs().read_opt(format!("/sys/module/{}/parameters/{name}", normal(module))).ok().flatten()
}

/// Sets a parameter of a module that is loaded.
pub fn set_parameter(host: &Host, module: &str, name: &str, value: &str) -> Result<(), SysfsError> {
    host.sysfs().write(format!("/sys/module/{}/parameters/{name}", normal(module)), value)
}

/// Loads a module and, before it, those that it needs. One that is there already is fine.
pub fn load(host: &Host, module: &str) -> Result<(), ModuleError> {
    if is_present(host, module) {
        return Ok(());
    }
    for path in dependencies(host, module)? {
        let name = name_of(&path);
        if is_present(host, &name) {
            continue;
        }
        let file = host.sysfs().open(&path)?;
        let flags = if std::path::Path::new(&path).extension().is_some_and(|extension| extension == "ko") { 0 } else { COMPRESSED };
        match rustix::system::finit_module(&file, c"", flags) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(ModuleError::Load { module: name, path, cause: errno.into(), hint: hint(errno, flags) }),
        }
    }
    Ok(())
}

fn hint(errno: Errno, flags: i32) -> &'static str {
    match errno {
        Errno::PERM => "; it needs CAP_SYS_MODULE, or the kernel is locked down: load it at boot through /etc/modules-load.d",
        Errno::KEYREJECTED => "; its signature is not trusted by this kernel (secure boot)",
        Errno::NOEXEC | Errno::INVAL | Errno::OPNOTSUPP if flags == COMPRESSED => {
            "; this kernel does not unpack modules itself: load it at boot through /etc/modules-load.d"
        }
        _ => "",
    }
}

/// The files to load, in order, the module itself last; paths of the machine.
fn dependencies(host: &Host, module: &str) -> Result<Vec<String>, ModuleError> {
    let folder = format!("/lib/modules/{}", rustix::system::uname().release().to_string_lossy());
    let list = |cause| ModuleError::List { module: module.to_owned(), cause };
    let text = host.sysfs().read(format!("{folder}/modules.dep")).map_err(list)?;
    let files = order(&text, module).ok_or_else(|| ModuleError::Missing { module: module.to_owned(), folder: folder.clone() })?;
    Ok(files.into_iter().map(|file| if file.starts_with('/') { file } else { format!("{folder}/{file}") }).collect())
}

/// From `file: needed needed ...` lines (the nearest need first, as depmod writes them) the files of a module, needs first.
fn order(text: &str, module: &str) -> Option<Vec<String>> {
    let lines: BTreeMap<String, (&str, &str)> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(file, needs)| (name_of(file), (file, needs))).collect();
    let (file, needs) = lines.get(&normal(module))?;
    let mut files: Vec<String> = needs.split_whitespace().rev().map(str::to_owned).collect();
    files.push((*file).to_owned());
    Some(files)
}

/// The name in the kernel's form: `vfio-pci` is `vfio_pci` there.
fn normal(module: &str) -> String {
    module.replace('-', "_")
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    const DEP: &str = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz kernel/drivers/vfio/vfio.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/drivers/vfio/vfio.ko.xz:
kernel/drivers/net/tun.ko:
";

    #[test]
    fn needs_come_before_what_needs_them() {
        let files: Vec<String> = order(DEP, "vfio_pci").unwrap().iter().map(|file| name_of(file)).collect();
        assert_eq!(files, ["irqbypass", "vfio", "vfio_pci_core", "vfio_pci"]);
        assert_eq!(order(DEP, "vfio-pci"), order(DEP, "vfio_pci"));
        assert_eq!(order(DEP, "pci"), None);
    }

    #[test]
    fn a_module_that_is_there_is_not_loaded_and_a_missing_one_is_named() {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let fake = SysfsTree::new().dir("/sys/module/vfio_pci").file(&format!("/lib/modules/{release}/modules.dep"), DEP).build().unwrap();
        load(&fake.host(), "vfio-pci").unwrap();
        assert!(is_present(&fake.host(), "vfio-pci") && is_available(&fake.host(), "tun") && !is_available(&fake.host(), "vhost_vdpa"));
        let error = load(&fake.host(), "vhost_vdpa").unwrap_err();
        assert!(error.to_string().contains("does not list it"), "{error}");
        let error = load(&fake.host(), "tun").unwrap_err();
        assert!(error.to_string().contains("kernel/drivers/net/tun.ko"), "the file is named: {error}");
    }
}
