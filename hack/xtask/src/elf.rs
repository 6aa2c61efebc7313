//! Pure: what the headers of an ELF file say: its processor, and whether it needs a loader or libraries (ELF-64, System V ABI chapters 4 and 5).

/// Program header types.
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
/// Tag of a needed shared library in the dynamic section. A static position-independent program has the section, but no such entry.
const DT_NEEDED: u64 = 1;

/// Whether the program asks for a loader or a shared library; `None` if the bytes are no such program.
pub(crate) fn linked(bytes: &[u8]) -> Option<bool> {
    machine(bytes)?;
    let table = usize::try_from(number(bytes, 32, 8)?).ok()?;
    let (size, count) = (usize::try_from(number(bytes, 54, 2)?).ok()?, usize::try_from(number(bytes, 56, 2)?).ok()?);
    let mut linked = false;
    for header in (0..count).map(|index| table + index * size) {
        let kind = u32::try_from(number(bytes, header, 4)?).ok()?;
        let (offset, length) = (usize::try_from(number(bytes, header + 8, 8)?).ok()?, usize::try_from(number(bytes, header + 32, 8)?).ok()?);
        linked |= kind == PT_INTERP;
        if kind == PT_DYNAMIC {
            for entry in (offset..offset + length).step_by(16) {
                linked |= number(bytes, entry, 8)? == DT_NEEDED;
            }
        }
    }
    (count > 0).then_some(linked)
}

/// A little-endian number of `size` bytes at `offset`.
fn number(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// `e_machine`, 62 for x86-64 and 183 for AArch64; `None` if the bytes are no little-endian 64-bit ELF file.
pub(crate) fn machine(bytes: &[u8]) -> Option<u64> {
    let magic = bytes.get(..6)?;
    if magic == b"\x7fELF\x02\x01" { number(bytes, 18, 2) } else { None }
}

/// Files that are nothing but headers, for the tests of those who read them.
#[cfg(test)]
pub(crate) mod samples {
    use super::{DT_NEEDED, PT_DYNAMIC, PT_INTERP};

    /// Each program header is (type, contents).
    pub(crate) fn elf(machine: u16, headers: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        let mut contents: Vec<u8> = Vec::new();
        for (kind, content) in headers {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            let offset = 64 + 56 * headers.len() + contents.len();
            header[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            bytes.extend(header);
            contents.extend(content);
        }
        bytes.extend(contents);
        bytes
    }

    /// A dynamic section with one entry.
    pub(crate) fn dynamic(tag: u64) -> (u32, Vec<u8>) {
        (PT_DYNAMIC, [tag.to_le_bytes(), [0; 8], [0; 8], [0; 8]].concat())
    }

    /// A program that asks for a loader.
    pub(crate) fn with_loader(machine: u16) -> Vec<u8> {
        elf(machine, &[(PT_INTERP, b"/lib/ld.so\0".to_vec())])
    }

    /// A program that asks for a library.
    pub(crate) fn with_library(machine: u16) -> Vec<u8> {
        elf(machine, &[dynamic(DT_NEEDED)])
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{dynamic, elf, with_library, with_loader};
    use super::*;

    #[test]
    fn a_static_program_is_so_also_when_it_is_position_independent() {
        assert_eq!(linked(&elf(62, &[(1, vec![0; 32])])), Some(false));
        assert_eq!(linked(&elf(183, &[(1, vec![0; 32]), dynamic(7)])), Some(false));
    }

    #[test]
    fn a_loader_or_a_library_makes_it_dynamic() {
        assert_eq!(linked(&with_loader(62)), Some(true));
        assert_eq!(linked(&with_library(183)), Some(true));
    }

    #[test]
    fn the_processor_is_in_the_header() {
        assert_eq!(machine(&elf(183, &[])), Some(183));
        assert_eq!(machine(&elf(62, &[])), Some(62));
    }

    #[test]
    fn other_files_say_nothing() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &elf(62, &[])[..], &elf(62, &[(1, vec![])])[..70]] {
            assert_eq!(linked(bytes), None, "{bytes:?}");
        }
        assert_eq!(machine(b"#!/bin/sh\n, and so on for a while"), None);
    }
}
