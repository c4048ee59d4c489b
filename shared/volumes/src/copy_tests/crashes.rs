//! A crash at any step, in the copy and then in its recovery, and edits in between.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::VolumeErrorKind;
use crate::test_support::{Crash, on_each_filesystem};

/// A crash after every step of a copy, then one after every step of its recovery, then another attempt.
#[test]
fn each_file_is_old_or_new_after_a_crash_at_any_step_and_edited_if_it_was_edited_since() {
    on_each_filesystem(|new_root| {
        let mut edited_times = 0;
        for copy_steps in 1.. {
            let mut copy_ended = false;
            for recovery_steps in 1.. {
                let projects = Projects::new(new_root());
                let (source, target) = (projects.source(), projects.target());
                for path in ["tree/both", "tree/sub/both", "tree/sub/new", "tree/whole/new", "file"] {
                    write(source.join(path), "new");
                }
                for path in ["tree/both", "tree/sub/both", "tree/sub/old"] {
                    write(target.join(path), "old");
                }
                let request =
                    projects.request(&[("tree", "tree"), ("file", "made/up/file"), ("file", "file")]);
                let all =
                    ["tree/both", "tree/sub/both", "tree/sub/new", "tree/whole/new", "made/up/file", "file"];
                let op_id = Uuid::now_v7();
                let crashing = Crash::after(&projects.root, copy_steps);
                let go_on = &mut |_| ControlFlow::Continue(());
                let outcome = crashing.copy_into(projects.target, op_id, &request, go_on);
                copy_ended = !Crash::happened(&outcome);
                // Somebody edits the first that is in place.
                let edited = all
                    .iter()
                    .find(|path| std::fs::read_to_string(target.join(path)).is_ok_and(|text| text == "new"));
                if let Some(edited) = edited {
                    write(target.join(edited), "edited");
                    edited_times += 1;
                }
                let first = Crash::after(&projects.root, recovery_steps).recover().unwrap();
                let interrupted = !first.failed.is_empty();
                for (_, error) in first.failed {
                    assert!(Crash::happened::<()>(&Err(error)));
                }
                for path in all {
                    let text = std::fs::read_to_string(target.join(path)).unwrap_or("old".into());
                    assert!(["old", "new", "edited"].contains(&text.as_str()), "{path} is {text:?}");
                }
                let second = projects.root.recover().unwrap();
                assert!(second.failed.is_empty() && second.in_use.is_empty(), "{second:?}");
                assert_eq!(names(&target).iter().filter(|name| name.starts_with('.')).count(), 0);
                let receipt = projects.copy_as(op_id, &request).unwrap();
                assert_eq!((receipt.files, receipt.replaced, receipt.kept), (7 - 1, 2, 0));
                for path in all {
                    let expected = if Some(&path) == edited { "edited" } else { "new" };
                    assert_eq!(read(target.join(path)), expected, "{path} at {copy_steps}");
                }
                assert_eq!(read(target.join("tree/sub/old")), "old");
                projects.root.forget_copy(projects.target, op_id).unwrap();
                projects.assert_nothing_staged();
                if !interrupted {
                    break;
                }
            }
            if copy_ended {
                break;
            }
        }
        assert!(edited_times > 5);
    });
}

/// Copies `tree`, of three older files, into `projects`, and stops after `steps`; tells whether it had ended, and whether
/// it was left to be put in place, in part at least.
fn stop_in_the_middle(projects: &Projects, op_id: Uuid, steps: usize) -> (bool, bool) {
    for name in ["a", "b", "sub/c"] {
        write(projects.source().join("tree").join(name), "older");
    }
    write(projects.target().join("tree/a"), "old");
    let request = projects.request(&[("tree", "tree"), ("tree/a", "made/up/file")]);
    let go_on = &mut |_| ControlFlow::Continue(());
    let crashing = Crash::after(&projects.root, steps);
    let ended = !Crash::happened(&crashing.copy_into(projects.target, op_id, &request, go_on));
    let journal = projects.root.staging().join(op_id.to_string()).join("journal.json");
    (ended, std::fs::read_to_string(journal).is_ok_and(|text| text.contains(r#""phase":"exchanging""#)))
}

/// All files that are in place.
fn in_place(projects: &Projects) -> Tree {
    let mut tree = read_tree(&projects.target());
    tree.retain(|path, _| !path.to_string_lossy().starts_with(".longhaul"));
    tree
}

/// Makes the journal of `op_id`, if there is one, look as if it had been written so long ago.
fn age(projects: &Projects, op_id: Uuid, minutes: u64) {
    let journal = projects.root.staging().join(op_id.to_string()).join("journal.json");
    if let Ok(file) = std::fs::File::options().write(true).open(journal) {
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written - Duration::from_secs(60 * minutes)).unwrap();
    }
}

fn assert_dropped(outcome: Result<CopyReceipt, VolumeError>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, VolumeError::CopyDropped { .. }), "{error:?}");
    assert_eq!(error.kind(), VolumeErrorKind::NotFound);
}

