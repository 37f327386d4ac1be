//! What a provisioner says about its engine while it keeps it.

use model_store::Step;
use pool_registry_types::{PoolId, ReplicaId};
use serde::{Deserialize, Serialize};

/// Where an engine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The engine or its model is being fetched or built.
    Fetching,
    /// The process runs and does not answer yet.
    Starting,
    /// It answers; its handoff is written.
    Ready,
    /// It ended or could not be started; it is tried again later.
    BackingOff,
    /// It was asked to end.
    Stopping,
    /// It has ended, and nobody starts it again.
    Stopped,
}

/// An engine as its provisioner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// The pool that it belongs to.
    pub pool_id: PoolId,
    /// Its name within the pool.
    pub replica_id: ReplicaId,
    /// Which spec it is kept by.
    pub spec_hash: String,
    /// Where it stands.
    pub phase: Phase,
    /// How far the long step is that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Step>,
    /// What last went wrong, for a person. None once it answers again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Where it answers, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its version, once known.
    #[serde(default)]
    pub engine_version: String,
    /// How often it ended or failed to start since it was last asked for.
    #[serde(default)]
    pub failures: u32,
    /// Whether another process keeps it and this one only watches.
    #[serde(default)]
    pub adopted: bool,
}

impl EngineStatus {
    pub(crate) fn new(pool_id: PoolId, replica_id: ReplicaId, spec_hash: String) -> Self {
        Self {
            pool_id,
            replica_id,
            spec_hash,
            phase: Phase::Fetching,
            progress: None,
            last_error: None,
            url: None,
            pid: None,
            engine_version: String::new(),
            failures: 0,
            adopted: false,
        }
    }
}
