//! A login is with its owner's sandbox and nowhere else. Each login here is a canary, a secret that is used nowhere
//! else, and all that a system leaves, says and shows is searched for it: logs at their most talkative, spans, metrics,
//! every answer, every file, every command line and environment, other sandboxes, and what is left of a node that aborts.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fake_provider::{FakeProvider, Step};
use memchr::memmem;
use remuda_tests::{ControlPlane, Deadline, Node, System, binary, eventually, eventually_async, skipped};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agents::{fake_agent, missing};
use crate::traces::receiver;

const ALICE: &str = "alices-key";
const BOB: &str = "bobs-key";
const TEST: &str = "a_login_is_found_nowhere";

/// One login, in all the ways in which it could be written.
struct Canary {
    agent: &'static str,
    key: &'static str,
    text: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Canary {
    fn new(agent: &'static str, key: &'static str, around: &str) -> Self {
        let random = || RandomState::new().build_hasher().finish();
        let text = format!("sk-{around}{:016x}{:016x}", random(), random());
        let json = serde_json::to_string(&text).unwrap();
        let percent = text.bytes().map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        });
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![
            ("raw", text.clone().into_bytes()),
            ("JSON", json.trim_matches('"').as_bytes().to_vec()),
            ("percent", percent.collect::<String>().into_bytes()),
            ("HEX", hex.to_uppercase().into_bytes()),
            ("hex", hex.into_bytes()),
        ];
        for before in 0..3 {
            let coded = base64(&[&vec![0; before], text.as_bytes()].concat());
            // Digits that other bytes share stand at both ends.
            let whole = coded[4.min(before * 4)..coded.len() - 4].to_vec();
            let safe = whole.iter().map(|digit| match digit {
                b'+' => b'-',
                b'/' => b'_',
                other => *other,
            });
            forms.push(("base64url", safe.collect()));
            forms.push(("base64", whole));
        }
        Self {
            agent,
            key,
            text,
            forms,
        }
    }

    fn found_in(&self, bytes: &[u8]) -> Option<&'static str> {
        let found = self
            .forms
            .iter()
            .find(|(_, form)| memmem::find(bytes, form).is_some());
        found.map(|(name, _)| *name)
    }
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = Vec::new();
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        coded.extend([18, 12, 6, 0].map(|shift| DIGITS[(group >> shift & 63) as usize]));
    }
    coded
}

fn nowhere_in<'c>(canaries: impl IntoIterator<Item = &'c Canary>, place: &str, bytes: &[u8]) {
    for canary in canaries {
        if let Some(form) = canary.found_in(bytes) {
            panic!("a login at {} is in {place}, as {form}", canary.agent);
        }
    }
}

/// Every file below a directory, links not followed.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

fn nowhere_below(canaries: &[Canary], directory: &Path) {
    let mut found = Vec::new();
    files(directory, &mut found);
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        nowhere_in(
            canaries,
            &path.display().to_string(),
            path.as_os_str().as_encoded_bytes(),
        );
        // One that was removed meanwhile is nowhere, too.
        nowhere_in(
            canaries,
            &path.display().to_string(),
            &std::fs::read(&path).unwrap_or_default(),
        );
    }
}