/// An older copy that stops after every step, a newer one that stops after every step, and edits.
#[test]
fn a_copy_that_was_left_in_the_middle_never_comes_over_a_later_one() {
    on_each_filesystem(|new_root| {
        let mut dropped = 0;
        for steps in 1.. {
            let mut older_ended = false;
            // The older one is ended in the first of these steps.
            for newer_steps in 1..=4 {
                let projects = Projects::new(new_root());
                let (older, newer) = (Uuid::now_v7(), Uuid::now_v7());
                let (ended, in_the_middle) = stop_in_the_middle(&projects, older, steps);
                older_ended = ended;
                for name in ["a", "b", "sub/c"] {
                    write(projects.source().join("new").join(name), "newer");
                }
                let request = projects.request(&[("new", "tree")]);
                let go_on = &mut |_| ControlFlow::Continue(());
                let crashing = Crash::after(&projects.root, newer_steps);
                assert!(Crash::happened(&crashing.copy_into(projects.target, newer, &request, go_on)));
                projects.copy_as(newer, &request).unwrap();
                write(projects.target().join("tree/a"), "edited");
                let expected = in_place(&projects);
                for path in ["b", "sub/c"] {
                    assert_eq!(read(projects.target().join("tree").join(path)), "newer");
                }

                let report = projects.root.recover().unwrap();
                assert!(report.finished.is_empty() && report.failed.is_empty(), "{report:?}");
                assert_eq!(read_tree(&projects.target()), expected);
                // Another attempt of the older one does not apply it twice.
                let older_request = projects.request(&[("tree", "tree"), ("tree/a", "made/up/file")]);
                let outcome = projects.copy_as(older, &older_request);
                if in_the_middle {
                    dropped += 1;
                    assert_dropped(outcome);
                    assert_eq!(read_tree(&projects.target()), expected);
                } else {
                    outcome.unwrap();
                }
                for op_id in [older, newer] {
                    projects.root.forget_copy(projects.target, op_id).unwrap();
                }
                projects.assert_nothing_staged();
            }
            if older_ended {
                break;
            }
        }
        assert!(dropped > 5);
    });
}

#[test]
fn a_copy_that_was_left_in_the_middle_of_another_project_or_that_is_worked_on_is_let_be() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let other = Projects::new(projects.root.clone());
        let (elsewhere, worked_on) = (Uuid::now_v7(), Uuid::now_v7());
        let in_the_middle = |op_id| {
            (1..).find(|steps| stop_in_the_middle(&other, op_id, *steps).1).unwrap();
        };
        in_the_middle(elsewhere);
        write(projects.source().join("file"), "newer");
        let request = projects.request(&[("file", "file")]);
        projects.copy_as(Uuid::now_v7(), &request).unwrap();
        assert_eq!(projects.root.recover().unwrap().finished, [elsewhere]);

        std::fs::remove_dir_all(other.target().join("tree")).unwrap();
        in_the_middle(worked_on);
        let directory = other.root.staging().join(worked_on.to_string());
        let held = std::fs::File::open(directory).unwrap();
        held.lock().unwrap();
        let request = other.request(&[("tree/a", "file")]);
        other.copy_as(Uuid::now_v7(), &request).unwrap();
        held.unlock().unwrap();
        assert_eq!(projects.root.recover().unwrap().finished, [worked_on]);
    });
}

