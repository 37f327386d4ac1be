//! How many tasks the store takes, and what they cost: `cargo run --release -p store --example throughput [DIRECTORY]`.

use std::time::{Duration, Instant};

use store::{KeyTable, Store, StoreSettings, TaskRecord};
use task_api::{Priority, TaskId, TaskState, TaskView, Usage, Workload};

const TASKS_PER_SECOND: u32 = 1_000;
const SECONDS: u32 = 5;

fn record(id: &TaskId, created_ms: u64, state: TaskState) -> TaskRecord {
    TaskRecord {
        view: TaskView {
            task_id: id.clone(),
            session_id: None,
            workload: Workload::Chat,
            dialect: None,
            priority: Priority::Interactive,
            model: Some("remuda-demo".to_owned()),
            agent: None,
            owner: "somebody".to_owned(),
            state,
            position: None,
            placements: Vec::new(),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            ended_at: state.is_end().then(|| "2026-01-01T00:00:01Z".to_owned()),
            usage: state.is_end().then(Usage::default),
            error: None,
            correlation_id: id.as_str().to_owned(),
        },
        created_ms,
        ended_ms: state.is_end().then_some(created_ms + 1_000),
    }
}

/// User and system time of this process, in clock ticks of 10 ms.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let path = std::path::Path::new(&directory).join(format!("throughput-{}.db", std::process::id()));
    let store = Store::open(StoreSettings::new(&path), KeyTable::default())?;
    let now_ms = u64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_millis())?;
    let (start, ticks) = (Instant::now(), cpu_ticks());
    let mut waits = Vec::new();
    for at in 0..TASKS_PER_SECOND * SECONDS {
        tokio::time::sleep_until((start + at * (Duration::from_secs(1) / TASKS_PER_SECOND)).into()).await;
        let store = store.clone();
        waits.push(tokio::spawn(async move {
            let id = TaskId::generate();
            let begun = Instant::now();
            store.insert_task(record(&id, now_ms, TaskState::Queued)).await?;
            let waited = begun.elapsed();
            store.finish_task(record(&id, now_ms, TaskState::Completed));
            Ok::<_, store::StoreError>(waited)
        }));
    }
    let mut waited = Vec::new();
    for wait in waits {
        waited.push(wait.await??);
    }
    let spent = start.elapsed();
    store.close().await;
    let cpu = Duration::from_millis(10 * (cpu_ticks() - ticks));
    waited.sort_unstable();
    let at = |permille: usize| waited[(waited.len() - 1) * permille / 1000];
    println!(
        "{} tasks inserted and finished in {spent:?}: {cpu:?} of processor time ({:.1} % of a core), inserts confirmed \
         after p50 {:?}, p99 {:?}, {:?}",
        waited.len(),
        100.0 * cpu.as_secs_f64() / spent.as_secs_f64(),
        at(500),
        at(990),
        store.health(),
    );
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    Ok(())
}
