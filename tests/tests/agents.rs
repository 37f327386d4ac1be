//! Agents end to end: tasks, logins and keys at the control plane, with an agent that does what its prompt says, and the
//! command line with the CLIs from npm on the demo model.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use remuda_tests::{ControlPlane, Program, System, binary, pool_toml, skipped, sse_events};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PROFILE: &str = include_str!("../../bin/pool-managerd/tests/node/agents/fake/fake.toml");
const AGENT: &str = include_str!("../../bin/pool-managerd/tests/node/agents/fake/agent.js");
const LOCK: &str = include_str!("../../bin/pool-managerd/tests/node/agents/fake/package-lock.json");

/// A pool of the agent, as `remuda.toml` has it.
pub(crate) const POOL: &str =
    "[[pools]]\nid = \"agents\"\nkind = \"agent\"\nagent = \"claude\"\nwarm = 1\nruns_max = 4\n";

const ALICE: &str = "alices-key";
const BOB: &str = "bobs-key";

pub(crate) fn missing(programs: &[&'static str]) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    programs.iter().find(|program| !is_there(program)).copied()
}

/// What a daemon with the fake agent is told. It goes by the name of a real one, which `/api/execute` knows.
pub(crate) fn fake_agent(directory: &Path) -> Vec<(String, String)> {
    let profiles = directory.join("profiles");
    std::fs::create_dir_all(profiles.join("fake")).unwrap();
    let profile = PROFILE.replace("name = \"fake\"", "name = \"claude\"");
    std::fs::write(profiles.join("claude.toml"), profile).unwrap();
    std::fs::write(profiles.join("fake/package-lock.json"), LOCK).unwrap();
    let profile = agents::Profile::find("claude", Some(&profiles)).unwrap();
    let installed = directory.join("installed");
    let package = agents::install::place(&profile, &installed).join("node_modules/fake-agent");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(package.join("agent.js"), AGENT).unwrap();
    [
        ("POOL_MANAGERD_AGENTS_DIR", directory.join("agents")),
        ("POOL_MANAGERD_AGENTS_INSTALL_DIR", installed),
        ("POOL_MANAGERD_PROFILES_DIR", profiles),
    ]
    .map(|(name, value)| (name.to_owned(), value.display().to_string()))
    .into()
}

struct Fixture {
    system: System,
    plane: ControlPlane,
}

impl Fixture {
    /// A control plane that keeps the agent's pool itself. None where something is missing.
    async fn home(test: &str, more_pools: &str) -> Option<Self> {
        if let Some(program) = missing(&["bwrap", "node"]) {
            skipped(test, &format!("needs {program}"));
            return None;
        }
        let system = System::new();
        let mut environment = fake_agent(&system.directory("fake"));
        environment.push(("ORCHD_API_KEYS".into(), format!("alice={ALICE},bob={BOB}")));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
        let plane = system.home(&format!("{POOL}{more_pools}"), &environment);
        plane.wait_for_replicas("agents", 1).await;
        Some(Self { system, plane })
    }

    fn post(&self, key: &str, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.plane.url);
        self.system.http.post(url).bearer_auth(key).json(body)
    }

    /// The events of a task to their end.
    async fn events(&self, key: &str, body: &Value) -> Vec<(String, Value)> {
        let request = self
            .post(key, "/v2/tasks", body)
            .header("accept", "text/event-stream");
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{status}: {text}");
        named(&text)
    }

    /// What the agent answers.
    async fn ask(&self, key: &str, prompt: &str) -> String {
        let events = self.events(key, &task(prompt)).await;
        assert_eq!(events.last().unwrap().0, "end", "{events:?}");
        text(&events)
    }

    /// The refusal of a request: its status, code and field.
    async fn refusal(&self, key: &str, path: &str, body: &Value) -> (u16, String, String) {
        let response = self.post(key, path, body).send().await.unwrap();
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        (status, field("code"), field("param"))
    }
}

pub(crate) fn task(prompt: &str) -> Value {
    json!({"workload": "agent", "agent": "claude", "prompt": prompt})
}

