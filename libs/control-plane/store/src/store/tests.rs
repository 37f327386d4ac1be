//! The store against a real file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use task_api::{ErrorCode, Priority, TaskId, TaskState, TaskView, Workload};

use super::*;
use crate::Role;

fn record(id: &str, created_ms: u64, state: TaskState) -> TaskRecord {
    TaskRecord {
        view: TaskView {
            task_id: TaskId::new(id).unwrap(),
            session_id: None,
            workload: Workload::Chat,
            dialect: None,
            priority: Priority::Interactive,
            model: Some("m".to_owned()),
            agent: None,
            owner: if id.starts_with('a') {
                "alice".to_owned()
            } else {
                "bob".to_owned()
            },
            state,
            position: None,
            placements: Vec::new(),
            created_at: String::new(),
            ended_at: None,
            usage: None,
            error: None,
            correlation_id: "c".to_owned(),
        },
        created_ms,
        ended_ms: state.is_end().then_some(created_ms + 1),
    }
}

struct Bench {
    directory: tempfile::TempDir,
    settings: StoreSettings,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = StoreSettings::new(directory.path().join("deep/remuda.db"));
        // The tasks of these tests are from 1970.
        settings.tasks_keep = Duration::from_millis(now_ms() + 1_000_000);
        Self { directory, settings }
    }

    fn open(&self) -> Store {
        Store::open(self.settings.clone(), KeyTable::default()).unwrap()
    }

    fn visit(&self) -> Store {
        Store::open_beside(self.settings.clone()).unwrap()
    }
}

/// Waits, with a bound, until something holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn spec(owner: &str) -> NewKeySpec {
    NewKeySpec {
        name: "laptop".to_owned(),
        owner: owner.to_owned(),
        role: Role::User,
        expires_ms: None,
    }
}

#[tokio::test]
async fn a_task_is_read_as_it_was_written_and_ends_once() {
    let bench = Bench::new();
    let store = bench.open();
    let queued = record("t1", 5, TaskState::Queued);
    store.insert_task(queued.clone()).await.unwrap();
    assert!(matches!(
        store.insert_task(queued.clone()).await,
        Err(StoreError::TaskExists)
    ));
    assert_eq!(
        store.task(queued.view.task_id.clone()).await.unwrap(),
        Some(queued.clone())
    );
    assert_eq!(store.task(TaskId::new("t2").unwrap()).await.unwrap(), None);

    let completed = record("t1", 5, TaskState::Completed);
    assert!(store.finish_task(completed.clone()));
    assert!(
        store.update_task(record("t1", 5, TaskState::Running)),
        "it is late and changes nothing"
    );
    assert!(
        store.finish_task(record("t2", 6, TaskState::Failed)),
        "it was never inserted"
    );
    store
        .insert_task(record("t3", 7, TaskState::Queued))
        .await
        .unwrap();
    assert_eq!(
        store.task(completed.view.task_id.clone()).await.unwrap(),
        Some(completed)
    );
    let t2 = store.task(TaskId::new("t2").unwrap()).await.unwrap().unwrap();
    assert_eq!(t2.view.state, TaskState::Failed);
    assert_eq!(store.health(), StoreHealth::default());
}

#[tokio::test]
async fn what_a_former_run_left_unfinished_has_failed() {
    let bench = Bench::new();
    let store = bench.open();
    store
        .insert_task(record("t1", 1, TaskState::Queued))
        .await
        .unwrap();
    store
        .insert_task(record("t2", 2, TaskState::Running))
        .await
        .unwrap();
    store
        .insert_task(record("t3", 3, TaskState::Completed))
        .await
        .unwrap();
    let visitor = bench.visit();
    assert_eq!(
        visitor
            .task(TaskId::new("t1").unwrap())
            .await
            .unwrap()
            .unwrap()
            .view
            .state,
        TaskState::Queued
    );
    store.close().await;
    assert!(matches!(
        store.insert_task(record("t4", 4, TaskState::Queued)).await,
        Err(StoreError::Closed)
    ));

    let store = bench.open();
    for id in ["t1", "t2"] {
        let task = store.task(TaskId::new(id).unwrap()).await.unwrap().unwrap();
        assert_eq!(task.view.state, TaskState::Failed);
        assert_eq!(task.view.error.unwrap().code, ErrorCode::WorkerReset);
        assert!(task.ended_ms.is_some() && task.view.ended_at.is_some());
    }
    let done = store.task(TaskId::new("t3").unwrap()).await.unwrap().unwrap();
    assert_eq!(done, record("t3", 3, TaskState::Completed));
}

