//! I/O: lines for a person who looks into a failed pod, on standard error or in `logFile`. Standard output belongs to the result alone.
//!
//! What does not live here: structured logging; the process lives for milliseconds, and the runtime gets each failure as a CNI error.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// How much is written (`logLevel`); each level holds those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Failures.
    Error,
    /// What a person should know though the verb goes on.
    Warning,
    /// Each change of the machine.
    #[default]
    Info,
    /// Decisions, too.
    Debug,
}

/// Where lines go.
#[derive(Debug)]
pub struct Log {
    level: Level,
    file: Option<File>,
    context: String,
}

impl Level {
    /// The level with this name in the field's words; `panic` exists there and means the same as `error`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "panic" | "error" => Some(Self::Error),
            "warning" => Some(Self::Warning),
            "info" => Some(Self::Info),
            "debug" => Some(Self::Debug),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl Log {
    /// Lines of `level` and below, each with `context` (verb, container, interface), appended to `file`. A file that can't be opened must not
    /// stop a pod, so that standard error takes over.
    pub fn new(level: Level, file: Option<&Path>, context: String) -> Self {
        let file = file.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok());
        Self { level, file, context }
    }

    /// Writes one line if `level` is asked for. A full disk must not stop a pod either.
    pub fn write(&self, level: Level, text: &dyn fmt::Display) {
        if level > self.level {
            return;
        }
        let line = format!("sriov {} {}: {text}\n", level.name(), self.context);
        let _ = match self.file.as_ref() {
            Some(mut file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_the_level_are_appended_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sriov.log");
        for (level, verb) in [(Level::Warning, "ADD"), (Level::Debug, "DEL")] {
            let log = Log::new(level, Some(&path), format!("{verb} c0ffee/net1"));
            log.write(Level::Warning, &"odd");
            log.write(Level::Info, &"done");
        }
        let expected = "sriov warning ADD c0ffee/net1: odd\nsriov warning DEL c0ffee/net1: odd\nsriov info DEL c0ffee/net1: done\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        // Standard error takes over where the file can't be opened; the call goes on.
        Log::new(Level::Error, Some(Path::new("/proc/no/such/folder")), String::new()).write(Level::Error, &"told on standard error");
        assert_eq!(Level::parse("loud"), None);
    }
}
