//! How an answer is to come, said in words such as `chunks=50 interval_ms=20 fail=cut`.
//!
//! The words may stand in the flags, in the request's `x-fake` header, or anywhere in its prompt: a prompt passes
//! through every gateway, a header may not.

use std::str::FromStr;

use memchr::memmem;

/// How answers come. The default is a short answer at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// `chunks=N`: how many words the answer has; a stream sends one chunk for each. None: the fixed answer of about
    /// 600 bytes, or 16 chunks.
    pub chunks: Option<u32>,
    /// `interval_ms=N`: the time between two chunks; an answer that is no stream takes as long as the stream would.
    pub interval_ms: u32,
    /// `first_byte_ms=N`: how long the first byte takes.
    pub first_byte_ms: u32,
    /// `fail=WORD`: what goes wrong.
    pub failure: Option<Failure>,
    /// `after=N`: after how many chunks it goes wrong, for the failures in the middle of a stream.
    pub after: u32,
    /// `everywhere=1`: `/health`, `/props`, `/slots` and `/v1/models` fail as well.
    pub everywhere: bool,
    /// `deaf=1`: a client that leaves is not noticed before the end, unless it has a stream. As llama-server does it.
    pub deaf: bool,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `never`: the request is read and nothing ever comes.
    Never,
    /// `garbage`: the answer is not HTTP.
    Garbage,
    /// `garbage_body`: the answer is HTTP with status 200, the body neither JSON nor events.
    GarbageBody,
    /// `stall`: in the middle of a chunk nothing more comes, and the connection stays.
    Stall,
    /// `cut`: in the middle of a chunk the connection ends.
    Cut,
    /// `die`: between two chunks the connection ends.
    Die,
    /// `no_done`: the body ends as HTTP wants it, but before the dialect's own last event.
    NoDone,
    /// `open`: everything comes, up to the last event or the last byte of the answer, and the body is never ended.
    Open,
    /// `error`: status 500.
    Error,
    /// `loading`: status 503, as an engine that still loads its model.
    Loading,
}

/// Why a text says nothing about behaviour.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is no behaviour; words are chunks=N interval_ms=N first_byte_ms=N after=N everywhere=1 deaf=1 and \
     fail=never|garbage|garbage_body|stall|cut|die|no_done|open|error|loading"
)]
pub struct BehaviourError(String);

const FAILURES: [(&str, Failure); 10] = [
    ("never", Failure::Never),
    // The longer word first: words are compared by how the text begins.
    ("garbage_body", Failure::GarbageBody),
    ("garbage", Failure::Garbage),
    ("stall", Failure::Stall),
    ("cut", Failure::Cut),
    ("die", Failure::Die),
    ("no_done", Failure::NoDone),
    ("open", Failure::Open),
    ("error", Failure::Error),
    ("loading", Failure::Loading),
];

impl Behaviour {
    /// Takes over what `text` says, wherever in it; anything else in it is ignored.
    pub fn read_from(&mut self, text: &[u8]) {
        if memchr::memchr(b'=', text).is_none() {
            return;
        }
        if let Some(chunks) = number(text, b"chunks=") {
            self.chunks = Some(chunks);
        }
        self.interval_ms = number(text, b"interval_ms=").unwrap_or(self.interval_ms);
        self.first_byte_ms = number(text, b"first_byte_ms=").unwrap_or(self.first_byte_ms);
        self.after = number(text, b"after=").unwrap_or(self.after);
        self.everywhere = number(text, b"everywhere=").map_or(self.everywhere, |value| value > 0);
        self.deaf = number(text, b"deaf=").map_or(self.deaf, |value| value > 0);
        if let Some(at) = memmem::find(text, b"fail=") {
            let word = &text[at + b"fail=".len()..];
            self.failure = FAILURES
                .iter()
                .find(|(name, _)| word.starts_with(name.as_bytes()))
                .map(|(_, failure)| *failure);
        }
    }
}

impl FromStr for Behaviour {
    type Err = BehaviourError;

    /// Reads words that are nothing but behaviour, as in a flag; `fail=none` is allowed.
    fn from_str(text: &str) -> Result<Self, BehaviourError> {
        let mut behaviour = Self::default();
        for word in text.split_ascii_whitespace() {
            let known = match word.split_once('=') {
                Some(("fail", failure)) => {
                    failure == "none" || FAILURES.iter().any(|(name, _)| *name == failure)
                }
                Some((
                    "chunks" | "interval_ms" | "first_byte_ms" | "after" | "everywhere" | "deaf",
                    value,
                )) => value.parse::<u32>().is_ok(),
                _ => false,
            };
            if !known {
                return Err(BehaviourError(word.to_owned()));
            }
            behaviour.read_from(word.as_bytes());
        }
        Ok(behaviour)
    }
}

fn number(text: &[u8], key: &[u8]) -> Option<u32> {
    let at = memmem::find(text, key)? + key.len();
    let digits = text[at..].iter().take(9).take_while(|byte| byte.is_ascii_digit());
    let mut value = None;
    for digit in digits {
        value = Some(value.unwrap_or(0) * 10 + u32::from(digit - b'0'));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_inside_a_prompt() {
        let mut behaviour = Behaviour::default();
        behaviour.read_from(
            br#"{"content":"chunks=50 interval_ms=20 first_byte_ms=7 fail=garbage_body after=3"}"#,
        );
        let expect = Behaviour {
            chunks: Some(50),
            interval_ms: 20,
            first_byte_ms: 7,
            failure: Some(Failure::GarbageBody),
            after: 3,
            ..Behaviour::default()
        };
        assert_eq!(behaviour, expect);
    }

    #[test]
    fn an_ordinary_prompt_changes_nothing() {
        let mut behaviour = Behaviour {
            interval_ms: 5,
            ..Behaviour::default()
        };
        behaviour.read_from(br#"{"content":"what is 3*67, if x=y?"}"#);
        assert_eq!(
            behaviour,
            Behaviour {
                interval_ms: 5,
                ..Behaviour::default()
            }
        );
    }

    #[test]
    fn a_flag_takes_only_known_words() {
        fn check(text: &str, expect: bool) {
            assert_eq!(text.parse::<Behaviour>().is_ok(), expect, "{text:?}");
        }
        check("", true);
        check("chunks=1 fail=die", true);
        check("fail=none", true);
        check("fail=dies", false);
        check("chunks=x", false);
        check("chunk=1", false);
    }
}
