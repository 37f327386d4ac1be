//! The whole node as a library: what `pool-managerd` runs, and what `remuda up` and a control plane of profile `home`
//! hold in their own process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use engine_provisioner::{EngineStatus, Settings};
use handoff_watcher::{Observe, WatchOptions, Watcher};
use pool_registry_types::{Capabilities, PoolId};
use process::LockFile;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::{Agents, AgentsConfig, AgentsError, ReloadError};
use crate::door::Door;
use crate::fleet::{Fleet, Launch};
use crate::gpu::{GpuReading, GpuWatch, parse_mask};
use crate::machine::machine;
use crate::plan::Key;
use crate::pools::{PoolSettings, PoolsError, check_pools};
use crate::reconcile::{Asking, Command, Reconciler, State, UnknownPool};
use crate::sources::Recipes;

/// The lock of a runtime directory: held by its node for as long as it lives.
pub const LOCK_FILE: &str = "pool-managerd.lock";

/// Changes this close together make one report.
const REPORT_GATHER: Duration = Duration::from_millis(20);
/// Provisioners look at the lock now and then by taking it for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const COMMANDS_MAX: usize = 64;

/// Everything that a node needs to know.
#[derive(Clone)]
pub struct NodeConfig {
    /// The pools to keep.
    pub pools: Vec<PoolSettings>,
    /// Where engines are got and kept; its `handoff_dir` is the node's runtime directory.
    pub engines: Settings,
    /// The longest time until a handoff is seen where no file system events come.
    pub watch_interval: Duration,
    /// Whether the handoffs of processes that are gone are deleted.
    pub auto_delete_handoff: bool,
    /// Time between two looks at the GPUs.
    pub gpu_discovery_interval: Duration,
    /// How engines are asked.
    pub asking: Asking,
    /// Told of each handoff file that was read.
    pub observe_handoff: Observe,
    /// What agent pools need.
    pub agents: AgentsConfig,
}

