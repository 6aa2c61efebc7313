//! Pure: what the text of each file must or must not hold: its first line, words that belong to one machine only, process starts, paths of the machine.
//!
//! Each function takes (path, text) pairs and returns one line for each finding.

use std::path::{Path, PathBuf};

type Texts = [(PathBuf, String)];

/// Rust files whose first line does not say which side of the I/O they are on, and files named `mod.rs`, which hide their subject.
pub(super) fn without_room(texts: &Texts) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in texts {
        let first = text.lines().next().unwrap_or_default();
        if !["//! Pure", "//! I/O"].iter().any(|start| first.starts_with(start)) || first.len() < 20 {
            findings.push(format!("{}:1: does not begin with `//! Pure: ...` or `//! I/O: ...`", path.display()));
        }
        if path.ends_with("mod.rs") {
            findings.push(format!("{}: is named mod.rs, not after its subject", path.display()));
        }
    }
    findings
}

/// Words that only mean something on the machine or in the company where they were written. Put together from halves, so that this file holds none.
pub(super) fn forbidden_words() -> Vec<String> {
    let halves = [
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/ho", "me/"),
        ("/tm", "p/bash_jobs"),
        ("proxy.gol", "ang.org"),
        ("sum.gol", "ang.org"),
        ("static.crates", ".io"),
        ("index.crates", ".io"),
        ("registry.npm", "js.org"),
        ("files.python", "hosted.org"),
        ("BRIEF", ".md"),
        ("shared/", "design.md"),
        ("shared/", "style.md"),
        ("shared/", "spec"),
        ("shared/", "lab"),
    ];
    halves.into_iter().map(|(first, second)| format!("{first}{second}")).collect()
}

/// Lines with one of the words. Lock files are left out: a tool writes them, and they name where packages come from.
pub(super) fn forbidden(texts: &Texts, words: &[String]) -> Vec<String> {
    let written_by_hand = texts.iter().filter(|(path, _)| !["Cargo.lock", "go.sum"].iter().any(|name| path.ends_with(name)));
    let lines = written_by_hand.flat_map(|(path, text)| text.lines().enumerate().map(move |(index, line)| (path, index + 1, line)));
    lines
        .filter_map(|(path, number, line)| {
            let word = words.iter().find(|word| line.contains(word.as_str()))?;
            Some(format!("{}:{number}: holds {word:?}", path.display()))
        })
        .collect()
}

/// Lines that start a process where the design allows none: only the CNI's IPAM delegation, the tests and hack may.
pub(super) fn spawns(texts: &Texts) -> Vec<String> {
    let may = |path: &Path| path.starts_with("tests") || path.starts_with("hack") || path == Path::new("sriov-cni/src/io.rs");
    let starts = |line: &str| {
        let names_command = line.contains("process::") && line.contains("Command");
        names_command || line.contains("Command::new(") || ["execv", "posix_spawn", "fork("].iter().any(|call| line.contains(call))
    };
    code_lines(texts, &|path| !may(path), &starts, "starts a process; only sriov-cni/src/io.rs, tests and hack may")
}

/// Lines outside the host crate that open a file of the kernel by themselves: that is for `host::sysfs`, whose functions may be given such a path.
/// Sees only a path that is written in the same line as the opening; a path in a variable is for review to see.
pub(super) fn machine_files(texts: &Texts) -> Vec<String> {
    let product = ["crds", "operator", "config-daemon", "device-plugin", "sriov-cni"];
    let outside_host = |path: &Path| product.iter().any(|folder| path.starts_with(Path::new(folder).join("src")));
    let opens = |line: &str| {
        let names = ["\"/sys/", "\"/proc/", "\"sys/", "\"proc/"].iter().any(|path| line.contains(path));
        names && ["fs::", "File::", "OpenOptions"].iter().any(|call| line.replace("sysfs::", "").contains(call))
    };
    code_lines(texts, &outside_host, &opens, "opens a file of the machine; only host::sysfs does")
}

