//! The straight way through: one machine, then a node that registers.

use remuda_tests::{System, pool_toml, sse_events};

#[tokio::test]
async fn one_process_answers_with_a_real_engine() {
    let system = System::new();
    let plane = system.home(&pool_toml("demo", 1, 4), &[]);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");

    let text = plane
        .chat("3*67", true)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let words: String = sse_events(&text)
        .iter()
        .filter(|event| event.data != "[DONE]")
        .filter_map(|event| {
            event.json()["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(words, "201");
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn a_node_registers_and_serves() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    let node = system.node("node-a", &plane, &pool_toml("demo", 1, 4), &[]);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("7*12").await, "84");
    let nodes = plane.json("/v2/nodes").await;
    assert_eq!(nodes[0]["node_id"], "node-a");
    assert_eq!(nodes[0]["state"], "online");
    assert_eq!(nodes[0]["address"], node.url.as_str());
}
