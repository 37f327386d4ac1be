//! Dialects: what clients and engines speak, read and answered.

mod dialect;
mod json;
mod prefix;
mod request;
mod rewrite;
mod sse;

pub use dialect::{DIALECTS, can_stream, dialect_of_path, is_anthropic, path_of_dialect};
pub use prefix::{PREFIX_HASHES_MAX, PrefixHashes};
pub use request::{MODEL_LEN_MAX, RequestFacts, RequestRules, read_request};
pub use rewrite::{Places, Rewrite, set_model};
pub use sse::{EVENT_LEN_MAX, SseError, SseEvent, SseParser};
