//! The one door to the engines of a node.
//!
//! Owns: finding the replica, granting its slot, sending the request over a pooled connection, holding the slot until
//! the answer has ended and the engine is idle again. Does not own: probing, launching, meaning of what passes through.
//!
//! ```text
//! call ──▶ replica? ──▶ slot? ──▶ send ──▶ head ──▶ body … end ──▶ slot free
//!            │ no         │ no      │ fails            └ dropped ──▶ ask the engine ──▶ slot free
//!            └────────────┴─────────┴──▶ DoorError: an ordinary refusal, place again
//! ```
//!
//! In profile `home` the control plane calls [`Door::call`] as a function, elsewhere the node's server does it for
//! requests that came over HTTP. Any number of threads may call at once; the table of replicas is read without a lock
//! and each replica has a lock of its own.

mod agents;
mod body;
mod table;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use pool_registry_types::{ControlPlaneId, PoolId, PoolReport, ReplicaId};
use task_api::ErrorCode;
use tokio::sync::watch;
use upstream::SendError;

pub(crate) use agents::agent_replica;
pub use body::{DoorBody, DoorBodyError};
pub(crate) use table::{Pending, PoolEntry, Table};

use crate::agents::Agents;
use crate::gpu::GpuReading;
use crate::probe::describe;
use crate::replica::{Changed, Replica};
use crate::slots::Refusal;
use body::Lease;

/// Why a call was not answered by an engine.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The node has no such replica.
    #[error("this node has no replica {replica_id} of pool {pool_id}")]
    UnknownReplica {
        /// Which pool was asked for.
        pool_id: PoolId,
        /// Which replica was asked for.
        replica_id: ReplicaId,
    },
    /// The replica does not answer at the moment.
    #[error("the replica is not ready")]
    NotReady,
    /// The replica finishes what it has and takes nothing new.
    #[error("the replica is draining")]
    Draining,
    /// All slots of the replica are taken.
    #[error("all slots of the replica are taken")]
    SlotsTaken,
    /// No connection to the engine came about. The replica is out until a probe succeeds.
    #[error("the engine cannot be reached")]
    Connect(#[source] SendError),
    /// The engine took the request and gave no answer.
    #[error("the engine gave no answer")]
    Engine(#[source] SendError),
    /// The agent pool does not take the run or the login, and has begun nothing.
    #[error("{message}")]
    Agent {
        /// For programs.
        code: ErrorCode,
        /// What is wrong and what to do.
        message: String,
        /// When it makes sense to try again.
        retry_after_ms: Option<u64>,
    },
}

impl DoorError {
    /// The code by which clients and control planes know the refusal.
    pub fn as_error_code(&self) -> ErrorCode {
        match self {
            Self::UnknownReplica { .. } => ErrorCode::PoolUnavailable,
            Self::NotReady | Self::Draining | Self::Connect(_) => ErrorCode::PoolUnready,
            Self::SlotsTaken => ErrorCode::ReplicaExhausted,
            Self::Engine(_) => ErrorCode::WorkerReset,
            Self::Agent { code, .. } => *code,
        }
    }

    /// Whether it is certain that no engine began with the request.
    pub fn not_processed(&self) -> bool {
        match self {
            Self::Engine(error) => error.not_processed(),
            Self::UnknownReplica { .. }
            | Self::NotReady
            | Self::Draining
            | Self::SlotsTaken
            | Self::Connect(_)
            | Self::Agent { .. } => true,
        }
    }
}

impl From<Refusal> for DoorError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotReady => Self::NotReady,
            Refusal::Draining => Self::Draining,
            Refusal::SlotsTaken => Self::SlotsTaken,
        }
    }
}

/// The one door. Cheap to clone; every clone is the same door.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    table: ArcSwap<Table>,
    changed: Arc<Changed>,
    gpus: Arc<ArcSwap<GpuReading>>,
    reports: watch::Sender<Arc<Vec<PoolReport>>>,
    /// Set once, when the node starts, and never without agent pools.
    agents: OnceLock<Agents>,
}

