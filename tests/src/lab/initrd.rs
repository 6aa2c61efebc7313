//! Pure: files of one node appended to the initial RAM disk that all nodes share.
//!
//! What lives here: the `newc` cpio format, as far as it takes to carry files. What does not: which files (`certificates`).
//!
//! Invariant: the kernel takes a sequence of archives, compressed or not, when each uncompressed one starts at a multiple of four bytes.

use std::collections::BTreeSet;

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

/// The shared archive with these files (path without leading slash, content) added; parent folders are made.
pub fn append(base: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = base.to_vec();
    pad(&mut archive);
    let mut folders = BTreeSet::new();
    for (path, _) in files {
        folders.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    let mut number = 0;
    for folder in folders {
        number += 1;
        entry(&mut archive, number, folder, FOLDER | 0o755, b"");
    }
    for (path, content) in files {
        number += 1;
        entry(&mut archive, number, path, REGULAR | 0o600, content);
    }
    entry(&mut archive, 0, "TRAILER!!!", 0, b"");
    archive
}

fn entry(archive: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8]) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    // inode, mode, uid, gid, links, time, size, device (2), special device (2), length of the name with its zero, checksum
    let fields = [number, mode, 0, 0, 1, 0, length(content.len()), 0, 0, 0, 0, length(path.len() + 1), 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_unpacks_what_was_appended() {
        let folder = tempfile::tempdir().unwrap();
        let archive = append(b"", &[("node/pki/ca.crt", b"certificate"), ("node/name", b"x")]);
        let mut cpio = Command::new("cpio").args(["-i", "-d", "--quiet"]).current_dir(folder.path()).stdin(Stdio::piped()).spawn().unwrap();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read(folder.path().join("node/pki/ca.crt")).unwrap(), b"certificate");
        assert_eq!(std::fs::read(folder.path().join("node/name")).unwrap(), b"x");
    }

    #[test]
    fn the_appended_archive_starts_at_a_multiple_of_four() {
        let archive = append(b"12345", &[("a", b"b")]);
        assert_eq!((&archive[..5], &archive[5..8], &archive[8..14]), (&b"12345"[..], &[0; 3][..], &b"070701"[..]));
    }
}
