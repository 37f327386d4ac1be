//! docs/metrics.md against a control plane and a node that have done some work.

use std::path::{Path, PathBuf};

use daemon::metrics::check_documented;
use remuda_tests::{Deadline, System, eventually_async, pool_toml, skipped};

use crate::agents;

/// What every program of these tests has.
const TOKEN: &str = "a-token-for-tests";

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

async fn check(program: &str, request: impl Fn() -> reqwest::RequestBuilder) {
    let what = format!("{program} says what docs/metrics.md says");
    eventually_async(&what, Deadline::default(), || async {
        let text = request().send().await.ok()?.text().await.ok()?;
        let difference = check_documented(&document(), program, &text);
        // Seen when the wait ends without success.
        difference.inspect_err(|difference| println!("{difference}")).ok()
    })
    .await;
}

#[tokio::test]
async fn metrics_are_documented() {
    if let Some(program) = agents::missing(&["bwrap", "node"]) {
        return skipped("metrics_are_documented", &format!("needs {program}"));
    }
    let system = System::new();
    let first = system.control_plane(&[]);
    let environment = agents::fake_agent(&system.directory("fake"));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
    let pools = format!("{}{}", pool_toml("demo", 1, 1), agents::POOL);
    let node = system.node("node-a", &first, &pools, &environment);
    // A control plane that polls the node has health checks to count; one without a queue refuses.
    let environment = [
        ("ORCHD_POOL_MANAGERS", node.url.as_str()),
        ("ORCHD_POOL_POLL_INTERVAL_MS", "200"),
        ("ORCHD_ADMISSION_CAPACITY", "0"),
    ];
    let plane = system.control_plane(&environment);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");

    let mut long = plane.chat("count", true).send().await.unwrap();
    long.chunk().await.unwrap().expect("the first token");
    let refused = plane.chat("3*67", false).send().await.unwrap();
    assert_eq!(refused.status(), 429);

    // An agent's task that tries to reach what it may not.
    plane.wait_for_replicas("agents", 1).await;
    let asked = plane
        .post("/v2/tasks", &agents::task("get http://elsewhere.example/"))
        .header("accept", "text/event-stream");
    let told = asked.send().await.unwrap().text().await.unwrap();
    assert!(told.contains("event: egress_denied"), "{told}");

    check("orchestratord", || plane.get("/metrics")).await;
    let http = reqwest::Client::new();
    let nodes = format!("{}/metrics", node.url);
    check("pool-managerd", || http.get(&nodes).bearer_auth(TOKEN)).await;
}