fn namespace(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

/// No command line holds a login; an environment may, and a file in memory, in one sandbox only. Which sandboxes those are,
/// by login.
fn only_at_home(canaries: &[Canary]) -> BTreeMap<String, BTreeSet<PathBuf>> {
    let own = namespace("self");
    let mut holders: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |what: &str| std::fs::read(format!("/proc/{name}/{what}")).unwrap_or_default();
        nowhere_in(canaries, &format!("the command line of {name}"), &read("cmdline"));
        let mut shown = read("environ");
        let Some(namespace) = namespace(&name) else {
            continue;
        };
        if Some(&namespace) == own.as_ref() {
            nowhere_in(canaries, &format!("the environment of {name}"), &shown);
            continue;
        }
        let root = PathBuf::from(format!("/proc/{name}/root"));
        if root.join("opt/remuda-init").exists() && seen.insert(namespace.clone()) {
            let limits = String::from_utf8(read("limits")).unwrap();
            let cores = limits.lines().find(|line| line.starts_with("Max core file size"));
            let words: Vec<&str> = cores.unwrap_or_default().split_whitespace().collect();
            assert!(matches!(words[4], "0" | "1"), "{words:?}");
            let mut below = Vec::new();
            for directory in ["home/agent", "tmp", "workspace", "dev/shm"] {
                files(&root.join(directory), &mut below);
            }
            for path in below {
                shown.extend(std::fs::read(path).unwrap_or_default());
            }
        }
        for canary in canaries.iter().filter(|canary| canary.found_in(&shown).is_some()) {
            let holders = holders.entry(canary.text.clone()).or_default();
            holders.insert(namespace.clone());
        }
    }
    holders
}

/// Leads to the provider by an address at which a sandbox's programs use their proxy.
async fn forwarder(to: SocketAddr) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut provider = tokio::net::TcpStream::connect(to).await.unwrap();
                // It ends when either does.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut provider).await;
            });
        }
    });
    address
}

/// The profiles of Codex and Gemini CLI, which find their provider at `base`, among those of the node.
fn real_agents(profiles: &Path, installed: &Path, base: &str) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agents");
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    for agent in ["codex", "gemini"] {
        let text = std::fs::read_to_string(repository.join(format!("{agent}.toml"))).unwrap();
        let provider = format!(
            "    \"app-server\", \"-c\", {{ toml = 'model_provider=\"own\"' }},\n    \"-c\", {{ toml = \
             'model_providers.own={{name=\"own\",base_url=\"{base}/v1\",wire_api=\"responses\",requires_openai_auth=true}}' }},\n"
        );
        let text = text.replace("    \"app-server\",\n", &provider).replace(
            "GEMINI_CLI_NO_RELAUNCH",
            &format!("GOOGLE_GEMINI_BASE_URL = {base:?}\nGEMINI_CLI_NO_RELAUNCH"),
        );
        std::fs::create_dir_all(profiles.join(agent)).unwrap();
        let lock = format!("{agent}/package-lock.json");
        std::fs::copy(repository.join(&lock), profiles.join(&lock)).unwrap();
        std::fs::write(profiles.join(format!("{agent}.toml")), text).unwrap();
        let profile = agents::Profile::find(agent, Some(profiles)).unwrap();
        let cached = cache.join("remuda/agents");
        let program = agents::install::install(&profile, &cached, &mut |_| {}).unwrap();
        let place = agents::install::place(&profile, installed);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(program, place).unwrap();
    }
}

struct Fixture {
    system: System,
    plane: ControlPlane,
    node: Node,
    pools: String,
    environment: Vec<(String, String)>,
    provider: FakeProvider,
    canaries: Vec<Canary>,
}

