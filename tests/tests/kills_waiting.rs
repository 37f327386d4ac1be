//! `kill -9` of an engine and of a node under clients that have nothing yet: queued, and placed before the first token.
//! They see only time.
//!
//! A real engine is stopped (SIGSTOP) with a request in it, because the demo model would have answered before anybody
//! could kill anything.

use futures_util::StreamExt as _;
use remuda_tests::{
    ControlPlane, Deadline, Node, System, engine_pid, eventually_async, kill_9, pool_toml, signal,
};
use rustix::process::Signal;
use serde_json::{Value, json};

type Waiting = tokio::task::JoinHandle<Result<reqwest::Response, reqwest::Error>>;

/// Asks without waiting for the answer.
fn asks(plane: &ControlPlane, stream: bool) -> Waiting {
    tokio::spawn(plane.chat("3*67", stream).send())
}

async fn is_answered(waiting: Waiting) {
    let response = waiting.await.unwrap().unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    let whole: String = text
        .split("\"content\":\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert_eq!(whole, "201", "{text}");
    assert!(!text.contains("error"), "{text}");
}

/// The node and replica that holds a task.
async fn holder(plane: &ControlPlane) -> (String, String) {
    eventually_async("a task at a replica", Deadline::default(), || async {
        let view = plane.json("/v2/pools/demo").await;
        let replicas = view["replicas"].as_array()?;
        let holds = |replica: &&Value| replica["slots_free"] != replica["slots_total"];
        let replica = replicas.iter().find(holds)?;
        let name = |key: &str| replica[key].as_str().unwrap().to_owned();
        Some((name("node_id"), name("replica_id")))
    })
    .await
}

async fn wait_for_queued(plane: &ControlPlane, count: u64) {
    eventually_async("waiting tasks", Deadline::default(), || async {
        (plane.json("/v2/pools/demo").await["queued"] == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_engine_killed_before_the_first_token_costs_only_time() {
    for stream in [false, true] {
        let system = System::new();
        let plane = system.home(&pool_toml("demo", 2, 1), &[]);
        plane.wait_for_replicas("demo", 2).await;
        let engines = plane.handoffs();
        for engine in &engines {
            signal(engine_pid(engine), Signal::STOP);
        }
        let waiting = asks(&plane, stream);
        let (_, replica) = holder(&plane).await;
        for engine in &engines {
            if engine["replica_id"] == replica.as_str() {
                kill_9(engine_pid(engine));
            } else {
                signal(engine_pid(engine), Signal::CONT);
            }
        }
        is_answered(waiting).await;
        plane.wait_for_replicas("demo", 2).await;
        plane.wait_for_free_slots("demo").await;
    }
}

#[tokio::test]
async fn a_node_killed_before_the_first_token_costs_only_time() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut nodes = ["node-a", "node-b"].map(|id| system.node(id, &plane, &pool_toml("demo", 1, 1), &[]));
    plane.wait_for_replicas("demo", 2).await;
    let engines = nodes
        .each_ref()
        .map(|node: &Node| engine_pid(&node.handoffs()[0]));
    for engine in engines {
        signal(engine, Signal::STOP);
    }
    let waiting = asks(&plane, true);
    let (holds, _) = holder(&plane).await;
    let dies = usize::from(holds == "node-b");
    nodes[dies].program.kill();
    signal(engines[1 - dies], Signal::CONT);
    is_answered(waiting).await;
    kill_9(engines[dies]);
}

#[tokio::test]
async fn who_is_queued_when_the_engine_or_the_node_dies_is_answered_later() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut node = system.node("node-a", &plane, &pool_toml("demo", 1, 1), &[]);
    plane.wait_for_replicas("demo", 1).await;
    for dies in ["engine", "node"] {
        let response = plane.chat("count", true).send().await.unwrap();
        let mut stream = response.bytes_stream();
        stream.next().await.unwrap().unwrap();
        let queued = [asks(&plane, false), asks(&plane, true)];
        let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "3*67"});
        let accepted = plane.post("/v2/tasks", &task).send().await.unwrap();
        let accepted: Value = accepted.json().await.unwrap();
        let path = accepted["links"]["self"].as_str().unwrap().to_owned();
        wait_for_queued(&plane, 3).await;
        if dies == "engine" {
            kill_9(engine_pid(&node.handoffs()[0]));
        } else {
            node.program.kill();
            let (directory, addr) = (node.directory.clone(), node.addr.clone());
            let pools = pool_toml("demo", 1, 1);
            node = system.node_in(&directory, "node-a", &addr, &plane.url, &pools, &[]);
        }
        // Who had something is told; who had nothing waits for the next engine.
        let mut rest = Vec::new();
        while let Some(Ok(chunk)) = stream.next().await {
            rest.extend(chunk);
        }
        assert!(
            String::from_utf8(rest).unwrap().contains("WORKER_RESET"),
            "{dies}"
        );
        for waiting in queued {
            is_answered(waiting).await;
        }
        eventually_async("the task's end", Deadline::default(), || async {
            let task = plane.json(&path).await;
            assert_ne!(task["state"], "failed", "{dies}: {task}");
            (task["state"] == "completed").then_some(())
        })
        .await;
        plane.wait_for_free_slots("demo").await;
    }
}
