//! Looking into backups page by page.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::sync::Arc;

use backup_repository::*;
use support::*;
use tokio::runtime::Handle;

async fn browser(test: &TestRepository) -> Arc<Browser> {
    let (location, handle) = (test.location(), Handle::current());
    let open = move || Repository::open_for_reading(location, handle).unwrap().into_browser().unwrap();
    Arc::new(blocking(open).await)
}

fn list(snapshot: SnapshotId, path: Option<&str>, depth: u32, limit: u32) -> ListQuery {
    ListQuery { snapshot, path: path.map(|path| path.parse().unwrap()), depth, limit, after: None }
}

/// Every entry, page after page, and how many pages there were.
async fn all_pages(browser: &Arc<Browser>, mut query: ListQuery) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    for pages in 1.. {
        let (looking, asked) = (Arc::clone(browser), query.clone());
        let page = blocking(move || looking.list_page(&asked).unwrap()).await;
        assert!(page.exists && page.entries.len() <= query.limit as usize);
        names.extend(page.entries.into_iter().map(|entry| entry.path));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return (names, pages),
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_show_each_entry_once_in_the_order_of_a_walk() {
    let test = TestRepository::new().await;
    let mut expected = Vec::new();
    for directory in ["a", "a.b", "b"] {
        expected.push(directory.to_owned());
        fs::create_dir_all(test.project().join(directory).join("deep/er")).unwrap();
        expected.push(format!("{directory}/deep"));
        expected.push(format!("{directory}/deep/er"));
        for number in 0..7 {
            let name = format!("{directory}/deep/er/{number}");
            fs::write(test.project().join(&name), b"x").unwrap();
            expected.push(name);
        }
        fs::create_dir(test.project().join(directory).join("empty")).unwrap();
        expected.push(format!("{directory}/empty"));
    }
    let snapshot = test.back_up(test.request(None)).await.unwrap().snapshot;
    let browser = browser(&test).await;
    for limit in [1, 2, 3, 5, 100] {
        let (names, _) = all_pages(&browser, list(snapshot, Some("project"), 16, limit)).await;
        assert_eq!(names, expected, "limit {limit}");
    }
    let (names, _) = all_pages(&browser, list(snapshot, None, 1, 1)).await;
    assert_eq!(names, ["persist", "project"]);
    let (names, pages) = all_pages(&browser, list(snapshot, Some("project"), 1, 3)).await;
    assert_eq!((names, pages), (["a", "a.b", "b"].map(str::to_owned).to_vec(), 1));
    let (names, _) = all_pages(&browser, list(snapshot, Some("project/b"), 2, 2)).await;
    assert_eq!(names, ["deep", "deep/er", "empty"]);
    let (names, _) = all_pages(&browser, list(snapshot, Some("project/a/deep/er/3"), 1, 9)).await;
    assert_eq!(names, ["3"]);
    for missing in ["project/c", "project/a/deep/er/3/x", "persist/a"] {
        let (looking, query) = (Arc::clone(&browser), list(snapshot, Some(missing), 1, 9));
        assert!(!blocking(move || looking.list_page(&query).unwrap().exists).await, "{missing}");
    }
    let bad = ListQuery { after: Some("no base64!".to_owned()), ..list(snapshot, None, 1, 9) };
    let looking = Arc::clone(&browser);
    let error = blocking(move || looking.list_page(&bad).unwrap_err()).await;
    assert_eq!(error.kind(), BackupRepositoryErrorKind::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_hundred_thousand_entries_pages_within_bounded_answers() {
    let test = TestRepository::new().await;
    let many = test.project().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..100_000 {
        fs::File::create(many.join(format!("{number:06}-\u{1}\u{1}"))).unwrap();
    }
    let snapshot = test.back_up(test.request(None)).await.unwrap().snapshot;
    let browser = browser(&test).await;
    let (names, pages) = all_pages(&browser, list(snapshot, Some("project/many"), 1, 1000)).await;
    assert_eq!((names.len(), pages), (100_000, 100));
    assert!(names.is_sorted() && names[99_999].starts_with("099999"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_goes_through_all_backups_and_finds_what_a_look_at_every_path_finds() {
    let test = TestRepository::new().await;
    let mut snapshots = Vec::new();
    for round in 0..4 {
        fs::create_dir_all(test.project().join("src/nested")).unwrap();
        fs::create_dir_all(test.project().join("same/without/any")).unwrap();
        fs::write(test.project().join("same/without/any/text.txt"), b"t").unwrap();
        fs::write(test.project().join(format!("src/nested/{round}.rs")), format!("{round}")).unwrap();
        fs::write(test.project().join("main.rs"), format!("{round}")).unwrap();
        snapshots.push(test.back_up(test.request(None)).await.unwrap().snapshot);
    }
    let browser = browser(&test).await;
    let mut expected = Vec::new();
    for (round, snapshot) in snapshots.iter().enumerate() {
        expected.push((*snapshot, "project/main.rs".to_owned()));
        expected.extend((0..=round).map(|number| (*snapshot, format!("project/src/nested/{number}.rs"))));
    }
    for limit in [1, 2, 5, 100] {
        let mut query =
            FindQuery { glob: "**/*.rs".to_owned(), snapshots: snapshots.clone(), limit, after: None };
        let mut found = Vec::new();
        loop {
            let (looking, asked) = (Arc::clone(&browser), query.clone());
            let page = blocking(move || looking.find_page(&asked).unwrap()).await;
            found.extend(page.matches.into_iter().map(|(snapshot, entry)| (snapshot, entry.path)));
            let Some((stopped, after)) = page.stopped else { break };
            query.snapshots.drain(..query.snapshots.iter().position(|id| *id == stopped).unwrap());
            query.after = Some(after);
        }
        assert_eq!(found, expected, "limit {limit}");
    }
}
