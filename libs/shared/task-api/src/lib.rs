//! What a client and a control plane say to each other on `/v2/tasks`: the request, the task as it stands, its
//! events, and the errors that every part of the API shares.
//!
//! Wire types only. What a client sends is parsed here into types that cannot be wrong; unknown fields are errors.

mod error;
mod event;
mod id;
mod pool;
mod request;
mod view;
mod workspace;

pub use error::{ApiError, ErrorBody, ErrorCode};
pub use event::{Event, ToolEvent, Usage};
pub use id::{SessionId, TaskId, TaskIdError, WorkspaceId};
pub use pool::{PoolView, ReplicaView};
pub use request::{
    DEADLINE_MS_MAX, LOCAL_MODEL_PREFIX, PlacementMode, PlacementRequest, Priority, TaskRequest, Workload,
    is_agent_name,
};
pub use view::{PlacementDecision, TaskAccepted, TaskLinks, TaskList, TaskState, TaskView};
pub use workspace::{CloneRequest, WorkspaceRequest};

/// Request and response header that names one request through every log, event and trace.
pub const CORRELATION_HEADER: &str = "x-correlation-id";
