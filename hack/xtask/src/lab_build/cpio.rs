//! Pure: writes an initramfs archive, the `newc` form of cpio (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Invariant: the same entries give the same bytes: owner 0, time 0, inode numbers in order.

/// What an entry is.
enum Kind<'a> {
    Folder,
    File(&'a [u8]),
    /// Major and minor number.
    CharDevice(u32, u32),
}

/// An archive being written. Parents must be added before what is in them.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// A folder, mode 0755.
    pub(crate) fn folder(&mut self, path: &str) {
        self.append(path, 0o040_755, &Kind::Folder);
    }

    /// A file with these permission bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.append(path, 0o100_000 | permissions, &Kind::File(content));
    }

    /// A character device, mode 0600.
    pub(crate) fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.append(path, 0o020_600, &Kind::CharDevice(major, minor));
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.append("TRAILER!!!", 0, &Kind::Folder);
        self.bytes
    }

    fn append(&mut self, path: &str, mode: u32, kind: &Kind<'_>) {
        let (content, device): (&[u8], (u32, u32)) = match kind {
            Kind::Folder => (&[], (0, 0)),
            Kind::File(content) => (content, (0, 0)),
            Kind::CharDevice(major, minor) => (&[], (*major, *minor)),
        };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, length(content), 0, 0, device.0, device.1, length(path.as_bytes()) + 1, 0];
        self.entries += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Header with name, and content, each end on a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an initrd file of 4 GiB cannot be: the format has 32 bits, and guests have less memory")]
fn length(bytes: &[u8]) -> u32 {
    bytes.len() as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.char_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.finish()
    }

    #[test]
    fn cpio_lists_what_was_written() {
        let mut cpio =
            Command::new("cpio").args(["-itv", "--quiet", "--numeric-uid-gid"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let lines: Vec<(&str, &str)> = text.lines().map(|line| (line.split(' ').next().unwrap(), line.rsplit(' ').next().unwrap())).collect();
        assert_eq!(lines, [("drwxr-xr-x", "dev"), ("crw-------", "dev/console"), ("-rwxr-xr-x", "init")]);
    }

    #[test]
    fn every_part_is_aligned_so_that_archives_can_follow_each_other() {
        assert_eq!(sample().len() % 4, 0);
    }
}
