//! The control plane's metrics; names and labels are documented in `docs/metrics.md`.
//!
//! Labels are pools, node-independent and bounded by the fleet, and words from fixed lists. Gauges of the fleet are
//! read off the scheduler when somebody asks for the text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use daemon::metrics::{LATENCY_MS, Metrics};
use pool_registry_types::{PoolId, WarmLevel};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use task_api::ErrorCode;

use crate::plane::Plane;

/// How many pools get counters of their own; those beyond share one, labelled `other`.
const POOLS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    pool_id: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    pool_id: String,
    outcome: &'static str,
}

/// How a dispatched task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskOutcome {
    Completed,
    Failed,
    Cancelled,
    Retried,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    pool_id: String,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    pool_id: String,
    level: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The counters of one pool, so that a request looks its pool up once.
pub(crate) struct PoolMetrics {
    completed: Counter,
    failed: Counter,
    cancelled: Counter,
    retried: Counter,
    tokens_in: Counter,
    tokens_out: Counter,
    dispatch_latency_ms: Histogram,
    first_token_latency_ms: Histogram,
    /// Made when an agent's task first counts there.
    agents: OnceLock<AgentMetrics>,
    claims: Family<LevelLabels, Counter>,
    denials: Family<PoolLabel, Counter>,
    pool_id: String,
}

/// What only pools of agents count.
struct AgentMetrics {
    cold: Counter,
    warm: Counter,
    hot: Counter,
    denied: Counter,
}

impl PoolMetrics {
    fn agents(&self) -> &AgentMetrics {
        self.agents.get_or_init(|| {
            let pool_id = || self.pool_id.clone();
            let claims = |level| {
                let labels = LevelLabels {
                    pool_id: pool_id(),
                    level,
                };
                self.claims.get_or_create(&labels).clone()
            };
            AgentMetrics {
                cold: claims("cold"),
                warm: claims("warm"),
                hot: claims("hot"),
                denied: self
                    .denials
                    .get_or_create(&PoolLabel { pool_id: pool_id() })
                    .clone(),
            }
        })
    }

    /// A task was given a sandbox.
    pub(crate) fn claimed(&self, level: WarmLevel) {
        let counters = self.agents();
        match level {
            WarmLevel::Cold => counters.cold.inc(),
            WarmLevel::Warm => counters.warm.inc(),
            WarmLevel::Hot => counters.hot.inc(),
        };
    }

    /// Something in a task's sandbox tried to reach what is not allowed.
    pub(crate) fn egress_denied(&self) {
        self.agents().denied.inc();
    }

    pub(crate) fn ended(&self, outcome: TaskOutcome) {
        match outcome {
            TaskOutcome::Completed => self.completed.inc(),
            TaskOutcome::Failed => self.failed.inc(),
            TaskOutcome::Cancelled => self.cancelled.inc(),
            TaskOutcome::Retried => self.retried.inc(),
        };
    }

    pub(crate) fn tokens(&self, usage: adapter_host::TokenUsage) {
        self.tokens_in.inc_by(usage.tokens_in.unwrap_or(0));
        self.tokens_out.inc_by(usage.tokens_out.unwrap_or(0));
    }

    /// From the task's arrival until it was handed to its node.
    pub(crate) fn dispatched(&self, after: Duration) {
        self.dispatch_latency_ms.observe(after.as_secs_f64() * 1000.0);
    }

    /// From the task's arrival until the first byte of its answer.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token_latency_ms.observe(after.as_secs_f64() * 1000.0);
    }
}

/// Every metric of the process.
pub(crate) struct PlaneMetrics {
    text: Metrics,
    /// Names come from the fleet, not from clients, so the fast hasher will do.
    pools: Mutex<HashMap<PoolId, Arc<PoolMetrics>, foldhash::fast::RandomState>>,
    dispatched: Family<OutcomeLabels, Counter>,
    tokens: Family<DirectionLabels, Counter>,
    dispatch_latency: Family<PoolLabel, Histogram>,
    first_token_latency: Family<PoolLabel, Histogram>,
    claims: Family<LevelLabels, Counter>,
    denials: Family<PoolLabel, Counter>,
    enqueued: Counter,
    rejected: Family<CodeLabel, Counter>,
    queue_depth: Family<QueueLabels, Gauge>,
    pools_available: Gauge,
    health_checks: Family<ResultLabel, Counter>,
    health_check_duration: Histogram,
    nodes: Family<NodeStateLabel, Gauge>,
    store_writes_lost: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeStateLabel {
    state: &'static str,
}

fn latency() -> Histogram {
    Histogram::new(LATENCY_MS)
}

impl PlaneMetrics {
    pub(crate) fn new() -> Self {
        let this = Self {
            text: Metrics::new("orchestratord"),
            pools: Mutex::default(),
            dispatched: Family::default(),
            tokens: Family::default(),
            dispatch_latency: Family::new_with_constructor(latency),
            first_token_latency: Family::new_with_constructor(latency),
            claims: Family::default(),
            denials: Family::default(),
            enqueued: Counter::default(),
            rejected: Family::default(),
            queue_depth: Family::default(),
            pools_available: Gauge::default(),
            health_checks: Family::default(),
            health_check_duration: latency(),
            nodes: Family::default(),
            store_writes_lost: Gauge::default(),
        };
        this.register();
        this
    }