#[test]
fn recovery_finishes_a_copy_that_was_left_in_the_middle_only_within_an_hour() {
    on_each_filesystem(|new_root| {
        let mut dropped = 0;
        for steps in 1.. {
            let mut ended = false;
            for minutes in [59, 61] {
                for recovery_steps in 1.. {
                    let projects = Projects::new(new_root());
                    let op_id = Uuid::now_v7();
                    let in_the_middle;
                    (ended, in_the_middle) = stop_in_the_middle(&projects, op_id, steps);
                    age(&projects, op_id, minutes);
                    let before = in_place(&projects);
                    let crashed = Crash::after(&projects.root, recovery_steps).recover().unwrap();
                    let report = projects.root.recover().unwrap();
                    assert!(report.failed.is_empty(), "{report:?}");
                    assert!(names(&projects.target()).iter().all(|name| !name.starts_with(".longhaul")));
                    assert!(projects.root.recover().unwrap().is_empty());
                    let request = projects.request(&[("tree", "tree"), ("tree/a", "made/up/file")]);
                    if in_the_middle && minutes > 60 {
                        dropped += 1;
                        assert_eq!(read_tree(&projects.target()), before);
                        assert!(crashed.dropped == [op_id] || !crashed.failed.is_empty());
                        assert_dropped(projects.copy_as(op_id, &request));
                        assert_eq!(read_tree(&projects.target()), before);
                    } else {
                        projects.copy_as(op_id, &request).unwrap();
                        assert_eq!(read(projects.target().join("tree/sub/c")), "older");
                    }
                    if crashed.failed.is_empty() || minutes < 60 {
                        break;
                    }
                }
            }
            if ended {
                break;
            }
        }
        assert!(dropped > 5);
    });
}

#[test]
fn the_next_attempt_finishes_a_copy_that_was_left_in_the_middle_however_old() {
    on_each_filesystem(|new_root| {
        for steps in 1.. {
            let projects = Projects::new(new_root());
            let op_id = Uuid::now_v7();
            let (ended, _) = stop_in_the_middle(&projects, op_id, steps);
            age(&projects, op_id, 24 * 60);
            let request = projects.request(&[("tree", "tree"), ("tree/a", "made/up/file")]);
            assert_eq!(projects.copy_as(op_id, &request).unwrap().files, 4);
            for path in ["tree/a", "tree/b", "tree/sub/c", "made/up/file"] {
                assert_eq!(read(projects.target().join(path)), "older");
            }
            if ended {
                break;
            }
        }
    });
}

#[test]
fn forgetting_after_a_crash_at_any_step_puts_nothing_more_in_place() {
    on_each_filesystem(|new_root| {
        let mut left_in_the_middle = 0;
        for steps in 1.. {
            let mut ended = false;
            for forget_steps in 1.. {
                let projects = Projects::new(new_root());
                let op_id = Uuid::now_v7();
                let in_the_middle;
                (ended, in_the_middle) = stop_in_the_middle(&projects, op_id, steps);
                left_in_the_middle += usize::from(in_the_middle);
                let before = in_place(&projects);
                let crashing = Crash::after(&projects.root, forget_steps);
                let forgotten = !Crash::happened(&crashing.forget_copy(projects.target, op_id));
                assert!(projects.root.recover().unwrap().finished.is_empty());
                assert_eq!(read_tree(&projects.target()), before);
                projects.root.forget_copy(projects.target, op_id).unwrap();
                assert_eq!(read_tree(&projects.target()), before);
                projects.assert_nothing_staged();
                if forgotten {
                    break;
                }
            }
            if ended {
                break;
            }
        }
        assert!(left_in_the_middle > 5);
    });
}

/// A generator of numbers that are the same for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    File(String),
    Link(String),
}

type Tree = BTreeMap<PathBuf, Node>;

fn random_tree(random: &mut Random, directory: &Path, depth: usize, text: &str, tree: &mut Tree) {
    tree.insert(directory.to_owned(), Node::Directory);
    for name in ["a", "b", "c"] {
        let path = directory.join(name);
        match random.below(if depth == 0 { 4 } else { 8 }) {
            0 => {}
            1 | 2 => drop(tree.insert(path.clone(), Node::File(format!("{text} {}", path.display())))),
            3 => drop(tree.insert(path, Node::Link(format!("../{text}")))),
            _ => random_tree(random, &path, depth - 1, text, tree),
        }
    }
}

fn make(top: &Path, tree: &Tree) {
    for (path, node) in tree {
        let path = top.join(path);
        match node {
            Node::Directory => std::fs::create_dir_all(path).unwrap(),
            Node::File(text) => std::fs::write(path, text).unwrap(),
            Node::Link(to) => symlink(to, path).unwrap(),
        }
    }
}

fn read_tree(top: &Path) -> Tree {
    let mut tree = Tree::new();
    for entry in walkdir::WalkDir::new(top).min_depth(1) {
        let entry = entry.unwrap();
        let node = match entry.file_type() {
            kind if kind.is_dir() => Node::Directory,
            kind if kind.is_symlink() => {
                Node::Link(entry.path().read_link().unwrap().to_str().unwrap().to_owned())
            }
            _ => Node::File(read(entry.path())),
        };
        tree.insert(entry.path().strip_prefix(top).unwrap().to_owned(), node);
    }
    tree
}

