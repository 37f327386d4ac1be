//! Hashes of how a prompt begins, for sending it to the replica that has that beginning warm.
//!
//! Hashed is what the model reads (the texts), not how the client wrote it: white space, the order of members outside
//! a message, cache markers that a client moves from turn to turn and `"content": "x"` against
//! `"content": [{"type": "text", "text": "x"}]` make no difference. Hashes are for one process: they are not stable
//! between versions.
//!
//! Which beginnings: two requests of one conversation must have one in common however many turns lie between them, so
//! besides the whole conversation and the two before it, the beginnings of 2^k messages are hashed, and the shortest.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::{FixedState, FoldHasher};

use crate::json::Leaves;

/// How many hashes a request has at most.
pub const PREFIX_HASHES_MAX: usize = 8;

/// The first block of a plain prompt that is hashed, in bytes; each further one is twice as long.
const BLOCK_LEN_FIRST: usize = 1024;

/// The hash of a request's beginnings, the longest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixHashes {
    hashes: [u64; PREFIX_HASHES_MAX],
    len: usize,
}

impl PrefixHashes {
    fn push(&mut self, hash: u64) {
        if self.len < PREFIX_HASHES_MAX {
            self.hashes[self.len] = hash;
            self.len += 1;
        }
    }
}

impl std::ops::Deref for PrefixHashes {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.hashes[..self.len]
    }
}

