//! Agent pools: coding-agent CLIs in sandboxes, warm or hot, each run on its owner's own login.
//!
//! ```text
//! Door::run_agent ─▶ slot ─▶ Keeper::claim ─▶ run ─▶ Live (sandbox) ─▶ Owned (home, way out, CLIs) ─▶ events
//!                              │ one task: WarmPool               │
//!                              └──▶ driver, rendezvous ◀──────────┘ home taken back on every change and at the end
//! ```
//!
//! Owns: binding the pure crates and the drivers together. Does not own: which sandbox is whose (`warm-pool`), what a
//! CLI says (`agents`), how a sandbox is made (`sandbox`), where a connection may lead (`egress`), sealing (`homes`).
//!
//! Invariants: a sandbox that had an owner serves nobody else; a CLI never starts before its owner's home is whole in
//! the sandbox and the init knows whose it is; a sandbox does not end by our choice before its home is taken back.

mod capacity;
mod cli;
mod config;
mod drivers;
mod events;
mod home;
mod install;
mod keeper;
mod label;
mod live;
mod login;
mod metrics;
mod orders;
mod parts;
mod report;
mod run;
mod words;
mod workspaces;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use egress::{UpstreamProxy, Upstreams};
use futures_util::Stream;
use homes::{DirectoryStore, Homes, OwnerHandle};
use pool_registry_types::{
    AgentLogin, AgentRun, ControlPlaneId, LoginInput, LoginStatus, PoolId, PoolReport, WorkspaceMade,
    WorkspaceView,
};
use process::LockFile;
use sandbox::Rendezvous;
use task_api::ErrorCode;
use tokio_util::sync::CancellationToken;
use warm_pool::{Event, Owner, PoolSpec, SandboxId, WarmPool};

pub use capacity::{Capacity, capacity};
pub(crate) use config::check;
pub use config::{
    AgentPool, AgentPoolProblem, AgentsConfig, AgentsSettings, KeySource, LimitSettings, WarmDefaults,
    WorkspaceSettings,
};
pub use events::{AgentEvents, Events, LoginEvents};
pub use orders::ReloadError;
pub use workspaces::{WorkspaceContent, local_workspace};

use crate::door::{DoorError, agent_replica, chain};
use crate::replica::Changed;
use drivers::Drivers;
use install::is_installed;
use keeper::{ClaimError, Keeper, Message};
use login::{LoginRefusal, Logins};
use orders::Kept;
use parts::{NodeParts, PoolParts, SlotLease};
use report::report;
use workspaces::Workspaces;

/// How long a node that ends may take to let go of its directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often upstream proxies are looked at, and how long each may take.
const PROXY_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const PROXY_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// A prompt that is longer is refused.
const PROMPT_BYTES_MAX: usize = 4 << 20;

