//! From the words of a dialogue to those between node and control plane.

use agents::{AgentEvent as Said, Source};
use egress::Denied;
use pool_registry_types::AgentEvent;
use sandbox::WORKSPACE;

use super::run::source_name;

/// How many messages of a turn are told apart.
const MESSAGES_MAX: usize = 4096;
/// The longest raw line that is told.
const RAW_BYTES_MAX: usize = 64 * 1024;
/// What stands between two messages of a turn.
const BETWEEN: &str = "\n\n";

/// What a turn has said so far. The text itself is the reader's: a hundred long turns at once cost no memory.
pub(super) struct Words {
    is_verbose: bool,
    /// Where the run works.
    directory: String,
    /// How many bytes each message has.
    messages: Vec<usize>,
    was_ready: bool,
    is_up: bool,
}

impl Words {
    pub(super) fn new(is_verbose: bool) -> Self {
        Self {
            is_verbose,
            directory: WORKSPACE.to_owned(),
            messages: Vec::new(),
            was_ready: false,
            is_up: false,
        }
    }

    /// Files are told relative to this directory from now on.
    pub(super) fn set_directory(&mut self, directory: &str) {
        directory.clone_into(&mut self.directory);
    }

    /// Whether the CLI has said that it is ready since the last time.
    pub(super) fn take_ready(&mut self) -> bool {
        std::mem::take(&mut self.was_ready)
    }

    /// Whether a CLI that was started for this run has said that it is ready.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// A line as it came, when that is wanted.
    pub(super) fn raw(&self, source: Source, line: &str) -> Option<AgentEvent> {
        self.is_verbose.then(|| raw(source, line))
    }

    /// The event as it is told. None: it is not.
    pub(super) fn told(&mut self, event: Said) -> Option<AgentEvent> {
        Some(match event {
            Said::Ready => {
                self.was_ready = true;
                self.is_up = true;
                return None;
            }
            Said::Session { id } => AgentEvent::Session { id },
            Said::Text { message, text } => self.text(message, text),
            Said::TextReplaced { message, text } => self.replace(message, text),
            Said::ToolStarted { id, tool, title } => AgentEvent::ToolStarted {
                id,
                name: tool,
                input: title,
            },
            Said::ToolFinished {
                id,
                succeeded,
                output,
            } => AgentEvent::ToolFinished {
                id,
                ok: succeeded,
                truncated: output.dropped_bytes > 0,
                output: output.text,
            },
            Said::FilesChanged { paths } => AgentEvent::FilesChanged {
                paths: paths
                    .into_iter()
                    .map(|path| relative(&self.directory, path))
                    .collect(),
            },
            Said::Usage {
                tokens_in,
                tokens_out,
            } => AgentEvent::Usage {
                tokens_in,
                tokens_out,
            },
            Said::Limit {
                retry_after_ms,
                message,
            } => AgentEvent::Limit {
                message,
                retry_after_ms,
            },
            // Told already as it came, when that is wanted.
            Said::Raw { .. }
            | Said::TurnStarted
            | Said::Thinking { .. }
            | Said::Retry { .. }
            | Said::Ask { .. }
            | Said::Refused { .. }
            | Said::Cleared
            | Said::TurnEnded { .. } => return None,
        })
    }

    fn text(&mut self, message: u32, text: String) -> AgentEvent {
        let at = message as usize;
        let begins = self.messages.get(at).is_none_or(|bytes| *bytes == 0);
        let bytes = text.len();
        let text = if begins { self.beginning(at, text) } else { text };
        self.count(at, bytes);
        AgentEvent::Text { text }
    }

    /// The beginning of a message, apart from what stands before it.
    fn beginning(&self, at: usize, text: String) -> String {
        let follows = self.messages.iter().take(at).any(|before| *before > 0);
        if follows && !text.is_empty() {
            format!("{BETWEEN}{text}")
        } else {
            text
        }
    }

    fn count(&mut self, at: usize, bytes: usize) {
        // A CLI that counts wildly costs no memory.
        if at >= MESSAGES_MAX {
            return;
        }
        if self.messages.len() <= at {
            self.messages.resize(at + 1, 0);
        }
        self.messages[at] += bytes;
    }

    fn replace(&mut self, message: u32, text: String) -> AgentEvent {
        let at = message as usize;
        self.messages.truncate(at);
        let before = self.messages.iter().filter(|bytes| **bytes > 0);
        let (count, bytes) = before.fold((0, 0), |(count, all), bytes| (count + 1, all + bytes));
        let kept_bytes = bytes + BETWEEN.len() * usize::saturating_sub(count, 1);
        self.count(at, text.len());
        AgentEvent::TextReplaced {
            kept_bytes: kept_bytes as u64,
            text: self.beginning(at, text),
        }
    }
}

/// An attempt that the way out has denied.
pub(super) fn denied(attempt: &Denied) -> AgentEvent {
    AgentEvent::EgressDenied {
        host: attempt.host.clone(),
        port: attempt.port,
        reason: attempt.reason.to_string(),
    }
}

fn raw(source: Source, line: &str) -> AgentEvent {
    AgentEvent::Raw {
        source: source_name(source).to_owned(),
        line: line[..line.floor_char_boundary(RAW_BYTES_MAX)].to_owned(),
    }
}

fn relative(directory: &str, path: String) -> String {
    let below = path
        .strip_prefix(directory)
        .and_then(|below| below.strip_prefix('/'));
    match below {
        Some(below) if !below.is_empty() => below.to_owned(),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(events: &[AgentEvent]) -> String {
        events.iter().fold(String::new(), |text, event| match event {
            AgentEvent::Text { text: more } => text + more,
            AgentEvent::TextReplaced {
                kept_bytes,
                text: rest,
            } => {
                let kept = usize::try_from(*kept_bytes).unwrap();
                text[..kept].to_owned() + rest
            }
            _ => text,
        })
    }

    #[test]
    fn what_is_replaced_stands_where_it_stood() {
        let text = |message, text: &str| Said::Text {
            message,
            text: text.to_owned(),
        };
        let mut words = Words::new(false);
        let mut events = Vec::new();
        let steps = [
            text(0, "I "),
            text(0, "look."),
            text(1, "It is 2"),
            Said::TextReplaced {
                message: 1,
                text: String::new(),
            },
            text(1, "It is "),
            text(1, "201."),
        ];
        let expect = [
            "I ",
            "I look.",
            "I look.\n\nIt is 2",
            "I look.",
            "I look.\n\nIt is ",
            "I look.\n\nIt is 201.",
        ];
        for (step, expect) in steps.into_iter().zip(expect) {
            events.extend(words.told(step));
            assert_eq!(said(&events), expect);
        }
    }

    #[test]
    fn a_cli_that_says_nonsense_costs_no_memory() {
        let mut words = Words::new(false);
        for message in [u32::MAX, 1 << 20] {
            words.told(Said::Text {
                message,
                text: "x".to_owned(),
            });
        }
        for _ in 0..10 {
            words.told(Said::Text {
                message: 0,
                text: "y".repeat(1 << 20),
            });
        }
        assert!(words.messages.len() < 10);
    }

    #[test]
    fn paths_are_told_relative_to_the_workspace() {
        for (directory, path, expect) in [
            ("/workspace", "/workspace/a/b", "a/b"),
            ("/workspace", "/home/agent/x", "/home/agent/x"),
            ("/workspace", "/workspace", "/workspace"),
            ("/workspace/w", "/workspace/w/a", "a"),
            ("/workspace/w", "/workspace/wide/a", "/workspace/wide/a"),
        ] {
            assert_eq!(relative(directory, path.to_owned()), expect);
        }
    }
}