#[tokio::test]
async fn lists_are_read_page_by_page_newest_first() {
    let bench = Bench::new();
    let store = bench.open();
    for at in 0..7 {
        let state = if at % 2 == 0 {
            TaskState::Completed
        } else {
            TaskState::Running
        };
        // Two of the same time: the id decides.
        store
            .insert_task(record(
                &format!("{}{at}", if at < 3 { "a" } else { "b" }),
                at / 2,
                state,
            ))
            .await
            .unwrap();
    }
    let pages = async |filter: TaskFilter| {
        let mut filter = TaskFilter { limit: 2, ..filter };
        let mut ids = Vec::new();
        loop {
            let (page, next) = store.list_tasks(filter.clone()).await.unwrap();
            ids.extend(page.iter().map(|record| record.view.task_id.to_string()));
            filter.cursor = next;
            if filter.cursor.is_none() {
                return ids;
            }
        }
    };
    assert_eq!(
        pages(TaskFilter::default()).await,
        ["b6", "b5", "b4", "b3", "a2", "a1", "a0"]
    );
    let alice = TaskFilter {
        owner: Some("alice".to_owned()),
        ..TaskFilter::default()
    };
    assert_eq!(pages(alice).await, ["a2", "a1", "a0"]);
    let running = TaskFilter {
        state: Some(TaskState::Running),
        ..TaskFilter::default()
    };
    assert_eq!(pages(running).await, ["b5", "b3", "a1"]);
    for cursor in ["", "x", "x.y", "99999999999999999999.a"] {
        let bad = TaskFilter {
            cursor: Some(cursor.to_owned()),
            ..TaskFilter::default()
        };
        assert!(
            matches!(store.list_tasks(bad).await, Err(StoreError::BadCursor)),
            "{cursor:?}"
        );
    }
}

#[tokio::test]
async fn keys_are_valid_at_once_and_end_when_revoked_or_expired() {
    let bench = Bench::new();
    let settings_keys = KeyTable::from_settings("given").unwrap();
    let store = Store::open(bench.settings.clone(), settings_keys).unwrap();
    let key = store.create_key(spec("alice")).await.unwrap();
    assert!(key.secret.starts_with("rmd_") && key.secret.len() == 68);
    assert_eq!(
        store.find_key(key.secret.as_bytes(), 0).unwrap().owner.as_ref(),
        "alice"
    );
    assert!(store.find_key(b"given", 0).is_some());
    let brief = store
        .create_key(NewKeySpec {
            expires_ms: Some(100),
            ..spec("bob")
        })
        .await
        .unwrap();
    assert!(store.find_key(brief.secret.as_bytes(), 99).is_some());
    assert!(store.find_key(brief.secret.as_bytes(), 100).is_none());

    let revoked = store.revoke_key(key.info.id.as_str()).await.unwrap();
    assert!(store.find_key(key.secret.as_bytes(), 0).is_none());
    assert_eq!(
        store.revoke_key(key.info.id.as_str()).await.unwrap(),
        revoked,
        "again changes nothing"
    );
    assert!(matches!(
        store.revoke_key("key-0").await,
        Err(StoreError::NoSuchKey)
    ));
    assert_eq!(store.list_keys().await.unwrap().len(), 2);
    for bad in ["", "new\nline", &"x".repeat(129)] {
        assert!(matches!(
            store.create_key(spec(bad)).await,
            Err(StoreError::BadKeyField { field: "owner" })
        ));
    }
    store.close().await;
    let file = std::fs::read(&bench.settings.path).unwrap();
    let secret = brief.secret.as_bytes();
    assert!(
        !file.windows(secret.len()).any(|window| window == secret),
        "the key itself is on the disk"
    );
    assert!(!format!("{brief:?}{:?}", store.keys()).contains(&brief.secret));
}

#[tokio::test]
async fn keys_of_another_process_are_noticed() {
    let bench = Bench::new();
    let daemon = bench.open();
    let visitor = bench.visit();
    let key = visitor.create_key(spec("alice")).await.unwrap();
    eventually("the new key", async || {
        daemon.find_key(key.secret.as_bytes(), 0).is_some()
    })
    .await;
    visitor.revoke_key(key.info.id.as_str()).await.unwrap();
    eventually("its end", async || {
        daemon.find_key(key.secret.as_bytes(), 0).is_none()
    })
    .await;
}