/// Why agent pools cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// The directory cannot be used.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another node has the directory.
    #[error("another node keeps the agents of {}; end it, or choose another directory", directory.display())]
    Taken {
        /// The directory.
        directory: PathBuf,
    },
    /// There is no master key.
    #[error("the master key of homes cannot be had")]
    Key(#[from] homes::KeyError),
    /// Homes cannot be kept.
    #[error("the store of homes cannot be used")]
    Store(#[from] homes::StoreError),
    /// Workspaces cannot be kept.
    #[error(transparent)]
    Workspaces(#[from] ::workspaces::StoreError),
    /// Sandboxes cannot be made.
    #[error("sandboxes cannot be made")]
    Driver(#[from] sandbox::DriverError),
    /// Sandboxes cannot connect.
    #[error("sandboxes cannot be met")]
    Rendezvous(#[from] sandbox::RendezvousError),
    /// A proxy's address.
    #[error("an upstream proxy for agents cannot be used")]
    Proxy(#[from] egress::UpstreamError),
}

/// All agent pools of a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agents {
    pools: Arc<BTreeMap<PoolId, Kept>>,
    config: Arc<AgentsConfig>,
    keeper: Keeper,
    homes: Arc<Homes>,
    upstreams: Option<Arc<Upstreams>>,
    workspaces: Workspaces,
    logins: Logins,
    changed: Arc<Changed>,
    stop: CancellationToken,
    stop_runs: CancellationToken,
    /// Takes nothing new, for good.
    ends: Arc<AtomicBool>,
    /// One node at a time keeps the sandboxes of a directory: another one would end them.
    lock: Arc<Mutex<Option<LockFile>>>,
}

impl Agents {
    /// Begins to keep the pools, on the current runtime. None: there are none.
    pub(crate) fn start(
        pools: Vec<AgentPool>,
        config: &AgentsConfig,
        changed: Arc<Changed>,
    ) -> Result<Option<Self>, AgentsError> {
        if pools.is_empty() {
            return Ok(None);
        }
        make_private(&config.directory)?;
        let lock = lock(&config.directory)?;
        let homes_directory = config
            .homes
            .clone()
            .unwrap_or_else(|| config.directory.join("homes"));
        let store = DirectoryStore::open(&homes_directory, &homes_directory)?;
        let homes = Arc::new(Homes::new(Arc::new(store), config.keys()?));
        let workspaces = Workspaces::open(config.workspace_store())?;
        let wanted: Vec<_> = pools.iter().map(|pool| pool.driver).collect();
        let drivers = Drivers::open(&wanted, config)?;
        let (rendezvous, returned) = Rendezvous::open(config::rendezvous_directory(config))?;
        let proxies = config.proxies.iter().map(|url| UpstreamProxy::parse(url));
        let proxies = proxies.collect::<Result<Vec<_>, _>>()?;
        let upstreams = Upstreams::new(proxies).map(Arc::new);
        let stop_runs = CancellationToken::new();
        let node = Arc::new(NodeParts {
            drivers,
            rendezvous,
            homes: homes.clone(),
            workspaces: workspaces.clone(),
            egress: Arc::new(egress::Shared {
                resolver: config.resolver.clone(),
                upstreams: upstreams.clone(),
                limits: egress::Limits::default(),
            }),
            init: config.init.clone(),
            changed: changed.clone(),
            stop_runs: stop_runs.clone(),
        });
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = SandboxId(u64::try_from(begun.as_micros()).unwrap_or(0));
        let mut warm = WarmPool::new(warm_settings(config), first, Duration::ZERO);
        let mut parts = Vec::new();
        for pool in pools {
            let key = warm_pool::PoolKey(parts.len());
            let driver = node.drivers.get(pool.driver).cloned();
            let driver = driver.expect("the drivers that pools name are open");
            let one = Arc::new(PoolParts::new(pool, key, &node, driver));
            // Nothing is started before the CLI is there.
            let added = warm.add_pool(PoolSpec {
                name: one.id.as_str().into(),
                profile: one.hash,
                target: if is_installed(&one, config) { one.warm } else { 0 },
                warm_bytes: capacity::WARM_BYTES,
                owned_bytes: capacity::owned_bytes(one.profile.cost.as_ref()),
            });
            debug_assert_eq!(added, key);
            parts.push(one);
        }
        let (keeper, inbox) = Keeper::new();
        let returning = keeper::Returning::default();
        let stop = CancellationToken::new();
        let task = keeper::Task::new(
            node.clone(),
            parts.clone(),
            (keeper.clone(), inbox),
            warm,
            returning.clone(),
        );
        let spawn = |future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.run_until_cancelled(future).await;
            });
        };
        spawn(Box::pin(task.run()));
        spawn(Box::pin(workspaces.clone().keep_swept()));
        spawn(Box::pin(returning.clone().follow(returned)));
        spawn(Box::pin(keeper::adopt(node, keeper.clone(), returning)));
        if let Some(upstreams) = upstreams.clone() {
            spawn(Box::pin(async move {
                upstreams
                    .check_forever(PROXY_CHECK_INTERVAL, PROXY_CHECK_TIMEOUT)
                    .await;
            }));
        }
        let kept = parts
            .iter()
            .map(|pool| (pool.id.clone(), Kept::new(pool.clone())));
        let agents = Self {
            pools: Arc::new(kept.collect()),
            config: Arc::new(config.clone()),
            keeper,
            homes,
            upstreams,
            workspaces,
            logins: Logins::default(),
            changed,
            stop,
            stop_runs,
            ends: Arc::default(),
            lock: Arc::new(Mutex::new(Some(lock))),
        };
        for pool in parts {
            agents.prepare_first(pool);
        }
        Ok(Some(agents))
    }

    /// Whether one of the pools has this name.
    pub(crate) fn has(&self, pool: &PoolId) -> bool {
        self.pools.contains_key(pool)
    }

    fn pool(&self, pool: &PoolId) -> Result<Arc<PoolParts>, DoorError> {
        let kept = self.pools.get(pool).ok_or_else(|| DoorError::UnknownReplica {
            pool_id: pool.clone(),
            replica_id: agent_replica(),
        })?;
        Ok(kept.present())
    }

    fn all(&self) -> impl Iterator<Item = Arc<PoolParts>> {
        self.pools.values().map(Kept::present)
    }

    /// See [`Door::run_agent`](crate::Door::run_agent).
    pub(crate) async fn run(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        asked: AgentRun,
    ) -> Result<AgentEvents, DoorError> {
        let pool = self.pool(pool)?;
        check_run(&asked)?;
        let slot = SlotLease::grant(&pool, &self.changed, holder)?;
        let held = self
            .keeper
            .claim(&pool, &asked.owner)
            .await
            .map_err(|error| refused(&error))?;
        let (sender, events) = Events::channel();
        tokio::spawn(run::run(held, slot, asked, sender));
        Ok(events)
    }

    /// See [`Door::begin_login`](crate::Door::begin_login).
    pub(crate) async fn begin_login(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        asked: AgentLogin,
    ) -> Result<LoginEvents, DoorError> {
        let pool = self.pool(pool)?;
        if login::flow(&pool, asked.kind).is_none() {
            return Err(wrong(format!("{} has no such login", pool.agent.as_str())));
        }
        let open = self.logins.open(&asked).map_err(login_refused)?;
        let slot = SlotLease::grant(&pool, &self.changed, holder)?;
        let held = self
            .keeper
            .claim(&pool, &asked.owner)
            .await
            .map_err(|error| refused(&error))?;
        let (sender, events) = Events::channel();
        tokio::spawn(login::relay(held, slot, asked, open, sender));
        Ok(events)
    }

    /// See [`Door::login_input`](crate::Door::login_input).
    pub(crate) fn login_input(&self, pool: &PoolId, id: &str, entered: LoginInput) -> Result<(), DoorError> {
        self.pool(pool)?;
        self.logins.enter(id, entered).map_err(login_refused)
    }

    /// See [`Door::login_status`](crate::Door::login_status).
    pub(crate) async fn login_status(
        &self,
        pool: &PoolId,
        holder: &ControlPlaneId,
        owner: &str,
    ) -> Result<LoginStatus, DoorError> {
        let pool = self.pool(pool)?;
        let slot = SlotLease::grant(&pool, &self.changed, holder)?;
        let held = self
            .keeper
            .claim(&pool, owner)
            .await
            .map_err(|error| refused(&error))?;
        let status = login::status(held, slot, owner).await;
        status.map_err(|message| DoorError::Agent {
            code: ErrorCode::Internal,
            message,
            retry_after_ms: None,
        })
    }

    /// See [`Door::remove_login`](crate::Door::remove_login).
    pub(crate) async fn remove_login(&self, pool: &PoolId, owner: &str) -> Result<(), DoorError> {
        let pool = self.pool(pool)?;
        let handle = OwnerHandle::authenticated(owner).map_err(|error| wrong(error.to_string()))?;
        let (homes, agent) = (self.homes.clone(), pool.agent.clone());
        let removed = tokio::task::spawn_blocking(move || homes.remove(&handle, &agent)).await;
        let failed = |message| DoorError::Agent {
            code: ErrorCode::Internal,
            message,
            retry_after_ms: None,
        };
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(chain(&error))),
            Err(_) => return Err(failed("the node ends".to_owned())),
        }
        // From here on nothing is taken from a sandbox that still has it.
        for known in self.all().filter(|known| known.agent == pool.agent) {
            self.keeper.tell(Message::Event(Event::OwnerGone {
                pool: known.key,
                owner: Owner::new(owner),
            }));
        }
        Ok(())
    }

    /// See [`Door::upload_workspace`](crate::Door::upload_workspace).
    pub(crate) async fn upload_workspace(
        &self,
        pool: &PoolId,
        owner: &str,
        pieces: impl Stream<Item = Result<Bytes, String>> + Send + Unpin,
    ) -> Result<WorkspaceMade, DoorError> {
        self.pool(pool)?;
        self.workspaces.upload(owner, pieces).await
    }

    /// See [`Door::remove_workspace`](crate::Door::remove_workspace).
    pub(crate) async fn remove_workspace(
        &self,
        pool: &PoolId,
        owner: &str,
        id: &str,
    ) -> Result<(), DoorError> {
        self.pool(pool)?;
        self.workspaces.remove(owner, id).await
    }

    /// See [`Door::task_workspace`](crate::Door::task_workspace).
    pub(crate) async fn task_workspace(
        &self,
        pool: &PoolId,
        owner: &str,
        task: &str,
        view: WorkspaceView,
    ) -> Result<WorkspaceContent, DoorError> {
        self.pool(pool)?;
        self.workspaces.look(owner, task, view).await
    }

    /// Takes nothing new in any pool, for good.
    pub(crate) fn begin_draining(&self) {
        self.ends.store(true, Ordering::Release);
        for pool in self.all() {
            pool.set_draining(true);
        }
        self.changed.set();
    }

    fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Waits until `deadline` for the runs, takes the homes back, and ends all sandboxes. How many runs were left.
    pub(crate) async fn shut_down(&self, deadline: tokio::time::Instant) -> usize {
        self.begin_draining();
        let taken = || self.all().map(|pool| pool.taken() as usize).sum::<usize>();
        while taken() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = taken();
        self.stop_runs.cancel();
        // Homes are taken back beyond the deadline; what is not done then is done by the next node, from the sandboxes.
        let ended = tokio::time::timeout_at(deadline + Duration::from_secs(20), self.keeper.drain());
        if ended.await.is_err() {
            tracing::error!("sandboxes are left; the next node on this machine takes their homes back");
        }
        self.abort();
        left
    }

    /// Ends what runs beside, at once.
    pub(crate) fn abort(&self) {
        self.stop_runs.cancel();
        self.stop.cancel();
        self.pools.values().for_each(Kept::stop);
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The pools as they are reported.
    pub(crate) fn reports(&self) -> impl Iterator<Item = PoolReport> {
        self.all().map(|pool| report(&pool))
    }

    /// One pool as it is reported.
    pub(crate) fn report(&self, pool: &PoolId) -> Option<PoolReport> {
        self.pools.get(pool).map(|pool| report(&pool.present()))
    }
}

