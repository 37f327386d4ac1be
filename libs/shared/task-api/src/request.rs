//! `POST /v2/tasks`.

use pool_registry_types::PoolId;
use serde::{Deserialize, Serialize};

use crate::{ApiError, ErrorCode, SessionId, TaskId};

/// What kind of work a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Continue `prompt`.
    Completion,
    /// Answer `messages`.
    Chat,
    /// Embed `input`.
    Embedding,
    /// Rank `input` documents by `prompt`.
    Rerank,
}

/// The class in a pool's queue: every interactive task goes before every batch task.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody waits; first to go when a queue is full and the policy is `drop-lru`.
    Batch,
}

/// How much `placement.pools` binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlacementMode {
    /// Any pool that serves the model.
    #[default]
    Auto,
    /// Only the named pools.
    Pin,
    /// The named pools first, others when those have no room.
    Prefer,
}

/// Where a task may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementRequest {
    /// How much `pools` binds.
    #[serde(default)]
    pub mode: PlacementMode,
    /// The pools that `mode` speaks of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub pools: Vec<PoolId>,
    /// Pools that the task must not run on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub avoid: Vec<PoolId>,
}

/// A task as a client submits it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// The client's own id for the task; sending it again is a `CONFLICT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Tasks of one session go to the replica that has their conversation warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// What kind of work.
    pub workload: Workload,
    /// The model that is to do it. One of `model` and `pool` is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub model: Option<String>,
    /// The pool that is to do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    /// For `completion` the text to continue, for `chat` one user message, for `rerank` the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// For `chat`: messages in OpenAI's shape, passed to the engine as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1)]
    pub messages: Option<Vec<serde_json::Map<String, serde_json::Value>>>,
    /// For `embedding` the text or texts, for `rerank` the documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<serde_json::Value>,
    /// The class.
    #[serde(default)]
    pub priority: Priority,
    /// The most tokens to generate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Makes sampling repeatable where the engine can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How long the whole task may take, in milliseconds from its arrival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub deadline_ms: Option<u64>,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRequest>,
}

/// The longest deadline, in milliseconds: one day.
pub const DEADLINE_MS_MAX: u64 = 24 * 60 * 60 * 1000;

impl TaskRequest {
    /// Checks what the field types alone cannot: which fields go together.
    pub fn validate(&self) -> Result<(), ApiError> {
        let missing = |field: &str, why: &str| {
            Err(ApiError::new(ErrorCode::InvalidParams, format!("{field} is needed {why}")).with_param(field))
        };
        let unwanted = |field: &str, workload: &str| {
            Err(ApiError::new(
                ErrorCode::InvalidParams,
                format!("{field} means nothing for workload {workload}"),
            )
            .with_param(field))
        };
        if self.model.is_none() && self.pool.is_none() {
            return missing("model", "unless pool is given");
        }
        if self
            .model
            .as_deref()
            .is_some_and(|model| model.is_empty() || model.chars().count() > 256)
        {
            return Err(
                ApiError::new(ErrorCode::InvalidParams, "model must have 1 to 256 characters")
                    .with_param("model"),
            );
        }
        match self.workload {
            Workload::Completion if self.prompt.is_none() => {
                return missing("prompt", "for workload completion");
            }
            Workload::Completion if self.messages.is_some() => return unwanted("messages", "completion"),
            Workload::Chat if self.prompt.is_none() == self.messages.is_none() => {
                return missing("messages", "for workload chat (or prompt, and not both)");
            }
            Workload::Chat if self.messages.as_ref().is_some_and(Vec::is_empty) => {
                return missing("messages", "to hold at least one message");
            }
            Workload::Embedding if self.input.is_none() => return missing("input", "for workload embedding"),
            Workload::Embedding if self.messages.is_some() => return unwanted("messages", "embedding"),
            Workload::Rerank if self.prompt.is_none() => return missing("prompt", "for workload rerank"),
            Workload::Rerank if self.input.is_none() => return missing("input", "for workload rerank"),
            _ => {}
        }
        if self.max_tokens == Some(0) {
            return Err(
                ApiError::new(ErrorCode::InvalidParams, "max_tokens must be at least 1")
                    .with_param("max_tokens"),
            );
        }
        if let Some(deadline_ms) = self.deadline_ms
            && !(1..=DEADLINE_MS_MAX).contains(&deadline_ms)
        {
            return Err(ApiError::new(
                ErrorCode::InvalidParams,
                format!("deadline_ms must be from 1 to {DEADLINE_MS_MAX}"),
            )
            .with_param("deadline_ms"));
        }
        if let Some(placement) = &self.placement {
            if placement.mode != PlacementMode::Auto && placement.pools.is_empty() {
                return missing("placement.pools", "for placement modes pin and prefer");
            }
            if placement.pools.len() > 64 || placement.avoid.len() > 64 {
                return Err(
                    ApiError::new(ErrorCode::InvalidParams, "at most 64 pools may be named")
                        .with_param("placement"),
                );
            }
        }
        Ok(())
    }
}
