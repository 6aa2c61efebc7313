//! I/O: the kernel command lines that the boot loader may use next: GRUB's menu, or entries of the Boot Loader Specification (systemd-boot, Fedora's
//! GRUB, ostree).
//!
//! What does not live here: changing them, and what follows from a difference to the running kernel's (the config daemon's `plan::iommu`).
//!
//! Invariants: only reads; what is not understood gives no lines, so that nobody concludes from it what a reboot would bring; entries for rescue do not
//! count.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Host;

/// Folders of entries, by the Boot Loader Specification and where distributions mount the EFI partition.
const ENTRIES: [&str; 3] = ["/boot/loader/entries", "/boot/efi/loader/entries", "/efi/loader/entries"];
/// GRUB's menus.
const MENUS: [&str; 2] = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"];
/// GRUB's variables, which entries name as `$kernelopts`.
const VARIABLES: [&str; 2] = ["/boot/grub2/grubenv", "/boot/grub/grubenv"];

/// The command lines of all entries that an ordinary boot may start; empty when none is found.
pub fn command_lines(host: &Host) -> Vec<String> {
    let read = |path: &str| host.sysfs().read_opt(path).ok().flatten();
    let variables = VARIABLES.iter().find_map(|path| read(path)).map(|text| assignments(&text)).unwrap_or_default();
    let mut entries = Vec::new();
    for folder in ENTRIES {
        for name in host.sysfs().list_opt(folder).ok().flatten().unwrap_or_default() {
            if Path::new(&name).extension().is_some_and(|extension| extension == "conf")
                && !name.contains("rescue")
                && let Some(entry) = read(&format!("{folder}/{name}")).and_then(|text| entry(&text, &variables))
            {
                entries.push(entry);
            }
        }
    }
    if entries.is_empty() {
        return MENUS.iter().find_map(|path| read(path)).map(|text| menu(&text)).unwrap_or_default();
    }
    // An ostree system keeps the deployment before as a way back; the newest is what it boots.
    if entries.iter().all(|entry| entry.options.contains("ostree=")) {
        let newest = entries.iter().map(|entry| entry.version).max();
        entries.retain(|entry| Some(entry.version) == newest);
    }
    entries.into_iter().map(|entry| entry.options).collect()
}

struct Entry {
    version: u64,
    options: String,
}

fn entry(text: &str, variables: &BTreeMap<String, String>) -> Option<Entry> {
    let field = |wanted: &str| {
        let mut lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        lines.find_map(|(key, value)| (key == wanted).then(|| value.trim().to_owned()))
    };
    let words = field("options")?;
    let options: Vec<&str> = words
        .split_whitespace()
        .map(|word| word.strip_prefix('$').map_or(word, |name| variables.get(name).map(String::as_str).unwrap_or_default()))
        .collect();
    Some(Entry { version: field("version").and_then(|version| version.parse().ok()).unwrap_or_default(), options: options.join(" ") })
}

fn assignments(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The arguments of each `linux` line of a menu.
fn menu(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let is_kernel = words.next().is_some_and(|command| matches!(command, "linux" | "linux16" | "linuxefi"));
        let path = words.next().unwrap_or_default();
        if !is_kernel || path.contains("memtest") || path.contains('$') {
            continue;
        }
        let arguments: Vec<&str> = words.collect();
        if !arguments.iter().any(|word| matches!(*word, "recovery" | "single" | "rescue" | "systemd.unit=rescue.target")) {
            lines.push(arguments.join(" "));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SysfsTree;

    fn lines(tree: &SysfsTree) -> Vec<String> {
        command_lines(&tree.build().unwrap().host())
    }

    #[test]
    fn a_menu_of_grub_gives_its_ordinary_entries() {
        let text = "\
menuentry 'Ubuntu' {
	linux	/boot/vmlinuz-6.8.0-40-generic root=UUID=1 ro  quiet intel_iommu=on
	initrd	/boot/initrd.img-6.8.0-40-generic
}
submenu 'Advanced options' {
	linux	/boot/vmlinuz-6.8.0-39-generic root=UUID=1 ro quiet intel_iommu=on
	linux	/boot/vmlinuz-6.8.0-39-generic root=UUID=1 ro recovery nomodeset
}
	linux16	/boot/memtest86+x64.bin
";
        let tree = SysfsTree::new().file("/boot/grub/grub.cfg", text);
        assert_eq!(lines(&tree), ["root=UUID=1 ro quiet intel_iommu=on", "root=UUID=1 ro quiet intel_iommu=on"]);
        assert_eq!(lines(&SysfsTree::new()), Vec::<String>::new());
    }

    #[test]
    fn entries_take_variables_of_grub_and_rescue_does_not_count() {
        let tree = SysfsTree::new()
            .file("/boot/grub2/grubenv", "# GRUB Environment Block\nkernelopts=root=/dev/vda1 ro iommu=pt \n#####")
            .file("/boot/loader/entries/abc-0-rescue.conf", "title rescue\noptions root=/dev/vda1\n")
            .file("/boot/loader/entries/abc-5.14.conf", "title Rocky\nversion 5.14.0-1.el9\noptions $kernelopts $tuned_params intel_iommu=on\n")
            .file("/boot/grub2/grub.cfg", "\tlinux /vmlinuz old\n");
        let words: Vec<Vec<String>> = lines(&tree).iter().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(words, [["root=/dev/vda1", "ro", "iommu=pt", "intel_iommu=on"]]);
    }

    #[test]
    fn of_the_deployments_of_ostree_the_newest_is_booted() {
        let tree = SysfsTree::new()
            .file("/boot/loader/entries/ostree-1-fedora.conf", "version 1\noptions ostree=/ostree/boot.0/0 quiet\n")
            .file("/boot/loader/entries/ostree-2-fedora.conf", "version 2\noptions ostree=/ostree/boot.0/1 quiet intel_iommu=on\n");
        assert_eq!(lines(&tree), ["ostree=/ostree/boot.0/1 quiet intel_iommu=on"]);
    }
}
