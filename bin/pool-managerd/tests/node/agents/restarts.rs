//! The daemon, killed and started again: homes come back, and nothing is left.

use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use pool_registry_types::{AgentEvent, AgentRun, WorkspaceMade};
use upstream::NodeClient;

use super::place::fake_pool;
use super::workspaces::{packed, tree};
use crate::bench::{LONG, until};
use crate::program::{Daemon, read, send};

/// A daemon with the fake agent. None where something is missing.
fn daemon(warm: usize) -> Option<Daemon> {
    daemon_with(warm, "")
}

/// The same with more settings.
fn daemon_with(warm: usize, more: &str) -> Option<Daemon> {
    let root = tempfile::tempdir().unwrap();
    let (_, config) = fake_pool(root.path())?;
    let file = format!(
        "[pool-managerd]\nagents_dir = {:?}\nagents_install_dir = {:?}\nprofiles_dir = {:?}\n{more}\n\
         [[pools]]\nid = \"fake\"\nkind = \"agent\"\nagent = \"fake\"\nwarm = {warm}\n",
        config.directory,
        config.installed,
        config.profiles.unwrap()
    );
    std::fs::write(root.path().join("remuda.toml"), file).unwrap();
    Some(Daemon::start_in(root, &[], &[]))
}

async fn ask(client: &NodeClient, owner: &str, prompt: &str) -> (String, Vec<AgentEvent>) {
    let run = AgentRun {
        task_id: "t".to_owned(),
        owner: owner.to_owned(),
        prompt: prompt.to_owned(),
        session_id: None,
        model: None,
        effort: None,
        timeout_ms: None,
        workspace: None,
        verbose: false,
        local_model: None,
    };
    let body = serde_json::to_string(&run).unwrap();
    let response = send(client, "POST", "/v2/agents/fake/sandboxes/runs", "", &body).await;
    let (status, body) = read(response).await;
    assert_eq!(status, 200, "{body:?}");
    let lines = std::str::from_utf8(&body).unwrap().lines();
    let events: Vec<AgentEvent> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let text = events.iter().fold(String::new(), |text, event| match event {
        AgentEvent::Text { text: more } => text + more,
        _ => text,
    });
    (text, events)
}

