//! Pure: why a machine has no IOMMU that translates, from its kernel's command line, and what cures it.
//!
//! What does not live here: changing the command line. It is the operating system's (grub, systemd-boot, ostree, an installer's image), and a program that
//! writes it for all of them and then asks for reboots is how nodes came to reboot for ever.
//!
//! Invariant: words are compared as the kernel reads them, whole and with their list of values; no reboot is asked for.

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
    fn an_argument_with_more_values_is_never_taken_to_be_missing() {
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
    fn an_argument_that_switches_it_off_is_named() {
        assert!(cure("quiet intel_iommu=on iommu=off").contains("in the place of  iommu=off  there"));
    }
}
