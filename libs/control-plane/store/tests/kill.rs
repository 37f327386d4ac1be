//! What was confirmed survives `kill -9`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use store::{KeyTable, Store, StoreSettings, TaskRecord};
use task_api::{Priority, TaskId, TaskState, TaskView, Workload};

/// Set for the child: where its store is.
const PATH_VARIABLE: &str = "STORE_KILL_TEST_PATH";
/// How many confirmations the parent waits for before it kills.
const CONFIRMED: usize = 200;

fn record(id: usize) -> TaskRecord {
    TaskRecord {
        view: TaskView {
            task_id: TaskId::new(format!("t{id}")).expect("letters and digits"),
            session_id: None,
            workload: Workload::Chat,
            dialect: None,
            priority: Priority::Interactive,
            model: None,
            agent: None,
            owner: "o".to_owned(),
            state: TaskState::Running,
            position: None,
            placements: Vec::new(),
            created_at: String::new(),
            ended_at: None,
            usage: None,
            error: None,
            correlation_id: String::new(),
        },
        created_ms: 1,
        ended_ms: None,
    }
}

/// Not a test by itself: the child that writes until it is killed, eight tasks at a time.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(path) = std::env::var(PATH_VARIABLE) else {
        return;
    };
    let store = Store::open(StoreSettings::new(path), KeyTable::default()).unwrap();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for at in 0..100_000 {
                let id = at * 8 + writer;
                store.insert_task(record(id)).await.unwrap();
                println!("confirmed {id}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn confirmed_tasks_survive_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("remuda.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(PATH_VARIABLE, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let read = |line: String| {
        line.rsplit_once("confirmed ")
            .map(|(_, id)| id.parse::<usize>().unwrap())
    };
    let mut confirmed: Vec<usize> = lines.by_ref().filter_map(read).take(CONFIRMED).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had said before it died counts too; the last line may be cut.
    let ended_well = |line: &String| line.contains("confirmed ");
    confirmed.extend(
        lines
            .filter(ended_well)
            .collect::<Vec<_>>()
            .split_last()
            .into_iter()
            .flat_map(|(_, whole)| whole.iter().cloned().filter_map(read).collect::<Vec<_>>()),
    );
    assert!(confirmed.len() >= CONFIRMED);

    let store = Store::open(StoreSettings::new(&path), KeyTable::default()).unwrap();
    for id in confirmed {
        let task = store.task(TaskId::new(format!("t{id}")).unwrap()).await.unwrap();
        let task = task.unwrap_or_else(|| panic!("t{id} was confirmed and is lost"));
        assert_eq!(task.view.state, TaskState::Failed, "it was not finished");
    }
}