impl NodeConfig {
    /// The usual settings with these pools and engine settings.
    pub fn new(pools: Vec<PoolSettings>, engines: Settings) -> Self {
        Self {
            pools,
            engines,
            watch_interval: Duration::from_secs(1),
            auto_delete_handoff: false,
            gpu_discovery_interval: Duration::from_secs(10),
            asking: Asking {
                probe_interval: Duration::from_secs(2),
                probe_timeout: Duration::from_secs(2),
                tls: None,
            },
            observe_handoff: Arc::new(|_, _| {}),
            agents: AgentsConfig::default(),
        }
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings' pools are wrong.
    #[error(transparent)]
    Pools(#[from] PoolsError),
    /// The mask is wrong.
    #[error(transparent)]
    GpuMask(#[from] engine_provisioner::SpecError),
    /// Another node has this runtime directory.
    #[error(
        "another node{} keeps the engines of {}; end it, or choose another runtime directory",
        holder(.note), directory.display()
    )]
    Taken {
        /// The runtime directory.
        directory: PathBuf,
        /// What the other node wrote into the lock.
        note: String,
    },
    /// Agent pools cannot be kept.
    #[error("agent pools cannot be kept")]
    Agents(#[from] AgentsError),
    /// The lock cannot be used.
    #[error("cannot use the lock file {}", path.display())]
    Lock {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Starts nodes.
pub struct Node;

impl Node {
    /// Starts a node on the current runtime, which has to outlive the handle.
    pub fn start(config: NodeConfig, launch: Launch) -> Result<NodeHandle, StartError> {
        let directory = config.engines.handoff_dir.clone();
        engine_provisioner::check_device_mask(&config.engines.gpu_mask)?;
        let recipes = config.engines.recipes_dir.as_deref();
        let (pools, agent_pools) = check_pools(config.pools, recipes, &config.agents)?;
        let lock = lock(&directory)?;
        let watcher = Watcher::new(WatchOptions {
            directory: directory.clone(),
            scan_interval: config.watch_interval,
            delete_dead: config.auto_delete_handoff,
            observe: config.observe_handoff,
        });

        let gpus = Arc::new(ArcSwap::from_pointee(GpuReading {
            gpus: Vec::new(),
            note: Some("the NVIDIA driver has not answered yet".to_owned()),
        }));
        let door = Door::new(gpus.clone());
        if let Some(agents) = Agents::start(agent_pools, &config.agents, door.changed().clone())? {
            door.set_agents(agents);
        }
        let fleet = Fleet::new(launch, config.engines.clone(), directory.join(LOCK_FILE));
        let engines = fleet.statuses();
        let (command, commands) = mpsc::channel(COMMANDS_MAX);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let reconciler = Reconciler {
            pools,
            asking: config.asking,
            door: door.clone(),
            fleet,
            recipes: Recipes::new(config.engines.recipes_dir.clone()),
            handoffs: watcher.subscribe(),
            commands,
            attending: TaskTracker::new(),
            state: State::default(),
        };
        let mask = parse_mask(&config.engines.gpu_mask);
        let changed = door.changed().clone();
        let follow_gpus = follow_gpus(mask, config.gpu_discovery_interval, gpus.clone(), changed);
        tasks.spawn(stop.clone().run_until_cancelled_owned(watcher.run()));
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow_gpus));
        tasks.spawn(stop.clone().run_until_cancelled_owned(publish(door.clone())));
        let reconciling = tokio::spawn(reconciler.run());
        let draining = Arc::new(AtomicBool::new(false));
        Ok(NodeHandle {
            door,
            gpus,
            engines,
            draining,
            command,
            tasks,
            stop,
            reconciling,
            lock,
        })
    }
}

/// A running node.
///
/// Dropping it without [`NodeHandle::shutdown`] ends its tasks at once; engines in this process end with it, those in
/// processes of their own are left for the next node.
pub struct NodeHandle {
    door: Door,
    gpus: Arc<ArcSwap<GpuReading>>,
    engines: watch::Receiver<BTreeMap<Key, EngineStatus>>,
    draining: Arc<AtomicBool>,
    command: mpsc::Sender<Command>,
    tasks: TaskTracker,
    stop: CancellationToken,
    reconciling: tokio::task::JoinHandle<()>,
    /// Held until the node has ended.
    #[expect(dead_code, reason = "it is what it does")]
    lock: LockFile,
}

/// Speaks to a running node. Cheap to clone.
#[derive(Clone)]
pub struct NodeControl {
    door: Door,
    gpus: Arc<ArcSwap<GpuReading>>,
    draining: Arc<AtomicBool>,
    command: mpsc::Sender<Command>,
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The node has no such pool.
    #[error(transparent)]
    UnknownPool(#[from] UnknownPool),
    /// An agent pool cannot be reloaded.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// The node is ending.
    #[error("the node is ending")]
    Ending,
}

impl NodeHandle {
    /// The one door to the node's engines.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// How far the engines are that the node keeps, with the progress of long steps.
    pub fn engines(&self) -> watch::Receiver<BTreeMap<Key, EngineStatus>> {
        self.engines.clone()
    }

    /// A handle for commands and reports.
    pub fn control(&self) -> NodeControl {
        NodeControl {
            door: self.door.clone(),
            gpus: self.gpus.clone(),
            draining: self.draining.clone(),
            command: self.command.clone(),
        }
    }

    /// Takes nothing new, waits until `deadline` for what there is, ends the engines if told, and ends the node. How
    /// many tasks and engines were left.
    pub async fn shutdown(mut self, deadline: Duration, stop_engines: bool) -> usize {
        self.draining.store(true, Ordering::Release);
        self.door.changed().set();
        let (reply, answer) = oneshot::channel();
        let mut left = 0;
        if let Some(agents) = self.door.agents() {
            left += agents.shut_down(tokio::time::Instant::now() + deadline).await;
        }
        if self
            .command
            .send(Command::Shutdown {
                deadline,
                stop_engines,
                reply,
            })
            .await
            .is_ok()
        {
            left += answer.await.unwrap_or(0);
        }
        // An error here is a panic, which the runtime has reported.
        let _ = (&mut self.reconciling).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        left
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.reconciling.abort();
        if let Some(agents) = self.door.agents() {
            agents.abort();
        }
    }
}

impl NodeControl {
    /// The one door to the node's engines.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// The machine's hardware as it is now.
    pub fn capabilities(&self) -> Capabilities {
        let gpus = self.gpus.load();
        Capabilities {
            gpus: gpus.gpus.clone(),
            gpu_note: gpus.note.clone(),
            ..machine()
        }
    }

    /// Whether the node takes no new tasks.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Takes no new tasks on the whole node, for good. The reports say so at once.
    pub fn begin_draining(&self) {
        self.draining.store(true, Ordering::Release);
        for replica in self.door.table().replicas() {
            replica.set_draining(true);
        }
        if let Some(agents) = self.door.agents() {
            agents.begin_draining();
        }
        self.door.changed().set();
    }

    /// The agent pools, when one of them has this name.
    fn agents_with(&self, pool: &PoolId) -> Option<&Agents> {
        self.door.agents().filter(|agents| agents.has(pool))
    }

    /// Lets a pool finish what it has, until `deadline`; then its engines, or its runs of agents, are ended. It stays so
    /// until it is reloaded.
    pub async fn drain(&self, pool: &PoolId, deadline: Duration) -> Result<(), CommandError> {
        if let Some(agents) = self.agents_with(pool) {
            agents.drain(pool, deadline);
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.send(
            Command::Drain {
                pool: pool.clone(),
                deadline,
                reply,
            },
            answer,
        )
        .await
    }

    /// Takes a drain back.
    pub async fn undrain(&self, pool: &PoolId) -> Result<(), CommandError> {
        if let Some(agents) = self.agents_with(pool) {
            agents.undrain(pool);
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let pool = pool.clone();
        self.send(Command::Undrain { pool, reply }, answer).await
    }

    /// Replaces a pool's engines or sandboxes; the old ones serve until the new ones answer.
    pub async fn reload(&self, pool: &PoolId) -> Result<(), CommandError> {
        if let Some(agents) = self.agents_with(pool) {
            return Ok(agents.reload(pool).await?);
        }
        let (reply, answer) = oneshot::channel();
        self.send(
            Command::Reload {
                pool: pool.clone(),
                reply,
            },
            answer,
        )
        .await
    }

    async fn send(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<(), UnknownPool>>,
    ) -> Result<(), CommandError> {
        self.command
            .send(command)
            .await
            .map_err(|_| CommandError::Ending)?;
        Ok(answer.await.map_err(|_| CommandError::Ending)??)
    }
}

/// Publishes changes, a few milliseconds' worth at a time.
async fn publish(door: Door) {
    loop {
        door.changed().wait().await;
        door.publish();
        tokio::time::sleep(REPORT_GATHER).await;
    }
}

async fn follow_gpus(
    mask: Option<Vec<u32>>,
    interval: Duration,
    readings: Arc<ArcSwap<GpuReading>>,
    changed: Arc<crate::replica::Changed>,
) {
    let opened = tokio::task::spawn_blocking(move || {
        let watch = GpuWatch::open(mask);
        let reading = watch.read();
        (watch, reading)
    });
    let Ok((watch, reading)) = opened.await else {
        return;
    };
    if let Some(note) = &reading.note {
        tracing::info!(note, "GPUs");
    }
    for gpu in &reading.gpus {
        tracing::info!(
            index = gpu.index,
            name = gpu.name,
            vram_total_bytes = gpu.vram_total_bytes,
            "GPU found"
        );
    }
    readings.store(Arc::new(reading));
    changed.set();
    watch.follow(interval, readings, changed).await;
}

fn lock(directory: &Path) -> Result<LockFile, StartError> {
    let path = directory.join(LOCK_FILE);
    let failed = |source| StartError::Lock {
        path: path.clone(),
        source,
    };
    match LockFile::acquire(&path, LOCK_TIMEOUT).map_err(failed)? {
        Some(mut lock) => {
            lock.set_note(&std::process::id().to_string()).map_err(failed)?;
            Ok(lock)
        }
        None => {
            let note = LockFile::note(&path).unwrap_or_default();
            Err(StartError::Taken {
                directory: directory.to_owned(),
                note,
            })
        }
    }
}

fn holder(note: &str) -> String {
    let note = note.trim();
    if !note.is_empty() && note.chars().all(|c| c.is_ascii_digit()) {
        format!(" (process {note})")
    } else {
        String::new()
    }
}
