//! Dialects: what clients and engines speak, read and answered.

mod assemble;
mod dialect;
mod error;
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
pub use models::{ListedModel, model_body, models_body, wants_anthropic};
pub use prefix::{PREFIX_HASHES_MAX, PrefixHashes};
pub use request::{MODEL_LEN_MAX, RequestFacts, RequestRules, read_request};
pub use rewrite::{Places, Rewrite, set_model};
pub use sse::{EVENT_LEN_MAX, SseError, SseEvent, SseParser};
pub use task::{EngineRequest, OUTPUT_LEN_MAX, TaskReader, dialect_of_workload, engine_request};
pub use watch::{StreamEnd, StreamWatch, TokenUsage, usage_of_body};
