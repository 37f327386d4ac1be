use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

struct Bench {
    _root: tempfile::TempDir,
    directory: PathBuf,
    set: watch::Receiver<Arc<HandoffSet>>,
    processed: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<()>,
}

/// A watcher in a directory of its own. With a scan interval of an hour, only events can make it look.
fn bench(scan_interval: Duration, delete_dead: bool) -> Bench {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("engines");
    let processed = Arc::new(AtomicUsize::new(0));
    let counter = processed.clone();
    let options = WatchOptions {
        directory: directory.clone(),
        scan_interval,
        delete_dead,
        observe: Arc::new(move |_, _| {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
    };
    let watcher = Watcher::new(options);
    let set = watcher.subscribe();
    let running = tokio::spawn(watcher.run());
    Bench {
        _root: root,
        directory,
        set,
        processed,
        running,
    }
}

impl Bench {
    async fn until(&mut self, what: &str, good: impl Fn(&HandoffSet) -> bool) -> Arc<HandoffSet> {
        let wait = tokio::time::timeout(Duration::from_secs(10), self.set.wait_for(|set| good(set))).await;
        let seen = wait.ok().and_then(|set| set.ok().map(|set| set.clone()));
        seen.unwrap_or_else(|| panic!("not seen in 10 s: {what}; now {:?}", self.set.borrow()))
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn text(pool: &str, replica: &str, port: u16) -> String {
    format!(
        r#"{{"pool_id":"{pool}","replica_id":"{replica}","engine":"llamacpp","url":"http://localhost:{port}"}}"#
    )
}

const NEVER: Duration = Duration::from_secs(3600);

async fn follows_changes(scan_interval: Duration) {
    let mut bench = bench(scan_interval, false);
    bench.put("p_a.json", &text("p", "a", 1));
    bench.put("p_b.json", "{\"pool_id\":");
    bench.put(".p_c.json", &text("p", "c", 1));
    bench.put("notes.txt", "hello");
    let set = bench
        .until("one good, one half-written", |set| {
            set.handoffs.len() == 1 && set.problems.len() == 1
        })
        .await;
    assert_eq!(set.problems["p_b.json"], FileProblem::HalfWritten);

    bench.put("p_b.json", &text("p", "b", 1));
    bench
        .until("the rest is written", |set| {
            set.handoffs.len() == 2 && set.problems.is_empty()
        })
        .await;
    bench.put("p_a.json", &text("p", "a", 2));
    let rewritten = |set: &HandoffSet| set.handoffs.values().any(|handoff| handoff.url.ends_with(":2"));
    bench.until("a file is rewritten, same size", rewritten).await;
    fs::remove_file(bench.directory.join("p_a.json")).unwrap();
    bench
        .until("a file is removed", |set| set.handoffs.len() == 1)
        .await;
    crate::write(
        &bench.directory,
        &serde_json::from_str(&text("q", "r", 1)).unwrap(),
    )
    .unwrap();
    bench
        .until("a file is renamed into place", |set| set.handoffs.len() == 2)
        .await;
}

#[tokio::test]
async fn events_are_enough() {
    // The first turn of an interval comes at once and is no scan by time.
    follows_changes(NEVER).await;
}

#[tokio::test]
async fn scans_are_enough() {
    // Links into another directory: their content changes without an event in the watched one.
    let mut bench = bench(Duration::from_millis(20), false);
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("file");
    fs::write(&target, text("p", "a", 1)).unwrap();
    std::os::unix::fs::symlink(&target, bench.directory.join("p_a.json")).unwrap();
    bench.until("the link", |set| set.handoffs.len() == 1).await;
    fs::write(&target, text("p", "a", 2)).unwrap();
    bench
        .until("the new content", |set| {
            set.handoffs.values().all(|handoff| handoff.url.ends_with(":2"))
        })
        .await;
    fs::remove_file(&target).unwrap();
    bench.until("nothing", |set| set.handoffs.is_empty()).await;
    follows_changes(Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_directory_that_goes_away_is_made_again() {
    let mut bench = bench(Duration::from_millis(50), false);
    bench.put("p_a.json", &text("p", "a", 1));
    bench.until("the file", |set| set.handoffs.len() == 1).await;
    fs::remove_dir_all(&bench.directory).unwrap();
    bench.until("nothing", |set| set.handoffs.is_empty()).await;
    crate::write(
        &bench.directory,
        &serde_json::from_str(&text("p", "b", 1)).unwrap(),
    )
    .unwrap();
    bench.until("the new file", |set| set.handoffs.len() == 1).await;
}

#[tokio::test]
async fn a_storm_of_a_thousand_is_ordinary() {
    let mut bench = bench(NEVER, false);
    for at in 0..1000 {
        bench.put(
            &format!("p_{at}.json"),
            &if at % 10 == 0 {
                "{".to_owned()
            } else {
                text("p", &at.to_string(), 1)
            },
        );
    }
    bench
        .until("all", |set| {
            set.handoffs.len() == 900 && set.problems.len() == 100
        })
        .await;
    assert!(bench.processed.load(Ordering::Relaxed) >= 1000);
    for at in 0..1000 {
        fs::remove_file(bench.directory.join(format!("p_{at}.json"))).unwrap();
    }
    bench
        .until("none", |set| set.handoffs.is_empty() && set.problems.is_empty())
        .await;
}

#[tokio::test]
async fn strange_things_under_a_good_name_are_problems() {
    let mut bench = bench(Duration::from_millis(20), false);
    fs::create_dir(bench.directory.join("p_dir.json")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", bench.directory.join("p_link.json")).unwrap();
    std::os::unix::fs::symlink("p_loop.json", bench.directory.join("p_loop.json")).unwrap();
    let pipe = bench.directory.join("p_pipe.json");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(pipe)
            .status()
            .unwrap()
            .success()
    );
    bench.put("p_huge.json", &" ".repeat(FILE_BYTES_MAX * 4));
    bench.put("p_a.json", &text("p", "a", 1));
    let set = bench
        .until("the good one", |set| {
            set.handoffs.len() == 1 && set.problems.len() == 4
        })
        .await;
    assert_eq!(set.problems["p_huge.json"], FileProblem::TooLarge);
    assert!(matches!(set.problems["p_dir.json"], FileProblem::Unreadable(_)));
}

fn dead(pool: &str) -> String {
    // No process has this start time.
    let me = std::process::id();
    text(pool, "r", 1).replace('}', &format!(r#","pid":{me},"start_time_ticks":1}}"#))
}

#[tokio::test]
async fn handoffs_of_dead_processes_are_dropped_and_deleted_only_when_told() {
    let mut kept = bench(NEVER, false);
    kept.put("p_r.json", &dead("p"));
    let set = kept.until("a problem", |set| !set.problems.is_empty()).await;
    assert_eq!(set.problems["p_r.json"], FileProblem::ProcessGone);
    assert!(set.handoffs.is_empty() && kept.directory.join("p_r.json").exists());

    let mut deleted = bench(NEVER, true);
    deleted.put("p_r.json", &dead("p"));
    deleted.put("q_r.json", &text("q", "r", 1));
    deleted
        .until("the living one", |set| set.handoffs.len() == 1)
        .await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while deleted.directory.join("p_r.json").exists() {
        assert!(Instant::now() < deadline, "not deleted in 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
