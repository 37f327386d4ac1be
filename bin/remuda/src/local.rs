//! Everything in this process: a control plane, a node whose door it calls as a function, and the engine below it.
//!
//! `remuda run` and `remuda up` start the same; they differ in what they keep. A run has a store and a runtime
//! directory of its own, so that it disturbs nothing that runs beside it. Such directories are taken from a small
//! numbered set in the cache, by lock, so that a run that was killed leaves nothing that grows.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use daemon::config::{self, Sources};
use daemon::shutdown::{Drained, Shutdown};
use daemon::telemetry::Telemetry;
use engine_provisioner::{EngineStatus, Phase};
use model_store::Source;
use orchestratord::{ControlPlane, LocalNode, Settings};
use pool_managerd::{Launch, Node, NodeConfig, NodeHandle, PoolSettings, StartError};
use pool_registry_types::{NodeId, PoolKind};
use serde_json::json;

use crate::client::Client;
use crate::demo;
use crate::failure::{Exit, Failure};
use crate::progress::Shown;

/// How many runs may go on at once for one user.
const RUNS_MAX: u32 = 64;
/// How often it is looked whether the model is there.
const READY_INTERVAL: Duration = Duration::from_millis(10);
/// How long the engine may take to end after the last answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last spans may take.
const LAST_SPANS_TIMEOUT: Duration = Duration::from_secs(2);
/// The recipe of engines that are started without being named.
const ENGINE: &str = "llamacpp";
/// Where handoffs lie unless the settings say otherwise; a run never uses it.
const HANDOFF_DIR_DEFAULT: &str = ".runtime/engines";

/// What to do about a model that is not there.
const MODELS_HINT: &str = "`remuda models list` shows the models here; `remuda models pull SOURCE` gets one";

/// What is wanted.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// The model; the settings' pools, or else the demo model, without one.
    pub(crate) model: Option<String>,
    /// An agent whose pool is wanted; then there is an engine only when a model is named.
    pub(crate) agent: Option<String>,
    /// How many tasks the engine takes at once.
    pub(crate) slots: Option<u32>,
    /// Flags for the settings.
    pub(crate) flags: Vec<String>,
    /// Whether nothing of it is to stay: a store of its own, any port, no pools of the settings.
    pub(crate) for_one_run: bool,
}

/// What was started.
pub(crate) struct Local {
    node: NodeHandle,
    control_plane: ControlPlane,
    shutdown: Shutdown,
    telemetry: Option<Telemetry>,
    scheme: &'static str,
    /// The CA that the settings name, by which clients may believe it.
    pub(crate) ca: Option<PathBuf>,
    /// Whether the demo model is what answers.
    pub(crate) is_demo: bool,
    /// Whether there is an engine to wait for.
    has_engines: bool,
    /// The agent to wait for.
    agent: Option<String>,
}

impl Local {
    /// Starts it all; the engine follows. Only what is wrong with the settings or this machine is an error here.
    pub(crate) fn start(wanted: &Wanted) -> Result<Self> {
        let loaded = config::load::<Settings>(&Sources::with_arguments(&wanted.flags))?;
        let mut settings = loaded.settings;
        let telemetry = init_logs(&mut settings, wanted.for_one_run)?;
        daemon::core_dumps::switch_off();
        daemon::open_files::raise_limit();
        if wanted.for_one_run {
            settings.agents_url = None;
        }
        let from_settings = match wanted.for_one_run || wanted.model.is_some() {
            true => Vec::new(),
            false => loaded
                .file
                .section::<Vec<PoolSettings>>("pools")?
                .unwrap_or_default(),
        };
        let is_demo =
            from_settings.is_empty() && wanted.model.as_deref().is_none_or(|model| model == demo::NAME);
        let pools = match (from_settings.is_empty(), &wanted.agent) {
            (true, Some(agent)) => {
                let mut pools = vec![agent_pool(agent)?];
                if wanted.model.is_some() {
                    pools.push(pool(wanted, is_demo, &settings.engines)?);
                }
                pools
            }
            (true, None) => vec![pool(wanted, is_demo, &settings.engines)?],
            (false, _) => from_settings,
        };
        let has_engines = pools.iter().any(|pool| pool.kind == PoolKind::Engine);
        let agent = pools.iter().find_map(|pool| pool.agent.clone());

        let (node, directory) = start_node(&settings, pools, wanted.for_one_run)?;
        settings.cloud_profile = false;
        if wanted.for_one_run {
            for_one_run(&mut settings, &directory);
        }
        let scheme = if settings.tls_cert.is_some() {
            "https"
        } else {
            "http"
        };
        let ca = settings.tls_ca.clone().filter(|_| scheme == "https");
        let shutdown = Shutdown::new();
        let local = LocalNode {
            node_id: node_id(),
            control: node.control(),
        };
        let control_plane = ControlPlane::start(settings, Some(local), shutdown.clone())?;
        Ok(Self {
            node,
            control_plane,
            shutdown,
            telemetry,
            scheme,
            ca,
            is_demo,
            has_engines,
            agent,
        })
    }

