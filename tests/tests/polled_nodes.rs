//! A node that is only read: what it says of itself is believed, and told in words.

use remuda_tests::{Deadline, System, eventually_async, free_port, pool_toml};
use rustix::process::Signal;

#[tokio::test]
async fn a_polled_node_that_drains_gets_nothing_new() {
    let system = System::new();
    let directory = system.directory("node-a");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let node = system.node_in(
        &directory,
        "node-a",
        "127.0.0.1:0",
        &nobody,
        &pool_toml("demo", 1, 2),
        &[],
    );
    let plane = system.control_plane(&[
        ("ORCHD_POOL_MANAGERS", node.url.as_str()),
        ("ORCHD_POOL_POLL_INTERVAL_MS", "100"),
    ]);
    plane.wait_for_replicas("demo", 1).await;
    // As long as this goes on, the node waits for it.
    let mut held = plane.chat("count", true).send().await.unwrap();
    assert!(held.chunk().await.unwrap().is_some());
    node.program.signal(Signal::TERM);
    eventually_async("the node draining", Deadline::default(), || async {
        (plane.json("/v2/nodes").await[0]["state"] == "draining").then_some(())
    })
    .await;
    let log = plane.program.output();
    for line in ["a node has joined", "a node is draining"] {
        assert!(log.contains(line), "{line:?} is not in:\n{log}");
    }
    for debug in ["Some(", "None", "Ok("] {
        assert!(!log.contains(debug), "{debug:?} is in:\n{log}");
    }
}
