//! What one model request is answered with.

use serde::{Deserialize, Serialize};

/// The answer to one model request of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Text, and the end of the turn.
    Text {
        /// The pieces, one event each.
        pieces: Vec<String>,
        /// How long to wait before each piece but the first, in milliseconds.
        #[serde(default)]
        interval_ms: u64,
    },
    /// A call of the CLI's tool for shell commands. The CLI comes back with what it printed.
    Shell {
        /// The command line.
        command: String,
    },
    /// A call of the CLI's tool that writes a file.
    Write {
        /// Where, as an absolute path.
        path: String,
        /// The whole content.
        content: String,
    },
    /// A refusal by status.
    Status {
        /// The HTTP status.
        status: u16,
        /// The `Retry-After` header, in seconds.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Text, and then the end of the body, without the dialect's own end of a stream.
    Short {
        /// The pieces before it.
        pieces: Vec<String>,
    },
    /// Text, and then the connection is cut without the end of the stream.
    Cut {
        /// The pieces before it.
        pieces: Vec<String>,
    },
    /// Text, and then nothing more until the client goes away.
    Hang {
        /// The pieces before it.
        pieces: Vec<String>,
    },
}

impl Step {
    /// One piece of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::pieces([text.into()])
    }

    /// Text in pieces, as fast as it can be sent.
    pub fn pieces<T: Into<String>>(pieces: impl IntoIterator<Item = T>) -> Self {
        Self::Text {
            pieces: pieces.into_iter().map(Into::into).collect(),
            interval_ms: 0,
        }
    }

    /// A stream that ends too early, after these pieces.
    pub fn short<T: Into<String>>(pieces: impl IntoIterator<Item = T>) -> Self {
        Self::Short {
            pieces: pieces.into_iter().map(Into::into).collect(),
        }
    }

    /// A stream that is cut after these pieces.
    pub fn cut<T: Into<String>>(pieces: impl IntoIterator<Item = T>) -> Self {
        Self::Cut {
            pieces: pieces.into_iter().map(Into::into).collect(),
        }
    }

    /// A stream that says no more after these pieces.
    pub fn hang<T: Into<String>>(pieces: impl IntoIterator<Item = T>) -> Self {
        Self::Hang {
            pieces: pieces.into_iter().map(Into::into).collect(),
        }
    }

    /// A call of the tool for shell commands.
    pub fn shell(command: impl Into<String>) -> Self {
        Self::Shell {
            command: command.into(),
        }
    }

    /// A call of the tool that writes files.
    pub fn write(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self::Write {
            path: path.into(),
            content: content.into(),
        }
    }

    /// A refusal.
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            retry_after_s: None,
        }
    }

    /// A refusal that says when to come back.
    pub fn retry_after(status: u16, retry_after_s: u64) -> Self {
        Self::Status {
            status,
            retry_after_s: Some(retry_after_s),
        }
    }
}