impl Fixture {
    async fn new(provider: FakeProvider, endpoint: &str) -> Self {
        let base = forwarder(provider.address()).await;
        let system = System::new();
        let directory = system.directory("agents");
        let mut environment = fake_agent(&directory);
        real_agents(
            &directory.join("profiles"),
            &directory.join("installed"),
            &format!("http://{base}"),
        );
        for (name, value) in [("REMUDA_LOG", "trace"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)] {
            environment.push((name.to_owned(), value.to_owned()));
        }
        let pools: String = ["claude", "codex", "gemini"]
            .map(|agent| {
                format!(
                    "[[pools]]\nid = \"{agent}\"\nkind = \"agent\"\nagent = \"{agent}\"\nwarm = 1\nruns_max = 4\n\
                     allowed_hosts = [\"{base}\"]\n"
                )
            })
            .concat();
        let keys = format!("alice={ALICE},bob={BOB}");
        let of_plane = [
            ("ORCHD_API_KEYS", keys.as_str()),
            ("REMUDA_LOG", "trace"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ];
        let plane = system.control_plane(&of_plane);
        let node = system.node("node-a", &plane, &pools, &borrowed(&environment));
        for pool in ["claude", "codex", "gemini"] {
            plane.wait_for_replicas(pool, 1).await;
        }
        let canaries = vec![
            Canary::new("claude", ALICE, "+/=%\"\\ x"),
            Canary::new("claude", BOB, "+/=%\"\\ y"),
            Canary::new("codex", ALICE, "c"),
            Canary::new("gemini", ALICE, "g"),
        ];
        Self {
            system,
            plane,
            node,
            pools,
            environment,
            provider,
            canaries,
        }
    }

    /// As a person does, with the command line.
    fn log_in(&self, canary: &Canary) {
        let mut login = Command::new(binary("remuda"))
            .args([
                "login",
                canary.agent,
                "--kind",
                "api-key",
                "--url",
                &self.plane.url,
            ])
            .env("REMUDA_API_KEY", canary.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = login.stdin.take().unwrap();
        stdin.write_all(format!("{}\n", canary.text).as_bytes()).unwrap();
        drop(stdin);
        let said = login.wait_with_output().unwrap();
        assert!(said.status.success(), "{}: {said:?}", canary.agent);
        nowhere_in(&self.canaries, "what remuda login prints", &said.stdout);
        nowhere_in(&self.canaries, "what remuda login prints", &said.stderr);
    }

    fn request(&self, method: reqwest::Method, path: &str, key: &str) -> reqwest::RequestBuilder {
        let request = self
            .system
            .http
            .request(method, format!("{}{path}", self.plane.url));
        request.bearer_auth(key).timeout(Duration::from_secs(60))
    }

    /// The events of a task of an owner, to their end or until `enough`.
    async fn task(
        &self,
        key: &str,
        agent: &str,
        prompt: &str,
        enough: Option<&str>,
    ) -> (String, reqwest::Response) {
        let mut body = json!({"workload": "agent", "agent": agent, "prompt": prompt, "verbose": true});
        if agent != "claude" {
            // Left to itself Gemini CLI asks one model which one to ask.
            body["model"] = "a-model".into();
        }
        let request = self.request(reqwest::Method::POST, "/v2/tasks", key).json(&body);
        let request = request.header("accept", "text/event-stream");
        let mut response = request.send().await.unwrap();
        let mut told = String::new();
        loop {
            let piece = response.chunk().await;
            let piece = piece.unwrap_or_else(|error| panic!("{agent}: {error} after {told}"));
            let Some(piece) = piece else { break };
            told.push_str(&String::from_utf8_lossy(&piece));
            if enough.is_some_and(|enough| told.contains(enough)) {
                break;
            }
        }
        (told, response)
    }

    /// What a GET of every path says to everybody, and what wrong requests are told.
    async fn answers(&self) {
        let document: Value = self.plane.json("/openapi.json").await;
        let mut names: Vec<String> = ["claude", "codex", "gemini", "node-a", "sandboxes"]
            .map(str::to_owned)
            .into();
        let tasks = self.plane.json("/v2/tasks").await;
        let ids = tasks["tasks"].as_array().unwrap().iter();
        names.extend(ids.map(|task| task["task_id"].as_str().unwrap().to_owned()));
        let mut paths = vec!["/metrics".to_owned(), "/openapi.json".to_owned()];
        for (path, what) in document["paths"].as_object().unwrap() {
            if what.get("get").is_none() {
                continue;
            }
            match path
                .split_once('{')
                .map(|(head, rest)| (head, rest.split_once('}').unwrap().1))
            {
                Some((head, tail)) => paths.extend(names.iter().map(|name| format!("{head}{name}{tail}"))),
                None => paths.push(path.clone()),
            }
        }
        assert!(paths.len() > 30, "{paths:?}");
        for key in [ALICE, BOB, "a-token-for-tests", "nobodys"] {
            for path in &paths {
                let answer = self
                    .request(reqwest::Method::GET, path, key)
                    .send()
                    .await
                    .unwrap();
                // What an agent prints is its owner's to see, and an administrator's.
                let may_see = |canary: &&Canary| {
                    path.ends_with("/events") && (key == canary.key || key == "a-token-for-tests")
                };
                let headers = format!("{:?}", answer.headers());
                nowhere_in(&self.canaries, path, headers.as_bytes());
                let hidden = self.canaries.iter().filter(|canary| !may_see(canary));
                nowhere_in(hidden, path, &all_of(path, answer).await);
            }
        }
        for path in [
            "/metrics",
            "/health",
            "/v2/pools",
            "/v2/pools/codex/status",
            "/v2/agents/codex/login?owner=alice",
        ] {
            let request = self.system.http.get(format!("{}{path}", self.node.url));
            let answer = request.bearer_auth("a-token-for-tests").send().await.unwrap();
            nowhere_in(
                &self.canaries,
                &format!("the node's {path}"),
                &answer.bytes().await.unwrap(),
            );
        }
        // Sent where it does not belong, a login goes no further.
        let text = &self.canaries[2].text;
        for (key, body) in [
            (BOB, json!({"login_id": "x", "text": text})),
            (ALICE, json!({"login_id": "x", "text": {"inner": text}})),
            (ALICE, json!({"login_id": {"inner": text}, "text": "x"})),
            ("wrong", json!({"login_id": "x", "text": text})),
        ] {
            let request = self.request(reqwest::Method::POST, "/v2/agents/codex/login/input", key);
            let answer = request.json(&body).send().await.unwrap();
            assert!(answer.status().is_client_error());
            nowhere_in(&self.canaries, "an error", &answer.bytes().await.unwrap());
        }
    }

    fn left(&self, when: &str) {
        for program in [&self.plane.program, &self.node.program] {
            nowhere_in(
                &self.canaries,
                &format!("a log, {when}"),
                program.output().as_bytes(),
            );
        }
        nowhere_below(&self.canaries, self.plane.directory.parent().unwrap());
    }
}

/// The whole answer, or what a stream that does not end has said.
async fn all_of(path: &str, mut answer: reqwest::Response) -> Vec<u8> {
    let is_stream = answer
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind == "text/event-stream");
    let mut all = Vec::new();
    let reading = async {
        while let Some(piece) = answer.chunk().await.unwrap() {
            all.extend_from_slice(&piece);
        }
    };
    let patience = Duration::from_secs(if is_stream { 1 } else { 30 });
    let ended = tokio::time::timeout(patience, reading).await;
    assert!(ended.is_ok() || is_stream, "{path} does not end");
    all
}

fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect()
}

