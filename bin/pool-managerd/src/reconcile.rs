//! The task that keeps the node as it is to be: replicas from handoffs and settings, engines at their target.
//!
//! It owns what it changes; others speak to it through commands. One round looks at everything, plans, and carries the
//! plan out; rounds follow each other every second, at once when a handoff changes or a command comes, and quickly while
//! something is on its way out.

mod commands;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_provisioner::Phase;
use handoff_watcher::HandoffSet;
use pool_registry_types::{PoolId, ReplicaId, ReplicaState};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use upstream::{ConnectOptions, EngineClient};

pub(crate) use commands::Command;
pub use commands::UnknownPool;

use crate::attend::attend;
use crate::door::{Door, Pending, PoolEntry, chain};
use crate::fleet::{Fleet, Kept, Look};
use crate::gpu::masks_overlap;
use crate::plan::{Action, Desired, Key, Leaving, Observed, plan};
use crate::pools::{Engines, Pool};
use crate::probe::Prober;
use crate::replica::Replica;
use crate::sources::{Recipes, Source, SourceIdentity, sources};

/// How long an engine that is no longer wanted may finish what it has.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(30);

const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// While something is on its way out.
const ROUND_INTERVAL_BUSY: Duration = Duration::from_millis(50);
const REAP_INTERVAL: Duration = Duration::from_secs(10);
const START_RETRY_FIRST: Duration = Duration::from_secs(1);
const START_RETRY_MAX: Duration = Duration::from_secs(60);

/// How engines are asked.
#[derive(Clone)]
pub struct Asking {
    /// Time between two probes of an engine that is well.
    pub probe_interval: Duration,
    /// How long one answer to a probe may take.
    pub probe_timeout: Duration,
    /// For engines with `https` addresses.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

pub(crate) struct Reconciler {
    pub(crate) pools: Vec<Pool>,
    pub(crate) asking: Asking,
    pub(crate) door: Door,
    pub(crate) fleet: Fleet,
    pub(crate) recipes: Recipes,
    pub(crate) handoffs: watch::Receiver<Arc<HandoffSet>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) attending: TaskTracker,
    pub(crate) state: State,
}

/// What the rounds remember.
#[derive(Default)]
pub(crate) struct State {
    attended: BTreeMap<Key, Attended>,
    /// Engines on their way out, with the time until which they may finish.
    leaving: BTreeMap<Key, Instant>,
    /// Engines that a reload has asked to be replaced.
    outdated: BTreeSet<Key>,
    /// Pools that take nothing new, with the time until which they may finish.
    drained: BTreeMap<PoolId, Instant>,
    starts: BTreeMap<PoolId, Failures>,
    /// The engines that were kept at the last look.
    kept: BTreeSet<Key>,
    reaped: Option<Instant>,
}

struct Attended {
    identity: SourceIdentity,
    replica: Arc<Replica>,
    stop: CancellationToken,
}

/// Starts that failed in a row.
struct Failures {
    replica: ReplicaId,
    count: u32,
    next: Instant,
    problem: String,
}

