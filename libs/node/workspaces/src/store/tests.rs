use super::*;

const NOW: u64 = 1_000_000_000_000;

fn store(directory: &Path, per_owner_max: usize) -> Store {
    let settings = StoreSettings {
        directory: directory.to_owned(),
        limits: Limits {
            bytes_max: 1 << 20,
            entries_max: 100,
        },
        per_owner_max,
        idle_max: Duration::from_secs(10),
    };
    Store::open(settings).unwrap()
}

fn tar_with(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = crate::archive::header(tar::EntryType::Regular, 0o644, content.len() as u64, 0);
    builder
        .append_data(&mut header, "file", content.as_bytes())
        .unwrap();
    builder.into_inner().unwrap()
}

fn made(store: &Store, owner: &str, content: &str, now_ms: u64) -> Record {
    let draft = store.draft(owner, tar_with(content).as_slice()).unwrap();
    store
        .create(owner, &new_id(), &draft, None, now_ms, |_| false)
        .unwrap()
}

fn said(archive: &Archive) -> String {
    String::from_utf8(archive.content(&archive.nodes()[&b"file"[..]]).unwrap()).unwrap()
}

/// Everything that lies in the directory of the only owner.
fn left(directory: &Path) -> Vec<String> {
    let owners = names(directory).unwrap();
    let mut all: Vec<String> = owners
        .iter()
        .flat_map(|owner| names(&directory.join(owner)).unwrap())
        .collect();
    all.sort();
    all
}

#[test]
fn a_workspace_is_its_owners_and_keeps_its_base() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), 4);
    let record = made(&store, "ann", "one", NOW);
    assert_eq!(store.get("bob", &record.id, NOW).unwrap(), None);
    assert_eq!(store.get("ann", "../x", NOW).unwrap(), None);
    assert!(matches!(
        store.archives("bob", &record.id),
        Err(StoreError::Unknown)
    ));
    assert!(!store.remove("bob", &record.id).unwrap());

    let used = store.note_use(&record, "t1", Some("s"), NOW + 1).unwrap();
    assert_eq!(store.of_task("ann", "t1", NOW).unwrap(), Some(used.clone()));
    assert_eq!(store.of_task("bob", "t1", NOW).unwrap(), None);
    assert_eq!(store.of_session("ann", "s", NOW).unwrap(), Some(used));
    assert_eq!(store.of_session("ann", "x", NOW).unwrap(), None);
    for (version, content) in [(0, "two"), (1, "three")] {
        let draft = store.draft("ann", tar_with(content).as_slice()).unwrap();
        let stale = store.put("ann", &record.id, &draft, Some(9), NOW);
        assert!(matches!(stale, Err(StoreError::Changed)));
        let newer = store.put("ann", &record.id, &draft, Some(version), NOW).unwrap();
        drop(draft);
        assert_eq!(newer.version, version + 1);
    }
    let (base, now) = store.archives("ann", &record.id).unwrap();
    assert_eq!((said(&base), said(&now)), ("one".to_owned(), "three".to_owned()));
    let mut files = names(&store.directory("ann", &record.id)).unwrap();
    files.sort();
    assert_eq!(files, ["0.tar", "2.tar", "record.json"]);
    assert!(store.remove("ann", &record.id).unwrap());
    assert_eq!(left(directory.path()), Vec::<String>::new());
}

#[test]
fn what_has_expired_is_gone_at_once_and_removed_by_whoever_sweeps() {
    let directory = tempfile::tempdir().unwrap();
    let record = made(&store(directory.path(), 4), "ann", "one", NOW);
    // Another process, later.
    let store = store(directory.path(), 4);
    assert!(store.get("ann", &record.id, NOW + 9_999).unwrap().is_some());
    assert_eq!(store.get("ann", &record.id, NOW + 10_000).unwrap(), None);
    store.sweep(NOW + 9_999, |_| false).unwrap();
    assert_eq!(left(directory.path()), [&*record.id]);
    store.sweep(NOW + 10_000, |id| id == record.id).unwrap();
    assert_eq!(left(directory.path()), [&*record.id], "it is in use");
    store.sweep(NOW + 10_000, |_| false).unwrap();
    assert_eq!(names(directory.path()).unwrap(), Vec::<String>::new());
}

#[test]
fn the_one_that_was_not_used_for_the_longest_time_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), 2);
    let first = made(&store, "ann", "1", NOW);
    let second = made(&store, "ann", "2", NOW + 1);
    let others = made(&store, "bob", "1", NOW);
    store.note_use(&first, "t", None, NOW + 2).unwrap();
    let third = made(&store, "ann", "3", NOW + 3);
    let ids = |owner| {
        let mut ids: Vec<_> = store
            .list(owner, NOW)
            .unwrap()
            .into_iter()
            .map(|one| one.id)
            .collect();
        ids.sort();
        ids
    };
    let mut expect = [first.id, third.id];
    expect.sort();
    assert_eq!(ids("ann"), expect);
    assert_eq!(ids("bob"), [others.id]);
    assert_eq!(store.get("ann", &second.id, NOW).unwrap(), None);
    // What is in use stays, though it is one too many.
    let draft = store.draft("ann", tar_with("4").as_slice()).unwrap();
    store
        .create("ann", &new_id(), &draft, None, NOW + 4, |_| true)
        .unwrap();
    assert_eq!(ids("ann").len(), 3);
}

#[test]
fn what_a_death_left_half_done_is_swept_and_what_is_alive_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), 2);
    assert!(store.draft("ann", &b"no archive"[..]).is_err());
    assert_eq!(left(directory.path()), Vec::<String>::new());
    let alive = store.draft("ann", tar_with("1").as_slice()).unwrap();
    let owner = store.owner_directory("ann");
    for name in [".new-dead", ".old-dead", "0123456789abcdef0123456789abcdef"] {
        make_directory(&owner.join(name)).unwrap();
    }
    let long_ago = SystemTime::now() - LOCK_TIME_MAX * 2;
    for path in [owner.join(".new-dead"), alive.path.clone()] {
        File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    store.sweep(NOW, |_| false).unwrap();
    let name = alive.path.file_name().unwrap().to_str().unwrap();
    assert_eq!(left(directory.path()), [name]);
    drop(alive);
    store.sweep(NOW, |_| false).unwrap();
    assert_eq!(names(directory.path()).unwrap(), Vec::<String>::new());
}
