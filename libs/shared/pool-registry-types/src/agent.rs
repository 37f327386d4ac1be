//! A run of an agent: what a control plane asks of a node, and what the node tells while it goes on.
//!
//! The request is a POST to `{AGENTS_PREFIX}/{pool}/{replica}/runs` at the node's one door. The answer is a stream of
//! [`AgentEvent`]s, one JSON text a line, the last of which is [`AgentEvent::Ended`]. Dropping the answer cancels the run.

use serde::{Deserialize, Serialize};

/// Where the one door of a node takes runs of agents.
pub const AGENTS_PREFIX: &str = "/v2/agents";

/// What an agent is to do, and for whom.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRun {
    /// The task that this is.
    pub task_id: String,
    /// Whose login, home and sandbox are used: nobody else's.
    pub owner: String,
    /// The prompt.
    pub prompt: String,
    /// Goes on in the conversation of this name, if there is one; a new one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The model, in the agent's own words. None: the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How hard it should think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<AgentEffort>,
    /// How long the turn may take. None: the profile's, by effort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What stands in the sandbox as the current directory. None: the session's, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<RunWorkspace>,
    /// Whether every line of the agent is told as it came.
    #[serde(default)]
    pub verbose: bool,
    /// Runs the agent on a model of Remuda's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_model: Option<LocalModel>,
}

impl std::fmt::Debug for AgentRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Prompts belong into no log.
        f.debug_struct("AgentRun")
            .field("task_id", &self.task_id)
            .field("owner", &self.owner)
            .field("prompt_bytes", &self.prompt.len())
            .finish_non_exhaustive()
    }
}

/// The directory that a run works in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunWorkspace {
    /// One that the node keeps for the owner, by its name there.
    Kept {
        /// The name.
        id: String,
    },
    /// A new one, cloned from a repository.
    Cloned {
        /// `http:` or `https:`, without a login in it.
        url: String,
        /// A branch or a tag. None: the repository's own choice.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
}

/// How hard an agent should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentEffort {
    /// Quick answers.
    Low,
    /// The usual.
    Medium,
    /// Takes its time.
    High,
}

/// One of Remuda's own engine pools as an agent's model.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalModel {
    /// The control plane's address, as the node reaches it.
    pub base_url: String,
    /// A key that works for this task and this model only, and ends with the task.
    pub key: String,
    /// The model's name.
    pub model: String,
}

impl std::fmt::Debug for LocalModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalModel")
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// How warm what a run was given was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmLevel {
    /// The sandbox was made for it.
    Cold,
    /// The sandbox was there, the agent was started for it.
    Warm,
    /// The agent was running and waited for the prompt.
    Hot,
}

/// What happens in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentEvent {
    /// The run has its sandbox.
    Claimed {
        /// How warm it was.
        level: WarmLevel,
        /// Which one.
        sandbox_id: String,
    },
    /// The agent has the prompt.
    Prompted,
    /// The conversation's name at the agent.
    Session {
        /// As the agent calls it.
        id: String,
    },
    /// More of the answer.
    Text {
        /// What is new.
        text: String,
    },
    /// The answer goes on from an earlier place: what came after it counts no more.
    TextReplaced {
        /// How much of the text so far stays, in bytes.
        kept_bytes: u64,
        /// What stands in the place of the rest.
        text: String,
    },
    /// A tool was started.
    ToolStarted {
        /// Names this use of it.
        id: String,
        /// Which tool.
        name: String,
        /// What it was given, as JSON or text, bounded.
        input: String,
    },
    /// A tool has ended.
    ToolFinished {
        /// Which use of it.
        id: String,
        /// Whether it did what it should.
        ok: bool,
        /// What it said, bounded.
        output: String,
        /// Whether `output` is only the beginning.
        truncated: bool,
    },
    /// Files of the workspace have changed.
    FilesChanged {
        /// Which, relative to the workspace.
        paths: Vec<String>,
    },
    /// What was used so far in this run.
    Usage {
        /// Tokens read.
        tokens_in: u64,
        /// Tokens generated.
        tokens_out: u64,
    },
    /// The provider holds the owner back; the agent may go on by itself.
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
    /// What the run has moved between the sandbox and the world.
    Egress {
        /// Sent to the world.
        sent_bytes: u64,
        /// Received from it.
        received_bytes: u64,
    },
    /// The workspace was taken back, or could not be.
    Workspace {
        /// Its name on the node.
        id: String,
        /// How many files differ from what it began with.
        changed: u64,
        /// Why what the run has changed is not kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// A line as the agent wrote it.
    Raw {
        /// `stdout` or `stderr`.
        source: String,
        /// The line, bounded.
        line: String,
    },
    /// The last event.
    Ended {
        /// How the run ended.
        outcome: AgentOutcome,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum AgentOutcome {
    /// The agent says that it is done.
    Completed,
    /// It was interrupted.
    Cancelled,
    /// It came to nothing.
    Failed {
        /// One of the error codes that clients know, such as `UNAUTHENTICATED`.
        code: String,
        /// What happened and what to do.
        message: String,
        /// Whether trying again may help.
        retriable: bool,
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}
