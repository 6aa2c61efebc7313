//! I/O: whatever is in the place of the config file is followed or refused, never a panic, and hides no good resource: the corpus of the fuzz targets,
//! each of its files cut off and disturbed at every byte.
//!
//! What lives here runs in each test run; `fuzz/` looks for what nobody thought of.

#[path = "../fuzz/properties.rs"]
#[expect(clippy::panic, reason = "a property panics when it does not hold")]
mod properties;

use std::path::Path;

use anyhow::{Result, ensure};

/// The corpus of a target.
fn corpus(target: &str) -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder)?.map(|entry| Ok(std::fs::read(entry?.path())?)).collect::<Result<Vec<_>>>()?;
    ensure!(files.len() >= 9, "the corpus {target} has only {} files", files.len());
    Ok(files)
}

/// The file as it is, cut off at each place, and with each byte replaced by some that mean something in JSON or in ranges.
fn disturbed(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let cut = (0..bytes.len()).map(|end| bytes[..end].to_vec());
    let replaced = (0..bytes.len()).flat_map(|at| {
        [b'"', b'0', b'-', b'{', b'#', b',', 0xff].map(|byte| {
            let mut copy = bytes.to_vec();
            copy[at] = byte;
            copy
        })
    });
    std::iter::once(bytes.to_vec()).chain(cut).chain(replaced)
}

#[test]
fn any_file_is_followed_or_refused() -> Result<()> {
    for bytes in corpus("config")? {
        disturbed(&bytes).for_each(|input| properties::config(&input));
    }
    Ok(())
}

#[test]
fn any_selector_is_followed_or_refused_and_hides_no_good_resource() -> Result<()> {
    for bytes in corpus("selector")? {
        disturbed(&bytes).for_each(|input| properties::selector(&input));
    }
    Ok(())
}
