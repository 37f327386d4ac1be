//! `kill -9` of engines, nodes and control planes.

use std::time::Instant;

use futures_util::StreamExt as _;
use remuda_tests::{
    ControlPlane, Deadline, Node, System, engine_pid, eventually, eventually_async, is_alive, kill_9,
    pool_toml, sse_events,
};
use serde_json::{Value, json};

/// Reads a stream until its first data is there.
async fn begin(plane: &ControlPlane, prompt: &str) -> impl futures_util::Stream<Item = Vec<u8>> + Unpin {
    let response = plane.chat(prompt, true).send().await.unwrap();
    assert!(response.status().is_success());
    let mut stream = Box::pin(
        response
            .bytes_stream()
            .map(|chunk| chunk.unwrap_or_default().to_vec()),
    );
    stream.next().await.unwrap();
    stream
}

async fn rest_of(mut stream: impl futures_util::Stream<Item = Vec<u8>> + Unpin) -> String {
    let mut rest = Vec::new();
    while let Some(chunk) = stream.next().await {
        rest.extend(chunk);
    }
    String::from_utf8(rest).unwrap()
}

/// The stream ended with an error event that says so, and not with the dialect's end.
fn assert_told(rest: &str) {
    assert!(!rest.contains("[DONE]"), "{rest}");
    let events = sse_events(rest);
    let last = events
        .last()
        .unwrap_or_else(|| panic!("nothing came: {rest:?}"))
        .json();
    assert_eq!(last["error"]["code"], "WORKER_RESET", "{last}");
}

#[tokio::test]
async fn an_engine_killed_in_mid_stream_is_told_and_started_anew() {
    let system = System::new();
    let plane = system.home(&pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 1).await;
    let stream = begin(&plane, "count").await;
    let before = engine_pid(&plane.handoffs()[0]);
    kill_9(before);
    let killed = Instant::now();
    assert_told(&rest_of(stream).await);
    println!(
        "the client knew {} ms after the kill",
        killed.elapsed().as_millis()
    );
    eventually("another engine", Deadline::default(), || {
        plane
            .handoffs()
            .first()
            .filter(|handoff| engine_pid(handoff) != before)
            .map(|_| ())
    });
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn an_engine_killed_while_idle_costs_the_next_client_nothing() {
    let system = System::new();
    let plane = system.home(&pool_toml("demo", 2, 2), &[]);
    plane.wait_for_replicas("demo", 2).await;
    for handoff in plane.handoffs().iter().take(1) {
        kill_9(engine_pid(handoff));
    }
    for a in 0..8 {
        assert_eq!(plane.ask(&format!("{a}*12")).await, (a * 12).to_string());
    }
    plane.wait_for_replicas("demo", 2).await;
    plane.wait_for_free_slots("demo").await;
}

async fn two_nodes(system: &System) -> (ControlPlane, Node, Node) {
    let plane = system.control_plane(&[]);
    let a = system.node("node-a", &plane, &pool_toml("demo", 1, 2), &[]);
    let b = system.node("node-b", &plane, &pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 2).await;
    (plane, a, b)
}

#[tokio::test]
async fn a_dead_node_is_nobodys_problem() {
    let system = System::new();
    let (plane, mut a, _b) = two_nodes(&system).await;
    a.program.kill();
    let killed = Instant::now();
    for round in 0..6 {
        assert_eq!(plane.ask("3*67").await, "201");
        if round == 0 {
            println!(
                "the first answer came {} ms after the death of a node",
                killed.elapsed().as_millis()
            );
        }
    }
}

#[tokio::test]
async fn a_node_killed_in_mid_stream_is_told() {
    let system = System::new();
    let (plane, mut a, mut b) = two_nodes(&system).await;
    let first = begin(&plane, "count").await;
    a.program.kill();
    b.program.kill();
    assert_told(&rest_of(first).await);
}

#[tokio::test]
async fn engines_outlive_their_node_and_are_adopted() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut node = system.node("node-a", &plane, &pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 1).await;
    let engine = engine_pid(&node.handoffs()[0]);
    node.program.kill();
    assert!(is_alive(engine), "the engine has a keeper of its own");
    let node = system.node_in(
        &node.directory,
        "node-a",
        &node.addr,
        &plane.url,
        &pool_toml("demo", 1, 2),
        &[],
    );
    eventually_async("an answer", Deadline::default(), || async {
        let response = plane.chat("3*67", false).send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    assert_eq!(engine_pid(&node.handoffs()[0]), engine, "the same engine");
    assert!(is_alive(engine));
}

#[tokio::test]
async fn a_node_that_ends_leaves_nothing_behind() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut node = system.node("node-a", &plane, &pool_toml("demo", 2, 2), &[]);
    plane.wait_for_replicas("demo", 2).await;
    let engines: Vec<u32> = node.handoffs().iter().map(engine_pid).collect();
    node.program.signal(rustix::process::Signal::TERM);
    assert!(node.program.wait().success());
    for engine in engines {
        eventually("the end of the engine", Deadline::default(), || {
            (!is_alive(engine)).then_some(())
        });
    }
    assert_eq!(node.handoffs().len(), 0);
    let nodes = plane.json("/v2/nodes").await;
    assert_eq!(nodes, json!([]), "it took its leave");
}

#[tokio::test]
async fn tasks_of_a_killed_control_plane_are_not_lost_silently() {
    let system = System::new();
    let mut plane = system.control_plane(&[]);
    let _node = system.node("node-a", &plane, &pool_toml("demo", 1, 1), &[]);
    plane.wait_for_replicas("demo", 1).await;
    let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "count"});
    let mut paths = Vec::new();
    for _ in 0..3 {
        let accepted: Value = plane
            .post("/v2/tasks", &task)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        paths.push(accepted["links"]["self"].as_str().unwrap().to_owned());
    }
    let addr = plane.url.trim_start_matches("http://").to_owned();
    let data = plane.directory.join("data");
    plane.program.kill();
    let plane = system.control_plane_at(&addr, &[("ORCHD_DATA_DIR", data.to_str().unwrap())]);
    for path in paths {
        let view = plane.json(&path).await;
        assert_eq!(view["state"], "failed", "{view}");
        assert_eq!(view["error"]["code"], "WORKER_RESET", "{view}");
    }
    // The node registers again by itself, and its slots are free again.
    plane.wait_for_replicas("demo", 1).await;
    plane.wait_for_free_slots("demo").await;
    assert_eq!(plane.ask("3*67").await, "201");
}
