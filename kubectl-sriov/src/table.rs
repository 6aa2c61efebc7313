//! Pure: rows in columns, with colour where it is wanted.
//!
//! Invariant: colour never changes the width of a column, and without colour the text says the same.

use std::fmt::Write;

/// How a cell is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it comes.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Broken.
    Bad,
}

/// Whether the reader sees colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A terminal that shows them.
    Coloured,
    /// A file, a pipe, or somebody who set `NO_COLOR`.
    Plain,
}

impl Style {
    /// Text in the colour of its tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => None,
            Tone::Good => Some(32),
            Tone::Warning => Some(33),
            Tone::Bad => Some(31),
        };
        match (self, code) {
            (Self::Coloured, Some(code)) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// With a meaning.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// Lines below a heading, two spaces between columns, nothing behind the last; an empty cell is a dash.
pub fn table(heading: &[&str], rows: &[Vec<Cell>], style: Style) -> String {
    let shown = |cell: &Cell| if cell.text.is_empty() { "-".to_owned() } else { cell.text.clone() };
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| shown(cell).chars().count()).chain([heading[column].len()]).max();
    let widths: Vec<usize> = (0..heading.len()).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    let headings: Vec<Cell> = heading.iter().map(|&name| name.into()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let plain = shown(cell);
            let gap = widths.get(column).copied().unwrap_or_default().saturating_sub(plain.chars().count());
            line.push_str(&style.paint(cell.tone, &plain));
            if column + 1 < row.len() {
                line.push_str(&" ".repeat(gap + 2));
            }
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_does_not_move_columns() {
        let rows = vec![vec![Cell::toned("ok", Tone::Good), "x".into()], vec!["longer".into(), Cell::default()]];
        assert_eq!(table(&["A", "B"], &rows, Style::Plain), "A       B\nok      x\nlonger  -\n");
        let coloured = table(&["A", "B"], &rows, Style::Coloured);
        assert!(coloured.contains("\u{1b}[32mok\u{1b}[0m      x"), "{coloured}");
    }
}