fn named(text: &str) -> Vec<(String, Value)> {
    sse_events(text)
        .into_iter()
        .map(|event| (event.name.clone(), event.json()))
        .collect()
}

fn text(events: &[(String, Value)]) -> String {
    let tokens = events.iter().filter(|(name, _)| name == "token");
    tokens.map(|(_, data)| data["t"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_agents_task_is_a_task() {
    let Some(fixture) = Fixture::home("an_agents_task_is_a_task", "").await else {
        return;
    };
    let events = fixture.events(ALICE, &task("echo 3*67=201")).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names.first(), Some(&"started"), "{events:?}");
    assert_eq!((text(&events).as_str(), names.last()), ("3*67=201", Some(&"end")));
    let end = &events.last().unwrap().1;
    assert_eq!(
        (&end["egress_sent_bytes"], &end["egress_received_bytes"]),
        (&json!(0), &json!(0))
    );
    let started = &events[0].1;
    assert_eq!(
        (&started["pool_id"], &started["replica_id"]),
        (&json!("agents"), &json!("sandboxes"))
    );
    assert!(started["level"].is_string(), "{started}");

    // A session goes on, another one begins empty.
    let in_session = |session: &str, prompt: &str| json!({"workload": "agent", "agent": "claude", "prompt": prompt, "session_id": session});
    fixture.events(ALICE, &in_session("s1", "echo one")).await;
    let history = text(&fixture.events(ALICE, &in_session("s1", "history")).await);
    assert!(history.contains("echo one"), "{history}");
    let history = text(&fixture.events(ALICE, &in_session("s2", "history")).await);
    assert!(!history.contains("echo one"), "{history}");

    // Cancelled, and late.
    let accepted: Value = fixture
        .post(ALICE, "/v2/tasks", &task("slow"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let id = accepted["task_id"].as_str().unwrap();
    fixture
        .post(ALICE, &format!("/v2/tasks/{id}/cancel"), &json!({}))
        .send()
        .await
        .unwrap();
    let told = fixture
        .plane
        .get(&format!("/v2/tasks/{id}/events"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert_eq!(named(&told).last().unwrap().1["code"], "CANCELLED", "{told}");
    // What was said until then is kept: with the shortest deadline in which this machine gets to say something.
    let mut kept = String::new();
    for deadline_ms in [1_500, 15_000, 60_000] {
        let mut late = task("slow");
        late["deadline_ms"] = deadline_ms.into();
        let events = fixture.events(ALICE, &late).await;
        assert_eq!(events.last().unwrap().1["code"], "DEADLINE_UNMET", "{events:?}");
        kept = text(&events);
        if !kept.is_empty() {
            break;
        }
    }
    assert!(!kept.is_empty(), "nothing was said, or it was lost");
    fixture.plane.wait_for_free_slots("agents").await;

    let view = fixture.plane.json(&format!("/v2/tasks/{id}")).await;
    assert_eq!(
        (&view["agent"], &view["owner"], &view["state"]),
        (&json!("claude"), &json!("alice"), &json!("cancelled"))
    );
    let metrics = fixture
        .plane
        .get("/metrics")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        metrics.contains("orchd_agent_claims_total{pool_id=\"agents\""),
        "{metrics}"
    );
}

#[tokio::test]
async fn what_means_nothing_is_refused_by_name() {
    let Some(fixture) = Fixture::home("what_means_nothing_is_refused_by_name", "").await else {
        return;
    };
    let mut with_seed = task("echo");
    with_seed["seed"] = 1.into();
    let mut unknown = task("echo");
    unknown["agent"] = "nobody".into();
    let mut no_model = task("echo");
    no_model["model"] = "local:nothing".into();
    for (body, expect) in [
        (with_seed, (400, "INVALID_PARAMS", "seed")),
        (unknown, (404, "NOT_FOUND", "")),
        (no_model, (404, "NOT_FOUND", "model")),
        // A pool of sandboxes is no engine, and an agent no model.
        (
            json!({"workload": "chat", "pool": "agents", "prompt": "x"}),
            (404, "NOT_FOUND", ""),
        ),
        (
            json!({"workload": "chat", "model": "claude", "prompt": "x"}),
            (404, "NOT_FOUND", ""),
        ),
    ] {
        let (status, code, param) = fixture.refusal(ALICE, "/v2/tasks", &body).await;
        assert_eq!((status, &*code, &*param), expect, "{body}");
    }
    for (body, expect) in [
        (
            json!({"provider": "anthropic", "prompt": "echo", "colour": 1}),
            (400, "INVALID_PARAMS", ""),
        ),
        (
            json!({"provider": "anthropic"}),
            (400, "INVALID_PARAMS", "prompt"),
        ),
        (
            json!({"provider": "anthropic", "prompt": "a", "command": "b"}),
            (400, "INVALID_PARAMS", "command"),
        ),
        (
            json!({"provider": "openai", "prompt": "echo"}),
            (404, "NOT_FOUND", ""),
        ),
        (
            json!({"provider": "anthropic", "prompt": "echo", "userId": "bob"}),
            (403, "FORBIDDEN", "userId"),
        ),
    ] {
        let (status, code, param) = fixture.refusal(ALICE, "/api/execute", &body).await;
        assert_eq!((status, &*code, &*param), expect, "{body}");
    }
    // The key of a task opens nothing else, least of all when the task is over.
    let (status, ..) = fixture.refusal("rmd-task-0.0", "/v2/tasks", &task("echo")).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn execute_answers_in_one_call_for_the_owner() {
    let Some(fixture) = Fixture::home("execute_answers_in_one_call_for_the_owner", "").await else {
        return;
    };
    let body = json!({"provider": "anthropic", "command": "echo done", "userId": "alice"});
    let answer: Value = fixture
        .post(ALICE, "/api/execute", &body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&answer["success"], &answer["output"]),
        (&json!(true), &json!("done")),
        "{answer}"
    );

    fixture.ask(BOB, "login bobs-login").await;
    let who = json!({"provider": "anthropic", "prompt": "who", "userId": "bob"});
    let answer: Value = fixture
        .plane
        .post("/api/execute", &who)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        answer["output"], "bobs-login",
        "an admin may speak for bob: {answer}"
    );
    let answer: Value = fixture
        .post(
            ALICE,
            "/api/execute",
            &json!({"provider": "anthropic", "prompt": "who"}),
        )
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(answer["output"], "nobody", "{answer}");

    let streamed = fixture.post(
        ALICE,
        "/api/execute",
        &json!({"provider": "anthropic", "prompt": "echo a"}),
    );
    let streamed = streamed
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert_eq!(text(&named(&streamed)), "a", "{streamed}");

    // Whoever hangs up wants no answer.
    let hung_up = fixture.post(
        ALICE,
        "/api/execute",
        &json!({"provider": "anthropic", "prompt": "slow"}),
    );
    let hung_up = hung_up.timeout(Duration::from_secs(1)).send().await;
    assert!(hung_up.is_err());
    fixture.plane.wait_for_free_slots("agents").await;
}

#[tokio::test]
async fn a_login_is_its_owners_and_nobody_sees_it() {
    let Some(fixture) = Fixture::home("a_login_is_its_owners_and_nobody_sees_it", "").await else {
        return;
    };
    let path = "/v2/agents/claude/login";
    let status = async |key: &str| -> Value {
        let url = format!("{}{path}", fixture.plane.url);
        fixture
            .system
            .http
            .get(url)
            .bearer_auth(key)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    assert_eq!(status(ALICE).await["is_logged_in"], false);
    let secret = "a-canary-that-nobody-may-see";
    let mut response = fixture
        .post(ALICE, path, &json!({"kind": "api_key"}))
        .send()
        .await
        .unwrap();
    let mut told = String::new();
    let mut entered = false;
    while let Some(piece) = response.chunk().await.unwrap() {
        told.push_str(std::str::from_utf8(&piece).unwrap());
        if !entered && told.contains("event: input\n") {
            entered = true;
            let id = named(&told)[0].1["login_id"].as_str().unwrap().to_owned();
            let input = json!({"login_id": id, "text": secret});
            let (code, ..) = fixture.refusal(BOB, &format!("{path}/input"), &input).await;
            assert_eq!(code, 404, "bob has no such login");
            let taken = fixture
                .post(ALICE, &format!("{path}/input"), &input)
                .send()
                .await
                .unwrap();
            assert_eq!(taken.status(), 204);
        }
    }
    assert!(
        entered && told.trim_end().ends_with("event: ended\ndata: {}"),
        "{told}"
    );
    assert!(!told.contains(secret), "{told}");
    let said = status(ALICE).await;
    assert_eq!(said["is_logged_in"], true, "{said}");
    assert!(!said.to_string().contains(secret));
    assert_eq!(status(BOB).await["is_logged_in"], false);
    assert_eq!(fixture.ask(ALICE, "who").await, secret);
    assert_eq!(fixture.ask(BOB, "who").await, "nobody");
    let url = format!("{}{path}", fixture.plane.url);
    let removed = fixture
        .system
        .http
        .delete(url)
        .bearer_auth(ALICE)
        .send()
        .await
        .unwrap();
    assert_eq!(removed.status(), 204);
    assert_eq!(status(ALICE).await["is_logged_in"], false);
    assert!(
        !fixture.plane.program.output().contains(secret),
        "a login is in the log"
    );
}

#[tokio::test]
async fn a_pool_of_agents_is_drained_and_reloaded() {
    let Some(fixture) = Fixture::home("a_pool_of_agents_is_drained_and_reloaded", "").await else {
        return;
    };
    assert_eq!(fixture.ask(ALICE, "login hers").await, "logged in");
    let slow = fixture
        .post(BOB, "/v2/tasks", &task("slow"))
        .header("accept", "text/event-stream");
    let mut slow = slow.send().await.unwrap();
    let mut told = String::new();
    while !told.contains("event: token") {
        told.push_str(std::str::from_utf8(&slow.chunk().await.unwrap().unwrap()).unwrap());
    }
    let order = async |path: &str| -> Value {
        let asked = fixture.plane.post(path, &json!({}));
        let response = asked.send().await.unwrap();
        assert_eq!(response.status(), 202);
        response.json().await.unwrap()
    };
    let drain = json!({"deadline_ms": 0});
    let drained = fixture.plane.post("/v2/pools/agents/drain", &drain).send();
    assert_eq!(drained.await.unwrap().status(), 202);
    told.push_str(&slow.text().await.unwrap());
    let events = named(&told);
    let (name, end) = events.last().unwrap();
    assert_eq!(
        (name.as_str(), &end["code"]),
        ("error", &json!("WORKER_RESET")),
        "{told}"
    );
    assert_eq!(fixture.plane.json("/v2/pools/agents").await["draining"], true);

    let reloaded = order("/v2/pools/agents/reload").await;
    assert_eq!(reloaded["nodes"].as_array().unwrap().len(), 1, "{reloaded}");
    fixture.plane.wait_for_replicas("agents", 1).await;
    assert_eq!(fixture.ask(ALICE, "who").await, "hers");

    // What is wrong with a profile is said, and the pool stays as it is.
    let profile = fixture.system.directory("fake").join("profiles/claude.toml");
    let was = std::fs::read_to_string(&profile).unwrap();
    std::fs::write(&profile, format!("{was}\ncolour = 1\n")).unwrap();
    let refused = order("/v2/pools/agents/reload").await;
    let said = refused["failed"][0]["message"].as_str().unwrap_or_default();
    assert!(
        said.contains("stays as it is") && said.contains("colour"),
        "{refused}"
    );
    assert_eq!(fixture.ask(ALICE, "echo still").await, "still");
}

#[tokio::test]
async fn a_node_elsewhere_runs_agents_too() {
    let test = "a_node_elsewhere_runs_agents_too";
    if let Some(program) = missing(&["bwrap", "node"]) {
        return skipped(test, &format!("needs {program}"));
    }
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut nodes = Vec::new();
    for name in ["node-a", "node-b"] {
        let environment = fake_agent(&system.directory(&format!("fake-{name}")));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
        nodes.push(system.node(name, &plane, POOL, &environment));
    }
    plane.wait_for_replicas("agents", 2).await;
    let ask = async |prompt: &str| {
        let request = plane
            .post("/v2/tasks", &task(prompt))
            .header("accept", "text/event-stream");
        named(&request.send().await.unwrap().text().await.unwrap())
    };
    let first = ask("login mine").await;
    let node = first[0].1["node_id"].clone();
    for _ in 0..3 {
        let events = ask("who").await;
        assert_eq!(
            (text(&events).as_str(), &events[0].1["node_id"]),
            ("mine", &node),
            "{events:?}"
        );
    }
    assert_eq!(plane.json("/v2/agents").await["agents"][0]["agent"], "claude");
    assert_eq!(plane.json("/v2/agents/claude/login").await["is_logged_in"], true);

    // The node dies in the middle of an answer: that is told, and the other node goes on with the next task.
    let slow = plane
        .post("/v2/tasks", &task("slow"))
        .header("accept", "text/event-stream");
    let mut slow = slow.send().await.unwrap();
    let mut told = String::new();
    while !told.contains("event: token") {
        told.push_str(std::str::from_utf8(&slow.chunk().await.unwrap().unwrap()).unwrap());
    }
    nodes
        .iter_mut()
        .find(|one| one.directory.ends_with(node.as_str().unwrap()))
        .unwrap()
        .program
        .kill();
    told.push_str(&slow.text().await.unwrap());
    assert_eq!(named(&told).last().unwrap().1["code"], "WORKER_RESET", "{told}");
    let events = ask("echo still here").await;
    assert_eq!(text(&events), "still here", "{events:?}");
    assert_ne!(events[0].1["node_id"], node);
}

#[tokio::test]
async fn a_task_without_text_survives_its_node() {
    let test = "a_task_without_text_survives_its_node";
    if let Some(program) = missing(&["bwrap", "node"]) {
        return skipped(test, &format!("needs {program}"));
    }
    // What the agent asks answers nothing the first time, so that no text comes.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = format!("{POOL}allowed_hosts = [\"{address}\"]\n");
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut nodes = Vec::new();
    for name in ["node-a", "node-b"] {
        let environment = fake_agent(&system.directory(&format!("fake-{name}")));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
        nodes.push(system.node(name, &plane, &pool, &environment));
    }
    plane.wait_for_replicas("agents", 2).await;
    let asked = plane.post("/v2/tasks", &task(&format!("get http://{address}/")));
    let asked = tokio::spawn(asked.header("accept", "text/event-stream").send());
    let wait = Duration::from_secs(60);
    let first = tokio::time::timeout(wait, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let tasks = plane.json("/v2/tasks").await;
    let node = tasks["tasks"][0]["placements"][0]["node_id"]
        .as_str()
        .unwrap()
        .to_owned();
    nodes
        .iter_mut()
        .find(|one| one.directory.ends_with(&node))
        .unwrap()
        .program
        .kill();
    let (mut second, _) = tokio::time::timeout(wait, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let mut asked_of_us = Vec::new();
    while !asked_of_us.ends_with(b"\r\n\r\n") {
        let read = second.read_buf(&mut asked_of_us).await.unwrap();
        assert_ne!(read, 0, "the request broke off");
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    second.write_all(answer).await.unwrap();
    let told = asked.await.unwrap().unwrap().text().await.unwrap();
    let events = named(&told);
    let started: Vec<&Value> = events
        .iter()
        .filter(|(name, _)| name == "started")
        .map(|(_, data)| data)
        .collect();
    assert_eq!(started.len(), 2, "{told}");
    assert_ne!(started[0]["node_id"], started[1]["node_id"]);
    assert_eq!(
        (text(&events).as_str(), events.last().unwrap().0.as_str()),
        ("200", "end"),
        "{told}"
    );
    drop(first);
}

/// The command line with CLIs from npm, on the demo model: what a sandbox is given opens that model and nothing else.
fn run_real(test: &str, agent: &str) {
    if let Some(program) = missing(&["bwrap", "npm", "node"]) {
        return skipped(test, &format!("needs {program}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("remuda"));
    command
        .args(["run", "--agent", agent, "--model", "local:demo", "--json", "3*67"])
        .current_dir(directory.path())
        .env("XDG_DATA_HOME", directory.path());
    let mut program = Program::start(agent, command, directory.path().join("log"));
    let began = Instant::now();
    // The first time npm has to fetch the CLI.
    while program.is_running() {
        assert!(
            began.elapsed() < Duration::from_secs(240),
            "it does not end:\n{}",
            program.output()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = program.output();
    assert!(program.wait().success(), "{said}");
    let answer = &said[said.find('{').unwrap_or_else(|| panic!("{said}"))..];
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(answer["text"].as_str().unwrap().trim(), "201", "{answer}");
    let sandboxes = remuda_tests::processes_with(directory.path(), "remuda-init");
    assert!(sandboxes.is_empty(), "{sandboxes:?} are left");
}

#[test]
fn claude_code_on_the_demo_model() {
    run_real("claude_code_on_the_demo_model", "claude");
}

#[test]
fn codex_on_the_demo_model() {
    run_real("codex_on_the_demo_model", "codex");
}

#[test]
fn gemini_on_the_demo_model() {
    run_real("gemini_on_the_demo_model", "gemini");
}

#[test]
fn opencode_on_the_demo_model() {
    run_real("opencode_on_the_demo_model", "opencode");
}

/// The TCP ports on which a process listens.
fn listening_ports(pid: u32) -> Vec<u16> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let open: Vec<String> = open
        .filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.display().to_string()))
        .collect();
    let mut ports: Vec<u16> = Vec::new();
    for line in std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (words[1], words[3], words[9]);
        if state == "0A" && open.contains(&format!("socket:[{inode}]")) {
            let (_, port) = address.split_once(':').unwrap();
            ports.push(u16::from_str_radix(port, 16).unwrap());
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[tokio::test]
async fn a_model_of_our_own_is_asked_by_its_name() {
    let Some(fixture) = Fixture::home(
        "a_model_of_our_own_is_asked_by_its_name",
        &pool_toml("demo", 1, 1),
    )
    .await
    else {
        return;
    };
    fixture.plane.wait_for_replicas("demo", 1).await;
    let mut body = task("echo local");
    body["model"] = "local:remuda-demo".into();
    let events = fixture.events(ALICE, &body).await;
    assert_eq!(text(&events), "local", "{events:?}");
    // Not even the control plane's own port can be reached from a sandbox that uses its models.
    body["prompt"] = format!("get {}/v2/tasks", fixture.plane.url).into();
    let events = fixture.events(ALICE, &body).await;
    assert!(
        events.iter().any(|(name, _)| name == "egress_denied"),
        "{events:?}"
    );
    // The port that can be reached knows keys of running tasks and nothing else.
    let main: u16 = fixture.plane.url.rsplit(':').next().unwrap().parse().unwrap();
    let others: Vec<u16> = listening_ports(fixture.plane.program.pid())
        .into_iter()
        .filter(|port| *port != main)
        .collect();
    let [port] = others[..] else { panic!("{others:?}") };
    for (path, key, expect) in [
        ("/v1/chat/completions", ALICE, 401),
        ("/v1/chat/completions", "rmd-task-0.0", 401),
        ("/v2/tasks", ALICE, 404),
        ("/v1/models", ALICE, 404),
    ] {
        let url = format!("http://127.0.0.1:{port}{path}");
        let asked = fixture
            .system
            .http
            .post(url)
            .bearer_auth(key)
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        assert_eq!(asked.status().as_u16(), expect, "{path}");
    }
    // The agent is not among the models.
    let models = fixture.plane.json("/v1/models").await;
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
}