impl Door {
    /// A door with nothing behind it.
    pub(crate) fn new(gpus: Arc<ArcSwap<GpuReading>>) -> Self {
        let (reports, _) = watch::channel(Arc::new(Vec::new()));
        let inner = Inner {
            table: ArcSwap::from_pointee(Table::default()),
            changed: Arc::new(Changed::default()),
            gpus,
            reports,
            agents: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Grants a slot of the replica or refuses, then sends the request to its engine.
    ///
    /// The request's URI is the path at the engine (`/v1/chat/completions`). The slot is held until the answer's body
    /// has ended or was dropped, and the engine is idle again. Cancel safe: dropping the future is the same as dropping
    /// the body.
    pub async fn call(
        &self,
        pool: &PoolId,
        replica: &ReplicaId,
        holder: &ControlPlaneId,
        mut request: Request<Bytes>,
    ) -> Result<Response<DoorBody>, DoorError> {
        let found = self.inner.table.load().replica(pool, replica).cloned();
        let Some(replica) = found else {
            return Err(DoorError::UnknownReplica {
                pool_id: pool.clone(),
                replica_id: replica.clone(),
            });
        };
        let lease = Lease::grant(replica, holder)?;
        address(lease.replica(), &mut request);
        let sent = pin!(lease.replica().client.send(&request)).await;
        match sent {
            Ok(response) => {
                lease.answered();
                Ok(response.map(|body| DoorBody::new(body, lease)))
            }
            Err(error @ (SendError::Connect { .. } | SendError::ConnectTimeout { .. })) => {
                lease.replica().lost(&describe(&error));
                lease.replica().probe.notify_one();
                lease.release();
                Err(DoorError::Connect(error))
            }
            Err(error) => {
                lease.replica().probe.notify_one();
                Err(DoorError::Engine(error))
            }
        }
    }

    /// The pools as they are reported: changes soon after each change of readiness or slots. Several changes within a
    /// few milliseconds make one report.
    pub fn reports(&self) -> watch::Receiver<Arc<Vec<PoolReport>>> {
        self.inner.reports.subscribe()
    }

    /// The pools exactly as they are now, with the leases of each holder.
    pub fn snapshot(&self) -> Vec<PoolReport> {
        let mut reports = self.inner.table.load().reports(&self.inner.gpus.load());
        if let Some(agents) = self.agents() {
            reports.extend(agents.reports());
            reports.sort_by(|one, other| one.pool_id.cmp(&other.pool_id));
        }
        reports
    }

    /// One pool exactly as it is now.
    pub fn pool(&self, pool: &PoolId) -> Option<PoolReport> {
        let agents = self.agents().and_then(|agents| agents.report(pool));
        agents.or_else(|| self.inner.table.load().report(pool, &self.inner.gpus.load()))
    }

    /// The agent pools. None: the node has none.
    pub(crate) fn agents(&self) -> Option<&Agents> {
        self.inner.agents.get()
    }

    /// Puts agent pools behind the door, once.
    pub(crate) fn set_agents(&self, agents: Agents) {
        let _ = self.inner.agents.set(agents);
        self.inner.changed.set();
    }

    pub(crate) fn changed(&self) -> &Arc<Changed> {
        &self.inner.changed
    }

    /// Whether the machine has GPUs that this node may use, as far as is known.
    pub(crate) fn has_gpus(&self) -> bool {
        !self.inner.gpus.load().gpus.is_empty()
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.inner.table.load_full()
    }

    /// Changes what is behind the door, in one step for everybody who looks. Called by one task only.
    pub(crate) fn show(&self, pools: BTreeMap<PoolId, PoolEntry>) {
        self.inner.table.store(Arc::new(Table { pools }));
        self.inner.changed.set();
    }

    /// Publishes what has changed since the last time.
    pub(crate) fn publish(&self) {
        let now = self.snapshot();
        self.inner.reports.send_if_modified(|shown| {
            if **shown == now {
                return false;
            }
            *shown = Arc::new(now);
            true
        });
    }
}

/// Puts the engine's base path and key on a request. Keys of others never reach an engine.
fn address(replica: &Replica, request: &mut Request<Bytes>) {
    let base = replica.client.origin().base_path();
    if !base.is_empty() {
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        // A path that is valid behind another valid path stays valid; otherwise the request goes out as it came.
        if let Ok(uri) = format!("{base}{path}").parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    match &replica.key {
        Some(key) => {
            request.headers_mut().insert(AUTHORIZATION, key.clone());
        }
        None => {
            request.headers_mut().remove(AUTHORIZATION);
        }
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let layer = cause.to_string();
        if !text.ends_with(&layer) {
            text = format!("{text}: {layer}");
        }
        source = cause.source();
    }
    text
}
