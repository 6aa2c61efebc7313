//! I/O: whether this machine can build and run the lab; `hack/lib.sh` installs what is missing. Nothing is changed here.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian;
use super::root::find_program;
use crate::workspace::{Workspace, stdout_of};

/// The first QEMU with emulated igb PFs that behave as measured.
const QEMU_NEEDED: u32 = 10;
/// The emulator.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// An error that lists everything that is missing, or nothing.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.path("hack/debian-packages");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let installed = debian::installed()?;
    let mut missing: Vec<String> = debian::listed(&text)
        .into_iter()
        .filter(|name| !installed.iter().any(|package| package.name == *name))
        .map(|name| format!("Debian package {name}"))
        .collect();
    if let Ok(qemu) = find_program(QEMU) {
        let version = stdout_of(Command::new(qemu).arg("--version"))?;
        if major_version(&version).is_none_or(|major| major < QEMU_NEEDED) {
            missing.push(format!("QEMU {QEMU_NEEDED} or newer (this is {})", version.lines().next().unwrap_or_default()));
        }
    }
    if let Err(error) = stdout_of(Command::new("go").arg("version")) {
        missing.push(format!("Go in PATH, as new as hack/tools/*/go.mod say ({error:#})"));
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun, for the guests' network".to_owned());
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine lacks:\n  {}\n`. hack/lib.sh && install_packages .` installs packages as root", missing.join("\n  "))
}

/// Pure: `QEMU emulator version 10.0.2 (Debian ...)` is 10.
fn major_version(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    /// Runs functions of `hack/lib.sh`: (succeeded, standard output).
    fn shell(script: &str, input: &str) -> (bool, String) {
        let root = Workspace::locate().unwrap();
        let mut command = Command::new("sh");
        command.current_dir(root.root()).args(["-c", &format!(". hack/lib.sh; {script}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    #[test]
    fn backports_come_from_the_mirror_of_the_release_itself() {
        let targets = "https://third.example/apt|nodistro|nodistro|main\nhttp://sec.example/debian-security|bookworm-security|bookworm-security|main\n\
                       http://mirror.example/debian|bookworm|bookworm|contrib\nhttp://mirror.example/debian|oldstable|bookworm|main\n";
        let found = shell("backports_source bookworm", targets);
        assert_eq!(found, (true, "deb http://mirror.example/debian bookworm-backports main".to_owned()));
        assert_eq!(shell("backports_source trixie", targets), (false, String::new()));
    }

    #[test]
    fn the_upstream_major_version_ignores_epoch_and_debian_revision() {
        let versions = "for v in '1:10.0.2+ds-2+deb13u1~bpo12+1' '1:7.2+dfsg-7' 11-1; do upstream_major $v; done";
        assert_eq!(shell(versions, ""), (true, "10\n7\n11".to_owned()));
    }

    #[test]
    fn another_processor_needs_its_compiler_and_this_one_and_an_unknown_one_nothing() {
        let here = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
        let (other, packages) = if here == "amd64" {
            ("arm64", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
        } else {
            ("amd64", "gcc-x86-64-linux-gnu libc6-dev-amd64-cross")
        };
        let of = |arguments: &str| shell(&format!("cross_packages \"$(value_of --arch {arguments})\""), "");
        assert_eq!(of(&format!("--out x --arch {other}")), (true, packages.to_owned()));
        assert_eq!(of(&format!("--arch={other} --twice")), (true, packages.to_owned()));
        for arguments in [&format!("--arch {here}"), "--arch mips", "--arch", "--out --arch.d"] {
            assert_eq!(of(arguments), (true, String::new()), "{arguments}");
        }
    }

    #[test]
    fn the_shell_and_this_program_read_the_same_package_list() {
        let root = Workspace::locate().unwrap();
        let text = std::fs::read_to_string(root.path("hack/debian-packages")).unwrap();
        let (succeeded, listed) = shell("listed_packages .", "");
        assert!(succeeded);
        assert_eq!(listed.lines().collect::<Vec<_>>(), debian::listed(&text));
    }

    #[test]
    fn the_major_version_is_read_from_the_first_line() {
        assert_eq!(major_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(major_version("QEMU emulator version 7.2.15"), Some(7));
        assert_eq!(major_version("something else"), None);
    }
}
