//! A hundred agents at once, each streaming a megabyte: every byte arrives, in order, and the node stays small.

use futures_util::future::join_all;
use remuda_tests::{System, binary, skipped, sse_events};

use super::agents::missing;

const RUNS: usize = 100;
/// Of a thousand bytes each.
const LINES: u32 = 1000;
const NODE_BYTES_MAX: u64 = 100 << 20;

/// The most memory that a process has ever had resident.
fn resident_bytes_max(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_hundred_streams_at_once_lose_nothing() {
    let test = "a_hundred_streams_at_once_lose_nothing";
    if let Some(program) = missing(&["bwrap"]) {
        return skipped(test, &format!("needs {program}"));
    }
    let name = fake_agent::NAME;
    let system = System::new();
    let directory = system.directory("fake");
    let (profiles, installed) = (directory.join("profiles"), directory.join("installed"));
    fake_agent::write_profile(&profiles).unwrap();
    let profile = agents::Profile::find(name, Some(&profiles)).unwrap();
    fake_agent::install(&binary(name), &agents::install::place(&profile, &installed)).unwrap();
    let keys: Vec<String> = (0..RUNS)
        .map(|owner| format!("owner-{owner}=key-{owner}"))
        .collect();
    let plane = system.control_plane(&[
        ("ORCHD_API_KEYS", &keys.join(",")),
        ("ORCHD_ADMISSION_CAPACITY", "1000"),
    ]);
    let environment = [
        (
            "POOL_MANAGERD_AGENTS_DIR",
            directory.join("agents").display().to_string(),
        ),
        (
            "POOL_MANAGERD_AGENTS_INSTALL_DIR",
            installed.display().to_string(),
        ),
        ("POOL_MANAGERD_PROFILES_DIR", profiles.display().to_string()),
        // What a hundred real CLIs would need.
        (
            "POOL_MANAGERD_SANDBOXES_MEMORY_MAX_BYTES",
            (1_u64 << 40).to_string(),
        ),
    ];
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let pool = format!(
        "[[pools]]\nid = {name:?}\nkind = \"agent\"\nagent = {name:?}\nwarm = 10\nruns_max = {RUNS}\n"
    );
    let node = system.node("node", &plane, &pool, &environment);
    plane.wait_for_replicas(name, 1).await;

    let expect: String = (0..LINES).map(fake_agent::line_of_flood).collect();
    let body = serde_json::json!({"workload": "agent", "agent": name, "prompt": format!("flood {LINES}")});
    let ask = async |owner: usize| {
        let request = system
            .http
            .post(format!("{}/v2/tasks", plane.url))
            .bearer_auth(format!("key-{owner}"));
        let request = request.header("accept", "text/event-stream").json(&body);
        request.send().await.unwrap().text().await.unwrap()
    };
    for (owner, told) in join_all((0..RUNS).map(ask)).await.into_iter().enumerate() {
        let events = sse_events(&told);
        let last = events.last().unwrap();
        assert_eq!(last.name, "end", "owner {owner}: {last:?}");
        let tokens = events.iter().filter(|event| event.name == "token");
        let text: String = tokens
            .map(|event| event.json()["t"].as_str().unwrap().to_owned())
            .collect();
        assert!(
            text == expect,
            "owner {owner}: {} of {} bytes",
            text.len(),
            expect.len()
        );
    }
    let resident = resident_bytes_max(node.program.pid());
    assert!(resident < NODE_BYTES_MAX, "the node had {resident} bytes");
}
