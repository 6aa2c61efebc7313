//! Pure: why a machine has no IOMMU that translates, from its kernel's command line, and what cures it.
//!
//! Decision: a reboot is asked for only when the boot loader's configuration has what the running kernel lacks, so that the next boot brings it. It is
//! then asked for once (`Store::was_rebooted_for`). Everything else is told with its cure.
//!
//! What does not live here: changing the command line. It is the operating system's (grub, systemd-boot, ostree, an installer's image), and a program that
//! writes it for all of them and then asks for reboots is how nodes came to reboot for ever.
//!
//! Invariant: words are compared as the kernel reads them, whole and with their list of values.

use sriov_host::inventory::Kernel;

/// What switches it on; without a word the kernel's own configuration decides.
const ON: &str = "intel_iommu=on iommu=pt  (AMD: amd_iommu=on iommu=pt)";

/// What to do so that an IOMMU translates.
pub(crate) fn cure(command_line: &str) -> String {
    let off: Vec<&str> = command_line.split_whitespace().filter(|word| is_off(word)).collect();
    if !off.is_empty() {
        return format!("the kernel command line switches it off: put {ON} in the place of  {}  there and reboot", off.join(" "));
    }
    if command_line.split_whitespace().any(is_on) {
        return "the kernel command line asks for it, so it is off in the firmware: enable it there (Intel VT-d, AMD-Vi; in a virtual machine give it a \
                virtual IOMMU); another reboot without that does not help"
            .to_owned();
    }
    format!("enable it in the firmware (Intel VT-d, AMD-Vi), put {ON} on the kernel command line and reboot")
}

/// Whether the next boot will switch an IOMMU on that the running kernel was not told to.
pub(crate) fn comes_with_the_next_boot(kernel: &Kernel, command_line: &str) -> bool {
    let will = |line: &String| line.split_whitespace().any(is_on) && !line.split_whitespace().any(is_off);
    let is_told = command_line.split_whitespace().any(is_on) && !command_line.split_whitespace().any(is_off);
    !is_told && !kernel.staged.is_empty() && kernel.staged.iter().all(will)
}

/// Whether the next boot will have the kernel place the BARs of VFs anew (`pci=realloc`), which the running kernel was not told to.
pub(crate) fn realloc_comes_with_the_next_boot(kernel: &Kernel, command_line: &str) -> bool {
    let has_it = |line: &str| line.split_whitespace().any(|word| has(word, &["pci"], "realloc") || has(word, &["pci"], "realloc=on"));
    !has_it(command_line) && !kernel.staged.is_empty() && kernel.staged.iter().all(|line| has_it(line))
}

/// Whether a word of the command line is `name=...` with this among its values, which commas separate.
fn has(word: &str, names: &[&str], value: &str) -> bool {
    word.split_once('=').is_some_and(|(name, values)| names.contains(&name) && values.split(',').any(|found| found == value))
}

fn is_on(word: &str) -> bool {
    has(word, &["intel_iommu", "amd_iommu"], "on")
}

fn is_off(word: &str) -> bool {
    has(word, &["intel_iommu", "amd_iommu", "iommu"], "off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b4_an_argument_with_more_values_is_never_taken_to_be_missing() {
        for line in ["quiet intel_iommu=on,sm_on", "amd_iommu=on iommu=pt", "intel_iommu=sm_on,on"] {
            assert!(cure(line).contains("off in the firmware"), "{line}");
        }
    }

    #[test]
    fn a_part_of_a_word_is_never_taken_for_the_word() {
        for line in ["", "my_intel_iommu=on", "intel_iommu=once", "intel_iommu", "root=/dev/intel_iommu=on"] {
            assert!(cure(line).starts_with("enable it in the firmware"), "{line}");
        }
    }

    #[test]
    fn a_reboot_helps_only_when_every_ordinary_entry_brings_what_is_missing() {
        let staged = |lines: &[&str]| Kernel { staged: lines.iter().map(|line| (*line).to_owned()).collect(), ..Kernel::default() };
        for (lines, running, helps) in [
            (vec!["quiet intel_iommu=on"], "quiet", true),
            (vec!["amd_iommu=on iommu=pt", "intel_iommu=on,sm_on"], "quiet", true),
            (vec!["quiet intel_iommu=on"], "quiet intel_iommu=off", true),
            (vec!["quiet intel_iommu=on", "quiet"], "quiet", false),
            (vec!["intel_iommu=on iommu=off"], "quiet", false),
            (vec!["quiet intel_iommu=on"], "quiet intel_iommu=on,sm_on", false),
            (vec![], "quiet", false),
        ] {
            assert_eq!(comes_with_the_next_boot(&staged(&lines), running), helps, "{lines:?} after {running:?}");
        }
        assert!(realloc_comes_with_the_next_boot(&staged(&["quiet pci=noaer,realloc"]), "quiet pci=noaer"));
        assert!(!realloc_comes_with_the_next_boot(&staged(&["pci=realloc"]), "pci=realloc"), "the running kernel has it, and it did not help");
        assert!(!realloc_comes_with_the_next_boot(&staged(&["pci=reallocate"]), ""));
    }

    #[test]
    fn an_argument_that_switches_it_off_is_named() {
        assert!(cure("quiet intel_iommu=on iommu=off").contains("in the place of  iommu=off  there"));
    }
}
