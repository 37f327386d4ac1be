//! Putting a streamed answer together into the one that the client asked for.
//!
//! Used where an engine notices only on streams that nobody listens any more: it is asked for a stream, and the client
//! gets the answer that the engine would have given without one. Members that this code does not know are kept.
//!
//! ```text
//! bytes ──▶ SseParser ──▶ Chat | Messages | Responses ──▶ the JSON answer
//!                           └── an error event ──▶ ApiError
//! ```
//!
//! Texts are joined as they stand between their quotes: two JSON strings joined are one, so nothing is unescaped and
//! escaped again. An answer is never longer than its stream, which is bounded by [`STREAM_LEN_MAX`].

mod chat;
mod members;
mod messages;
mod responses;

use bytes::Bytes;
use pool_registry_types::Dialect;
use task_api::{ApiError, ErrorCode};

use crate::error::engine_error;
use crate::json::JsonError;
use crate::sse::{SseEvent, SseParser};
use crate::watch::{STATUS_IN_STREAM, TokenUsage};

/// The longest stream that is put together, in bytes.
pub const STREAM_LEN_MAX: usize = 64 * 1024 * 1024;

/// How many choices, content blocks or tool calls an answer has at most.
const PARTS_MAX: usize = 1024;

/// What an event changes.
enum Step {
    /// There is more to come.
    More,
    /// The dialect's own end.
    End,
    /// The engine gave up.
    Error,
}

/// Why an event cannot be taken.
#[derive(Debug, thiserror::Error)]
enum AssembleError {
    /// It is not JSON.
    #[error("an event is not JSON: {0}")]
    Json(#[from] JsonError),
    /// It is not what the dialect says.
    #[error("an event has {0}")]
    Shape(&'static str),
}

enum Answer {
    Chat(chat::Chat),
    Messages(messages::Messages),
    Responses(responses::Responses),
}

impl Answer {
    fn event(&mut self, event: &SseEvent<'_>) -> Result<Step, AssembleError> {
        let data =
            std::str::from_utf8(event.data).map_err(|_| AssembleError::Shape("bytes that are not UTF-8"))?;
        // llama.cpp begins a stream of several completions with this.
        if data == "null" {
            return Ok(Step::More);
        }
        match self {
            Self::Chat(chat) => chat.event(data),
            Self::Messages(messages) => messages.event(event.name, data),
            Self::Responses(responses) => responses.event(event.name, data),
        }
    }
}

/// Puts one answer together.
pub struct Assembler {
    parser: SseParser,
    answer: Answer,
    taken_len: usize,
    has_ended: bool,
}

impl Assembler {
    /// For an answer of `dialect`. None when that dialect has no streams.
    pub fn new(dialect: Dialect) -> Option<Self> {
        let answer = match dialect {
            Dialect::ChatCompletions => Answer::Chat(chat::Chat::new(chat::Flavour::Chat)),
            Dialect::Completions => Answer::Chat(chat::Chat::new(chat::Flavour::Completions)),
            Dialect::Messages => Answer::Messages(messages::Messages::default()),
            Dialect::Responses => Answer::Responses(responses::Responses::default()),
            Dialect::Embeddings | Dialect::Rerank | Dialect::CountTokens => return None,
        };
        Some(Self {
            parser: SseParser::new(),
            answer,
            taken_len: 0,
            has_ended: false,
        })
    }

    /// Takes the next bytes of the stream.
    ///
    /// Fails with the engine's own error when it sends one, and when the stream is longer than [`STREAM_LEN_MAX`] or
    /// cannot be read. Nothing may be fed after a failure.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        self.taken_len = self.taken_len.saturating_add(chunk.len());
        if self.taken_len > STREAM_LEN_MAX {
            return Err(too_long());
        }
        let Self {
            parser,
            answer,
            has_ended,
            ..
        } = self;
        let mut failure = None;
        let fed = parser.feed(chunk, |event| {
            if *has_ended || failure.is_some() {
                return;
            }
            match answer.event(&event) {
                Ok(Step::More) => {}
                Ok(Step::End) => *has_ended = true,
                Ok(Step::Error) => failure = Some(engine_error(STATUS_IN_STREAM, event.data)),
                Err(error) => failure = Some(unreadable(&error)),
            }
        });
        match failure {
            Some(failure) => Err(failure),
            None => fed.map_err(|_| too_long()),
        }
    }

    /// Whether the answer is complete; nothing that follows matters.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The answer and what it used. Fails when the stream ended before the dialect's own end: half an answer is none.
    pub fn finish(mut self) -> Result<(Bytes, TokenUsage), ApiError> {
        if !self.has_ended {
            // Some servers close the connection instead of ending the last event.
            self.feed(b"\n\n")?;
        }
        if !self.has_ended {
            return Err(ApiError::new(
                ErrorCode::WorkerReset,
                "the engine went away in the middle of its answer",
            ));
        }
        let body = match self.answer {
            Answer::Chat(chat) => chat.finish(),
            Answer::Messages(messages) => messages.finish(),
            Answer::Responses(responses) => responses.finish(),
        };
        let usage = crate::watch::usage_of(body.as_bytes());
        Ok((Bytes::from(body), usage))
    }
}

fn too_long() -> ApiError {
    ApiError::new(
        ErrorCode::WorkerReset,
        format!("the engine's answer has more than {STREAM_LEN_MAX} bytes"),
    )
}

fn unreadable(error: &AssembleError) -> ApiError {
    ApiError::new(ErrorCode::WorkerReset, "the engine's answer cannot be read")
        .with_internal(error.to_string())
}
