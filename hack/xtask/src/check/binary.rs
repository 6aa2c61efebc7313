//! Pure: whether the bytes of an ELF file are a static program of an acceptable size. Reads only the program headers (ELF-64, System V ABI chapter 5).

/// The CNI is started for every pod and is copied to every node.
const LIMIT_BYTES: usize = 2_000_000;

/// Program header types.
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
/// Tag of a needed shared library in the dynamic section. A static position-independent program has the section, but no such entry.
const DT_NEEDED: u64 = 1;

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

/// Whether the program asks for a loader or a shared library; `None` if the bytes are no such program.
fn linked(bytes: &[u8]) -> Option<bool> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of nothing but headers: each program header is (type, contents).
    fn elf(headers: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
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

    fn dynamic(tag: u64) -> (u32, Vec<u8>) {
        (PT_DYNAMIC, [tag.to_le_bytes(), [0; 8], [0; 8], [0; 8]].concat())
    }

    #[test]
    fn a_static_program_passes_also_when_it_is_position_independent() {
        assert!(objections(&elf(&[(1, vec![0; 32])])).is_empty());
        assert!(objections(&elf(&[(1, vec![0; 32]), dynamic(7)])).is_empty());
    }

    #[test]
    fn a_program_with_a_loader_or_a_library_is_refused() {
        assert_eq!(objections(&elf(&[(PT_INTERP, b"/lib/ld.so\0".to_vec())])), ["the CNI is linked dynamically"]);
        assert_eq!(objections(&elf(&[dynamic(DT_NEEDED)])), ["the CNI is linked dynamically"]);
    }

    #[test]
    fn a_program_of_two_megabytes_is_refused() {
        let mut bytes = elf(&[(1, vec![])]);
        bytes.resize(LIMIT_BYTES - 1, 0);
        assert!(objections(&bytes).is_empty());
        bytes.push(0);
        assert_eq!(objections(&bytes).len(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &elf(&[])[..], &elf(&[(1, vec![])])[..70]] {
            assert_eq!(objections(bytes).len(), 1, "{bytes:?}");
        }
    }
}
