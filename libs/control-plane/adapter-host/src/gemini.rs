//! Google's generateContent, answered from an engine's chat completions.
//!
//! The only dialect that is translated. No engine speaks it, and Gemini CLI speaks nothing else: without it that agent
//! could not use a model of one's own. It stands around the chat dialect and changes nothing in it:
//!
//! ```text
//! path    ── GeminiCall::of ─▶ the model, and whether a stream is wanted
//! request ── chat_request ──▶ a request of /v1/chat/completions, which goes the way of every other
//! answer  ◀── gemini_answer, GeminiStream ── its answer, or its stream
//! error   ◀── gemini_error ── any refusal
//! ```
//!
//! What cannot be said in chat completions (files by their address, Google's own tools, several candidates) is refused by
//! its name. How much a model is to think, and what Google filters, mean nothing to an engine and are left out.

mod answer;
mod error;
mod request;

pub use answer::{CALLS_LEN_MAX, GeminiStream, gemini_answer};
pub use error::gemini_error;
pub use request::chat_request;

use task_api::{ApiError, ErrorCode};

/// What every path of it begins with: Gemini CLI asks at the first, Google's package for Python at the second.
const MODELS: [&str; 2] = ["/v1beta/models/", "/v1/models/"];

/// One request, as its address tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeminiCall<'p> {
    /// The model asked for.
    pub model: &'p str,
    /// Whether a stream is wanted.
    pub stream: bool,
}

impl<'p> GeminiCall<'p> {
    /// Reads an address. None: it is not one of this dialect.
    pub fn of(path: &'p str, query: Option<&str>) -> Option<Result<Self, ApiError>> {
        let (model, verb) = MODELS
            .iter()
            .find_map(|models| path.strip_prefix(models))?
            .rsplit_once(':')?;
        let stream = match verb {
            "generateContent" => false,
            "streamGenerateContent" => true,
            _ => return None,
        };
        let mut asked = query.unwrap_or_default().split('&');
        if stream && !asked.any(|pair| pair == "alt=sse") {
            let message = "a stream is told as events only: add ?alt=sse";
            return Some(Err(ApiError::new(ErrorCode::InvalidParams, message)));
        }
        Some(Ok(Self { model, stream }))
    }
}

#[cfg(test)]
mod tests;
