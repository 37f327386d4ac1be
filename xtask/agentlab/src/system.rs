//! A control plane and a node with agent pools, as separate programs, and tasks that are followed as they come.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fake_provider::{FakeProvider, Step};
use remuda_tests::{ControlPlane, Node, System, TOKEN, binary};
use serde_json::{Value, json};

/// The CLIs are asked for in many owners' names.
pub(crate) const OWNERS: usize = 160;

/// What the endpoint answers.
pub(crate) const ANSWER: &str = "201";

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running system.
pub(crate) struct Place {
    pub(crate) plane: ControlPlane,
    pub(crate) node: Node,
    /// Of profiles, installed CLIs of its own, and sandboxes.
    pub(crate) directory: PathBuf,
    http: reqwest::Client,
    _system: System,
}

/// What came of a task, and when; all times from the moment of asking.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// How warm its sandbox was.
    pub(crate) level: String,
    /// It had its sandbox, and its CLI was started.
    pub(crate) started: Duration,
    /// The lines that the CLI wrote before its first text, when they were asked for.
    pub(crate) lines: Vec<(Duration, String)>,
    pub(crate) first_text: Option<Duration>,
    pub(crate) ended: Duration,
    pub(crate) text: String,
}

impl Place {
    /// Starts both. `prepare` fills the directory of profiles and says what the pools are.
    pub(crate) fn new(
        environment: &[(&str, &str)],
        prepare: impl FnOnce(&std::path::Path) -> Result<String>,
    ) -> Result<Self> {
        let system = System::new();
        let directory = system.directory("agents");
        let profiles = directory.join("profiles");
        std::fs::create_dir_all(&profiles)?;
        let pools = prepare(&directory)?;
        let keys: Vec<String> = (0..OWNERS)
            .map(|number| format!("{}={}", owner(number), key(number)))
            .collect();
        let plane = system.control_plane(&[
            ("ORCHD_API_KEYS", &keys.join(",")),
            ("ORCHD_ADMISSION_CAPACITY", "1000"),
            ("REMUDA_LOG", "warn,orchestratord=info,daemon=info"),
        ]);
        let places = [
            ("POOL_MANAGERD_AGENTS_DIR", directory.join("sandboxes")),
            ("POOL_MANAGERD_PROFILES_DIR", profiles),
            ("POOL_MANAGERD_INIT_PROGRAM", binary("remuda-init")),
        ];
        let mut places = places
            .map(|(name, path)| (name, path.display().to_string()))
            .to_vec();
        let installed = directory.join("installed");
        if installed.exists() {
            places.push((
                "POOL_MANAGERD_AGENTS_INSTALL_DIR",
                installed.display().to_string(),
            ));
        }
        let mut all: Vec<(&str, &str)> = places.iter().map(|(name, path)| (*name, path.as_str())).collect();
        all.extend_from_slice(environment);
        let node = system.node("node", &plane, &pools, &all);
        Ok(Self {
            plane,
            node,
            directory,
            http: reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?,
            _system: system,
        })
    }

