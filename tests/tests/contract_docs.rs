//! I/O (reads committed files, runs shells in folders), tier 1: what the documentation names exists: files behind links, presets, programs, benchmarks, tests, verbs.
//! That commands work is shown by running them (`cluster_docs`); here is held that no page with commands is forgotten there, and run what changes boot loaders.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sriov_tests::lab::artifacts::workspace;

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a file of the repository is text")
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace().join(folder)).expect("a folder of the repository");
    let mut files: Vec<_> =
        entries.map(|entry| entry.expect("an entry of a folder").path()).filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    files
}

/// Every text that a person reads first.
fn pages() -> Vec<PathBuf> {
    let crates = ["config-daemon", "device-plugin", "operator", "sriov-cni", "tests"].map(|name| workspace().join(name).join("README.md"));
    let root = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| workspace().join(name));
    root.into_iter().chain(crates).chain(files("docs", ".md")).collect()
}

/// What comes right after each `before`, as long as `part` holds.
fn after<'a>(text: &'a str, before: &str, part: impl Fn(char) -> bool + Copy) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| &rest[..rest.find(|c| !part(c)).unwrap_or(rest.len())]).filter(|word| !word.is_empty()).collect()
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

#[test]
fn every_link_leads_to_a_file_of_the_repository() {
    let mut seen = 0;
    let mut broken = vec![];
    for page in pages() {
        let text = text(&page);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if target.contains("://") || file.is_empty() {
                continue;
            }
            seen += 1;
            if !page.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(seen > 30, "only {seen} links were found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_name_in_a_command_of_the_documentation_exists() {
    let verbs = ["status", "node", "plan", "pods", "doctor", "history", "watch", "completion"];
    let tests: BTreeSet<String> = ["tests/tests", "sriov-cni/tests", "device-plugin/tests", "kubectl-sriov/tests"]
        .iter()
        .filter(|folder| workspace().join(folder).is_dir())
        .flat_map(|folder| files(folder, ".rs"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut seen = 0;
    let mut unknown = vec![];
    for page in pages() {
        let text = text(&page);
        let mut check = |what: &str, names: Vec<&str>, exists: &dyn Fn(&str) -> bool| {
            seen += names.len();
            unknown.extend(names.into_iter().filter(|name| !exists(name)).map(|name| format!("{}: {what} {name}", page.display())));
        };
        let root = |name: &str| workspace().join(name).exists();
        check("hack/bench", after(&text, "hack/bench ", |c| word(c) && !c.is_ascii_uppercase()), &|name| {
            root(&format!("tests/src/bin/bench_{}.rs", name.replace('-', "_")))
        });
        check("cargo test --test", after(&text, "cargo test --test ", word), &|name| tests.contains(name));
        check("cargo build --package", after(&text, "cargo build --package ", word), &|name| root(&format!("{name}/Cargo.toml")));
        check("deploy/", after(&text, "deploy/", |c| word(c) || c == '/' || c == '.'), &|name| {
            name == "values-" || root(&format!("deploy/{}", name.trim_end_matches('.')))
        });
        check("hack/", after(&text, "./hack/", word), &|name| root(&format!("hack/{name}")));
        check("kubectl sriov", after(&text, "kubectl sriov ", |c| c.is_ascii_lowercase()), &|name| verbs.contains(&name));
    }
    assert!(seen > 60, "only {seen} names were found");
    assert!(unknown.is_empty(), "nothing is called:\n{}", unknown.join("\n"));
}

#[test]
fn every_page_with_commands_is_run_and_listed() {
    let tests = text(&workspace().join("tests/tests/cluster_docs.rs"));
    let list = text(&workspace().join("docs/README.md"));
    let mut run = 0;
    for page in files("docs", ".md") {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name == "README.md" || list.contains(&format!("]({name})")), "docs/README.md does not list {name}");
        if text(&page).contains("\n```sh\n") {
            run += 1;
            assert!(tests.contains(&format!("\"{name}\"")), "no test of cluster_docs runs the commands of docs/{name}");
        }
    }
    assert!(run >= 14, "only {run} pages have commands");
}

/// What the assignments of a shell file are, read by a shell.
fn assigned(file: &Path, name: &str) -> String {
    let output = Command::new("sh").args(["-euc", &format!(". \"$0\" && echo \"${name}\""), &file.display().to_string()]).output().expect("run sh");
    assert!(output.status.success(), "{} cannot be read by a shell any more: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Programs that belong to a boot loader, and are not there or must not run where tests do.
const BOOT_PROGRAMS: [&str; 6] = ["update-grub", "grubby", "grub2-mkconfig", "transactional-update", "rpm-ostree", "kernel-install"];

/// Runs a block on a machine that is a folder; answers the calls of boot loaders' programs since it was made.
fn run_on(root: &Path, block: &str) -> String {
    let script = block.replace("/etc/", &format!("{}/etc/", root.display())).replace("/boot/vmlinuz", &format!("{}/boot/vmlinuz", root.display()));
    let script = script.replace("/lib/modules", &format!("{}/lib/modules", root.display()));
    let path = format!("{}:/usr/bin:/bin", root.join("bin").display());
    let output = Command::new("sh").args(["-euc", &script]).env("PATH", path).output().expect("run sh");
    assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    let calls = fs::read_to_string(root.join("calls")).expect("a program was called");
    calls.replace(&root.display().to_string(), "")
}

fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("make the machine");
    let file = |name: &str| root.path().join(name);
    for folder in ["bin", "boot", "etc/default", "etc/kernel"] {
        fs::create_dir_all(file(folder)).expect("make the machine");
    }
    // As Debian 12 has them, its comments left out.
    fs::write(file("etc/default/grub"), "GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"\"\n")
        .expect("make the machine");
    fs::write(file("etc/kernel/cmdline"), "root=UUID=2c3f ro quiet\n").expect("make the machine");
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    fs::write(file(&format!("boot/vmlinuz-{release}")), "").expect("make the machine");
    for program in BOOT_PROGRAMS {
        let recorder = format!("#!/bin/sh\necho \"{program} $*\" >>'{}'\n", file("calls").display());
        fs::write(file("bin").join(program), recorder).expect("make the machine");
        fs::set_permissions(file("bin").join(program), fs::Permissions::from_mode(0o755)).expect("make the machine");
    }
    root
}

#[test]
fn the_iommu_is_on_the_command_line_once_after_the_block_of_each_boot_loader() {
    let page = text(&workspace().join("docs/iommu.md"));
    let blocks: Vec<&str> = page.split("```bash\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let install = format!("kernel-install add {release} /boot/vmlinuz-{release}");
    // The program that is called, the file that it reads and the assignment in it.
    let expected = [
        ("update-grub ", Some(("etc/default/grub", "GRUB_CMDLINE_LINUX", "intel_iommu=on iommu=pt"))),
        ("grubby --update-kernel=ALL --args=intel_iommu=on iommu=pt", None),
        ("grub2-mkconfig -o /boot/grub2/grub.cfg", Some(("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT", "intel_iommu=on iommu=pt quiet"))),
        ("transactional-update grub.cfg", Some(("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT", "intel_iommu=on iommu=pt quiet"))),
        ("rpm-ostree kargs --append-if-missing=intel_iommu=on --append-if-missing=iommu=pt", None),
        (install.as_str(), Some(("etc/kernel/cmdline", "", "root=UUID=2c3f ro quiet intel_iommu=on iommu=pt"))),
    ];
    assert_eq!(blocks.len(), expected.len(), "a block that nothing is expected of");
    for (block, (call, file)) in blocks.into_iter().zip(expected) {
        let root = machine();
        run_on(root.path(), block);
        // Whoever is not sure does it again.
        assert_eq!(run_on(root.path(), block), format!("{call}\n{call}\n"), "{block}");
        let Some((name, variable, line)) = file else { continue };
        let path = root.path().join(name);
        let found = if variable.is_empty() { text(&path).trim().to_owned() } else { assigned(&path, variable) };
        assert_eq!(found, line, "{block}");
        if !variable.is_empty() {
            assert_eq!(assigned(&path, "GRUB_TIMEOUT"), "5", "{block}");
        }
    }
}
