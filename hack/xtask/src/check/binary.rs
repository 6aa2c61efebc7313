//! Pure: whether the bytes of an ELF file are a static program of an acceptable size.

use crate::elf::linked;

/// The CNI is started for every pod and is copied to every node.
const LIMIT_BYTES: usize = 2_000_000;

/// What speaks against shipping the file as the CNI.
pub(super) fn objections(bytes: &[u8]) -> Vec<String> {
    let mut objections = Vec::new();
    if bytes.len() >= LIMIT_BYTES {
        objections.push(format!("the CNI has {} bytes, the limit is {LIMIT_BYTES}", bytes.len()));
    }
    match linked(bytes) {
        None => objections.push("the CNI is not a little-endian 64-bit ELF program".to_owned()),
        Some(true) => objections.push("the CNI is linked dynamically".to_owned()),
        Some(false) => {}
    }
    objections
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::samples::{elf, with_library, with_loader};

    #[test]
    fn a_program_with_a_loader_or_a_library_is_refused() {
        assert!(objections(&elf(62, &[(1, vec![0; 32])])).is_empty());
        assert_eq!(objections(&with_loader(62)), ["the CNI is linked dynamically"]);
        assert_eq!(objections(&with_library(62)), ["the CNI is linked dynamically"]);
    }

    #[test]
    fn a_program_of_two_megabytes_is_refused() {
        let mut bytes = elf(62, &[(1, vec![])]);
        bytes.resize(LIMIT_BYTES - 1, 0);
        assert!(objections(&bytes).is_empty());
        bytes.push(0);
        assert_eq!(objections(&bytes).len(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n"] {
            assert_eq!(objections(bytes).len(), 1, "{bytes:?}");
        }
    }
}