    /// The same for one agent, whose CLI is installed first, and that is shown.
    pub(crate) async fn start_with_agent(wanted: &Wanted, shown: &Shown) -> Result<Self> {
        if let Some(agent) = &wanted.agent {
            crate::agents::install(agent, wanted, shown).await?;
        }
        Self::start(wanted)
    }

    /// Where it listens, for people and clients.
    pub(crate) fn url(&self) -> String {
        let mut addr = self.control_plane.addr();
        if addr.ip().is_unspecified() {
            addr.set_ip([127, 0, 0, 1].into());
        }
        format!("{}://{addr}", self.scheme)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Client::to_ourselves(&self.url())
    }

    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Waits until a model can be asked, showing how far the engine is. `on_failure` decides what an engine that cannot
    /// be had means: an error ends the wait. Cancel safe.
    pub(crate) async fn ready(
        &self,
        shown: &Shown,
        mut on_failure: impl FnMut(&EngineStatus) -> Result<()>,
    ) -> Result<()> {
        let engines = self.node.engines();
        while !self.is_ready() {
            if let Some(problem) = self.agents_problem() {
                return Err(problem.into());
            }
            let statuses: Vec<EngineStatus> = engines.borrow().values().cloned().collect();
            for status in statuses {
                if let Some(step) = &status.progress {
                    shown.show(step);
                }
                if status.phase == Phase::BackingOff {
                    on_failure(&status)?;
                }
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        shown.clear();
        Ok(())
    }

    fn is_ready(&self) -> bool {
        match &self.agent {
            Some(agent) if !self.has_engines => self.control_plane.has_agent(agent),
            // A person who has named one waits for both.
            Some(agent) => self.control_plane.serves(None) && self.control_plane.has_agent(agent),
            None => self.control_plane.serves(None),
        }
    }

    /// What keeps the agent's pool from being ready.
    fn agents_problem(&self) -> Option<Failure> {
        let pools = self.node.door().snapshot();
        let pool = pools
            .into_iter()
            .find(|pool| pool.kind == PoolKind::Agent && !pool.ready)?;
        let problem = pool.last_error?;
        Some(
            Failure::new(Exit::Failed, format!("the agent cannot be started: {problem}"))
                .hint("`remuda doctor` says what is missing"),
        )
    }

    /// Waits until somebody asks for the end, then finishes what runs and ends the engine.
    pub(crate) async fn run(self) -> Result<()> {
        let drained = self.control_plane.run().await;
        self.node.shutdown(STOP_TIMEOUT, true).await;
        send_last_spans(self.telemetry).await;
        Ok(self.shutdown.outcome(drained)?)
    }

    /// Ends it all now.
    pub(crate) async fn stop(self) {
        self.shutdown.stop();
        let ending = async {
            let _: Drained = self.control_plane.run().await;
            self.node.shutdown(STOP_TIMEOUT, true).await;
            send_last_spans(self.telemetry).await;
        };
        // Whoever presses Ctrl-C again does not want to wait; the kernel ends the engine with this process.
        tokio::select! {
            () = ending => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

/// The engine cannot be had, in words for a person.
pub(crate) fn engine_failure(status: &EngineStatus) -> Failure {
    let reason = status
        .last_error
        .as_deref()
        .unwrap_or("it ended for no reason that is known");
    let hint = match reason.contains("model") {
        true => MODELS_HINT,
        false => "`remuda doctor` says what is missing",
    };
    Failure::new(Exit::Failed, format!("the engine cannot be started: {reason}")).hint(hint)
}

/// Logs go to standard error. People who typed `run` see them only when they have asked; `up` shows what matters.
fn init_logs(settings: &mut Settings, for_one_run: bool) -> Result<Option<Telemetry>> {
    let asked = std::env::var_os("REMUDA_LOG").is_some_and(|value| !value.is_empty());
    if for_one_run && !asked {
        return Ok(None);
    }
    if !asked && settings.telemetry.log == "info" {
        "warn".clone_into(&mut settings.telemetry.log);
    }
    Ok(Some(daemon::telemetry::init("remuda", &settings.telemetry)?))
}

async fn send_last_spans(telemetry: Option<Telemetry>) {
    if let Some(telemetry) = telemetry {
        let sent = tokio::task::spawn_blocking(|| telemetry.shutdown(LAST_SPANS_TIMEOUT));
        // A panic there has been printed, and nothing waits for the spans.
        let _ = sent.await;
    }
}

/// The one pool that is started when the settings name none.
fn pool(wanted: &Wanted, is_demo: bool, engines: &engine_provisioner::Settings) -> Result<PoolSettings> {
    let (id, model, name) = match (&wanted.model, is_demo) {
        (Some(model), false) => {
            check_model(model, engines)?;
            ("local", model.clone(), None)
        }
        _ => (
            demo::NAME,
            demo::install(&engines.cache_dir().join("demo"))?
                .display()
                .to_string(),
            Some(demo::NAME),
        ),
    };
    let pool = json!({"id": id, "engine": ENGINE, "model": model, "model_name": name, "slots": wanted.slots});
    serde_json::from_value(pool).context("the settings of a pool")
}

/// A model that a person has just named and that is not on this machine would not be there on the next try either.
fn check_model(model: &str, engines: &engine_provisioner::Settings) -> Result<()> {
    if Source::is_remote(model) || engine_provisioner::local_model(model, engines).is_some() {
        return Ok(());
    }
    let failure = Failure::new(
        Exit::NotFound,
        format!("there is no model {model:?}: it is neither a file nor a model in the store"),
    );
    Err(failure.hint(MODELS_HINT).into())
}

/// The pool of an agent that was named.
fn agent_pool(agent: &str) -> Result<PoolSettings> {
    let pool = json!({"id": agent, "kind": "agent", "agent": agent, "warm": 1});
    serde_json::from_value(pool)
        .map_err(|_| Failure::new(Exit::Usage, format!("{agent:?} is no name of an agent")).into())
}

/// Starts the node in the directory that the settings name, or in the first of ours that nobody has.
fn start_node(
    settings: &Settings,
    pools: Vec<PoolSettings>,
    for_one_run: bool,
) -> Result<(NodeHandle, PathBuf)> {
    let has_agents = pools.iter().any(|pool| pool.kind == PoolKind::Agent);
    let mut config = NodeConfig::new(pools, settings.engines.clone());
    config.agents = settings.agents.config(&[crate::INIT_ARGUMENT]);
    if for_one_run && has_agents {
        crate::agents::share_homes(&mut config.agents)?;
    }
    if config.engines.handoff_dir != Path::new(HANDOFF_DIR_DEFAULT) {
        let directory = config.engines.handoff_dir.clone();
        return Ok((Node::start(config, Launch::InProcess)?, directory));
    }
    config.auto_delete_handoff = true;
    let base = settings.engines.cache_dir().join("run");
    for number in 0..RUNS_MAX {
        let directory = base.join(number.to_string());
        config.engines.handoff_dir = directory.join("engines");
        if for_one_run {
            config.agents.directory = directory.join("agents");
        }
        match Node::start(config.clone(), Launch::InProcess) {
            Err(StartError::Taken { .. }) => {}
            started => return Ok((started?, directory)),
        }
    }
    Err(Failure::new(Exit::TryLater, format!("{RUNS_MAX} runs go on already")).into())
}

/// Nothing of the settings but the engine's own may reach a run: no keys, no open address, no shared store.
fn for_one_run(settings: &mut Settings, directory: &Path) {
    settings.addr = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.data_dir = Some(directory.join("data"));
    settings.workers = 1;
    settings.api_keys = None;
    settings.api_token = None;
    settings.tls_cert = None;
    settings.tls_key = None;
    settings.metrics_port = None;
    settings.pool_managers.clear();
    settings.pool_managers_dns = None;
    settings.drain_timeout_ms = STOP_TIMEOUT;
}

/// The machine's name, as far as that is an identifier.
fn node_id() -> NodeId {
    let named = pool_managerd::host_name().and_then(|name| NodeId::new(name).ok());
    named.unwrap_or_else(|| NodeId::new("local").expect("letters are an identifier"))
}
