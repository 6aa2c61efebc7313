//! I/O: shell scripts on the host, as an administrator of the lab's cluster would run them: with `kubectl`, `helm` and `kubectl-sriov` in the PATH.
//!
//! What lives here: the environment of a script. What does not: where commands come from (`crate::pages`).
//!
//! Invariant: a script sees nothing of the person who runs the tests: no environment, no kubeconfig, no settings of Helm.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Lab, artifacts};

impl Lab {
    /// Runs a script with `names` in its environment, in a folder that later scripts find as it was left. Gives its standard output.
    pub fn script(&self, text: &str, names: &[(&str, &str)]) -> Result<String> {
        let home = self.run.file("scripts");
        let tools = home.join("bin");
        if !tools.is_dir() {
            self.link_tools(&tools)?;
        }
        let kubeconfig = self.control_plane.as_ref().context("this lab has no control plane")?.kubeconfig();
        let environment = [
            ("PATH", format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", tools.display())),
            ("HOME", home.display().to_string()),
            ("KUBECONFIG", kubeconfig),
        ];
        let mut argv = vec!["env".to_owned(), "-i".to_owned()];
        argv.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
        argv.extend(names.iter().map(|(name, value)| format!("{name}={value}")));
        let text = format!("cd \"$HOME\"\n{text}");
        argv.extend(["sh".to_owned(), "-eu".to_owned(), "-c".to_owned(), text]);
        self.processes.output(&argv)
    }

    fn link_tools(&self, folder: &Path) -> Result<()> {
        let artifacts = self.artifacts()?;
        let ours = artifacts::product("kubectl-sriov")?.display().to_string();
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        for (name, program) in [("kubectl", artifacts.program("kubectl")?), ("helm", artifacts.program("helm")?), ("kubectl-sriov", ours)] {
            match symlink(program, folder.join(name)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).with_context(|| format!("link {name}")),
                _ => {}
            }
        }
        Ok(())
    }
}