/// Hashes texts, one after the other.
#[derive(Clone)]
pub(crate) struct TextHasher(FoldHasher<'static>);

impl Default for TextHasher {
    fn default() -> Self {
        Self(FixedState::default().build_hasher())
    }
}

impl TextHasher {
    /// The hash of all texts so far.
    pub(crate) fn value(&self) -> u64 {
        self.0.finish()
    }

    /// Adds a hash made elsewhere.
    pub(crate) fn mix(&mut self, hash: u64) {
        self.0.write_u64(hash);
    }
}

impl Leaves for TextHasher {
    fn string(&mut self, inner: &str) {
        match inner.strip_prefix(BILLING_HEADER) {
            Some(rest) => self.billing_header(rest),
            None => self.0.write(inner.as_bytes()),
        }
    }

    fn wants(&mut self, key: &str) -> bool {
        !matches!(
            key,
            "cache_control" | "type" | "id" | "signature" | "status" | "encrypted_content"
        )
    }
}

/// How the first system text of Claude Code begins.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

impl TextHasher {
    /// That text holds a stamp (`cch=a5145;`) that is another one in each request. Engines blank it before they look
    /// into their cache; so do we.
    fn billing_header(&mut self, rest: &str) {
        match rest.split_once("cch=") {
            Some((before, after)) => {
                self.0.write(before.as_bytes());
                self.0
                    .write(after.split_once(';').map_or("", |(_stamp, text)| text).as_bytes());
            }
            None => self.0.write(rest.as_bytes()),
        }
    }
}

/// Collects the beginnings of a conversation.
#[derive(Clone, Default)]
pub(crate) struct Conversation {
    hasher: TextHasher,
    messages: usize,
    /// The hashes of the last three beginnings; of `n` messages at `n % 3`.
    last: [u64; 3],
    /// The hash of the first 2^k messages at `k`.
    powers: [u64; 20],
}

impl Conversation {
    /// Where a message's texts go.
    pub(crate) fn message(&mut self) -> &mut TextHasher {
        &mut self.hasher
    }

    /// A message is complete.
    pub(crate) fn end_message(&mut self) {
        self.messages += 1;
        let value = self.hasher.value();
        self.last[self.messages % 3] = value;
        if self.messages.is_power_of_two()
            && let Some(power) = self.powers.get_mut(self.messages.ilog2() as usize)
        {
            *power = value;
        }
    }

    /// The hashes; `base` is that of what stands before the messages (tools, system), if anything does.
    pub(crate) fn hashes(&self, base: Option<u64>) -> PrefixHashes {
        let mut hashes = PrefixHashes::default();
        let with_base = |hash: u64| {
            let mut hasher = TextHasher::default();
            hasher.mix(base.unwrap_or_default());
            hasher.mix(hash);
            hasher.value()
        };
        let near_end = self.messages.saturating_sub(2).max(1)..=self.messages;
        for count in near_end.rev() {
            hashes.push(with_base(self.last[count % 3]));
        }
        let powers_below = if self.messages > 3 {
            (self.messages - 3).ilog2() as usize + 1
        } else {
            0
        };
        for power in (1..powers_below.min(self.powers.len())).rev() {
            if hashes.len < PREFIX_HASHES_MAX - 1 {
                hashes.push(with_base(self.powers[power]));
            }
        }
        match base {
            Some(base) => hashes.push(base),
            None if self.messages > 3 => hashes.push(with_base(self.powers[0])),
            None => {}
        }
        hashes
    }
}

/// The hashes of a plain prompt: of all of it, and of its first 1 KiB · 2^k.
pub(crate) fn of_prompt(prompt: &str, base: Option<u64>) -> PrefixHashes {
    let bytes = prompt.as_bytes();
    let mut blocks = [0; PREFIX_HASHES_MAX - 1];
    let mut count = 0;
    let mut hasher = TextHasher::default();
    hasher.mix(base.unwrap_or_default());
    let (mut from, mut to) = (0, BLOCK_LEN_FIRST);
    while to < bytes.len() {
        hasher.0.write(&bytes[from..to]);
        blocks[count % blocks.len()] = hasher.value();
        count += 1;
        (from, to) = (to, to * 2);
    }
    hasher.0.write(&bytes[from..]);
    let mut hashes = PrefixHashes::default();
    hashes.push(hasher.value());
    for block in (count.saturating_sub(blocks.len())..count).rev() {
        hashes.push(blocks[block % blocks.len()]);
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(messages: usize, base: Option<u64>) -> PrefixHashes {
        let mut conversation = Conversation::default();
        for message in 0..messages {
            conversation.message().string(&format!("message {message}"));
            conversation.end_message();
        }
        conversation.hashes(base)
    }

    #[test]
    fn a_conversation_shares_a_beginning_with_every_longer_one() {
        for short in 1..70 {
            for long in short..70 {
                let (before, after) = (conversation(short, None), conversation(long, None));
                assert!(before.iter().any(|hash| after.contains(hash)), "{short} {long}");
                let grown_by_a_turn = long - short <= 2;
                assert!(!grown_by_a_turn || after.contains(&before[0]), "{short} {long}");
            }
        }
    }

    #[test]
    fn hashes_are_distinct_and_few() {
        for messages in 0..300 {
            for base in [None, Some(7)] {
                let hashes = conversation(messages, base);
                let distinct: std::collections::HashSet<_> = hashes.iter().collect();
                assert_eq!(distinct.len(), hashes.len(), "{messages} {base:?}");
                assert!(hashes.len() <= PREFIX_HASHES_MAX);
                assert_eq!(hashes.is_empty(), messages == 0 && base.is_none());
            }
        }
    }

    #[test]
    fn another_base_is_another_beginning() {
        let (one, other) = (conversation(5, Some(1)), conversation(5, Some(2)));
        assert!(one.iter().all(|hash| !other.contains(hash)));
    }

    #[test]
    fn a_prompt_shares_its_blocks() {
        let long = "x".repeat(300_000);
        for len in [0, 1, 1023, 1024, 1025, 2048, 5000, 100_000] {
            let (before, after) = (of_prompt(&long[..len], None), of_prompt(&long, None));
            let shared = before.iter().any(|hash| after.contains(hash));
            assert_eq!(
                shared,
                len > 2048,
                "{len}: the seven longest blocks of 300 kB begin with 4 KiB"
            );
            assert!(after.len() == PREFIX_HASHES_MAX);
        }
    }

    #[test]
    fn a_stamp_that_changes_with_each_request_is_left_out() {
        let hash = |text: &str| {
            let mut hasher = TextHasher::default();
            hasher.string(text);
            hasher.value()
        };
        let header = |stamp: &str, text: &str| {
            hash(&format!(
                "x-anthropic-billing-header: cc_version=2.1; cch={stamp};{text}"
            ))
        };
        assert_eq!(header("a5145", "You are"), header("00000", "You are"));
        assert_ne!(header("a5145", "You are"), header("a5145", "You were"));
    }
}
