//! I/O: `cargo xtask test`: the test tiers one after the other, with the time of each and one line of counts at the end. What the tiers hold is
//! CONTRIBUTING.md's to say; what a tier runs is the table below.
//!
//! Invariant: nothing is skipped in silence. A tier that ran no test, an ignored test, or a test binary that ended without its `test result:` line
//! counts as a failure.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::check;
use crate::image::products::WHOLE_WORKSPACE;
use crate::workspace::{Workspace, show};

/// A test tier, 0 to 3.
type Tier = u8;

/// What one `test result:` line says, or a sum of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The targets of a tier, for cargo: everything inside the crates, then the files of `tests/tests` by the tier in their names.
fn targets(tier: Tier) -> &'static [&'static str] {
    match tier {
        0 => &["--lib", "--bins", "--test", "program", "--test", "hostile_*"],
        1 => &["--test", "apiserver_*", "--test", "contract_*", "--test", "lab_*", "--test", "netns_*", "--test", "plugin_*"],
        2 => &["--test", "vm_*"],
        _ => &["--test", "cluster_*"],
    }
}

/// The cargo command line of a tier. Always the whole workspace with the features of all tiers: with a smaller choice the dependencies would have other
/// features, and all of them would be compiled once more for each tier.
fn command(tier: Tier) -> Vec<&'static str> {
    let mut arguments = vec!["test", "--no-fail-fast"];
    arguments.extend(WHOLE_WORKSPACE);
    arguments.extend(targets(tier));
    arguments
}

/// `0,2` as a set; an error names what is allowed.
pub(crate) fn tiers(text: &str) -> Result<BTreeSet<Tier>> {
    let parse = |part: &str| match part.trim().parse() {
        Ok(tier @ 0..=3) => Ok(tier),
        _ => bail!("tier {part:?} does not exist; tiers are 0, 1, 2 and 3"),
    };
    text.split(',').map(parse).collect()
}

/// Runs the tiers in order and ends with the line of counts; whether all passed. A tier that cannot run does not stop the others.
pub(crate) fn run(workspace: &Workspace, tiers: &BTreeSet<Tier>) -> bool {
    let started = Instant::now();
    let mut total = Counts::default();
    let mut lines = Vec::new();
    let mut lab_is_built = false;
    for tier in tiers {
        let tier_started = Instant::now();
        let counts = one(workspace, *tier, &mut lab_is_built).unwrap_or_else(|error| {
            println!("tier {tier} could not run: {error:#}");
            Counts { failed: 1, ..Counts::default() }
        });
        let line = format!("tier {tier}: {} passed, {} failed, {}", counts.passed, counts.failed, minutes(tier_started.elapsed()));
        println!("{line}");
        lines.push(line);
        total += counts;
    }
    println!("\n{}\nall: {}", lines.join("\n"), minutes(started.elapsed()));
    println!("{} passed, {} failed", total.passed, total.failed);
    total.failed == 0
}

/// The tools and machine images that tiers 1 to 3 use. In a process of its own, whose standard output is the path of what it made.
fn lab() -> Result<()> {
    println!("\n== lab: tools and machine images");
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    let output = command.arg("lab-build").stderr(Stdio::inherit()).output().context("start lab-build")?;
    ensure!(output.status.success(), "lab-build failed ({})", output.status);
    println!("lab: {} ({})", String::from_utf8_lossy(&output.stdout).trim(), minutes(started.elapsed()));
    Ok(())
}

fn one(workspace: &Workspace, tier: Tier, lab_is_built: &mut bool) -> Result<Counts> {
    if tier > 0 && !*lab_is_built {
        lab()?;
        *lab_is_built = true;
    }
    println!("\n== tier {tier}");
    let mut counts = Counts::default();
    counts += cargo(workspace, &command(tier))?;
    if tier == 1 {
        let outcome = check::run(workspace, &[])?;
        counts += Counts { passed: outcome.passed, failed: outcome.failed, ignored: 0 };
    }
    Ok(judged(tier, counts))
}

