//! The events of a task: what `GET /v2/tasks/{id}/events` streams.

use pool_registry_types::{NodeId, PoolId, ReplicaId, WarmLevel};
use serde::{Deserialize, Serialize};

use crate::{ErrorCode, WorkspaceId};

/// One event. On the wire the SSE `event:` is the variant's name, `data:` the rest as JSON, `id:` counts from 1.
///
/// Exactly one of [`Event::End`] and [`Event::Error`] comes, and it comes last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// The task waits.
    Queued {
        /// How many tasks of its queue go before it.
        position: u32,
        /// When it will probably start, in milliseconds from now; computed from the pool's recent pace.
        estimated_start_ms: u64,
    },
    /// The task runs. Comes again when it had to start over elsewhere before it had sent anything.
    Started {
        /// The pool that runs it.
        pool_id: PoolId,
        /// The replica that runs it.
        replica_id: ReplicaId,
        /// The node that runs it.
        node_id: NodeId,
        /// How warm the sandbox was that an agent's task was given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        level: Option<WarmLevel>,
    },
    /// A piece of the answer.
    Token {
        /// The text.
        t: String,
        /// Counts from 0.
        i: u32,
    },
    /// The answer begins anew: what came as tokens so far counts no more.
    TextReplaced {
        /// The text that stands in its place.
        t: String,
    },
    /// An agent uses a tool.
    Tool(ToolEvent),
    /// An agent has changed files of its workspace.
    Files {
        /// Which, relative to the workspace.
        paths: Vec<String>,
    },
    /// The provider of an agent's model holds the owner back; the agent may go on by itself.
    Limit {
        /// What it says.
        message: String,
        /// When it makes sense to try again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// Something in the sandbox tried to reach a host that is not allowed.
    EgressDenied {
        /// The host, as it was asked for.
        host: String,
        /// The port.
        port: u16,
        /// Why not.
        reason: String,
    },
    /// The workspace was taken back when the agent was done, or could not be; comes before the end.
    Workspace {
        /// By which the next task names it.
        workspace_id: WorkspaceId,
        /// How many files differ from what it began with.
        changed: u64,
        /// Why what the task has changed is not kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// A line as the agent wrote it; only when the task asks for `verbose`.
    Raw {
        /// `stdout` or `stderr`.
        source: String,
        /// The line, bounded.
        line: String,
    },
    /// The whole answer of a workload that is not text: embeddings, a ranking.
    Output {
        /// The engine's answer as it came.
        value: serde_json::Value,
    },
    /// Figures on the way.
    Metrics(Usage),
    /// The task is complete.
    End(Usage),
    /// The task has failed, was cancelled, or ran out of time.
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
        /// Whether the same request may succeed later.
        retriable: bool,
        /// When to try again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

impl Event {
    /// The SSE event name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Token { .. } => "token",
            Self::TextReplaced { .. } => "text_replaced",
            Self::Tool(_) => "tool",
            Self::Files { .. } => "files",
            Self::Limit { .. } => "limit",
            Self::EgressDenied { .. } => "egress_denied",
            Self::Workspace { .. } => "workspace",
            Self::Raw { .. } => "raw",
            Self::Output { .. } => "output",
            Self::Metrics(_) => "metrics",
            Self::End(_) => "end",
            Self::Error { .. } => "error",
        }
    }

    /// Whether no event comes after this one.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::End(_) | Self::Error { .. })
    }
}

/// A tool that an agent uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ToolEvent {
    /// It was started.
    Started {
        /// Names this use of it.
        id: String,
        /// Which tool.
        name: String,
        /// What it was given, as JSON or text, bounded.
        input: String,
    },
    /// It has ended.
    Finished {
        /// Which use of it.
        id: String,
        /// Whether it did what it should.
        ok: bool,
        /// What it said, bounded.
        output: String,
        /// Whether `output` is only the beginning.
        truncated: bool,
    },
}

/// What a task used and how long each part took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Tokens read.
    pub tokens_in: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// From arrival to the slot, in milliseconds.
    pub queue_ms: u64,
    /// From arrival to the first byte of the answer, in milliseconds.
    pub first_token_ms: u64,
    /// From the first byte of the answer to its end, in milliseconds.
    pub decode_ms: u64,
    /// What an agent has sent out of its sandbox, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_sent_bytes: Option<u64>,
    /// What has come into an agent's sandbox, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_received_bytes: Option<u64>,
}
