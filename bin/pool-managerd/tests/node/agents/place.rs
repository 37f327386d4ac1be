//! What the tests of agent pools share: a node with one agent pool, and runs in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fake_provider::{FakeProvider, Step};
use pool_managerd::{
    AgentEvents, AgentsConfig, Door, DoorError, Launch, Node, NodeConfig, NodeHandle, PoolSettings,
    StartError,
};
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, LocalModel, WarmLevel};
use sandbox::InitProgram;

use crate::bench::{Bench, LONG, holder};

/// A control plane gives every task a key of its own.
static KEYS: AtomicU32 = AtomicU32::new(1);

/// A node with an agent pool of the agent's name, and a provider that its agents speak with.
pub(crate) struct Place {
    pub(crate) bench: Bench,
    pub(crate) provider: FakeProvider,
    pub(crate) agent: String,
    pool: PoolSettings,
    config: AgentsConfig,
    _directory: tempfile::TempDir,
}

/// What a run has told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) events: Vec<AgentEvent>,
    /// From the call until the CLI had the prompt, the first text came, and the end.
    pub(crate) prompted: Option<Duration>,
    pub(crate) text_at: Option<Duration>,
    pub(crate) took: Duration,
}

impl Told {
    pub(crate) fn outcome(&self) -> &AgentOutcome {
        match self.events.last() {
            Some(AgentEvent::Ended { outcome }) => outcome,
            _ => panic!("no end: {:?}", self.events),
        }
    }

    pub(crate) fn text(&self) -> String {
        self.events.iter().fold(String::new(), |text, event| match event {
            AgentEvent::Text { text: more } => text + more,
            AgentEvent::TextReplaced {
                kept_bytes,
                text: rest,
            } => {
                let kept = usize::try_from(*kept_bytes).unwrap();
                text[..kept].to_owned() + rest
            }
            _ => text,
        })
    }

    /// What the CLI calls the conversation.
    pub(crate) fn session(&self) -> Option<String> {
        self.events.iter().rev().find_map(|event| match event {
            AgentEvent::Session { id } => Some(id.clone()),
            _ => None,
        })
    }

    pub(crate) fn level(&self) -> WarmLevel {
        let level = self.events.iter().find_map(|event| match event {
            AgentEvent::Claimed { level, .. } => Some(*level),
            _ => None,
        });
        level.unwrap_or_else(|| panic!("no claim: {:?}", self.events))
    }
}

/// The init program beside ours. None: it is not built, and the test is skipped.
pub(crate) fn init_program() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_pool-managerd")).with_file_name("remuda-init");
    if program.is_file() {
        return Some(program);
    }
    skipped("remuda-init is not built");
    None
}

pub(crate) fn skipped(missing: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "in CI nothing is skipped: {missing}"
    );
    eprintln!("skipped: {missing}");
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The fake agent's files, for whoever reads them from a directory.
pub(crate) const FAKE_PROFILE: &str = include_str!("fake/fake.toml");
const FAKE_AGENT: &str = include_str!("fake/agent.js");
const FAKE_LOCK: &str = include_str!("fake/package-lock.json");

/// Puts the fake agent where a node finds it installed. None where something is missing.
pub(crate) fn fake_pool(directory: &Path) -> Option<(PoolSettings, AgentsConfig)> {
    for program in ["bwrap", "node"] {
        if !on_path(program) {
            skipped(program);
            return None;
        }
    }
    let init = InitProgram {
        path: init_program()?,
        arguments: Vec::new(),
    };
    let profiles = directory.join("profiles");
    std::fs::create_dir_all(profiles.join("fake")).unwrap();
    std::fs::write(profiles.join("fake.toml"), FAKE_PROFILE).unwrap();
    std::fs::write(profiles.join("fake/package-lock.json"), FAKE_LOCK).unwrap();
    let profile = agents::Profile::find("fake", Some(&profiles)).unwrap();
    let installed = directory.join("installed");
    let package = agents::install::place(&profile, &installed).join("node_modules/fake-agent");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(package.join("agent.js"), FAKE_AGENT).unwrap();
    let mut pool = PoolSettings::with_agent("fake".parse().unwrap(), "fake");
    pool.warm = Some(2);
    pool.runs_max = Some(8);
    let config = AgentsConfig {
        directory: directory.join("agents"),
        installed,
        profiles: Some(profiles),
        init,
        ..AgentsConfig::default()
    };
    Some((pool, config))
}

impl Place {
    /// None where something is missing; the test is then skipped.
    pub(crate) async fn real(agent: &str) -> Option<Self> {
        Self::real_with(agent, |_, _, _| {}).await
    }

    /// The same with other settings, which are told a directory of this place.
    pub(crate) async fn real_with(
        agent: &str,
        change: impl FnOnce(&Path, &mut PoolSettings, &mut AgentsConfig),
    ) -> Option<Self> {
        for program in ["bwrap", "npm"] {
            if !on_path(program) {
                skipped(program);
                return None;
            }
        }
        let init = init_program()?;
        let directory = tempfile::tempdir().unwrap();
        let mut pool = PoolSettings::with_agent(agent.parse().unwrap(), agent);
        pool.warm = Some(1);
        pool.runs_max = Some(4);
        let mut config = AgentsConfig {
            directory: directory.path().join("agents"),
            init: InitProgram {
                path: init,
                arguments: Vec::new(),
            },
            ..AgentsConfig::default()
        };
        change(directory.path(), &mut pool, &mut config);
        let place = Self::new(directory, agent, pool, config);
        place
            .bench
            .until(agent, "the agent is installed", |report| report.ready)
            .await;
        Some(place)
    }

