//! I/O: fuzzes `journal` of the properties.
#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use std::sync::LazyLock;

use tempfile::TempDir;

static FOLDER: LazyLock<Option<TempDir>> = LazyLock::new(|| tempfile::tempdir().ok());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(folder) = &*FOLDER {
        properties::journal(data, folder.path());
    }
});
