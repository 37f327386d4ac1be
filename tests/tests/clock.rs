//! A wall clock that jumps under a control plane: only dates change.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use remuda_tests::{System, pool_toml, skipped};
use serde_json::{Value, json};

/// Debian's library that lies to a program about the wall clock, and lets the monotonic one be.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

#[tokio::test]
async fn a_clock_jump_moves_nothing_but_dates() {
    if !Path::new(FAKETIME).exists() {
        return skipped(
            "a_clock_jump_moves_nothing_but_dates",
            "needs the Debian package faketime (or libfaketime)",
        );
    }
    let system = System::new();
    let offset = system.directory("clock").join("offset");
    std::fs::write(&offset, "+0").unwrap();
    let plane = system.control_plane(&[
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("ORCHESTRATORD_NODE_TIMEOUT_MS", "5000"),
        ("ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", "1"),
        ("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "500"),
    ]);
    let _node = system.node("node-a", &plane, &pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 1).await;

    let mut stream = plane.chat("count", true).send().await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "3*67", "deadline_ms": 60_000});
    let mut years = Vec::new();
    for jump in ["+400d", "-400d", "+0"] {
        std::fs::write(&offset, jump).unwrap();
        let response = plane
            .post("/v2/tasks", &task)
            .header("accept", "text/event-stream")
            .send()
            .await
            .unwrap();
        let text = response.text().await.unwrap();
        assert!(text.contains("event: end"), "after {jump}: {text}");
        let tasks = plane.json("/v2/tasks?limit=500").await;
        let dates = tasks["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|task| task["created_at"].as_str());
        years.extend(dates.map(|date| date[..4].to_owned()));
        let nodes = plane.json("/v2/nodes").await;
        assert_eq!(nodes[0]["state"], "online", "after {jump}: {nodes}");
    }
    years.sort_unstable();
    years.dedup();
    assert!(years.len() > 1, "the clock did jump: {years:?}");
    // The stream has gone on all the while, and no slot is lost.
    let chunk = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
    assert!(chunk.is_ok());
    drop(stream);
    plane.wait_for_free_slots("demo").await;
    let nodes: Value = plane.json("/v2/nodes").await;
    assert!(nodes[0]["last_seen_ms_ago"].as_u64().unwrap() < 5000, "{nodes}");
}
