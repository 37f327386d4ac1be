//! `POST /v2/tasks`.

use pool_registry_types::{AgentEffort, NodeId, PoolId};
use serde::{Deserialize, Serialize};

use crate::{ApiError, ErrorCode, SessionId, TaskId, WorkspaceRequest};

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
    /// Have a coding agent do what `prompt` says.
    Agent,
}

impl Workload {
    /// The workload as it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Rerank => "rerank",
            Self::Agent => "agent",
        }
    }
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
    /// When there are any: only these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub nodes: Vec<NodeId>,
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
    /// The model that is to do it. One of `model` and `pool` is needed, but for `agent`: there it is the agent's own
    /// model in the agent's own words, or `local:NAME` for one that this control plane serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub model: Option<String>,
    /// The pool that is to do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    /// For `agent`: which one, such as `claude`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub agent: Option<String>,
    /// For `completion` the text to continue, for `chat` one user message, for `rerank` the query, for `agent` what it
    /// is to do.
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
    /// For `agent`: how hard it should think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<AgentEffort>,
    /// For `agent`: the workspace that it works in. Without it, the one that its session has worked in, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceRequest>,
    /// For `agent`: whether its own lines are told, too, as `raw` events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbose: Option<bool>,
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
        if self.workload == Workload::Agent {
            self.validate_agent()?;
        } else if self.model.is_none() && self.pool.is_none() {
            return missing("model", "unless pool is given");
        } else if let Some(field) = self.member_for_agents() {
            return unwanted(field, self.workload.as_str());
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
            Workload::Completion
            | Workload::Chat
            | Workload::Embedding
            | Workload::Rerank
            | Workload::Agent => {}
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
            if [
                placement.pools.len(),
                placement.avoid.len(),
                placement.nodes.len(),
            ]
            .iter()
            .any(|len| *len > 64)
            {
                return Err(ApiError::new(
                    ErrorCode::InvalidParams,
                    "at most 64 pools, and as many nodes, may be named",
                )
                .with_param("placement"));
            }
        }
        Ok(())
    }

    /// The first member that is given and that only an agent's task may have.
    fn member_for_agents(&self) -> Option<&'static str> {
        let given = [
            ("agent", self.agent.is_some()),
            ("effort", self.effort.is_some()),
            ("workspace", self.workspace.is_some()),
            ("verbose", self.verbose.is_some()),
        ];
        given
            .into_iter()
            .find_map(|(name, is_given)| is_given.then_some(name))
    }

    fn validate_agent(&self) -> Result<(), ApiError> {
        let wrong = |field: &str, message: String| {
            Err(ApiError::new(ErrorCode::InvalidParams, message).with_param(field))
        };
        let meaningless = [
            ("messages", self.messages.is_some()),
            ("input", self.input.is_some()),
            ("max_tokens", self.max_tokens.is_some()),
            ("seed", self.seed.is_some()),
        ];
        if let Some((field, _)) = meaningless.into_iter().find(|(_, is_given)| *is_given) {
            return wrong(field, format!("{field} means nothing for workload agent"));
        }
        match self.agent.as_deref() {
            None => return wrong("agent", "agent is needed for workload agent".to_owned()),
            Some(name) if !is_agent_name(name) => {
                let message = "agent must have 1 to 64 characters of a-z 0-9 _ -";
                return wrong("agent", message.to_owned());
            }
            Some(_) => {}
        }
        if self
            .prompt
            .as_deref()
            .is_none_or(|prompt| prompt.trim().is_empty())
        {
            return wrong("prompt", "prompt is needed for workload agent".to_owned());
        }
        if self.local_model() == Some("") {
            return wrong("model", "model names no model after local:".to_owned());
        }
        self.workspace.as_ref().map_or(Ok(()), WorkspaceRequest::validate)
    }

    /// For `agent`: the model of this control plane's own that the agent is to use.
    pub fn local_model(&self) -> Option<&str> {
        self.model.as_deref()?.strip_prefix(LOCAL_MODEL_PREFIX)
    }
}

