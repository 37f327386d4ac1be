//! What a CLI says, in words that are the same for all of them.

use task_api::ErrorCode;

/// The longest output of a tool that is passed on, in bytes. The end is kept, which says more than the beginning.
pub const TOOL_OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// The longest title of a tool call, in bytes.
pub const TITLE_BYTES_MAX: usize = 512;

/// The longest message of a failure, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 2048;

/// The longest raw line that is passed on, in bytes.
pub const RAW_BYTES_MAX: usize = 64 * 1024;

/// How many files one event names.
pub const FILES_MAX: usize = 256;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The CLI takes a prompt now.
    Ready,
    /// The CLI's own id of the conversation, by which it can be continued.
    Session {
        /// The id.
        id: String,
    },
    /// The CLI has taken the prompt up.
    TurnStarted,
    /// More text. The text of a turn is its messages in order, each the concatenation of its pieces.
    Text {
        /// Which message of the turn, counted from 0.
        message: u32,
        /// The piece.
        text: String,
    },
    /// What was said of a message is void (the CLI fetches it again); it now begins with this.
    TextReplaced {
        /// Which message of the turn.
        message: u32,
        /// All of its text so far.
        text: String,
    },
    /// More of the CLI's thinking.
    Thinking {
        /// The piece.
        text: String,
    },
    /// A tool is called.
    ToolStarted {
        /// The call's id.
        id: String,
        /// The tool's name.
        tool: String,
        /// What it does, in a line.
        title: String,
    },
    /// A tool call has ended.
    ToolFinished {
        /// The call's id.
        id: String,
        /// Whether it did what it should.
        succeeded: bool,
        /// What it printed or answered.
        output: Bounded,
    },
    /// A tool has written files.
    FilesChanged {
        /// Their paths in the sandbox.
        paths: Vec<String>,
    },
    /// How much the turn has used so far.
    Usage {
        /// Tokens read.
        tokens_in: u64,
        /// Tokens written.
        tokens_out: u64,
    },
    /// The provider limits the login. The CLI tries again by itself, or the turn ends next.
    Limit {
        /// When it makes sense to try again.
        retry_after_ms: Option<u64>,
        /// The provider's words.
        message: String,
    },
    /// The CLI tries again by itself.
    Retry {
        /// Which attempt.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// The CLI asked for permission and has been answered.
    Ask {
        /// The tool that it is about.
        tool: String,
        /// The answer.
        allowed: bool,
    },
    /// Something that was asked for beside a turn could not be done.
    Refused {
        /// What: `set_model`, `resume`, ...
        what: &'static str,
        /// The CLI's words.
        message: String,
    },
    /// A new conversation is there, empty.
    Cleared,
    /// The turn has ended. Nothing more comes before the next prompt.
    TurnEnded {
        /// How.
        outcome: Outcome,
    },
    /// A line that the dialogue does not know, or not in this place.
    Raw {
        /// Where it came from.
        source: Source,
        /// The line, cut at [`RAW_BYTES_MAX`].
        line: String,
        /// What is odd about it. None: only unknown.
        note: Option<&'static str>,
    },
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Completed,
    /// It failed.
    Failed(Failure),
    /// It was interrupted, as asked.
    Interrupted,
}

/// Why a turn failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For the person: what happened, and what to do.
    pub message: String,
    /// When it makes sense to try again.
    pub retry_after_ms: Option<u64>,
}

/// Text that may have been too long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// The end of it.
    pub text: String,
    /// How many bytes before it are left out.
    pub dropped_bytes: usize,
}

impl Bounded {
    /// The last [`TOOL_OUTPUT_BYTES_MAX`] of a text.
    pub fn end_of(text: &str) -> Self {
        let mut start = text.len().saturating_sub(TOOL_OUTPUT_BYTES_MAX);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        Self {
            text: text[start..].to_owned(),
            dropped_bytes: start,
        }
    }
}

/// The beginning of a text, at most `bytes` long.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}
