//! The log of a control plane: when a replica fails, a line says which one, and for which request.

use fake_engine::{FakeEngine, Settings};
use remuda_tests::System;
use serde_json::{Value, json};

#[tokio::test]
async fn a_failure_names_the_request_and_the_replica() {
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 4\n",
        engine.url()
    );
    let plane = system.home(
        &settings,
        &[
            ("ORCHD_ENGINE_SILENCE_MS", "1000"),
            ("ORCHD_POOL_UNREADY_WAIT_MS", "1000"),
        ],
    );
    for failure in ["die", "cut", "no_done", "stall", "error", "garbage", "never"] {
        plane.wait_for_replicas("fakes", 1).await;
        let prompt = format!("chunks=20 after=3 fail={failure}");
        let body =
            json!({"model": "fake", "stream": true, "messages": [{"role": "user", "content": prompt}]});
        let request = plane.post("/v1/chat/completions", &body);
        let name = format!("request-{failure}");
        let response = request.header("x-correlation-id", &name).send().await.unwrap();
        assert_eq!(response.headers()["x-correlation-id"], *name);
        response.text().await.unwrap();

        let log = plane.program.output();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        let lines: Vec<Value> = lines.filter(|line: &Value| line["level"] == "WARN").collect();
        let line = lines.iter().find(|line| line["correlation_id"] == *name);
        let line = line.unwrap_or_else(|| panic!("{failure} is not in the log:\n{log}"));
        assert_eq!(
            (&line["pool_id"], &line["replica_id"]),
            (&json!("fakes"), &json!("r0")),
            "{line}"
        );
        assert!(line["node_id"].is_string() && line["why"].is_string(), "{line}");
    }
    plane.wait_for_free_slots("fakes").await;
}
