//! Dialects: what clients and engines speak, read and answered.
//!
//! Bytes go in, decisions and bytes come out; there is no I/O, no clock and no task here. It is on the way of every
//! request and of every streamed chunk, so nothing is read twice and nothing is built that nobody asks for.
//!
//! ```text
//! request  ── read_request ──▶ RequestFacts { model, stream, prefix_hashes, places, ... }
//!                                   └─ places.rewrite ──▶ the body as the engine is asked (every other byte as it was)
//! answer   ── StreamWatch ───▶ passed on as it comes: did its own end come, an error, what did it use?
//!          ── Assembler ─────▶ a stream put together for a client that wants none
//!          ── TaskReader ────▶ the events of `/v2/tasks`
//! refusal  ── error_body, error_event ──▶ an error in the dialect's own shape
//! ```
//!
//! Google's generateContent is no engine's dialect: it is translated to chat and back ([`GeminiCall`]).
//!
//! | dialect | the stream's own end | an error in it |
//! |---|---|---|
//! | chat, completions | `data: [DONE]` | `error` in the data |
//! | responses | `response.completed`, `response.incomplete` | `response.failed`, `error` |
//! | messages | `message_stop` | `error` |
//!
//! Invariants: a body that `read_request` takes is UTF-8 and JSON of bounded depth; a rewrite changes the members it
//! names and no other byte; however a stream is cut into chunks, the outcome is the same; every buffer has a named
//! bound; no input makes anything here panic.

mod assemble;
mod dialect;
mod error;
mod gemini;
mod json;
mod models;
mod prefix;
mod request;
mod rewrite;
mod sse;
mod task;
mod watch;

pub use assemble::{Assembler, STREAM_LEN_MAX};
pub use dialect::{DIALECTS, can_stream, dialect_of_path, is_anthropic, path_of_dialect};
pub use error::{
    ENGINE_ERROR_LEN_MAX, Verdict, engine_error, error_body, error_event, judge_engine_response,
};
pub use gemini::{CALLS_LEN_MAX, GeminiCall, GeminiStream, chat_request, gemini_answer, gemini_error};
pub use models::{ListedModel, model_body, models_body, wants_anthropic};
pub use prefix::{PREFIX_HASHES_MAX, PrefixHashes};
pub use request::{MODEL_LEN_MAX, RequestFacts, RequestRules, read_request};
pub use rewrite::{Places, Rewrite, set_model};
pub use sse::{EVENT_LEN_MAX, SseError, SseEvent, SseParser};
pub use task::{EngineRequest, OUTPUT_LEN_MAX, TaskReader, dialect_of_workload, engine_request};
pub use watch::{StreamEnd, StreamWatch, TokenUsage, usage_of_body};
