//! The original walk-through: a control plane, a node, and an engine that announces itself by a file.

use std::process::Command;
use std::time::Duration;

use remuda_tests::{Deadline, Program, System, binary, demo_model, engine_program, eventually_async};
use serde_json::{Value, json};

#[tokio::test]
async fn a_file_announces_an_engine() {
    let system = System::new();
    let plane = system.control_plane(&[
        ("ORCHESTRATORD_NODE_TIMEOUT_MS", "2500"),
        ("ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", "1"),
        ("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "500"),
    ]);
    let node = system.node("test-node", &plane, "", &[]);
    eventually_async("the node", Deadline::default(), || async {
        let nodes = plane.json("/v2/nodes").await;
        (nodes[0]["node_id"] == "test-node" && nodes[0]["state"] == "online").then_some(())
    })
    .await;

    // Nothing answers at the URL yet.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let handoff = json!({
        "pool_id": "pool-0", "replica_id": "r0", "engine": "llamacpp", "url": format!("http://localhost:{port}"),
        "engine_version": "v1", "slots": 4,
    });
    let directory = node.directory.join(".runtime/engines");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("pool-0_r0.json"), handoff.to_string()).unwrap();
    let status = |what: &'static str, wanted: fn(&Value) -> bool| {
        let (http, url) = (
            system.http.clone(),
            format!("{}/v2/pools/pool-0/status", node.url),
        );
        eventually_async(what, Deadline::default(), move || {
            let request = http.get(&url).bearer_auth("a-token-for-tests").send();
            async move {
                let status: Value = request.await.ok()?.json().await.ok()?;
                wanted(&status).then_some(status)
            }
        })
    };
    let down = status("a pool that is not ready, and why", |status| {
        status["ready"] == false
            && status["last_error"]
                .as_str()
                .is_some_and(|error| error.contains("nothing answers"))
    });
    println!("{}", down.await);

    // Now a real engine is there.
    let engine = engine(&system, port);
    let up = status("a ready pool", |status| {
        status["ready"] == true && status["slots_free"] == 4
    })
    .await;
    assert_eq!(up["last_error"], Value::Null);
    eventually_async("the control plane knows", Deadline::default(), || async {
        let nodes = plane.json("/v2/nodes").await;
        let pool = &nodes[0]["pools"][0];
        (pool["pool_id"] == "pool-0" && pool["ready"] == true && pool["slots_free"] == 4).then_some(())
    })
    .await;
    drop(engine);

    // When heartbeats stop, the node is offline.
    drop(node);
    eventually_async("the node offline", Deadline(Duration::from_secs(20)), || async {
        (plane.json("/v2/nodes").await[0]["state"] == "offline").then_some(())
    })
    .await;
}

/// The real engine, started by hand, as an operator would.
fn engine(system: &System, port: u16) -> Program {
    let mut command = Command::new(engine_program());
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--parallel",
        "4",
        "-c",
        "4096",
        "-m",
    ]);
    command.arg(demo_model());
    Program::start("llama-server", command, system.directory("engine").join("log"))
}

#[test]
fn an_open_address_without_authentication_is_refused() {
    for (program, variables, flag) in [
        (
            "orchestratord",
            vec![
                ("ORCHESTRATORD_ADDR", "0.0.0.0:0"),
                ("ORCHESTRATORD_CLOUD_PROFILE", "true"),
            ],
            "--insecure",
        ),
        (
            "pool-managerd",
            vec![
                ("POOL_MANAGERD_ADDR", "0.0.0.0:0"),
                ("POOL_MANAGERD_CLOUD_PROFILE", "true"),
                ("POOL_MANAGERD_ADDRESS", "http://localhost:9200"),
                ("ORCHESTRATORD_URL", "http://localhost:8080"),
            ],
            "--insecure",
        ),
    ] {
        let directory = tempfile::TempDir::new().unwrap();
        let output = Command::new(binary(program))
            .current_dir(directory.path())
            .env("ORCHD_DATA_DIR", directory.path())
            .env_remove("LLORCH_API_TOKEN")
            .envs(variables)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{program}: {text}");
        assert!(
            text.contains(flag) && text.contains("LLORCH_API_TOKEN"),
            "{program}: {text}"
        );
    }
}