/// What a model of an agent's task begins with that this control plane serves itself.
pub const LOCAL_MODEL_PREFIX: &str = "local:";

/// Whether `name` may name an agent.
pub fn is_agent_name(name: &str) -> bool {
    let clean = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field that an error names; None when the request is fine.
    fn fault(body: &str) -> Option<String> {
        match serde_json::from_str::<TaskRequest>(body) {
            Ok(request) => request
                .validate()
                .err()
                .map(|error| error.param.unwrap_or_default()),
            Err(error) => Some(format!("not read: {error}")),
        }
    }

    #[test]
    fn an_agents_task_has_what_it_needs_and_nothing_else() {
        let agent = |rest: &str| format!(r#"{{"workload":"agent","agent":"claude","prompt":"3*67"{rest}}}"#);
        for rest in [
            "",
            r#","model":"opus","effort":"high","session_id":"s","deadline_ms":1,"verbose":true"#,
            r#","model":"local:demo","workspace":"w","pool":"claude""#,
            r#","workspace":{"git":"https://git.example/a/b.git"}"#,
            r#","workspace":{"git":"http://git.example:8080/b","ref":"v1.0/x"}"#,
        ] {
            assert_eq!(fault(&agent(rest)), None, "{rest}");
        }
        for (rest, field) in [
            (r#","messages":[]"#, "messages"),
            (r#","input":1"#, "input"),
            (r#","max_tokens":1"#, "max_tokens"),
            (r#","seed":1"#, "seed"),
            (r#","model":"""#, "model"),
            (r#","model":"local:""#, "model"),
            (r#","deadline_ms":0"#, "deadline_ms"),
            (r#","workspace":{"git":"git@git.example:a/b"}"#, "workspace.git"),
            (
                r#","workspace":{"git":"https://u:p@git.example/b"}"#,
                "workspace.git",
            ),
            (r#","workspace":{"git":"https:///b"}"#, "workspace.git"),
            (r#","workspace":{"git":"file:///etc"}"#, "workspace.git"),
            (r#","workspace":{"git":"https://h/a b"}"#, "workspace.git"),
            (
                r#","workspace":{"git":"https://h/b","ref":"--upload-pack=x"}"#,
                "workspace.ref",
            ),
            (r#","workspace":{"git":"https://h/b","ref":""}"#, "workspace.ref"),
        ] {
            assert_eq!(fault(&agent(rest)).as_deref(), Some(field), "{rest}");
        }
        assert!(
            fault(&agent(r#","workspace":{"git":"https://h","rev":"x"}"#))
                .unwrap()
                .contains("`rev`")
        );
        assert!(fault(&agent(r#","workspace":{}"#)).unwrap().contains("`git`"));
        assert!(fault(&agent(r#","workspace":"a/b""#)).unwrap().contains("192"));
        assert!(
            fault(&agent(r#","workspace":7"#))
                .unwrap()
                .contains("the id of a workspace")
        );
        for (body, field) in [
            (r#"{"workload":"agent","prompt":"x"}"#, "agent"),
            (r#"{"workload":"agent","agent":"A b","prompt":"x"}"#, "agent"),
            (r#"{"workload":"agent","agent":"claude"}"#, "prompt"),
            (r#"{"workload":"agent","agent":"claude","prompt":" "}"#, "prompt"),
            (
                r#"{"workload":"chat","model":"m","prompt":"x","agent":"claude"}"#,
                "agent",
            ),
            (
                r#"{"workload":"chat","model":"m","prompt":"x","effort":"low"}"#,
                "effort",
            ),
            (
                r#"{"workload":"chat","model":"m","prompt":"x","workspace":"w"}"#,
                "workspace",
            ),
            (
                r#"{"workload":"chat","model":"m","prompt":"x","verbose":false}"#,
                "verbose",
            ),
        ] {
            assert_eq!(fault(body).as_deref(), Some(field), "{body}");
        }
        assert!(fault(&agent(r#","colour":1"#)).unwrap().contains("`colour`"));
        assert!(fault(&agent(r#","effort":"huge""#)).unwrap().contains("huge"));
    }
}