/// What a copy makes of `target`; `None` if it is refused.
fn model(source: &Tree, target: &Tree, request: &CopyRequest) -> Option<Tree> {
    let mut made = target.clone();
    for entry in &request.entries {
        let (from, to) = (entry.from.as_path(), entry.to.as_path());
        let parents = to.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        let parents = parents.map(|path| (path.to_owned(), Node::Directory));
        let content = source.iter().filter_map(|(path, node)| {
            let rest = path.strip_prefix(from).ok()?;
            let path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            Some((path, node.clone()))
        });
        for (path, node) in parents.chain(content) {
            match (made.get(&path), &node) {
                (None, _) => drop(made.insert(path, node)),
                (Some(Node::Directory), Node::Directory) => {}
                (Some(Node::Directory), _) | (Some(_), Node::Directory) => return None,
                (Some(_), _) => match request.options.overwrite {
                    Overwrite::Replace => drop(made.insert(path, node)),
                    Overwrite::Keep => {}
                    Overwrite::Refuse => return None,
                },
            }
        }
    }
    Some(made)
}

/// Random trees, options, crashes (of the copy, of attempts, of recoveries) and edits: what comes of it is what a model
/// says. Each seed is a case of its own, and is told if it fails.
#[test]
fn random_copies_with_random_crashes_come_to_what_a_model_says() {
    on_each_filesystem(|new_root| {
        let (mut refused, mut crashed, mut edited) = (0, 0, 0);
        for seed in 1..=60_u64 {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let projects = Projects::new(new_root());
            let (mut source, mut target) = (Tree::new(), Tree::new());
            for top in ["one", "two"] {
                random_tree(&mut random, Path::new(top), 3, "new", &mut source);
                if random.below(3) > 0 {
                    // Most often like the source, so that not every second copy is refused.
                    if random.below(3) > 0 {
                        let like = source.iter().filter(|(path, _)| path.starts_with(top));
                        for (path, node) in like {
                            let parent_is_there = path.parent().is_none_or(|above| {
                                above.as_os_str().is_empty() || target.contains_key(above)
                            });
                            if parent_is_there && random.below(3) > 0 {
                                let node = match node {
                                    Node::Directory => Node::Directory,
                                    _ => Node::File(format!("old {}", path.display())),
                                };
                                target.insert(path.clone(), node);
                            }
                        }
                    } else {
                        random_tree(&mut random, Path::new(top), 2, "old", &mut target);
                    }
                }
            }
            make(&projects.source(), &source);
            make(&projects.target(), &target);
            let mut request = projects.request(&[("one", "one"), ("two", "two"), ("one", "made/up/one")]);
            request.options.overwrite =
                [Overwrite::Replace, Overwrite::Replace, Overwrite::Keep, Overwrite::Refuse][random.below(4)];
            let expected = model(&source, &target, &request);
            let op_id = Uuid::now_v7();
            let mut edits = Tree::new();
            let outcome = loop {
                let steps = 1 + random.below(30);
                let root = Crash::after(&projects.root, steps);
                if random.below(3) == 0 {
                    let report = root.recover().unwrap();
                    report.failed.into_iter().for_each(|(_, error)| {
                        assert!(Crash::happened::<()>(&Err(error)));
                    });
                } else {
                    let go_on = &mut |_| ControlFlow::Continue(());
                    match root.copy_into(projects.target, op_id, &request, go_on) {
                        Err(VolumeError::Io { path, .. }) if path == Path::new("(crash)") => crashed += 1,
                        outcome => break outcome,
                    }
                }
                // Somebody edits a file that is in place.
                let now = read_tree(&projects.target());
                let mut in_place = now.iter().filter(|(path, node)| {
                    let new = matches!(node, Node::File(text) if text.starts_with("new"));
                    new && !path.starts_with(format!(".longhaul-staging-{op_id}"))
                });
                if let Some((path, _)) = in_place.next()
                    && random.below(2) == 0
                {
                    write(projects.target().join(path), "edited");
                    edits.insert(path.clone(), Node::File("edited".into()));
                    edited += 1;
                }
            };
            projects.root.forget_copy(projects.target, op_id).unwrap();
            projects.assert_nothing_staged();
            assert_eq!(outcome.is_ok(), expected.is_some(), "seed {seed}: {outcome:?}");
            refused += usize::from(outcome.is_err());
            let mut expected = expected.unwrap_or(target);
            expected.extend(edits);
            assert_eq!(read_tree(&projects.target()), expected, "seed {seed}");
        }
        assert!(refused > 5 && refused < 50 && crashed > 20 && edited > 5, "{refused} {crashed} {edited}");
    });
}
