//! I/O (tests only): golden cases, `testdata/<subject>/<case>/{input.yaml,expected.yaml}`. A case needs no Rust; `UPDATE_GOLDEN=1` writes
//! `expected.yaml` anew, to be read before it is committed.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Runs `subject` over all of its cases; fails with the list of those that differ, or when there is none.
pub(crate) fn check<I: DeserializeOwned, O: Serialize>(subject: &str, run: impl Fn(I) -> O) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(subject);
    let mut wrong = vec![];
    let mut count = 0;
    for case in fs::read_dir(&folder).unwrap() {
        let case = case.unwrap().path();
        let input = fs::read_to_string(case.join("input.yaml")).unwrap();
        let input = serde_saphyr::from_str(&input).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let got = serde_json::to_value(run(input)).unwrap();
        let file = case.join("expected.yaml");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, serde_saphyr::to_string(&got).unwrap()).unwrap();
        }
        let expected: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap_or_default()).unwrap_or_default();
        if got != expected {
            wrong.push(format!("{}:\n--- expected\n{}\n--- got\n{}", case.display(), yaml(&expected), yaml(&got)));
        }
        count += 1;
    }
    assert!(count > 0, "no case in {}", folder.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn yaml(value: &serde_json::Value) -> String {
    serde_saphyr::to_string(value).unwrap()
}
