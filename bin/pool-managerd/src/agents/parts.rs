//! What a node and each of its agent pools are made of, as their tasks share it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agents::{Level, Profile};
use egress::EgressPolicy;
use homes::{AgentName, Homes};
use pool_registry_types::{ControlPlaneId, PoolId};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use sandbox::{Driver, InitProgram, Limits, Rendezvous};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use warm_pool::{Counts, PoolKey, ProfileHash};

use super::config::AgentPool;
use super::drivers::Drivers;
use super::label::Label;
use super::live::level_of;
use super::workspaces::Workspaces;
use crate::pools::PoolSettings;
use crate::replica::Changed;
use crate::slots::{End, Gate, LeaseId, Refusal, Slots};

/// What all agent pools of a node share.
pub(super) struct NodeParts {
    pub(super) drivers: Drivers,
    pub(super) rendezvous: Rendezvous,
    pub(super) homes: Arc<Homes>,
    pub(super) workspaces: Workspaces,
    pub(super) egress: Arc<egress::Shared>,
    pub(super) init: InitProgram,
    pub(super) changed: Arc<Changed>,
    /// Cancelled when runs and logins have to end because the node does.
    pub(super) stop_runs: CancellationToken,
}

/// One agent pool as it was loaded. Reloading makes another one with the same key, ledger and metrics; sandboxes keep
/// the one that they were made from.
pub(super) struct PoolParts {
    pub(super) id: PoolId,
    pub(super) key: PoolKey,
    pub(super) settings: PoolSettings,
    pub(super) driver: Arc<dyn Driver>,
    /// The image of its sandboxes, where the driver needs one: the CLI is in it.
    pub(super) image: Option<String>,
    pub(super) profile: Profile,
    pub(super) agent: AgentName,
    pub(super) hash: ProfileHash,
    pub(super) limits: Limits,
    pub(super) egress: EgressPolicy,
    pub(super) warm: usize,
    /// Set once sandboxes can be made: where its CLI is installed, or None where that is in the image.
    pub(super) installed: OnceLock<Option<PathBuf>>,
    pub(super) metrics: Arc<PoolMetrics>,
    ledger: Arc<Mutex<Ledger>>,
}

/// What a pool's report is made of.
struct Ledger {
    slots: Slots,
    runs_max: u32,
    is_draining: bool,
    problem: Option<String>,
    /// Cancelled when runs and logins have to end because the node does.
    node_stops: CancellationToken,
    /// Cancelled also when they have to end because the pool is drained and its deadline has passed.
    stop_runs: CancellationToken,
}

/// What a pool has done.
#[derive(Debug, Default)]
pub(super) struct PoolMetrics {
    pub(super) claims: [Counter; 3],
    pub(super) claim_ms: Latency,
    pub(super) start_ms: Latency,
    pub(super) refills: Counter,
    pub(super) replacements: Counter,
    pub(super) denied: Counter,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    pub(super) run_sent: RunBytes,
    pub(super) run_received: RunBytes,
    pub(super) take_backs: Counter,
    /// Sandboxes by state, as the keeper last saw them.
    counts: Mutex<Counts>,
}

impl PoolMetrics {
    /// Notes how many sandboxes there are.
    pub(super) fn set_counts(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// How many sandboxes there are, by level.
    pub(super) fn levels(&self) -> [(&'static str, usize); 6] {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        [
            ("starting", counts.starting),
            ("verifying", counts.verifying),
            ("warm", counts.warm),
            ("hot", counts.hot),
            ("busy", counts.busy),
            ("ending", counts.ending),
        ]
    }
}

/// A histogram of milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Latency(pub(super) Histogram);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(daemon::metrics::FAST_MS))
    }
}

impl Latency {
    pub(super) fn note(&self, took: std::time::Duration) {
        self.0.observe(took.as_secs_f64() * 1000.0);
    }
}

/// A histogram of the bytes of single runs.
#[derive(Clone, Debug)]
pub(super) struct RunBytes(pub(super) Histogram);

impl Default for RunBytes {
    fn default() -> Self {
        // 1 KiB to 1 GiB.
        Self(Histogram::new(
            (10..=30).step_by(2).map(|power| f64::from(1_u32 << power)),
        ))
    }
}

impl RunBytes {
    pub(super) fn note(&self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a bucket is what comes of it")]
        self.0.observe(bytes as f64);
    }
}

impl PoolParts {
    pub(super) fn new(pool: AgentPool, key: PoolKey, node: &NodeParts, driver: Arc<dyn Driver>) -> Self {
        let ledger = Ledger {
            slots: Slots::new(),
            runs_max: pool.runs_max,
            is_draining: false,
            problem: None,
            node_stops: node.stop_runs.clone(),
            stop_runs: node.stop_runs.child_token(),
        };
        let (metrics, ledger) = (Arc::default(), Arc::new(Mutex::new(ledger)));
        Self::of(pool, key, &node.init, driver, metrics, ledger)
    }