/// Whether a program that aborts in this directory leaves its memory there, when it may.
fn leaves_core(directory: &Path) -> bool {
    let aborted = Command::new("bash")
        .args(["-c", "ulimit -c unlimited && kill -ABRT $$"])
        .current_dir(directory)
        .status();
    aborted.is_ok() && !cores(directory).is_empty()
}

fn cores(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let is_core = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("core"))
    };
    entries.map(|entry| entry.path()).filter(is_core).collect()
}

#[tokio::test]
async fn a_login_is_found_nowhere() {
    if let Some(program) = missing(&["bwrap", "node", "npm"]) {
        return skipped(TEST, &format!("needs {program}"));
    }
    let (endpoint, spans) = receiver();
    let provider = FakeProvider::start(Step::text("201")).unwrap();
    let mut fixture = Fixture::new(provider, &endpoint).await;
    for canary in &fixture.canaries {
        fixture.log_in(canary);
    }

    // The logins are used: the provider is shown them, and only there.
    for (agent, canary) in [("codex", 2), ("gemini", 3)] {
        let (told, _) = fixture.task(ALICE, agent, "3*67", None).await;
        assert!(told.contains("event: end"), "{told}");
        nowhere_in(&fixture.canaries, "the events of a task", told.as_bytes());
        let seen = fixture.provider.take_seen();
        assert_eq!(
            seen.last().unwrap().key.as_ref(),
            Some(&fixture.canaries[canary].text)
        );
    }

    // While they run.
    fixture
        .provider
        .script([Step::hang(["began"]), Step::hang(["began"])]);
    let codex = fixture.task(ALICE, "codex", "wait", Some("began")).await;
    let gemini = fixture.task(ALICE, "gemini", "wait", Some("began")).await;
    let (told, _) = fixture.task(BOB, "claude", "echo here", None).await;
    assert!(told.contains("here"), "{told}");
    let holders = only_at_home(&fixture.canaries);
    if rustix::process::getuid().is_root() {
        assert_eq!(holders.len(), fixture.canaries.len(), "all of them are somewhere");
    }
    let homes: BTreeSet<&PathBuf> = holders.values().flatten().collect();
    assert!(holders.values().all(|homes| homes.len() == 1), "{holders:?}");
    assert_eq!(homes.len(), holders.len(), "each in its own: {holders:?}");
    drop((codex, gemini));
    let tasks = fixture.plane.json("/v2/tasks").await;
    for task in tasks["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|task| task["ended_at"].is_null())
    {
        let path = format!("/v2/tasks/{}/cancel", task["task_id"].as_str().unwrap());
        let cancelled = fixture
            .request(reqwest::Method::POST, &path, ALICE)
            .send()
            .await
            .unwrap();
        assert!(cancelled.status().is_success(), "{path}: {}", cancelled.status());
    }
    for pool in ["codex", "gemini"] {
        fixture.plane.wait_for_free_slots(pool).await;
    }
    fixture.answers().await;
    fixture.left("after the runs");

    // A CLI that prints its login prints it to its owner.
    let (told, _) = fixture.task(ALICE, "claude", "who", None).await;
    assert!(fixture.canaries[0].found_in(told.as_bytes()).is_some(), "{told}");
    let (told, _) = fixture.task(BOB, "claude", "who", None).await;
    assert!(fixture.canaries[0].found_in(told.as_bytes()).is_none(), "{told}");
    fixture.answers().await;
    fixture.left("after it was printed");

    // A node that aborts leaves nothing of its memory.
    let elsewhere = fixture.system.directory("elsewhere");
    let can_tell = leaves_core(&elsewhere);
    std::fs::remove_dir_all(&elsewhere).unwrap();
    fixture.node.program.signal(Signal::ABORT);
    let ended = fixture.node.program.wait();
    assert!(!ended.success());
    assert_eq!(cores(&fixture.node.directory), Vec::<PathBuf>::new());
    if !can_tell {
        eprintln!("{TEST}: this machine's core pattern puts nothing where it was looked for");
    }

    // Homes that do not open any more: what is said of them, and what was taken out of the sandboxes that were left.
    let mut homes = Vec::new();
    files(&fixture.system.directory("agents/agents/homes"), &mut homes);
    homes.retain(|path| path.extension().is_some_and(|extension| extension == "home"));
    assert!(homes.len() >= fixture.canaries.len(), "{homes:?}");
    for home in &homes {
        let mut bytes = std::fs::read(home).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(home, bytes).unwrap();
    }
    let (directory, addr) = (fixture.node.directory.clone(), fixture.node.addr.clone());
    let environment = borrowed(&fixture.environment);
    fixture.node = fixture.system.node_in(
        &directory,
        "node-a",
        &addr,
        &fixture.plane.url,
        &fixture.pools,
        &environment,
    );
    eventually_async("an answer about a broken home", Deadline::default(), || async {
        let request = fixture.request(reqwest::Method::GET, "/v2/agents/codex/login", ALICE);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        let body = answer.bytes().await.ok()?;
        nowhere_in(&fixture.canaries, "an answer about a broken home", &body);
        (status.is_success() || status.as_u16() == 500).then_some(())
    })
    .await;
    for program in [&mut fixture.node.program, &mut fixture.plane.program] {
        program.signal(Signal::TERM);
        program.wait();
    }
    fixture.left("at the end");
    eventually("spans", Deadline::default(), || {
        spans.has(b"orchestratord").then_some(())
    });
    nowhere_in(&fixture.canaries, "the spans", &spans.bytes());
}
