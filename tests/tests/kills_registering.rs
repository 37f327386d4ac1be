//! `kill -9` of a node and of a control plane while the node registers: before the control plane has heard of it, while
//! its answer is on the way, and right after. Afterwards the node is there once, with the slots that it has.

use std::path::Path;
use std::time::{Duration, Instant};

use remuda_tests::{
    ControlPlane, Deadline, Gate, Kept, Node, System, engine_pid, eventually_async, is_alive, pool_toml,
};

const SLOTS: u32 = 2;

/// Short times, so that a node that was forgotten is back soon.
const TIMES: [(&str, &str); 1] = [("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "300")];

fn node(system: &System, directory: &Path, addr: &str, gate: &Gate) -> Node {
    let pools = pool_toml("demo", 1, SLOTS);
    system.node_in(directory, "node-a", addr, &gate.url, &pools, &[])
}

/// There once, online, with the right slots, all free; and it works.
async fn is_whole(plane: &ControlPlane, engine: Option<u32>) {
    eventually_async("the node with its slots", Deadline::default(), || async {
        let nodes = plane.json("/v2/nodes").await;
        let nodes = nodes.as_array()?;
        assert!(nodes.len() <= 1, "one node is there as {nodes:?}");
        let online = nodes.first()?["state"] == "online";
        let pool = plane.get("/v2/pools/demo").send().await.ok()?;
        let pool: serde_json::Value = pool.json().await.ok()?;
        let replicas = pool["replicas"].as_array()?;
        assert!(replicas.len() <= 1, "one replica is there as {replicas:?}");
        let ready = replicas.first()?["state"] == "ready" && replicas[0]["taken_out"] == false;
        let free = pool["slots_total"] == SLOTS && pool["slots_free"] == SLOTS;
        (online && ready && free).then_some(())
    })
    .await;
    assert_eq!(plane.ask("3*67").await, "201");
    plane.wait_for_free_slots("demo").await;
    assert!(engine.is_none_or(is_alive), "the same engine all the time");
}

#[tokio::test]
async fn a_node_killed_while_it_registers_is_there_once() {
    let system = System::new();
    let plane = system.control_plane(&TIMES);
    let gate = Gate::in_front_of(&plane.url);
    let directory = system.directory("node-a");

    // Before: the control plane has heard nothing of it.
    gate.keep(Kept::Request);
    let mut killed = node(&system, &directory, "127.0.0.1:0", &gate);
    gate.wait_until_kept();
    killed.program.kill();
    assert_eq!(plane.json("/v2/nodes").await, serde_json::json!([]));
    let addr = killed.addr.clone();
    gate.open();
    gate.wait_until_passed();
    // What the dead one had sent came late, and is believed like any other report; the living one corrects it.
    let mut killed = node(&system, &directory, &addr, &gate);
    is_whole(&plane, None).await;
    let engine = engine_pid(&killed.handoffs()[0]);

    // During: the control plane knows it, and it was never told.
    killed.program.kill();
    gate.keep(Kept::Answer);
    let mut killed = node(&system, &directory, &addr, &gate);
    gate.wait_until_kept();
    killed.program.kill();
    gate.open();
    let mut killed = node(&system, &directory, &addr, &gate);
    is_whole(&plane, Some(engine)).await;

    // After: it has its answer and nothing else.
    killed.program.kill();
    let passed = gate.passed();
    let mut killed = node(&system, &directory, &addr, &gate);
    gate.wait_for_more_than(passed);
    killed.program.kill();
    let _node = node(&system, &directory, &addr, &gate);
    is_whole(&plane, Some(engine)).await;
}

#[tokio::test]
async fn a_registration_of_the_dead_that_comes_last_changes_nothing_for_long() {
    let system = System::new();
    let plane = system.control_plane(&TIMES);
    let (gate, open) = (Gate::in_front_of(&plane.url), Gate::in_front_of(&plane.url));
    let directory = system.directory("node-a");
    gate.keep(Kept::Request);
    let mut killed = node(&system, &directory, "127.0.0.1:0", &gate);
    gate.wait_until_kept();
    killed.program.kill();
    let _node = node(&system, &directory, &killed.addr.clone(), &open);
    is_whole(&plane, None).await;
    let late = Instant::now();
    gate.open();
    gate.wait_for_more_than(0);
    is_whole(&plane, None).await;
    println!(
        "whole again {} ms after a dead node's word",
        late.elapsed().as_millis()
    );
    assert!(late.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_control_plane_killed_while_a_node_registers_has_it_once() {
    let system = System::new();
    let mut plane = system.control_plane(&TIMES);
    let addr = plane.url.trim_start_matches("http://").to_owned();
    let gate = Gate::in_front_of(&plane.url);
    let directory = system.directory("node-a");

    // Before: it dies without having heard of the node.
    gate.keep(Kept::Request);
    let node = node(&system, &directory, "127.0.0.1:0", &gate);
    gate.wait_until_kept();
    plane.program.kill();
    gate.open();
    gate.wait_until_passed();
    let mut plane = system.control_plane_at(&addr, &TIMES);
    is_whole(&plane, None).await;
    let engine = engine_pid(&node.handoffs()[0]);

    // During: it knew the node, and dies before the node knows that. Another one comes in its place.
    plane.program.kill();
    let mut plane = system.control_plane_at(&addr, &TIMES);
    gate.keep(Kept::Answer);
    gate.wait_until_kept();
    plane.program.kill();
    let mut plane = system.control_plane_at(&addr, &TIMES);
    gate.open();
    is_whole(&plane, Some(engine)).await;

    // After: the node has its answer from one that is no more.
    plane.program.kill();
    let passed = gate.passed();
    let mut plane = system.control_plane_at(&addr, &TIMES);
    gate.wait_for_more_than(passed);
    plane.program.kill();
    let plane = system.control_plane_at(&addr, &TIMES);
    is_whole(&plane, Some(engine)).await;
}

/// Two machines of one name, as when one was copied: the second is told what to do and takes nothing from the first,
/// neither while it runs nor when it leaves; once the first one is gone, it takes the place by itself.
#[tokio::test]
async fn a_second_machine_of_the_same_name_is_told_and_takes_nothing_away() {
    let system = System::new();
    let plane = system.control_plane(&[("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "1000")]);
    let pools = pool_toml("demo", 1, SLOTS);
    let start = |directory: &str| {
        let directory = system.directory(directory);
        system.node_in(&directory, "node-a", "127.0.0.1:0", &plane.url, &pools, &[])
    };
    let mut first = start("node-a");
    is_whole(&plane, None).await;
    for round in 0..2 {
        let mut second = start(&format!("copy-{round}"));
        second.program.wait_for("the refusal", |line| {
            let is_it = line.contains("another node of this name is alive")
                && line.contains(&first.url)
                && line.contains("POOL_MANAGERD_NODE_ID");
            is_it.then_some(())
        });
        is_whole(&plane, None).await;
        assert_eq!(plane.json("/v2/nodes").await[0]["address"], first.url.as_str());
        if round == 1 {
            first.program.kill();
            eventually_async("the other one's turn", Deadline::default(), || async {
                (plane.json("/v2/nodes").await[0]["address"] == second.url.as_str()).then_some(())
            })
            .await;
            is_whole(&plane, None).await;
        }
    }
}