    /// The same pool, as it is read now. Its sandboxes are still to be prepared for.
    pub(super) fn reloaded(&self, pool: AgentPool, init: &InitProgram) -> Self {
        let (driver, metrics) = (self.driver.clone(), self.metrics.clone());
        Self::of(pool, self.key, init, driver, metrics, self.ledger.clone())
    }

    fn of(
        pool: AgentPool,
        key: PoolKey,
        init: &InitProgram,
        driver: Arc<dyn Driver>,
        metrics: Arc<PoolMetrics>,
        ledger: Arc<Mutex<Ledger>>,
    ) -> Self {
        let hash = hash(&pool, init);
        Self {
            id: pool.id,
            key,
            settings: pool.settings,
            driver,
            image: pool.image,
            profile: pool.profile,
            agent: pool.agent,
            hash,
            limits: pool.limits,
            egress: pool.egress,
            warm: pool.warm,
            installed: OnceLock::new(),
            metrics,
            ledger,
        }
    }

    /// How its CLI is started to be kept.
    pub(super) fn start(&self) -> &agents::profile::Start {
        self.profile.start(self.level())
    }

    /// How its CLI is kept.
    pub(super) fn level(&self) -> Level {
        level_of(&self.profile)
    }

    /// What the init of one of its sandboxes is to remember while nobody has it.
    pub(super) fn label(&self) -> Label {
        Label {
            pool: self.id.to_string(),
            agent: self.agent.as_str().to_owned(),
            profile: hex(&self.hash.0),
            keep: self.profile.login.keep.clone(),
            owner: None,
            ticket: None,
            workspaces: Vec::new(),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes runs from now on, unless it drains.
    pub(super) fn open(&self) {
        let mut ledger = self.ledger();
        let total = ledger.runs_max;
        ledger.problem = None;
        ledger.slots.set_engine(total, false);
        let gate = if ledger.is_draining {
            Gate::Draining
        } else {
            Gate::Open
        };
        ledger.slots.set_gate(gate);
    }

    /// Takes nothing new, or takes runs again.
    pub(super) fn set_draining(&self, is_draining: bool) {
        let mut ledger = self.ledger();
        ledger.is_draining = is_draining;
        if !is_draining && ledger.stop_runs.is_cancelled() {
            ledger.stop_runs = ledger.node_stops.child_token();
        }
        if ledger.slots.gate() != Gate::NotReady {
            let gate = if is_draining { Gate::Draining } else { Gate::Open };
            ledger.slots.set_gate(gate);
        }
    }

    /// Ends its runs and logins; those that are asked for later, too, until it drains no more.
    pub(super) fn end_runs(&self) {
        self.ledger().stop_runs.cancel();
    }

    /// Cancelled when a run that begins now has to end.
    pub(super) fn stop_runs(&self) -> CancellationToken {
        self.ledger().stop_runs.clone()
    }

    /// Says what is wrong with it, or that nothing is any more.
    pub(super) fn set_problem(&self, problem: Option<String>) {
        self.ledger().problem = problem;
    }

    /// How many runs it has.
    pub(super) fn taken(&self) -> u32 {
        self.ledger().slots.taken()
    }

    /// Looks at the ledger: slots, whether it drains, what is wrong.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Slots, bool, Option<&String>) -> T) -> T {
        let ledger = self.ledger();
        look(&ledger.slots, ledger.is_draining, ledger.problem.as_ref())
    }
}

/// A slot that a run holds. Dropping it gives it back.
pub(super) struct SlotLease {
    pool: Arc<PoolParts>,
    changed: Arc<Changed>,
    id: LeaseId,
}

impl SlotLease {
    pub(super) fn grant(
        pool: &Arc<PoolParts>,
        changed: &Arc<Changed>,
        holder: &ControlPlaneId,
    ) -> Result<Self, Refusal> {
        let id = pool.ledger().slots.grant(std::time::Instant::now(), holder)?;
        changed.set();
        Ok(Self {
            pool: pool.clone(),
            changed: changed.clone(),
            id,
        })
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        let now = std::time::Instant::now();
        self.pool.ledger().slots.end(now, self.id, End::Complete);
        self.changed.set();
    }
}

/// Two sandboxes with one hash are interchangeable.
fn hash(pool: &AgentPool, init: &InitProgram) -> ProfileHash {
    let built = std::fs::metadata(&init.path).and_then(|file| Ok((file.len(), file.modified()?)));
    let mut digest = Sha256::new();
    let parts = format!(
        "{:?}|{:?}|{init:?}|{:?}|{:?}|{:?}",
        pool.profile,
        pool.limits,
        built.ok(),
        pool.driver,
        pool.image
    );
    digest.update(parts.as_bytes());
    digest.update(pool.profile.lock_file().as_bytes());
    ProfileHash(digest.finalize().into())
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Hexadecimal digits as bytes.
pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != bytes.len() * 2 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}
