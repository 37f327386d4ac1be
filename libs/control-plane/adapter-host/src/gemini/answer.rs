//! From chat completions' answers to generateContent's.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use task_api::{ApiError, ErrorCode};

use super::error::{gemini_error, told};
use crate::sse::SseParser;
use crate::watch::STATUS_IN_STREAM;

/// The longest calls of tools in one answer, in bytes: they are told as wholes, and until then they are kept.
pub const CALLS_LEN_MAX: usize = 8 * 1024 * 1024;

/// An answer of chat completions, or a piece of one.
#[derive(Deserialize)]
struct Chat {
    id: Option<String>,
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "delta")]
    message: Option<Said>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    index: Option<usize>,
    id: Option<String>,
    function: Option<CallOf>,
}

#[derive(Deserialize)]
struct CallOf {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Clone, Copy, Default, Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// What is put together until it can be told.
#[derive(Debug, Default)]
struct Whole {
    id: Option<String>,
    model: Option<String>,
    calls: Vec<WholeCall>,
    calls_len: usize,
    finish: Option<String>,
    usage: Option<Usage>,
}

#[derive(Debug, Default)]
struct WholeCall {
    id: String,
    name: String,
    arguments: String,
}

impl Whole {
    /// Takes a piece. Gives what it says as parts: text, and thoughts.
    fn take(&mut self, chat: Chat) -> Result<Vec<Value>, ApiError> {
        self.id = chat.id.or(self.id.take());
        self.model = chat.model.or(self.model.take());
        self.usage = chat.usage.or(self.usage);
        let mut parts = Vec::new();
        let Some(choice) = chat.choices.into_iter().next() else {
            return Ok(parts);
        };
        self.finish = choice.finish_reason.or(self.finish.take());
        let Some(said) = choice.message else {
            return Ok(parts);
        };
        if let Some(thought) = said.reasoning_content.filter(|text| !text.is_empty()) {
            parts.push(json!({"text": thought, "thought": true}));
        }
        if let Some(text) = said.content.filter(|text| !text.is_empty()) {
            parts.push(json!({"text": text}));
        }
        for (position, piece) in said.tool_calls.into_iter().flatten().enumerate() {
            self.call(piece, position)?;
        }
        Ok(parts)
    }

    fn call(&mut self, piece: Call, position: usize) -> Result<(), ApiError> {
        let index = piece.index.unwrap_or(position);
        let function = piece.function.unwrap_or(CallOf {
            name: None,
            arguments: None,
        });
        let arguments = function.arguments.unwrap_or_default();
        self.calls_len += arguments.len();
        // Engines count them without gaps.
        if index > self.calls.len() || self.calls_len > CALLS_LEN_MAX {
            return Err(ApiError::new(
                ErrorCode::WorkerReset,
                "the engine's calls of tools make no sense",
            ));
        }
        if index == self.calls.len() {
            self.calls.push(WholeCall::default());
        }
        let call = &mut self.calls[index];
        call.id.push_str(&piece.id.unwrap_or_default());
        call.name.push_str(&function.name.unwrap_or_default());
        call.arguments.push_str(&arguments);
        Ok(())
    }

    /// The last piece of an answer, or the only one.
    fn last(&mut self, mut parts: Vec<Value>) -> Value {
        let mut reason = match self.finish.as_deref() {
            Some("length") => "MAX_TOKENS",
            Some("content_filter") => "SAFETY",
            _ => "STOP",
        };
        for call in self.calls.drain(..) {
            let arguments = if call.arguments.trim().is_empty() {
                "{}"
            } else {
                &call.arguments
            };
            match serde_json::from_str::<Map<String, Value>>(arguments) {
                Ok(args) => {
                    parts.push(json!({"functionCall": {"id": call.id, "name": call.name, "args": args}}));
                }
                // Cut off by the limit, or what the model takes for JSON.
                Err(_) if reason == "STOP" => reason = "MALFORMED_FUNCTION_CALL",
                Err(_) => {}
            }
        }
        if parts.is_empty() {
            parts.push(json!({"text": ""}));
        }
        let mut answer = self.piece(&parts);
        answer["candidates"][0]["finishReason"] = reason.into();
        let Usage {
            prompt_tokens,
            completion_tokens,
        } = self.usage.unwrap_or_default();
        answer["usageMetadata"] = json!({
            "promptTokenCount": prompt_tokens,
            "candidatesTokenCount": completion_tokens,
            "totalTokenCount": prompt_tokens + completion_tokens,
        });
        answer
    }

    fn piece(&self, parts: &[Value]) -> Value {
        let mut answer = json!({
            "candidates": [{"content": {"role": "model", "parts": parts}, "index": 0}],
        });
        if let Some(model) = &self.model {
            answer["modelVersion"] = model.as_str().into();
        }
        if let Some(id) = &self.id {
            answer["responseId"] = id.as_str().into();
        }
        answer
    }
}

/// The answer that means the same as `body`, an answer of chat completions.
pub fn gemini_answer(body: &[u8]) -> Result<Bytes, ApiError> {
    let chat: Chat = serde_json::from_slice(body).map_err(|error| {
        ApiError::new(ErrorCode::WorkerReset, "the engine's answer cannot be read")
            .with_internal(error.to_string())
    })?;
    let mut whole = Whole::default();
    let parts = whole.take(chat)?;
    Ok(whole.last(parts).to_string().into())
}

/// A stream on its way from chat completions to generateContent.
#[derive(Debug, Default)]
pub struct GeminiStream {
    parser: SseParser,
    whole: Whole,
    has_ended: bool,
}

impl GeminiStream {
    /// What is to be told of these bytes. Text goes on at once; calls of tools, the reason of the end and what was used
    /// come last.
    pub fn feed(&mut self, chunk: &[u8]) -> Bytes {
        let Self {
            parser,
            whole,
            has_ended,
        } = self;
        let mut out = BytesMut::new();
        let fed = parser.feed(chunk, |event| {
            if !*has_ended {
                *has_ended = tell(whole, event.data, &mut out);
            }
        });
        if fed.is_err() && !self.has_ended {
            self.has_ended = true;
            fail(
                &ApiError::new(ErrorCode::WorkerReset, "an event of the engine is too long"),
                &mut out,
            );
        }
        out.freeze()
    }
}

/// Tells one event, and whether it was the last.
fn tell(whole: &mut Whole, data: &[u8], out: &mut BytesMut) -> bool {
    if data == b"[DONE]" {
        let last = whole.last(Vec::new());
        push(&last, out);
        return true;
    }
    let taken = match serde_json::from_slice::<Chat>(data) {
        Ok(Chat {
            error: Some(error), ..
        }) if !error.is_null() => Err(told(&error, STATUS_IN_STREAM)),
        Ok(chat) => whole.take(chat),
        Err(error) => Err(
            ApiError::new(ErrorCode::WorkerReset, "the engine's stream cannot be read")
                .with_internal(error.to_string()),
        ),
    };
    match taken {
        Ok(parts) if parts.is_empty() => false,
        Ok(parts) => {
            push(&whole.piece(&parts), out);
            false
        }
        Err(error) => {
            fail(&error, out);
            true
        }
    }
}

fn push(value: &Value, out: &mut BytesMut) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(value.to_string().as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

fn fail(error: &ApiError, out: &mut BytesMut) {
    let (_, body) = gemini_error(error, None);
    out.extend_from_slice(&body);
}
