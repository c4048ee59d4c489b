//! What the processes of a system said, for the reader of a failed test.

use std::fs;
use std::path::Path;

/// Lines of each log that are shown.
const LINES: usize = 60;

/// Prints the end of each log to standard error.
pub(crate) fn print(data_directory: &Path) {
    let Ok(entries) = fs::read_dir(data_directory.join("logs")) else { return };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(LINES)..];
        eprintln!("--- {} ({} lines)\n{}", file.display(), lines.len(), end.join("\n"));
    }
}