    fn register(&self) {
        self.text.register(|r| {
            r.register(
                "orchd_tasks_dispatched",
                "Tasks handed to a node, by how they ended",
                self.dispatched.clone(),
            );
            r.register("orchd_tokens", "Tokens read and generated", self.tokens.clone());
            r.register(
                "orchd_dispatch_latency_ms",
                "From a task's arrival until it was handed to its node, less the time that the store took",
                self.dispatch_latency.clone(),
            );
            r.register(
                "orchd_first_token_latency_ms",
                "From a task's arrival until the first byte of its answer",
                self.first_token_latency.clone(),
            );
            r.register(
                "orchd_agent_claims",
                "Agents' tasks that were given a sandbox, by how warm it was",
                self.claims.clone(),
            );
            r.register(
                "orchd_agent_egress_denied",
                "Connections of agents' tasks to hosts that are not allowed",
                self.denials.clone(),
            );
            r.register(
                "orchd_admission_enqueued",
                "Tasks that had to wait",
                self.enqueued.clone(),
            );
            r.register(
                "orchd_admission_rejected",
                "Tasks that were refused, by code",
                self.rejected.clone(),
            );
            r.register(
                "orchd_admission_queue_depth",
                "Tasks that wait",
                self.queue_depth.clone(),
            );
            r.register(
                "orchd_pools_available",
                "Pools with a ready replica",
                self.pools_available.clone(),
            );
            r.register(
                "orchd_pool_health_checks",
                "Probes of nodes and replicas",
                self.health_checks.clone(),
            );
            r.register(
                "orchd_pool_health_check_duration_ms",
                "How long a probe took",
                self.health_check_duration.clone(),
            );
            r.register("orchd_nodes", "Nodes by state", self.nodes.clone());
            r.register(
                "orchd_store_writes_lost",
                "Writes of the store that failed since the start",
                self.store_writes_lost.clone(),
            );
        });
    }

    /// The counters of a pool.
    pub(crate) fn pool(&self, pool: &PoolId) -> Arc<PoolMetrics> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pools.get(pool) {
            return found.clone();
        }
        let name = if pools.len() < POOLS_MAX {
            pool.as_str()
        } else {
            "other"
        };
        let made = Arc::new(self.make_pool(name));
        if pools.len() < POOLS_MAX {
            pools.insert(pool.clone(), made.clone());
        }
        made
    }

    fn make_pool(&self, pool: &str) -> PoolMetrics {
        let counter = |outcome| {
            self.dispatched
                .get_or_create(&OutcomeLabels {
                    pool_id: pool.to_owned(),
                    outcome,
                })
                .clone()
        };
        let tokens = |direction| {
            self.tokens
                .get_or_create(&DirectionLabels {
                    pool_id: pool.to_owned(),
                    direction,
                })
                .clone()
        };
        let label = PoolLabel {
            pool_id: pool.to_owned(),
        };
        PoolMetrics {
            completed: counter("completed"),
            failed: counter("failed"),
            cancelled: counter("cancelled"),
            retried: counter("retried"),
            tokens_in: tokens("in"),
            tokens_out: tokens("out"),
            dispatch_latency_ms: self.dispatch_latency.get_or_create(&label).clone(),
            first_token_latency_ms: self.first_token_latency.get_or_create(&label).clone(),
            agents: OnceLock::new(),
            claims: self.claims.clone(),
            denials: self.denials.clone(),
            pool_id: pool.to_owned(),
        }
    }

    pub(crate) fn enqueued(&self) {
        self.enqueued.inc();
    }

    pub(crate) fn rejected(&self, code: ErrorCode) {
        self.rejected
            .get_or_create(&CodeLabel { code: code.as_str() })
            .inc();
    }

    pub(crate) fn health_check(&self, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "failed" };
        self.health_checks.get_or_create(&ResultLabel { result }).inc();
        self.health_check_duration.observe(took.as_secs_f64() * 1000.0);
    }

    /// The text for Prometheus, with the fleet's gauges as they are now.
    pub(crate) fn text(&self, plane: &Plane) -> String {
        let pools = plane.guarded.with(|scheduler, _| scheduler.pools());
        self.queue_depth.clear();
        let mut available = 0;
        for pool in &pools {
            available += i64::from(pool.replicas_ready > 0);
            for (class, depth) in [
                ("interactive", pool.waiting_interactive),
                ("batch", pool.waiting_batch),
            ] {
                let labels = QueueLabels {
                    pool_id: pool.pool_id.to_string(),
                    class,
                };
                self.queue_depth.get_or_create(&labels).set(i64::from(depth));
            }
        }
        self.pools_available.set(available);
        self.count_nodes(plane);
        self.store_writes_lost
            .set(i64::try_from(plane.store.health().writes_lost).unwrap_or(i64::MAX));
        self.text.text()
    }

    fn count_nodes(&self, plane: &Plane) {
        use pool_registry_types::NodeState;
        let mut counts = [("online", 0), ("stale", 0), ("draining", 0), ("offline", 0)];
        for node in plane
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .nodes()
        {
            let place = match node.state() {
                NodeState::Online => 0,
                NodeState::Stale => 1,
                NodeState::Draining => 2,
                NodeState::Offline => 3,
            };
            counts[place].1 += 1;
        }
        for (state, count) in counts {
            self.nodes.get_or_create(&NodeStateLabel { state }).set(count);
        }
    }
}
