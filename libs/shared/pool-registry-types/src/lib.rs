//! What a node and a control plane say to each other, and the handoff by which an engine announces itself
//! to its node.
//!
//! Wire types only: no I/O, no clock, no policy. Identifiers are newtypes that cannot hold a bad value, so a
//! path segment, a metric label or a file name made from one is always safe. Fields that a newer peer adds are
//! ignored, because nodes and control planes are upgraded one at a time.

mod agent;
mod capabilities;
mod handoff;
mod id;
mod login;
mod node;
mod report;
mod workspace;

pub use agent::{
    AGENTS_PREFIX, AgentEffort, AgentEvent, AgentOutcome, AgentRun, LocalModel, RunWorkspace, WarmLevel,
};
pub use capabilities::{Capabilities, Gpu};
pub use handoff::{HANDOFF_SCHEMA, Handoff};
pub use id::{ControlPlaneId, ID_LEN_MAX, IdError, MachineId, NodeId, PoolId, ReplicaId};
pub use login::{AgentLogin, LoginEvent, LoginFailure, LoginInput, LoginKind, LoginStatus};
pub use node::{
    CallbackRegistration, HeartbeatRequest, HeartbeatResponse, NodeState, NodeView, PoolCallback,
    PoolCallbackEvent, RegisterRequest, RegisterResponse,
};
pub use report::{Dialect, ModelInfo, PoolKind, PoolReport, PoolStatus, ReplicaReport, ReplicaState};
pub use workspace::{ChangedFile, FileChange, WorkspaceChanges, WorkspaceMade, WorkspaceView};

/// The request header in which a control plane names itself to a node, so that the node can say who holds its slots.
pub const CONTROL_PLANE_HEADER: &str = "x-remuda-control-plane";

/// The response header that tells a refusal of the node itself from an answer of the engine behind it.
///
/// Its value is the error code of the refusal, such as `REPLICA_EXHAUSTED`.
pub const NODE_REFUSAL_HEADER: &str = "x-remuda-refusal";

/// Where the one door of a node passes requests on to an engine: `{DOOR_PREFIX}/{pool}/{replica}/v1/...`.
pub const DOOR_PREFIX: &str = "/v2/engines";