impl Reconciler {
    /// Runs until a shutdown command has been carried out, or every handle is gone.
    pub(crate) async fn run(mut self) {
        let mut statuses = self.fleet.statuses();
        let mut watching = true;
        let changed = self.door.changed().clone();
        loop {
            let look = self.round().await;
            let busy = !self.state.leaving.is_empty() || look.is_none();
            let wait = if busy { ROUND_INTERVAL_BUSY } else { ROUND_INTERVAL };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.handoffs.changed(), if watching => watching = changed.is_ok(),
                Ok(()) = statuses.changed() => {}
                () = changed.came_or_went.notified() => {}
                command = self.commands.recv() => match command {
                    Some(Command::Drain { pool, deadline, reply }) => {
                        // A caller that has gone does not want to know.
                        let _ = reply.send(self.drain(&pool, deadline));
                    }
                    Some(Command::Undrain { pool, reply }) => {
                        let _ = reply.send(self.undrain(&pool));
                    }
                    Some(Command::Reload { pool, reply }) => {
                        let _ = reply.send(self.reload(&pool));
                    }
                    Some(Command::Shutdown { deadline, stop_engines, reply }) => {
                        let left = self.shut_down(deadline, stop_engines).await;
                        let _ = reply.send(left);
                        return;
                    }
                    None => return,
                },
            }
        }
    }

    /// Looks, plans, and carries out. None when what is there could not be seen.
    async fn round(&mut self) -> Option<()> {
        let handoffs = self.handoffs.borrow_and_update().clone();
        let mut pending = self.follow_sources(&handoffs);
        let look = match self.fleet.look().await {
            Ok(look) => look,
            Err(error) => {
                tracing::error!(%error, "cannot see which engines are kept; tried again");
                return None;
            }
        };
        self.note_failures(&look);
        let observed = self.observe(&look.kept);
        let desired = self.desired(&look.kept);
        for action in plan(&desired, &observed) {
            self.execute(action).await;
        }
        for (key, kept) in &look.kept {
            pending
                .entry(key.clone())
                .or_insert_with(|| pending_of(kept, self.engine_of(&key.0)));
        }
        self.show(pending);
        self.reap();
        Some(())
    }

    /// Attends to every replica that has an address, and gives the others.
    fn follow_sources(&mut self, handoffs: &HandoffSet) -> BTreeMap<Key, Pending> {
        let mut pending = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        for (key, source) in sources(&self.pools, handoffs, &mut self.recipes) {
            match source {
                Ok(source) => {
                    wanted.insert(key, source);
                }
                Err(refused) => {
                    pending.insert(key, refused);
                }
            }
        }
        self.state.attended.retain(|key, attended| {
            let stays = wanted
                .get(key)
                .is_some_and(|source| source.identity == attended.identity);
            if !stays {
                attended.stop.cancel();
                attended.replica.set_draining(true);
            }
            stays
        });
        for (key, source) in wanted {
            match self.state.attended.get(&key) {
                Some(attended) => {
                    if *attended.replica.traits() != source.traits {
                        attended.replica.set_traits(source.traits);
                    }
                }
                None => {
                    let attended = self.begin(&key, source);
                    self.state.attended.insert(key, attended);
                }
            }
        }
        pending
    }

    fn begin(&self, key: &Key, source: Source) -> Attended {
        let options = ConnectOptions {
            connect_timeout: self.asking.probe_timeout,
            tls: self.asking.tls.clone(),
            ..ConnectOptions::default()
        };
        let client = EngineClient::new(source.origin.clone(), options.clone());
        let probe_client = EngineClient::new(
            source.origin,
            ConnectOptions {
                idle_max_per_worker: 1,
                ..options
            },
        );
        let changed = self.door.changed().clone();
        let replica = Replica::new(
            key.clone(),
            client,
            source.identity.key.clone(),
            source.traits,
            changed,
        );
        let prober = Prober {
            client: probe_client,
            key: source.identity.key.clone(),
            paths: source.paths,
            timeout: self.asking.probe_timeout,
        };
        let stop = CancellationToken::new();
        let attending = attend(replica.clone(), prober, self.asking.probe_interval, stop.clone());
        self.attending.spawn(attending);
        Attended {
            identity: source.identity,
            replica,
            stop,
        }
    }

    fn note_failures(&mut self, look: &Look) {
        for ((pool, replica), error) in &look.failed {
            tracing::error!(pool_id = %pool, replica_id = %replica, error = chain(error), "an engine did not start");
            self.start_failed(pool, replica, chain(error));
        }
        // Only the one that failed shows by coming up that the reason is gone.
        self.state.starts.retain(|pool, failures| {
            let kept = look.kept.get(&(pool.clone(), failures.replica.clone()));
            kept.is_none_or(|kept| kept.status.is_none())
        });
        self.state.leaving.retain(|key, _| look.kept.contains_key(key));
        self.state.outdated.retain(|key| look.kept.contains_key(key));
        self.state.kept = look.kept.keys().cloned().collect();
    }

    fn start_failed(&mut self, pool: &PoolId, replica: &ReplicaId, problem: String) {
        let count = self.state.starts.get(pool).map_or(0, |failures| failures.count) + 1;
        let pause = START_RETRY_FIRST
            .saturating_mul(1 << (count - 1).min(16))
            .min(START_RETRY_MAX);
        let next = Instant::now() + pause;
        self.state.starts.insert(
            pool.clone(),
            Failures {
                replica: replica.clone(),
                count,
                next,
                problem,
            },
        );
    }

    fn observe(&self, kept: &BTreeMap<Key, Kept>) -> BTreeMap<Key, Observed> {
        let now = Instant::now();
        let see = |(key, kept): (&Key, &Kept)| {
            let replica = self.state.attended.get(key).map(|attended| &attended.replica);
            let idle = replica.is_none_or(|replica| replica.taken() == 0);
            let leaving = match self.state.leaving.get(key) {
                _ if kept.stopping => Leaving::Stopping,
                Some(deadline) if idle || now >= *deadline => Leaving::Drained,
                Some(_) => Leaving::Draining,
                None => Leaving::No,
            };
            let current = self.spec_hash(key).is_some_and(|hash| hash == kept.spec_hash);
            let current = current && !self.state.outdated.contains(key);
            (
                key.clone(),
                Observed {
                    current,
                    ready: replica.is_some_and(|replica| replica.is_open()),
                    leaving,
                },
            )
        };
        kept.iter().map(see).collect()
    }

    /// What an engine of this name would be started from.
    fn spec_hash(&self, key: &Key) -> Option<String> {
        self.spec(key).map(|spec| spec.hash())
    }

    fn spec(&self, (pool, replica): &Key) -> Option<engine_provisioner::EngineSpec> {
        let pool = self.pools.iter().find(|known| known.id == *pool)?;
        match &pool.engines {
            Engines::Kept { spec, .. } => Some(engine_provisioner::EngineSpec {
                replica_id: replica.clone(),
                ..(**spec).clone()
            }),
            Engines::Running { .. } => None,
        }
    }

    fn desired(&self, kept: &BTreeMap<Key, Kept>) -> BTreeMap<PoolId, Desired> {
        let now = Instant::now();
        let leaving = kept
            .iter()
            .filter(|(key, kept)| kept.stopping || self.state.leaving.contains_key(*key));
        let leaving: Vec<_> = leaving.map(|((pool, _), _)| self.gpus_of(pool)).collect();
        let has_gpus = self.door.has_gpus();
        let mut desired = BTreeMap::new();
        for pool in &self.pools {
            let Engines::Kept { replicas, .. } = &pool.engines else {
                continue;
            };
            let replicas = if self.state.drained.contains_key(&pool.id) {
                0
            } else {
                *replicas
            };
            let failures = self.state.starts.get(&pool.id);
            // An engine that is on its way out still has its device memory; the next one would not find enough.
            let room = !has_gpus
                || !leaving
                    .iter()
                    .any(|mask| masks_overlap(*mask, pool.gpus.as_deref()));
            let may_start = room && failures.is_none_or(|failures| now >= failures.next);
            desired.insert(pool.id.clone(), Desired { replicas, may_start });
        }
        desired
    }

    /// The GPUs of a pool. None: all of them, or nobody knows the pool any more.
    fn gpus_of(&self, pool: &PoolId) -> Option<&[u32]> {
        self.pools.iter().find(|known| known.id == *pool)?.gpus.as_deref()
    }

    async fn execute(&mut self, action: Action) {
        match action {
            Action::Start(key) => {
                let Some(spec) = self.spec(&key) else { return };
                tracing::info!(pool_id = %key.0, replica_id = %key.1, model = spec.model, "starting an engine");
                if let Err(error) = self.fleet.start(key.clone(), spec).await {
                    let problem = chain(&error);
                    tracing::error!(pool_id = %key.0, replica_id = %key.1, error = problem, "an engine did not start");
                    self.start_failed(&key.0, &key.1, problem);
                }
            }
            Action::Drain(key) => {
                tracing::info!(pool_id = %key.0, replica_id = %key.1, "the engine finishes what it has");
                if let Some(attended) = self.state.attended.get(&key) {
                    attended.replica.set_draining(true);
                }
                let deadline = self.state.drained.get(&key.0).copied();
                self.state
                    .leaving
                    .insert(key, deadline.unwrap_or_else(|| Instant::now() + DRAIN_DEFAULT));
            }
            Action::Stop(key) => {
                tracing::info!(pool_id = %key.0, replica_id = %key.1, "ending the engine");
                self.fleet.stop(&key);
            }
        }
    }

    /// The name of the pool's recipe.
    fn engine_of(&self, pool: &PoolId) -> String {
        let pool = self.pools.iter().find(|known| known.id == *pool);
        pool.map(|pool| pool.recipe.name.clone()).unwrap_or_default()
    }

    /// Puts everything behind the door, in one step.
    fn show(&self, pending: BTreeMap<Key, Pending>) {
        let mut pools: BTreeMap<PoolId, PoolEntry> = BTreeMap::new();
        for pool in &self.pools {
            let problem = self
                .state
                .starts
                .get(&pool.id)
                .map(|failures| failures.problem.clone());
            let entry = PoolEntry {
                gpus: pool.gpus.clone(),
                problem,
                ..PoolEntry::default()
            };
            pools.insert(pool.id.clone(), entry);
        }
        for ((pool, replica), attended) in &self.state.attended {
            let leaving = self.state.leaving.contains_key(&(pool.clone(), replica.clone()));
            attended
                .replica
                .set_draining(leaving || self.state.drained.contains_key(pool));
            pools
                .entry(pool.clone())
                .or_default()
                .replicas
                .insert(replica.clone(), attended.replica.clone());
        }
        for ((pool, replica), pending) in pending {
            pools.entry(pool).or_default().pending.insert(replica, pending);
        }
        for (id, pool) in &mut pools {
            pool.draining = self.state.drained.contains_key(id);
        }
        self.door.show(pools);
    }

    fn reap(&mut self) {
        if self.state.reaped.is_none_or(|at| at.elapsed() >= REAP_INTERVAL) {
            self.state.reaped = Some(Instant::now());
            for attended in self.state.attended.values() {
                attended.replica.client.reap();
            }
        }
    }
}

/// An engine that has no address yet, or none any more.
fn pending_of(kept: &Kept, engine: String) -> Pending {
    let Some(status) = &kept.status else {
        return Pending {
            engine,
            state: ReplicaState::Starting,
            note: None,
        };
    };
    let state = match status.phase {
        Phase::Fetching | Phase::Starting | Phase::Ready => ReplicaState::Starting,
        Phase::BackingOff => ReplicaState::Failed,
        Phase::Stopping | Phase::Stopped => ReplicaState::Draining,
    };
    Pending {
        engine,
        state,
        note: status.last_error.clone(),
    }
}