    /// Runs a task to its end, in the name of owner `number`.
    pub(crate) async fn ask(&self, number: usize, body: &Value) -> Result<Told> {
        let asked = Instant::now();
        let request = self
            .post("/v2/tasks", number, body)
            .header("accept", "text/event-stream");
        let mut response = request.send().await?;
        ensure!(
            response.status().is_success(),
            "{}: {}",
            response.status(),
            response.text().await?
        );
        let mut told = Told::default();
        let mut read = Vec::new();
        let mut events = Vec::new();
        while let Some(piece) = tokio::time::timeout(PATIENCE, response.chunk()).await?? {
            let now = asked.elapsed();
            read.extend_from_slice(&piece);
            while let Some(end) = read.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = read.drain(..end + 2).collect();
                events.push((now, event));
            }
        }
        for (at, event) in events {
            told.take(at, &event)?;
        }
        ensure!(told.ended > Duration::ZERO, "the task has no end");
        Ok(told)
    }

    fn post(&self, path: &str, number: usize, body: &Value) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.plane.url);
        self.http.post(url).bearer_auth(key(number)).json(body)
    }

    /// What the programs have complained of.
    pub(crate) fn log(&self) -> String {
        let all = [self.plane.program.output(), self.node.program.output()].concat();
        let told = all
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"));
        told.take(20).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the pool takes tasks.
    pub(crate) async fn ready(&self, pool: &str) {
        self.plane.wait_for_replicas(pool, 1).await;
    }

    /// Waits until so many sandboxes of the pool are warm, as the node's metrics have it.
    pub(crate) async fn warm(&self, pool: &str, count: usize) -> Result<()> {
        let line = format!("pool_sandboxes{{pool_id=\"{pool}\",level=\"warm\"}} ");
        let until = Instant::now() + PATIENCE;
        loop {
            let page = self
                .http
                .get(format!("{}/metrics", self.node.url))
                .bearer_auth(TOKEN);
            let page = page.send().await?.text().await?;
            let now = page
                .lines()
                .find_map(|text| text.strip_prefix(&line)?.trim().parse::<usize>().ok());
            if now.is_some_and(|now| now >= count) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!(
                    "{now:?} sandboxes of {pool} are warm, not {count}:\n{}",
                    self.node.program.output()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives owner `number` a login by a key.
    pub(crate) async fn log_in(&self, number: usize, agent: &str) -> Result<()> {
        let path = format!("/v2/agents/{agent}/login");
        let request = self.post(&path, number, &json!({"kind": "api_key"}));
        let mut response = request.send().await?.error_for_status()?;
        let mut told = String::new();
        let mut is_entered = false;
        while let Some(piece) = response.chunk().await? {
            told.push_str(std::str::from_utf8(&piece)?);
            if !is_entered && told.contains("event: input\n") {
                is_entered = true;
                let events = remuda_tests::sse_events(&told);
                let input = json!({"login_id": events[0].json()["login_id"], "text": "a-key"});
                let entered = self.post(&format!("{path}/input"), number, &input);
                entered.send().await?.error_for_status()?;
            }
        }
        ensure!(told.trim_end().ends_with("data: {}"), "the login failed: {told}");
        Ok(())
    }
}

impl Told {
    fn take(&mut self, at: Duration, event: &[u8]) -> Result<()> {
        let events = remuda_tests::sse_events(std::str::from_utf8(event)?);
        let Some(event) = events.first() else {
            return Ok(());
        };
        let data = event.json();
        let word = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        match event.name.as_str() {
            "started" => {
                self.level = word("level");
                self.started = at;
            }
            "raw" if self.first_text.is_none() => self.lines.push((at, word("line"))),
            "token" => {
                self.first_text.get_or_insert(at);
                self.text.push_str(data["t"].as_str().context("a text")?);
            }
            "text_replaced" => self.text = word("t"),
            "end" => self.ended = at,
            "error" => bail!("the task failed: {data}"),
            _ => {}
        }
        Ok(())
    }
}

fn owner(number: usize) -> String {
    format!("owner-{number}")
}

fn key(number: usize) -> String {
    format!("key-of-owner-{number}")
}

/// A task for an agent.
pub(crate) fn task(agent: &str, prompt: &str) -> Value {
    json!({"workload": "agent", "agent": agent, "prompt": prompt})
}

/// A system with one pool of an agent whose CLI asks `provider`.
pub(crate) async fn with_agent(
    agent: &str,
    provider: &FakeProvider,
    environment: &[(&str, &str)],
) -> Result<Place> {
    let place = Place::new(environment, |directory| {
        crate::profiles::write(agent, &directory.join("profiles"), &provider.url())?;
        Ok(format!(
            "[[pools]]\nid = \"{agent}\"\nkind = \"agent\"\nagent = \"{agent}\"\nwarm = 2\nruns_max = 16\n\
             allowed_hosts = [\"{}\"]\n",
            provider.address()
        ))
    })?;
    place.ready(agent).await;
    Ok(place)
}

/// An endpoint that answers at once. A CLI in a sandbox takes 127.0.0.1 for its own, and asks no proxy for it.
pub(crate) fn provider() -> Result<FakeProvider> {
    Ok(FakeProvider::start_on(
        ([127, 0, 0, 2], 0).into(),
        Step::text(ANSWER),
    )?)
}

/// Puts the fake agent where a node finds it installed, and gives the node's settings for that.
pub(crate) fn fake_agent(directory: &std::path::Path) -> Result<()> {
    let profiles = directory.join("profiles");
    fake_agent::write_profile(&profiles)?;
    let profile = agents::Profile::find(fake_agent::NAME, Some(&profiles))?;
    let place = agents::install::place(&profile, &directory.join("installed"));
    Ok(fake_agent::install(&binary(fake_agent::NAME), &place)?)
}
