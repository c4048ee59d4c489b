//! What is printed on standard output: tables for people, one JSON object a line for programs.
//!
//! `println!` panics when its reader is gone (`longhaul … | head`), and hides a full disk behind the panic; here both
//! are errors like any other.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use anyhow::Context;
use indicatif::DecimalBytes;
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON object a line, instead of tables.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a line.
    pub(crate) fn line(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        match writeln!(std::io::stdout(), "{}", text.as_ref()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.context("writing to standard output"),
        }
    }

    /// Prints an object as one line of JSON.
    pub(crate) fn object(self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string(value).context("writing the answer as JSON")?)
    }

    /// Prints a list: a JSON object for each item, or a table with a row for each, or a word where there is none.
    pub(crate) fn list<T: Serialize, const N: usize>(
        self,
        items: &[T],
        headings: [&str; N],
        row: impl Fn(&T) -> [String; N],
    ) -> anyhow::Result<()> {
        if self.json {
            return items.iter().try_for_each(|item| self.object(item));
        }
        if items.is_empty() {
            eprintln!("none");
            return Ok(());
        }
        let rows: Vec<[String; N]> = items.iter().map(row).collect();
        for line in table(headings, &rows) {
            self.line(line)?;
        }
        Ok(())
    }

    /// Prints one thing: a JSON object, or a line for each of its fields.
    pub(crate) fn one(self, item: &impl Serialize, fields: &[(&str, String)]) -> anyhow::Result<()> {
        if self.json {
            return self.object(item);
        }
        let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        fields.iter().try_for_each(|(name, value)| self.line(format!("{name:width$}  {value}")))
    }
}

/// The lines of a table: columns as wide as their widest cell, two spaces between them.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let headings = headings.map(|heading| heading.to_uppercase());
    std::iter::once(&headings).chain(rows).map(line).collect()
}

/// `3.4 MB`.
pub(crate) fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// `850 ms`, `12.3 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The same for seconds as messages have them.
pub(crate) fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The text of something that may be missing, or a dash.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long cell".to_owned()], ["longer".to_owned(), "b".to_owned()]];
        assert_eq!(table(["id", "x"], &rows), ["ID      X", "a       long cell", "longer  b"]);
    }

    #[test]
    fn durations_and_sizes_read_as_people_say_them() {
        let durations = [0.85, 12.34, 200.0, 7500.0].map(seconds);
        assert_eq!(durations, ["850 ms", "12.3 s", "3 min 20 s", "2 h 5 min"]);
        assert_eq!(size(3_400_000), "3.40 MB");
    }
}
