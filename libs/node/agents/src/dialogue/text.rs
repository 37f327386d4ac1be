//! The text of a turn: its messages in order, and what of the current one has been said.

use super::Reaction;
use super::event::AgentEvent;

/// How much of a message is remembered to compare it with what the CLI says it was, in bytes.
const REMEMBERED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// CLIs that say nothing of it wait at least this long before they fetch a stream again, in milliseconds.
pub(super) const REFETCH_PAUSE_MS: u64 = 700;

/// How much of a message's beginning must come again, after a pause, to be taken for a second beginning, in bytes. A
/// shorter message must come again as a whole, and have the second of these.
const BEGINNING_BYTES: usize = 24;
const BEGINNING_BYTES_MIN: usize = 4;

/// What has been said in this turn.
#[derive(Debug, Default)]
pub(super) struct Text {
    message: u32,
    said: String,
    said_bytes: usize,
    any: bool,
    /// How much had been said before a pause after which it may have begun again.
    paused_at: Option<usize>,
}

impl Text {
    /// The number of the current message.
    pub(super) fn message(&self) -> u32 {
        self.message
    }

    /// Whether anything was said in this turn.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// What comes next belongs to another message than what was said.
    pub(super) fn next_message(&mut self) {
        if self.said_bytes > 0 {
            self.message += 1;
            self.forget();
        }
    }

    /// More of the current message.
    pub(super) fn push(&mut self, text: &str, reaction: &mut Reaction) {
        if text.is_empty() {
            return;
        }
        self.any = true;
        self.said_bytes += text.len();
        if self.said_bytes <= REMEMBERED_BYTES_MAX {
            self.said.push_str(text);
        }
        reaction.event(AgentEvent::Text {
            message: self.message,
            text: text.to_owned(),
        });
    }

    /// There was a pause. What comes next may be the message from its beginning, fetched again without a word.
    pub(super) fn pause(&mut self) {
        let remembered = (BEGINNING_BYTES_MIN..=REMEMBERED_BYTES_MAX).contains(&self.said_bytes);
        self.paused_at = remembered.then_some(self.said.len());
    }

    /// More of the current message, which may have begun again after a pause.
    pub(super) fn push_or_begin_again(&mut self, text: &str, reaction: &mut Reaction) {
        self.push(text, reaction);
        let Some((before, since)) = self.paused_at.and_then(|at| self.said.split_at_checked(at)) else {
            return;
        };
        let beginning = &before.as_bytes()[..before.len().min(BEGINNING_BYTES)];
        let compared = since.len().min(beginning.len());
        if since.as_bytes()[..compared] != beginning[..compared] {
            self.paused_at = None;
        } else if compared == beginning.len() {
            let text = since.to_owned();
            self.paused_at = None;
            self.said_bytes = text.len();
            self.said.clone_from(&text);
            reaction.event(AgentEvent::TextReplaced {
                message: self.message,
                text,
            });
        }
    }

    /// The CLI says what the whole of the current message is.
    pub(super) fn settle(&mut self, whole: &str, reaction: &mut Reaction) {
        if self.said_bytes > REMEMBERED_BYTES_MAX {
            return;
        }
        match whole.strip_prefix(self.said.as_str()) {
            Some(rest) => self.push(rest, reaction),
            None => {
                self.said = whole.to_owned();
                self.said_bytes = whole.len();
                reaction.event(AgentEvent::TextReplaced {
                    message: self.message,
                    text: whole.to_owned(),
                });
            }
        }
    }

    /// What was said of the current message is void.
    pub(super) fn withdraw(&mut self, reaction: &mut Reaction) {
        if self.said_bytes > 0 {
            self.void(self.message, reaction);
        }
    }

    /// What was said of a message is void.
    pub(super) fn void(&mut self, message: u32, reaction: &mut Reaction) {
        if message == self.message {
            self.forget();
        }
        reaction.event(AgentEvent::TextReplaced {
            message,
            text: String::new(),
        });
    }

    fn forget(&mut self) {
        self.said.clear();
        self.said_bytes = 0;
        self.paused_at = None;
    }
}