#[tokio::test]
async fn only_one_control_plane_has_the_file_and_only_its_user_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let store = bench.open();
    store
        .insert_task(record("t1", 1, TaskState::Queued))
        .await
        .unwrap();
    assert!(matches!(
        Store::open(bench.settings.clone(), KeyTable::default()),
        Err(StoreError::InUse { .. })
    ));
    for entry in std::fs::read_dir(bench.directory.path().join("deep")).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", entry.file_name());
    }
    drop(store);
    eventually("the lock is given back", async || {
        Store::open(bench.settings.clone(), KeyTable::default()).is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone() {
    let bench = Bench::new();
    bench.open().close().await;
    let connection = Connection::open(&bench.settings.path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open_beside(bench.settings.clone()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 99,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_store_is_left_alone_and_named() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.settings.path.parent().unwrap()).unwrap();
    let text = "something of somebody else ".repeat(1000);
    std::fs::write(&bench.settings.path, &text).unwrap();
    let error = Store::open(bench.settings.clone(), KeyTable::default()).unwrap_err();
    assert!(error.to_string().contains("deep/remuda.db"), "{error}");
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(&bench.settings.path).unwrap(), text);
    let nowhere = StoreSettings::new(bench.settings.path.join("below/a/file"));
    assert!(matches!(
        Store::open_beside(nowhere),
        Err(StoreError::Make { .. })
    ));
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_can_be_kept_is_written_later() {
    let mut bench = Bench::new();
    bench.settings.queue_max = 64;
    let store = bench.open();
    let mut inserted = 0;
    while inserted < 200 {
        store
            .insert_task(record(&format!("t{inserted}"), 1, TaskState::Queued))
            .await
            .unwrap();
        inserted += 1;
    }
    store.write(fill_disk).await.unwrap();
    let refused = loop {
        match store
            .insert_task(record(&format!("t{inserted}"), 1, TaskState::Queued))
            .await
        {
            Ok(()) => inserted += 1,
            Err(error) => break error,
        }
        assert!(inserted < 10_000, "the file has a bound");
    };
    assert!(matches!(refused, StoreError::Sql { .. }), "{refused}");
    eventually("health tells", async || store.health().failing.is_some()).await;
    let sent = (0..32)
        .filter(|at| store.finish_task(record(&format!("kept{at}"), 2, TaskState::Completed)))
        .count();
    assert_eq!(sent, 32);
    // Somebody makes room.
    let visitor = bench.visit();
    let room = |connection: &Connection| {
        connection
            .execute("DELETE FROM tasks", [])
            .map_err(sql("make room"))
    };
    assert_eq!(visitor.write(room).await.unwrap(), inserted);
    eventually("health recovers", async || store.health().failing.is_none()).await;
    for at in 0..32 {
        let task = store
            .task(TaskId::new(format!("kept{at}")).unwrap())
            .await
            .unwrap();
        assert!(task.is_some(), "kept{at} is lost");
    }
    assert_eq!(store.health().writes_lost, 0);
}

/// Bounds the file to its present size, as a full disk would.
fn fill_disk(connection: &Connection) -> Result<(), StoreError> {
    let pages: i64 = connection
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    connection
        .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap();
    Ok(())
}

#[tokio::test]
async fn old_and_surplus_tasks_are_removed_and_unfinished_ones_stay() {
    let mut bench = Bench::new();
    bench.settings.tasks_max = 10;
    bench.settings.tasks_keep = Duration::from_secs(60);
    let store = bench.open();
    let now = now_ms();
    assert!(store.update_task(record("running", 1, TaskState::Running)));
    assert!(store.finish_task(record("ancient", 2, TaskState::Completed)));
    for at in 0..30 {
        assert!(store.finish_task(record(&format!("t{at:02}"), now + at, TaskState::Completed)));
    }
    let ids = async || -> Vec<String> {
        let filter = TaskFilter {
            limit: 100,
            ..TaskFilter::default()
        };
        store
            .list_tasks(filter)
            .await
            .unwrap()
            .0
            .iter()
            .map(|record| record.view.task_id.to_string())
            .collect()
    };
    eventually("ten are left", async || ids().await.len() == 10).await;
    let left = ids().await;
    assert_eq!(
        (left[0].as_str(), left[9].as_str()),
        ("t29", "running"),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_full_queue_is_an_answer_and_is_counted() {
    let mut bench = Bench::new();
    bench.settings.queue_max = 4;
    let store = bench.open();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let (entered, inside) = oneshot::channel();
    let (blocking, _answer) = Write::act(move |_| {
        entered.send(()).unwrap();
        gate.recv().unwrap();
        Ok(())
    });
    store.send(blocking).unwrap();
    inside.await.unwrap();
    let taken = (0..10)
        .filter(|at| store.finish_task(record(&format!("t{at}"), 1, TaskState::Completed)))
        .count();
    assert_eq!(taken, 4);
    assert!(matches!(
        store.insert_task(record("x", 1, TaskState::Queued)).await,
        Err(StoreError::Busy)
    ));
    assert_eq!(store.health().writes_lost, 6);
    go.send(()).unwrap();
    eventually("the queue is empty", async || store.health().queue_depth == 0).await;
    store.close().await;
    let reopened = bench.open();
    assert!(reopened.task(TaskId::new("t3").unwrap()).await.unwrap().is_some());
    assert!(Arc::strong_count(&reopened.shared) >= 2);
}

#[tokio::test]
async fn the_catalog_keeps_models_by_name() {
    let bench = Bench::new();
    let store = bench.open();
    let model = |name: &str, bytes| CatalogModel {
        name: name.to_owned(),
        source: "hf:org/repo/file.gguf".to_owned(),
        sha256: "0".repeat(64),
        bytes,
        added_ms: 1,
    };
    store.put_model(model("b", 1)).await.unwrap();
    store.put_model(model("a", 2)).await.unwrap();
    store.put_model(model("b", 3)).await.unwrap();
    assert_eq!(store.list_models().await.unwrap(), [model("a", 2), model("b", 3)]);
    assert!(store.remove_model("b").await.unwrap());
    assert!(!store.remove_model("b").await.unwrap());
}