/// The lines that `bad` finds, without comments, and up to the first `#[cfg(test)]` of a file; files that are tests altogether are left out.
fn code_lines(texts: &Texts, of: &dyn Fn(&Path) -> bool, bad: &dyn Fn(&str) -> bool, objection: &str) -> Vec<String> {
    let is_test = |path: &Path| path.components().any(|part| part.as_os_str() == "tests") || path.file_name().is_some_and(|name| name == "tests.rs");
    let mut findings = Vec::new();
    for (path, text) in texts.iter().filter(|(path, _)| of(path) && !is_test(path)) {
        let code = text.lines().enumerate().take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"));
        let code = code.map(|(index, line)| (index + 1, line.trim_start())).filter(|(_, line)| !line.starts_with("//"));
        findings.extend(code.filter(|(_, line)| bad(line)).map(|(number, _)| format!("{}:{number}: {objection}", path.display())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, text: &str) -> Vec<(PathBuf, String)> {
        vec![(PathBuf::from(path), text.to_owned())]
    }

    #[test]
    fn a_file_must_say_which_side_it_is_on() {
        assert!(without_room(&text("host/src/pci.rs", "//! Pure: PCI addresses.\n")).is_empty());
        assert!(without_room(&text("host/src/netns.rs", "//! I/O: network namespaces.\n")).is_empty());
        for bad in ["", "use std::fs;\n", "//! Network namespaces.\n", "\n//! Pure: PCI addresses.\n", "//! Pure:\n"] {
            assert_eq!(without_room(&text("host/src/pci.rs", bad)).len(), 1, "{bad:?}");
        }
        assert_eq!(without_room(&text("host/src/pci/mod.rs", "//! Pure: PCI addresses.\n")).len(), 1);
    }

    #[test]
    fn each_forbidden_word_is_found_with_its_line() {
        for word in forbidden_words() {
            let found = forbidden(&text("README.md", &format!("first\nsee {word}x\n")), &forbidden_words());
            assert_eq!(found.len(), 1, "{word}");
            assert!(found[0].starts_with("README.md:2:"), "{}", found[0]);
        }
        assert!(forbidden(&text("README.md", "nothing of the kind\n"), &forbidden_words()).is_empty());
    }

    #[test]
    fn lock_files_may_name_where_packages_come_from() {
        let word = forbidden_words().remove(4);
        assert!(forbidden(&text("hack/tools/etcd/go.sum", &word), &forbidden_words()).is_empty());
        assert_eq!(forbidden(&text("hack/tools/etcd/go.mod", &word), &forbidden_words()).len(), 1);
    }

    #[test]
    fn a_process_start_in_the_product_is_found() {
        let starts = [
            "use std::process::Command;",
            "use std::process::{Command, Stdio};",
            "    let out = Command::new(\"ip\").output();",
            "tokio::process::Command::new(\"ip\")",
        ];
        for line in starts {
            for path in ["host/src/driver.rs", "sriov-cni/src/add.rs", "config-daemon/src/machine/linux.rs"] {
                assert_eq!(spawns(&text(path, line)).len(), 1, "{path}: {line}");
            }
            for path in ["sriov-cni/src/io.rs", "tests/src/lab.rs", "hack/xtask/src/main.rs"] {
                assert!(spawns(&text(path, line)).is_empty(), "{path}: {line}");
            }
        }
        assert!(spawns(&text("operator/src/main.rs", "std::process::exit(1);\n/// A `Command::new(` in words.\n")).is_empty());
        assert!(spawns(&text("host/src/netns.rs", "#[cfg(test)]\nmod tests {\n use std::process::Command;\n}")).is_empty());
    }

    #[test]
    fn a_kernel_file_that_is_opened_outside_host_is_found() {
        let lines = [
            "let text = std::fs::read_to_string(\"/sys/bus/pci/devices\");",
            "fs::write(root.join(\"sys/class/net\"), value)",
            "let file = File::open(\"/proc/cmdline\")?;",
        ];
        for line in lines {
            for path in ["config-daemon/src/apply.rs", "sriov-cni/src/add.rs", "operator/src/main.rs"] {
                assert_eq!(machine_files(&text(path, line)).len(), 1, "{path}: {line}");
            }
            assert!(machine_files(&text("host/src/sysfs.rs", line)).is_empty());
        }
        assert!(machine_files(&text("operator/src/daemon_set.rs", "host_path(\"/sys\")")).is_empty());
        assert!(machine_files(&text("sriov-cni/src/add.rs", "host.sysfs().read(\"/proc/sys/net/core\")")).is_empty());
    }
}
