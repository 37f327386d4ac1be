//! The text of a turn: its messages in order, and what of the current one has been said.
//!
//! Nothing of it is kept but its beginning, its length and its digest: a hundred turns of a megabyte each cost no memory.

use super::Reaction;
use super::event::AgentEvent;

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
    said: Said,
    any: bool,
    /// What came since a pause after which the message may have begun again, and what had been said before it.
    since_pause: Option<(usize, String)>,
}

/// What has been said of the current message.
#[derive(Debug, Default)]
struct Said {
    bytes: usize,
    digest: Digest,
    beginning: Vec<u8>,
}

/// FNV-1a: the same for a text however it is cut into pieces. Nobody gains by two texts of one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn update(&mut self, text: &[u8]) {
        for byte in text {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Said {
    fn of(text: &str) -> Self {
        let mut said = Self::default();
        said.push(text);
        said
    }

    fn push(&mut self, text: &str) {
        self.bytes += text.len();
        self.digest.update(text.as_bytes());
        let missing = BEGINNING_BYTES
            .saturating_sub(self.beginning.len())
            .min(text.len());
        self.beginning.extend_from_slice(&text.as_bytes()[..missing]);
    }

    /// What of `whole` has not been said. None: it begins otherwise.
    fn rest<'w>(&self, whole: &'w str) -> Option<&'w str> {
        let (same, rest) = whole.split_at_checked(self.bytes)?;
        (Self::of(same).digest == self.digest).then_some(rest)
    }
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
        if self.said.bytes > 0 {
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
        self.said.push(text);
        reaction.event(AgentEvent::Text {
            message: self.message,
            text: text.to_owned(),
        });
    }

    /// There was a pause. What comes next may be the message from its beginning, fetched again without a word.
    pub(super) fn pause(&mut self) {
        let is_long = self.said.bytes >= BEGINNING_BYTES_MIN;
        self.since_pause = is_long.then(|| (self.said.bytes, String::new()));
    }

    /// More of the current message, which may have begun again after a pause.
    pub(super) fn push_or_begin_again(&mut self, text: &str, reaction: &mut Reaction) {
        self.push(text, reaction);
        let Some((before_bytes, since)) = &mut self.since_pause else {
            return;
        };
        since.push_str(text);
        let beginning = &self.said.beginning[..(*before_bytes).min(BEGINNING_BYTES)];
        let compared = since.len().min(beginning.len());
        if since.as_bytes()[..compared] != beginning[..compared] {
            self.since_pause = None;
        } else if compared == beginning.len() {
            let text = std::mem::take(since);
            self.since_pause = None;
            self.replace(text, reaction);
        }
    }

    /// The CLI says what the whole of the current message is.
    pub(super) fn settle(&mut self, whole: &str, reaction: &mut Reaction) {
        match self.said.rest(whole) {
            Some(rest) => self.push(rest, reaction),
            None => self.replace(whole.to_owned(), reaction),
        }
    }

    fn replace(&mut self, text: String, reaction: &mut Reaction) {
        self.said = Said::of(&text);
        reaction.event(AgentEvent::TextReplaced {
            message: self.message,
            text,
        });
    }

    /// What was said of the current message is void.
    pub(super) fn withdraw(&mut self, reaction: &mut Reaction) {
        if self.said.bytes > 0 {
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
        self.said = Said::default();
        self.since_pause = None;
    }
}
