//! I/O: the commands of a documentation page, as a reader would copy them: the blocks of `docs/*.md` that are marked `sh`, run in order.
//!
//! What lives here: finding blocks and running them. What does not: what must hold afterwards (`tests/cluster_docs.rs`).
//!
//! Invariant: a page without a block, and a block that fails, are errors that name page and line.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::apiserver::workspace;
use crate::lab::Lab;

/// A documentation page.
#[derive(Debug)]
pub struct Page {
    name: &'static str,
    blocks: Vec<Block>,
}

/// Commands between two fences.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Of the first command, from 1.
    line: usize,
    text: String,
}

impl Page {
    /// Reads `docs/<name>`.
    pub fn read(name: &'static str) -> Result<Self> {
        let path: PathBuf = workspace().join("docs").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let blocks = blocks(&text, "```sh");
        ensure!(!blocks.is_empty(), "docs/{name} has no block marked sh");
        Ok(Self { name, blocks })
    }

    /// How many blocks it has.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Never: a page without blocks is not read.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Runs one block, 0 for the first, with these variables; gives its output.
    pub fn run_block(&self, lab: &Lab, number: usize, names: &[(&str, &str)]) -> Result<String> {
        let block = self.blocks.get(number).with_context(|| format!("docs/{} has {} blocks", self.name, self.blocks.len()))?;
        lab.script(&block.text, names).with_context(|| format!("docs/{} line {}:\n{}", self.name, block.line, block.text))
    }

    /// Runs all blocks; gives their outputs.
    pub fn run(&self, lab: &Lab, names: &[(&str, &str)]) -> Result<Vec<String>> {
        (0..self.len()).map(|number| self.run_block(lab, number, names)).collect()
    }
}

/// The first block of `docs/<name>` marked `yaml` that has an object of this kind.
pub fn object(name: &str, kind: &str) -> Result<String> {
    let path = workspace().join("docs").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let has = |block: &Block| block.text.lines().any(|line| line == format!("kind: {kind}"));
    let block = blocks(&text, "```yaml").into_iter().find(has);
    block.map(|block| block.text).with_context(|| format!("docs/{name} has no {kind} in a block marked yaml"))
}

fn blocks(text: &str, fence: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = vec![];
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match (inside, line.trim_end()) {
            (false, line) if line == fence => {
                inside = true;
                blocks.push(Block { line: number + 2, text: String::new() });
            }
            (true, "```") => inside = false,
            (true, command) => {
                if let Some(block) = blocks.last_mut() {
                    block.text.push_str(command);
                    block.text.push('\n');
                }
            }
            (false, _) => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_marked_sh_are_commands() {
        let text = "# Page\n\n```yaml\nno: command\n```\n\n```sh\none\n  two\n```\ntext\n```sh\nthree\n```\n";
        let expected = [Block { line: 8, text: "one\n  two\n".into() }, Block { line: 13, text: "three\n".into() }];
        assert_eq!(blocks(text, "```sh"), expected);
        assert_eq!(blocks(text, "```yaml"), [Block { line: 4, text: "no: command\n".into() }]);
    }
}