    /// Begins a second node in the same directory of agents.
    pub(crate) fn another_node(&self) -> Result<NodeHandle, StartError> {
        let engines = engine_provisioner::Settings {
            handoff_dir: self.config.directory.join("../other-engines"),
            ..engine_provisioner::Settings::default()
        };
        let mut config = NodeConfig::new(vec![self.pool.clone()], engines);
        config.agents = self.config.clone();
        Node::start(config, Launch::InProcess)
    }

    /// Where workspaces lie.
    pub(crate) fn workspaces(&self) -> PathBuf {
        self.config.directory.join("workspaces")
    }

    /// Where the driver writes down what it has made.
    pub(crate) fn records(&self) -> PathBuf {
        self.config.directory.join("bubblewrap")
    }

    /// The fake agent's profile.
    pub(crate) fn profile(&self) -> PathBuf {
        let profiles = self.config.profiles.as_ref();
        profiles.unwrap().join(format!("{}.toml", self.agent))
    }

    pub(crate) fn door(&self) -> &Door {
        self.bench.door()
    }

    /// A node with an agent that does what its prompt says.
    pub(crate) async fn fake(change: impl FnOnce(&mut PoolSettings)) -> Option<Self> {
        Self::fake_with(|pool, _| change(pool)).await
    }

    /// The same, with settings of the node.
    pub(crate) async fn fake_with(change: impl FnOnce(&mut PoolSettings, &mut AgentsConfig)) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (mut pool, mut agents) = fake_pool(directory.path())?;
        change(&mut pool, &mut agents);
        let place = Self::new(directory, "fake", pool, agents);
        place.bench.ready("fake").await;
        Some(place)
    }

    fn new(directory: tempfile::TempDir, agent: &str, pool: PoolSettings, config: AgentsConfig) -> Self {
        Self {
            bench: Bench::with(vec![pool.clone()], |node| node.agents = config.clone()),
            provider: FakeProvider::start(Step::text("201")).unwrap(),
            agent: agent.to_owned(),
            pool,
            config,
            _directory: directory,
        }
    }

    /// The node ends as it should, and another one begins in the same directory.
    pub(crate) async fn restarted(mut self) -> Self {
        let node = self.bench.node.take().unwrap();
        assert_eq!(node.shutdown(LONG, true).await, 0);
        self.bench = Bench::with(vec![self.pool.clone()], |node| node.agents = self.config.clone());
        self.bench.ready(&self.agent).await;
        self
    }

    /// A run without anything but owner and prompt.
    pub(crate) fn plain(&self, owner: &str, prompt: &str) -> AgentRun {
        AgentRun {
            local_model: None,
            ..self.asked(owner, prompt)
        }
    }

    /// Asks, and gives the text of the answer.
    pub(crate) async fn ask(&self, owner: &str, prompt: &str) -> String {
        let told = self.run(self.plain(owner, prompt)).await;
        assert_eq!(told.outcome(), &AgentOutcome::Completed, "{:?}", told.events);
        told.text()
    }

    /// A run on the provider's model.
    pub(crate) fn asked(&self, owner: &str, prompt: &str) -> AgentRun {
        AgentRun {
            task_id: "t".to_owned(),
            owner: owner.to_owned(),
            prompt: prompt.to_owned(),
            session_id: None,
            model: None,
            effort: None,
            timeout_ms: Some(60_000),
            workspace: None,
            verbose: false,
            local_model: Some(LocalModel {
                base_url: self.provider.url(),
                key: format!("key-{}", KEYS.fetch_add(1, Ordering::Relaxed)),
                model: "a-model".to_owned(),
            }),
        }
    }

    pub(crate) async fn begin(&self, asked: AgentRun) -> Result<AgentEvents, DoorError> {
        let pool = self.agent.parse().unwrap();
        self.door().run_agent(&pool, &holder(), asked).await
    }

    /// Runs to the end.
    pub(crate) async fn run(&self, asked: AgentRun) -> Told {
        let begun = Instant::now();
        let events = self.begin(asked).await.unwrap();
        told(begun, events).await
    }

    /// Runs a turn that has no end, with the shortest time in which this machine gets to say something.
    pub(crate) async fn run_until_late(&self, asked: &AgentRun) -> Told {
        for timeout_ms in [300, 3_000, 30_000] {
            let late = self
                .run(AgentRun {
                    timeout_ms: Some(timeout_ms),
                    ..asked.clone()
                })
                .await;
            let AgentOutcome::Failed { code, .. } = late.outcome() else {
                panic!("{:?}", late.events);
            };
            assert_eq!(code, "DECODE_TIMEOUT");
            if !late.text().is_empty() {
                return late;
            }
        }
        panic!("it has said nothing in 30 s");
    }
}

/// Reads to the end.
pub(crate) async fn told(begun: Instant, mut events: AgentEvents) -> Told {
    let mut told = Told {
        events: Vec::new(),
        prompted: None,
        text_at: None,
        took: Duration::ZERO,
    };
    let reading = async {
        while let Some(event) = events.next().await {
            match &event {
                AgentEvent::Prompted => told.prompted = Some(begun.elapsed()),
                AgentEvent::Text { .. } if told.text_at.is_none() => told.text_at = Some(begun.elapsed()),
                _ => {}
            }
            told.events.push(event);
        }
    };
    tokio::time::timeout(LONG * 2, reading).await.unwrap();
    told.took = begun.elapsed();
    told
}
