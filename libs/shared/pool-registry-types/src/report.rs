//! What a node reports about its pools.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ControlPlaneId, PoolId, ReplicaId};

/// What a pool is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// LLM servers with one model.
    #[default]
    Engine,
    /// Sandboxes for one coding-agent CLI.
    Agent,
}

/// One pool on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolReport {
    /// Which pool.
    pub pool_id: PoolId,
    /// What it is made of.
    #[serde(default)]
    pub kind: PoolKind,
    /// Whether at least one replica answers and takes tasks.
    pub ready: bool,
    /// Whether the whole pool takes no new tasks and only finishes what it has.
    #[serde(default)]
    pub draining: bool,
    /// Room for tasks in all ready replicas together.
    pub slots_total: u32,
    /// Room that nobody uses at the moment.
    pub slots_free: u32,
    /// Device memory of the GPUs that this pool may use, in bytes; 0 without a GPU.
    #[serde(default)]
    pub vram_total_bytes: u64,
    /// Device memory that is free there, in bytes.
    #[serde(default)]
    pub vram_free_bytes: u64,
    /// What last went wrong, in words for a person. None while nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The replicas, by id.
    #[serde(default)]
    pub replicas: Vec<ReplicaReport>,
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Being fetched, built or started, or not yet seen to answer.
    Starting,
    /// Answers and takes tasks.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Does not answer; tried again with back-off.
    Failed,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplicaReport {
    /// Which replica.
    pub replica_id: ReplicaId,
    /// Where it stands.
    pub state: ReplicaState,
    /// The engine recipe's name.
    pub engine: String,
    /// The engine's own version.
    #[serde(default)]
    pub engine_version: String,
    /// The models that it really serves now, as it names them.
    #[serde(default)]
    pub models: Vec<ModelInfo>,
    /// The dialects that it speaks by itself.
    #[serde(default)]
    pub dialects: Vec<Dialect>,
    /// Whether it notices a closed connection only on streams: then it is asked for a stream even when the client
    /// asked for none.
    #[serde(default)]
    pub cancel_on_stream_only: bool,
    /// Room for tasks.
    pub slots_total: u32,
    /// Room that nobody uses at the moment.
    pub slots_free: u32,
    /// Who holds the slots that are taken. A control plane finds its own share under its own id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leases: BTreeMap<ControlPlaneId, u32>,
    /// Free device memory on the GPUs that it runs on, in bytes.
    #[serde(default)]
    pub vram_free_bytes: u64,
    /// What last went wrong, in words for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// A model, as the engine that serves it describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelInfo {
    /// The name by which clients ask for it.
    pub id: String,
    /// Other names by which it may be asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// How many tokens one task may hold. None: the engine does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Whether it takes pictures or sound beside text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub media: bool,
}

/// A wire format, named by its endpoint under `/v1`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI `POST /v1/chat/completions`.
    ChatCompletions,
    /// OpenAI `POST /v1/completions`.
    Completions,
    /// OpenAI `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v1/rerank`, as Jina and Cohere shape it.
    Rerank,
    /// OpenAI `POST /v1/responses`.
    Responses,
    /// Anthropic `POST /v1/messages`.
    Messages,
    /// Anthropic `POST /v1/messages/count_tokens`.
    CountTokens,
}

/// The answer of a node's `GET /v2/pools/{id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolStatus {
    /// Whether the node keeps this pool at all.
    pub live: bool,
    /// Whether at least one replica answers and takes tasks.
    pub ready: bool,
    /// Room that nobody uses at the moment.
    pub slots_free: u32,
    /// Room in all ready replicas together.
    pub slots_total: u32,
    /// Free device memory, in bytes.
    pub vram_free_bytes: u64,
    /// What last went wrong. Always present, null while nothing is wrong.
    pub last_error: Option<String>,
}
