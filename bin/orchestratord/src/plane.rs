//! What every room of the control plane shares: the scheduler behind its lock, who waits for it, and the ways to nodes.
//!
//! Owns: turning the scheduler's effects into wake-ups, and its time. Does not own: HTTP, dialects, the life of a
//! connection.
//!
//! Invariants:
//! - The lock is held for one call of the scheduler and the wake-ups that follow from it, never across an await.
//! - Every lease is inside a [`Grant`] and every waiting task inside a [`Waiter`]; dropping either gives back what it
//!   holds, so an aborted future leaks nothing.

mod grant;
mod guarded;
mod link;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use daemon::shutdown::Shutdown;
use pool_managerd::NodeControl;
use pool_registry_types::{ControlPlaneId, NodeId};
use scheduler::{ReplicaInfo, Scheduler};
use service_registry::Registry;
use store::Store;
use tokio::sync::Notify;
use upstream::ConnectOptions;

pub(crate) use grant::{Grant, Submission};
pub(crate) use guarded::Guarded;
pub(crate) use link::{AnswerBody, LinkError, NodeLink, RemoteNode};

use crate::access::Access;
use crate::metrics::PlaneMetrics;
use crate::recent::Recent;
use crate::settings::Settings;
use crate::tasks::TaskTable;

/// How long `Retry-After` asks a client to wait when nothing better is known, in milliseconds.
pub(crate) const RETRY_AFTER_DEFAULT_MS: u64 = 1000;

/// The shared state. One per process.
pub(crate) struct Plane {
    pub(crate) id: ControlPlaneId,
    pub(crate) settings: Settings,
    pub(crate) access: Access,
    pub(crate) metrics: PlaneMetrics,
    pub(crate) store: Store,
    pub(crate) tasks: TaskTable,
    pub(crate) recent: Recent,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) guarded: Guarded,
    /// The moment that all [`scheduler::Moment`]s count from.
    pub(crate) epoch: Instant,
    /// Wakes the ticker, because something may be due earlier than it thinks.
    pub(crate) due: Notify,
    /// Keys the hashes of sessions and prompts, so that nobody can make two of them meet.
    hasher: RandomState,
    links: RwLock<HashMap<NodeId, NodeLink>>,
    local: OnceLock<(NodeId, NodeControl)>,
    pub(crate) shutdown: Shutdown,
    /// When this process began, milliseconds since 1970.
    pub(crate) started_ms: u64,
    connect_options: ConnectOptions,
    pub(crate) logins: crate::agents::logins::Logins,
    /// Where sandboxes reach our models, once one has asked for that.
    pub(crate) outlet: tokio::sync::OnceCell<std::net::SocketAddr>,
}

impl Plane {
    pub(crate) fn new(
        settings: Settings,
        access: Access,
        store: Store,
        connect_options: ConnectOptions,
        shutdown: Shutdown,
    ) -> Self {
        let (epoch, started_ms) = (Instant::now(), crate::access::now_ms());
        let id = ControlPlaneId::new(uuid::Uuid::new_v4().to_string()).expect("a UUID is an identifier");
        Self {
            id,
            access,
            metrics: PlaneMetrics::new(),
            store,
            tasks: TaskTable::new(),
            recent: Recent::new(epoch, started_ms),
            registry: Mutex::new(Registry::new(settings.registry())),
            guarded: Guarded::new(Scheduler::new(settings.scheduler())),
            epoch,
            due: Notify::new(),
            hasher: RandomState::new(),
            links: RwLock::new(HashMap::new()),
            local: OnceLock::new(),
            shutdown,
            started_ms,
            connect_options,
            logins: crate::agents::logins::Logins::default(),
            outlet: tokio::sync::OnceCell::new(),
            settings,
        }
    }

    /// The time since the control plane started.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// A hash of `text` that belongs to `owner` alone.
    pub(crate) fn owned_hash(&self, owner: &str, text: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one((owner, text))
    }

    /// The way to the node of a replica. Made when it is first needed, and again when the node has moved.
    pub(crate) fn link(&self, info: &ReplicaInfo) -> Result<NodeLink, LinkError> {
        if let Some((node_id, node)) = self.local.get()
            && *node_id == info.node_id
        {
            return Ok(NodeLink::Local(node.door().clone()));
        }
        if let Some(link) = self
            .links
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&info.node_id)
            && link.leads_to(&info.address)
        {
            return Ok(link.clone());
        }
        let link = self.link_to(&info.address)?;
        self.put_link(info.node_id.clone(), link.clone());
        Ok(link)
    }

    /// The way to a node that has not said its name yet.
    pub(crate) fn link_to(&self, address: &str) -> Result<NodeLink, LinkError> {
        NodeLink::remote(address, &self.connect_options, self.settings.api_token.as_ref())
    }

    /// Makes a node of this process reachable by a function call.
    pub(crate) fn put_local_node(&self, node_id: NodeId, node: NodeControl) {
        // There is one node in a process; a second one would be a mistake of the caller, and the first one stays.
        let _ = self.local.set((node_id, node));
    }

    /// The node of this process.
    pub(crate) fn local_node(&self) -> Option<&NodeControl> {
        self.local.get().map(|(_, node)| node)
    }

    /// Whether nothing new is taken any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.shutdown.is_stopping()
    }

    pub(crate) fn forget_link(&self, node_id: &NodeId) {
        self.links
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node_id);
    }

    fn put_link(&self, node_id: NodeId, link: NodeLink) {
        self.links
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node_id, link);
    }
}

/// Milliseconds of a duration, for figures that go out.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A wall-clock time as RFC 3339 has it, always with three digits after the second.
pub(crate) fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

/// The plane as everybody holds it.
pub(crate) type SharedPlane = Arc<Plane>;