/// Pure: the counts with what would otherwise look green turned into a failure.
fn judged(tier: Tier, mut counts: Counts) -> Counts {
    if counts.ignored > 0 {
        println!("tier {tier}: {} tests were ignored; a skipped test is not a passed one", counts.ignored);
        counts.failed += counts.ignored;
        counts.ignored = 0;
    }
    if counts.passed + counts.failed == 0 {
        println!("tier {tier}: no test ran");
        counts.failed = 1;
    }
    counts
}

/// Runs one cargo test command to its end, shows its output as it comes, and sums its results.
fn cargo(workspace: &Workspace, arguments: &[&str]) -> Result<Counts> {
    let mut command = workspace.cargo(arguments);
    println!("$ {}", show(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {}", show(&command)))?;
    let stdout = child.stdout.take().context("the output of cargo test is not connected")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("read the output of cargo test")?).into_owned();
        writeln!(std::io::stdout(), "{line}").context("show the output of cargo test")?;
        lines.push(line);
    }
    let status = child.wait().context("wait for cargo test")?;
    Ok(verdict(lines.iter().map(String::as_str), status.success()))
}

/// Pure: the sum of the `test result:` lines. A run that failed without a failed test (it did not compile, it was killed) counts as one failure.
fn verdict<'a>(lines: impl Iterator<Item = &'a str>, succeeded: bool) -> Counts {
    let mut counts = Counts::default();
    for result in lines.filter_map(result) {
        counts += result;
    }
    if !succeeded && counts.failed == 0 {
        counts.failed = 1;
    }
    counts
}

/// Pure: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result(line: &str) -> Option<Counts> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = numbers.split(';').find(|part| part.trim().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored").unwrap_or(0) })
}

/// `3 min 07 s`.
fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{:.1} s", time.as_secs_f64()) } else { format!("{} min {:02} s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_left_out() {
        let lines = [
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "the test result: ok. 9 passed; 0 failed",
        ];
        assert_eq!(verdict(lines.into_iter(), false), Counts { passed: 4, failed: 2, ignored: 1 });
    }

    #[test]
    fn a_short_result_line_of_an_own_harness_is_understood() {
        assert_eq!(result("test result: ok. 5 passed; 0 failed"), Some(Counts { passed: 5, failed: 0, ignored: 0 }));
    }

    #[test]
    fn each_test_file_is_in_one_tier() {
        let files = Workspace::locate().unwrap().files().unwrap();
        let of_cargo = |path: &&PathBuf| path.extension().is_some_and(|e| e == "rs") && path.parent().is_some_and(|folder| folder.ends_with("tests"));
        let names: Vec<&str> = files.iter().filter(of_cargo).filter_map(|path| path.file_stem()?.to_str()).collect();
        assert!(names.contains(&"contract_seams"), "{names:?}");
        for name in names {
            let takes = |pattern: &&&str| pattern.strip_suffix('*').map_or(name == **pattern, |start| name.starts_with(start));
            let tiers = (0..=3).filter(|tier| targets(*tier).iter().any(|pattern| takes(&pattern))).count();
            assert_eq!(tiers, 1, "tests/{name}.rs is in {tiers} tiers");
        }
    }

    #[test]
    fn a_run_that_ends_badly_without_a_result_is_a_failure() {
        assert_eq!(verdict(["error: could not compile"].into_iter(), false).failed, 1);
    }

    #[test]
    fn a_tier_without_a_test_and_an_ignored_test_are_failures() {
        assert_eq!(judged(2, Counts::default()).failed, 1);
        assert_eq!(judged(0, Counts { passed: 3, failed: 0, ignored: 2 }), Counts { passed: 3, failed: 2, ignored: 0 });
        assert_eq!(judged(0, Counts { passed: 3, failed: 0, ignored: 0 }).failed, 0);
    }

    #[test]
    fn tiers_are_chosen_by_number() {
        assert_eq!(tiers("0, 2").unwrap(), BTreeSet::from([0, 2]));
        for bad in ["4", "", "0,", "-1", "unit"] {
            assert!(tiers(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(minutes(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(minutes(Duration::from_secs(187)), "3 min 07 s");
    }
}
