//! I/O: runs the tests of one file in order on one lab, which is booted once.
//!
//! What lives here: choosing tests, running them, the report in the form of Rust's own test programs. What does not: the lab, the tests.
//!
//! Rust's own harness has no end of a file: a lab in a static would never be dropped, and its tests run side by side on one machine.
//!
//! Invariant: the program fails if a test fails, if the lab does not boot, and if a chosen test was not run.
#![expect(clippy::print_stdout, reason = "the report is what a test program prints")]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::lab::topology::Topology;
use crate::lab::{EmulatorFault, Lab, check_host, diagnostics};

/// One test: its name and what it does with the lab.
pub type Test = (&'static str, fn(&mut Lab) -> Result<()>);

/// Keeps the lab of a test program until Ctrl-C.
const KEEP_VARIABLE: &str = "LAB_KEEP";

/// Makes `main` of a test file: the topology, then the tests in their order.
#[macro_export]
macro_rules! lab_tests {
    ($topology:expr; $($test:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::harness::main(|| $topology, &[$((stringify!($test), $test)),+])
        }
    };
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "panic without a text".to_owned())
}

/// Which tests were asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    filters: Vec<String>,
    exact: bool,
    list: bool,
}

impl Choice {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut choice = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--exact" => choice.exact = true,
                "--list" => choice.list = true,
                // Always so here.
                "--nocapture" | "--no-capture" | "--test-threads=1" => {}
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}: expected a part of a test's name, --exact, --list"));
                }
                _ => choice.filters.push(argument),
            }
        }
        Ok(choice)
    }

    fn takes(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        self.filters.is_empty() || self.filters.iter().any(matches)
    }
}

/// Runs the chosen tests; see [`crate::lab_tests`].
pub fn main(topology: fn() -> Topology, tests: &[Test]) -> ExitCode {
    let choice = match Choice::parse(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| choice.takes(name)).collect();
    if choice.list {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    println!("\nrunning {} tests", chosen.len());
    let failed = if chosen.is_empty() { Vec::new() } else { boot_and_run(topology, &chosen) };
    report(&failed, chosen.len(), tests.len(), started)
}

/// Runs the tests on one lab, and once more on a new one if the emulation of a guest broke down on the way: that says nothing about what was tested, and
/// a second time is a failure like any other.
fn boot_and_run(topology: fn() -> Topology, chosen: &[&Test]) -> Vec<&'static str> {
    match attempt(topology(), chosen) {
        Ok(failed) => failed,
        Err(fault) => {
            println!("---- {fault}; all tests of this file run again on a new lab, once");
            attempt(topology(), chosen).unwrap_or_else(|fault| {
                println!("---- {fault}");
                chosen.iter().map(|(name, _)| *name).collect()
            })
        }
    }
}

/// The tests that failed, or the fault of the emulation that ended the attempt.
fn attempt(topology: Topology, chosen: &[&Test]) -> Result<Vec<&'static str>, EmulatorFault> {
    let mut lab = match check_host().and_then(|()| Lab::boot(topology)) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("Error: {error:#}");
            if let Some(fault) = error.downcast_ref::<EmulatorFault>() {
                return Err(fault.clone());
            }
            for (name, _) in chosen {
                println!("test {name} ... FAILED (no lab)");
            }
            return Ok(chosen.iter().map(|(name, _)| *name).collect());
        }
    };
    println!("lab booted in {:.1} s", lab.age().as_secs_f64());
    let mut failed = Vec::new();
    for (name, test) in chosen {
        if !run_one(&mut lab, name, *test) {
            if let Some(fault) = lab.emulator_fault() {
                return Err(fault);
            }
            failed.push(*name);
            if let Err(error) = lab.recover() {
                println!("---- the lab did not recover: {error:#}");
            }
        }
    }
    if std::env::var_os(KEEP_VARIABLE).is_some_and(|value| value != "0") {
        println!("\n{KEEP_VARIABLE} is set: the lab of process {} runs until Ctrl-C.\n{}", std::process::id(), lab.state().how_to_enter());
        loop {
            std::thread::park();
        }
    }
    Ok(failed)
}

fn run_one(lab: &mut Lab, name: &str, test: fn(&mut Lab) -> Result<()>) -> bool {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| test(lab)));
    let seconds = started.elapsed().as_secs_f64();
    let reason = match outcome {
        Ok(Ok(())) => {
            println!("test {name} ... ok ({seconds:.1}s)");
            return true;
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => panic_text(&*panic),
    };
    println!("test {name} ... FAILED ({seconds:.1}s)\n---- {name} ----\n{reason}");
    println!("---- see {}", diagnostics::collect(lab, name).display());
    false
}

fn report(failed: &[&str], run: usize, all: usize, started: Instant) -> ExitCode {
    if !failed.is_empty() {
        println!("\nfailures:");
        for name in failed {
            println!("    {name}");
        }
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        run - failed.len(),
        failed.len(),
        all - run,
        started.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(arguments: &[&str]) -> Choice {
        Choice::parse(arguments.iter().map(|&argument| argument.to_owned())).unwrap()
    }

    #[test]
    fn without_a_filter_every_test_is_chosen() {
        assert!(choice(&[]).takes("anything"));
    }

    #[test]
    fn a_filter_is_a_part_of_the_name_unless_exact_is_asked_for() {
        assert!(choice(&["vfs"]).takes("vfs_are_made"));
        assert!(!choice(&["vfs", "--exact"]).takes("vfs_are_made"));
        assert!(choice(&["a", "vfs_are_made", "--exact"]).takes("vfs_are_made"));
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(Choice::parse(["--ignored".to_owned()].into_iter()).is_err());
    }
}
