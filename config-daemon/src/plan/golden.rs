//! Pure (tests): each folder `testdata/plan/<case>` says what is planned (`plan.txt`) for a wish (`desired.yaml`, a node state's spec) on a machine
//! (`observed.yaml`). Adding a case needs no code; `UPDATE_GOLDEN=1` writes the answers anew, to be read before they are committed.

use std::path::{Path, PathBuf};

use super::plan;
use crate::desired::Desired;
use crate::observed::Observed;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plan");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

#[test]
fn each_case_plans_as_written() {
    let cases = cases();
    assert!(cases.len() >= 14, "found only {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let read = |name: &str| std::fs::read_to_string(case.join(name)).unwrap_or_else(|e| panic!("{}/{name}: {e}", case.display()));
        let desired = Desired::read(&serde_saphyr::from_str(&read("desired.yaml")).unwrap_or_else(|e| panic!("{}: {e}", case.display())));
        let observed: Observed = serde_saphyr::from_str(&read("observed.yaml")).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let planned = plan(&desired, &observed).to_string();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(case.join("plan.txt"), &planned).unwrap();
        }
        let expected = read("plan.txt");
        if planned != expected {
            wrong.push(format!("--- {}\nexpected:\n{expected}\nplanned:\n{planned}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
