//! The files of the projects, and the people who edit them all the while.
//!
//! What is written comes from the seed. Which backup sees it is a matter of milliseconds.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::time::Instant;

/// Files that are there from the beginning, and never go.
pub(crate) const NOTES: usize = 24;
/// A directory that is there from the beginning, with so many files.
pub(crate) const PLANS: &str = "plans";
const FILES_IN_PLANS: usize = 6;
/// What restores and copies bring is called so, and thrown away now and then.
pub(crate) const BROUGHT: &str = "brought-";
const LONGEST_BYTES: usize = 32 * 1024;
const BETWEEN_TWO_EDITS: std::ops::Range<u64> = 50..400;
/// One of so many edits is to throw away.
const THROWN_AWAY: u32 = 12;

/// A file that is there from the beginning.
pub(crate) fn note(number: usize) -> String {
    format!("notes-{number}.txt")
}

/// Makes what a project has at first.
pub(crate) fn make(files: &Path, persist: &Path, random: &mut StdRng) -> std::io::Result<()> {
    fs::create_dir_all(files.join(PLANS))?;
    for number in 0..NOTES {
        fs::write(files.join(note(number)), text(random))?;
    }
    for number in 0..FILES_IN_PLANS {
        fs::write(files.join(PLANS).join(note(number)), text(random))?;
    }
    fs::write(persist.join("store"), text(random))
}

/// Edits one file of one of these projects after the other, until then.
pub(crate) async fn go_on(seed: u64, projects: Vec<PathBuf>, until: Instant) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed ^ 0xed17);
    while Instant::now() < until {
        let files = projects[random.random_range(0..projects.len())].clone();
        let number = random.random_range(0..NOTES + FILES_IN_PLANS);
        let is_to_throw_away = random.random_range(0..THROWN_AWAY) == 0;
        let text = text(&mut random);
        tokio::task::spawn_blocking(move || match (is_to_throw_away, number.checked_sub(NOTES)) {
            (true, _) => throw_away(&files),
            (false, None) => write(&files.join(note(number)), &text),
            (false, Some(number)) => write(&files.join(PLANS).join(note(number)), &text),
        })
        .await??;
        tokio::time::sleep(Duration::from_millis(random.random_range(BETWEEN_TWO_EDITS))).await;
    }
    Ok(())
}

fn text(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..LONGEST_BYTES)];
    random.fill_bytes(&mut bytes);
    bytes
}

/// A restore may just be putting an old one in its place, which is no error of whoever edits.
fn write(file: &Path, text: &[u8]) -> std::io::Result<()> {
    unless_it_is_gone(fs::write(file, text))
}

fn throw_away(files: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(files)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(BROUGHT) {
            let removed = match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
            unless_it_is_gone(removed)?;
        }
    }
    Ok(())
}

fn unless_it_is_gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
