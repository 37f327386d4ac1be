//! Registration, heartbeats, callbacks.

use serde::{Deserialize, Serialize};

use crate::{Capabilities, MachineId, NodeId, PoolId, PoolReport};

/// `POST /v2/nodes/register`. Sending it again changes nothing but what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RegisterRequest {
    /// Which node.
    pub node_id: NodeId,
    /// The hardware under it.
    pub machine_id: MachineId,
    /// Where the control plane reaches the node's one door, such as `https://gpu1:9200`.
    pub address: String,
    /// The node's pools.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// Whether the node takes no new tasks.
    #[serde(default)]
    pub draining: bool,
    /// The node's hardware.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// The node daemon's version.
    #[serde(default)]
    pub version: String,
    /// Another one at each start of the node daemon; tells a restart from a repeated registration.
    #[serde(default)]
    pub incarnation: String,
    /// Counts up with each report of one incarnation, so that a late report never undoes a newer one.
    #[serde(default)]
    pub sequence: u64,
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RegisterResponse {
    /// In how many milliseconds the control plane wants to hear from the node.
    pub next_heartbeat_ms: u64,
}

/// `POST /v2/nodes/{id}/heartbeat`. A 404 tells the node to register again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeartbeatRequest {
    /// The node's pools, all of them.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// Whether the node takes no new tasks.
    #[serde(default)]
    pub draining: bool,
    /// The hardware, when it has changed since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// As in [`RegisterRequest::incarnation`].
    #[serde(default)]
    pub incarnation: String,
    /// As in [`RegisterRequest::sequence`].
    #[serde(default)]
    pub sequence: u64,
    /// The node's clock, in milliseconds since 1970: lets the control plane tell of a skew.
    #[serde(default)]
    pub time_ms: u64,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeartbeatResponse {
    /// In how many milliseconds the control plane wants to hear from the node again.
    pub next_heartbeat_ms: u64,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heard from in time.
    Online,
    /// A heartbeat is late; still used.
    Stale,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Not heard from for longer than the node timeout; not used.
    Offline,
}

impl NodeState {
    /// The state as it stands in JSON and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Stale => "stale",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// One element of `GET /v2/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    /// Which node.
    pub node_id: NodeId,
    /// The hardware under it.
    pub machine_id: MachineId,
    /// Where its one door is. `this process`: the node runs in the control plane's own process.
    pub address: String,
    /// Where it stands.
    pub state: NodeState,
    /// When it was last heard from, RFC 3339.
    pub last_seen: String,
    /// How long ago that is, in milliseconds.
    pub last_seen_ms_ago: u64,
    /// The node daemon's version.
    pub version: String,
    /// Its hardware.
    pub capabilities: Capabilities,
    /// Its pools.
    pub pools: Vec<PoolReport>,
}

/// `POST /v2/callbacks/register` on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CallbackRegistration {
    /// Where the node posts a [`PoolCallback`] when a pool comes or goes.
    pub url: String,
}

/// What a node posts to a callback address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolCallback {
    /// Which node.
    pub node_id: NodeId,
    /// What happened.
    pub event: PoolCallbackEvent,
    /// To which pool.
    pub pool_id: PoolId,
    /// As in [`RegisterRequest::incarnation`].
    #[serde(default)]
    pub incarnation: String,
    /// As in [`RegisterRequest::sequence`].
    #[serde(default)]
    pub sequence: u64,
    /// The pool as it is now.
    pub pool: PoolReport,
}

/// What happened to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolCallbackEvent {
    /// A replica began to answer.
    PoolReady,
    /// A replica was lost.
    PoolLost,
}