/// What the driver has written down of sandboxes that it has made.
fn records(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("agents/bubblewrap"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".json")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_killed_daemon_takes_homes_back_and_leaves_nothing() {
    let Some(mut first) = daemon(2) else { return };
    let client = first.client();
    first.until(&client, "fake", "", |pool| pool.ready).await;
    assert_eq!(ask(&client, "ann", "login one").await.0, "logged in");
    // Not the login: this is taken back some time after the run only.
    assert_eq!(ask(&client, "ann", "write just now").await.0, "written");
    first.signal("-KILL");
    first.ended();
    let before = records(first.root.path());
    assert!(!before.is_empty());

    let second = first.again(&[]);
    let client = second.client();
    second.until(&client, "fake", "", |pool| pool.ready).await;
    let (note, events) = ask(&client, "ann", "read").await;
    assert_eq!(note, "just now", "{events:?}");
    assert_eq!(ask(&client, "ann", "who").await.0, "one");
    // Ann's, and two that are warm; everything else of before is gone.
    until("as many sandboxes as wanted", || {
        records(second.root.path()).len() == 3
    })
    .await;

    let mut second = second;
    second.signal("-TERM");
    assert_eq!(second.ended(), Some(0));
    assert_eq!(records(second.root.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_daemon_keeps_workspaces_and_takes_back_what_a_run_was_changing() {
    let Some(mut first) = daemon(1) else { return };
    let client = first.client();
    first.until(&client, "fake", "", |pool| pool.ready).await;
    let archive = String::from_utf8(packed(&tree([("a.txt", "one\n"), ("b.txt", "one\n")]))).unwrap();
    let uploaded = send(
        &client,
        "POST",
        "/v2/agents/fake/workspaces?owner=ann",
        "",
        &archive,
    )
    .await;
    let (status, body) = read(uploaded).await;
    assert_eq!(status, 201, "{body:?}");
    let made: WorkspaceMade = serde_json::from_slice(&body).unwrap();
    let run = |task: &str, prompt: &str| {
        let workspace = serde_json::json!({"kept": {"id": made.workspace_id}});
        serde_json::json!({"task_id": task, "owner": "ann", "prompt": prompt, "workspace": workspace})
            .to_string()
    };
    let runs = "/v2/agents/fake/sandboxes/runs";
    let done = send(&client, "POST", runs, "", &run("t1", "sh echo two > a.txt")).await;
    assert_eq!(read(done).await.0, 200);
    // This one is in the middle of it.
    let mut hanging = send(
        &client,
        "POST",
        runs,
        "",
        &run("t2", "sh-and-hang echo two > b.txt"),
    )
    .await
    .into_body();
    let mut told = Vec::new();
    while !told.windows(7).any(|seven| seven == b"changed") {
        let piece = hanging.frame().await.unwrap().unwrap().into_data().unwrap();
        told.extend_from_slice(&piece);
    }
    first.signal("-KILL");
    first.ended();

    let second = first.again(&[]);
    let client = second.client();
    second.until(&client, "fake", "", |pool| pool.ready).await;
    let files = async |owner: &str, task: &str| {
        let path = format!("/v2/agents/fake/tasks/{task}/files?owner={owner}");
        let (status, body) = read(send(&client, "GET", &path, "", "").await).await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    assert!(files("ann", "t1").await.1.contains("a.txt"));
    assert_eq!(files("bob", "t1").await.0, 404);
    // Ann's next run waits for her former sandbox to be emptied.
    let (text, events) = {
        let body = run("t3", "sh cat a.txt b.txt");
        let (status, body) = read(send(&client, "POST", runs, "", &body).await).await;
        assert_eq!(status, 200);
        let text = String::from_utf8(body.to_vec()).unwrap();
        (text.contains("two\\ntwo\\n"), text)
    };
    assert!(text, "{events}");
    let (_, changed) = files("ann", "t2").await;
    assert!(
        changed.contains("a.txt") && changed.contains("b.txt"),
        "{changed}"
    );
}

#[tokio::test]
async fn a_closed_connection_cancels_the_run() {
    let Some(daemon) = daemon(1) else { return };
    let client = daemon.client();
    daemon.until(&client, "fake", "", |pool| pool.ready).await;
    let run = "{\"task_id\":\"t\",\"owner\":\"ann\",\"prompt\":\"slow\"}";
    let response = send(&client, "POST", "/v2/agents/fake/sandboxes/runs", "", run).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let taken = daemon
        .until(&client, "fake", "", |pool| pool.slots_free == 7)
        .await;
    assert_eq!(taken.replicas[0].leases.values().sum::<u32>(), 1);
    drop(response);
    daemon
        .until(&client, "fake", "", |pool| pool.slots_free == 8)
        .await;
    let refused = send(&client, "POST", "/v2/agents/other/sandboxes/runs", "", run).await;
    let (status, body) = tokio::time::timeout(LONG, read(refused)).await.unwrap();
    assert_eq!(status, 503, "{body:?}");
}

#[tokio::test]
async fn metrics_tell_of_sandboxes_and_runs() {
    let Some(node) = daemon(1) else { return };
    let client = node.client();
    node.until(&client, "fake", "", |pool| pool.ready).await;
    assert_eq!(ask(&client, "ann", "get http://no.example/").await.0, "403");
    assert_eq!(ask(&client, "ann", "echo 1").await.0, "1");
    let wanted = [
        "pool_sandboxes{pool_id=\"fake\",agent=\"fake\",driver=\"bubblewrap\",level=\"hot\"} 1",
        "pool_sandboxes{pool_id=\"fake\",agent=\"fake\",driver=\"bubblewrap\",level=\"warm\"} 1",
        "pool_claims_total{pool_id=\"fake\",level=\"hot\"} 1",
        "pool_egress_denied_total{pool_id=\"fake\"} 1",
        "pool_egress_run_bytes_count{pool_id=\"fake\",direction=\"out\"} 2",
        "pool_claim_latency_ms_count{pool_id=\"fake\"} 2",
    ];
    until_metrics(&client, &wanted).await;
}

/// Waits until a scrape has these lines.
async fn until_metrics(client: &NodeClient, wanted: &[&str]) {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let deadline = Instant::now() + LONG;
    loop {
        let (_, text) = read(send(client, "GET", "/metrics", "", "").await).await;
        let text = std::str::from_utf8(&text).unwrap();
        daemon::metrics::check_documented(&document, "pool-managerd", text).unwrap();
        let missing: Vec<_> = wanted
            .iter()
            .filter(|line| !text.lines().any(|found| found == **line))
            .collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{missing:?} is not in\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn upstream_proxies_are_looked_after() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let more = format!("agent_proxies = [\"http://{address}\", \"http://127.0.0.1:1\"]\n");
    let Some(node) = daemon_with(0, &more) else { return };
    let client = node.client();
    let state = |well: u8| {
        [
            format!("pool_egress_proxies{{state=\"well\"}} {well}"),
            format!("pool_egress_proxies{{state=\"resting\"}} {}", 2 - well),
        ]
    };
    for (listening, well) in [(Some(listener), 1), (None, 0)] {
        let lines = state(well);
        until_metrics(&client, &[&lines[0], &lines[1]]).await;
        drop(listening);
    }
    let again = std::net::TcpListener::bind(address).unwrap();
    let lines = state(1);
    until_metrics(&client, &[&lines[0], &lines[1]]).await;
    drop(again);
}
