//! An owner who swaps directories for links while a copy is at work, on either side.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::RenameFlags;

use super::*;
use crate::test_support::on_each_filesystem;

const ROUNDS: usize = 150;
/// On a busy machine one side of a race may come to its turn rarely: it is given time.
const MOST_ROUNDS: usize = 100 * ROUNDS;

/// Puts a link to the same path in `victim` beside each of `names` in `tree`, and calls `work` again and again while
/// another thread exchanges each name with its link all the time: until it says that it has seen enough.
fn while_swapping(tree: &Path, victim: &Path, names: &[&str], mut work: impl FnMut(usize) -> bool) {
    let mut pairs = Vec::new();
    for path in names {
        let path = Path::new(path);
        let link = path.with_extension("link");
        symlink(victim.join(path), tree.join(&link)).unwrap();
        // By handle: this thread must not be led astray by its own links.
        let around = std::fs::File::open(tree.join(path).parent().unwrap()).unwrap();
        pairs.push((around, path.file_name().unwrap().to_owned(), link.file_name().unwrap().to_owned()));
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for (around, name, link) in &pairs {
                    rustix::fs::renameat_with(around, name, around, link, RenameFlags::EXCHANGE).unwrap();
                    std::thread::yield_now();
                }
            }
        });
        // Also ends the thread if the work panics, so that the test fails rather than hangs.
        let _over = OnDrop(&over);
        for round in 0..MOST_ROUNDS {
            if work(round) && round + 1 >= ROUNDS {
                break;
            }
        }
    });
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All that is written in the files of a tree, links not followed.
fn texts(tree: &Path) -> Vec<String> {
    walkdir::WalkDir::new(tree)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| read(entry.path()))
        .collect()
}

#[test]
fn nothing_outside_the_source_is_read_whatever_its_owner_swaps() {
    for dereference in [false, true] {
        on_each_filesystem(|new_root| {
            let projects = Projects::new(new_root());
            let source = projects.source();
            let victim = projects.root.ensure_volume(Uuid::new_v4()).unwrap().project_dir;
            // The victim has the same names, so that a link followed anywhere would find something to read.
            for (place, text) in [(&source, "ours"), (&victim, "secret")] {
                write(place.join("tree/sub/inner/file"), text);
                write(place.join("tree/sub/file"), text);
                write(place.join("tree/file"), text);
            }
            let names = ["tree", "tree/sub", "tree/sub/inner", "tree/sub/file"];
            let mut copied = 0;
            while_swapping(&source, &victim, &names, |round| {
                let to = format!("copy-{round}");
                let from = ["tree", "tree/sub/inner/file", "tree/sub"][round % 3];
                let mut request = projects.request(&[(from, &to)]);
                request.options.dereference = dereference;
                if projects.copy(&request).is_ok() {
                    copied += 1;
                }
                copied > 0
            });
            let texts = texts(&projects.target());
            assert!(texts.iter().all(|text| text == "ours"), "something outside was read");
            assert!(copied > 0);
        });
    }
}

#[test]
fn nothing_outside_the_target_is_written_whatever_its_owner_swaps() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        let victim = projects.root.ensure_volume(Uuid::new_v4()).unwrap().project_dir;
        for (place, text) in [(&source, "new"), (&target, "old"), (&victim, "victim")] {
            write(place.join("tree/sub/inner/file"), text);
            write(place.join("tree/sub/file"), text);
        }
        write(source.join("tree/sub/inner/more"), "new");
        let names = ["tree", "tree/sub", "tree/sub/inner"];
        let before = walkdir::WalkDir::new(&victim).into_iter().count();
        let (mut copied, mut refused) = (0, 0);
        while_swapping(&target, &victim, &names, |round| {
            let to = ["tree", "tree/sub", "tree/sub/inner"][round % 3];
            let entries = [(to, to), ("tree/sub/file", &format!("tree/sub/made-{round}/deep"))];
            match projects.copy(&projects.request(&entries)) {
                Ok(_) => copied += 1,
                Err(_) => refused += 1,
            }
            copied > 0 && refused > 0
        });
        assert_eq!(walkdir::WalkDir::new(&victim).into_iter().count(), before);
        assert!(texts(&victim).iter().all(|text| text == "victim"));
        assert!(copied > 0 && refused > 0, "{copied} {refused}");
    });
}

#[test]
fn a_staging_directory_that_is_stolen_while_a_copy_is_at_work_leads_nowhere() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let target = projects.target();
        let victim = projects.root.ensure_volume(Uuid::new_v4()).unwrap().project_dir;
        write(victim.join("entry-0/tree/file"), "victim");
        write(projects.source().join("tree/sub/file"), "new");
        write(target.join("tree/sub/file"), "old");
        let before = walkdir::WalkDir::new(&victim).into_iter().count();
        let over = AtomicBool::new(false);
        let stolen = AtomicUsize::new(0);
        let mut copied = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for name in names(&target).into_iter().filter(|name| name.starts_with(".longhaul")) {
                        let staging = target.join(name);
                        let number = stolen.load(Ordering::Relaxed);
                        if std::fs::rename(&staging, target.join(format!("stolen-{number}"))).is_ok() {
                            let _ = symlink(&victim, &staging);
                            stolen.store(number + 1, Ordering::Relaxed);
                        }
                    }
                    // Sometimes late, so that all stages of a copy are met.
                    (0..stolen.load(Ordering::Relaxed) % 7).for_each(|_| std::thread::yield_now());
                }
            });
            let _over = OnDrop(&over);
            for round in 0..MOST_ROUNDS {
                if round >= ROUNDS && stolen.load(Ordering::Relaxed) > 5 {
                    break;
                }
                let request = projects.request(&[("tree", "tree"), ("tree", &format!("new-{round}"))]);
                let op_id = Uuid::now_v7();
                copied += usize::from(projects.copy_as(op_id, &request).is_ok());
                let _ = projects.root.forget_copy(projects.target, op_id);
            }
        });
        let stolen = stolen.into_inner();
        assert!(stolen > 5, "{stolen} {copied}");
        assert_eq!(walkdir::WalkDir::new(&victim).into_iter().count(), before);
        assert_eq!(texts(&victim), ["victim"]);
        let texts = texts(&target.join("tree"));
        assert!(texts == ["old"] || texts == ["new"]);
    });
}