fn check_run(asked: &AgentRun) -> Result<(), DoorError> {
    if asked.owner.is_empty() {
        return Err(wrong("`owner` is empty".to_owned()));
    }
    if asked.prompt.is_empty() || asked.prompt.len() > PROMPT_BYTES_MAX {
        return Err(wrong(format!("`prompt` must have 1 to {PROMPT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn wrong(message: String) -> DoorError {
    DoorError::Agent {
        code: ErrorCode::InvalidParams,
        message,
        retry_after_ms: None,
    }
}

fn login_refused(refusal: LoginRefusal) -> DoorError {
    let code = match refusal {
        LoginRefusal::Unknown => ErrorCode::NotFound,
        LoginRefusal::Taken | LoginRefusal::Full => ErrorCode::Conflict,
        LoginRefusal::TooMany => ErrorCode::ReplicaExhausted,
    };
    DoorError::Agent {
        code,
        message: refusal.to_string(),
        retry_after_ms: None,
    }
}

fn refused(error: &ClaimError) -> DoorError {
    use warm_pool::Refusal;
    let agent = |code, error: &ClaimError, retry_after_ms| DoorError::Agent {
        code,
        message: error.to_string(),
        retry_after_ms,
    };
    match error {
        ClaimError::Refused(Refusal::Draining | Refusal::Closed) | ClaimError::Stopped => DoorError::Draining,
        ClaimError::Refused(Refusal::StartsFailing { retry_after }) => {
            let retry_after_ms = u64::try_from(retry_after.as_millis()).ok();
            agent(ErrorCode::PoolUnready, error, retry_after_ms)
        }
        ClaimError::Refused(Refusal::Adopting | Refusal::NoSuchPool) | ClaimError::NotUp => {
            agent(ErrorCode::PoolUnready, error, None)
        }
        ClaimError::Refused(
            Refusal::HomeBusy
            | Refusal::RunsMax { .. }
            | Refusal::MakingRoom
            | Refusal::NoRoom
            | Refusal::StartsBusy,
        ) => agent(ErrorCode::ReplicaExhausted, error, Some(1000)),
    }
}

fn warm_settings(config: &AgentsConfig) -> warm_pool::Settings {
    let ram = crate::machine::machine().ram_total_bytes;
    let usual = warm_pool::Settings::default();
    let memory = config
        .memory_max_bytes
        .unwrap_or(capacity::memory_for_sandboxes(ram));
    warm_pool::Settings {
        sandboxes_max: config.sandboxes_max,
        memory_bytes_max: memory,
        hot_memory_bytes_max: capacity::memory_for_idle(memory),
        hot_idle_min: usual.hot_idle_min.min(config.hot_idle_max),
        hot_idle_max: config.hot_idle_max,
        ..usual
    }
}

fn lock(directory: &std::path::Path) -> Result<LockFile, AgentsError> {
    let locked = LockFile::acquire(directory.join("node.lock"), LOCK_TIMEOUT);
    let failed = |source| AgentsError::Directory {
        path: directory.to_owned(),
        source,
    };
    locked.map_err(failed)?.ok_or_else(|| AgentsError::Taken {
        directory: directory.to_owned(),
    })
}

fn make_private(directory: &std::path::Path) -> Result<(), AgentsError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|source| AgentsError::Directory {
        path: directory.to_owned(),
        source,
    })
}
