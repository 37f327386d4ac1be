//! `/v2/tasks` in the words of an engine: the task as a request, the engine's answer as events.

use bytes::Bytes;
use pool_registry_types::Dialect;
use serde::Serialize;
use serde_json::Value;
use task_api::{ApiError, ErrorCode, Event, TaskRequest, Workload};

use crate::dialect::{can_stream, path_of_dialect};
use crate::json::{JsonError, Kind, Scanner};
use crate::prefix::PrefixHashes;
use crate::request::{RequestRules, read_request};
use crate::rewrite::Places;
use crate::sse::SseParser;
use crate::watch::{StreamEnd, StreamWatch, TokenUsage, usage_of_body};

/// The longest answer of a workload that is not text, in bytes.
pub const OUTPUT_LEN_MAX: usize = 32 * 1024 * 1024;

/// A task as an engine is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineRequest {
    /// The dialect that the engine has to speak.
    pub dialect: Dialect,
    /// Where to post it.
    pub path: &'static str,
    /// What to post; `application/json`.
    pub body: Bytes,
    /// Whether the answer is a stream of events.
    pub streams: bool,
    /// How the prompt begins.
    pub prefix_hashes: PrefixHashes,
    /// Where the members stand that may be rewritten, such as the model.
    pub places: Places,
}

#[derive(Serialize)]
struct Body<'t> {
    model: &'t str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'t str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'t Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'t str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    documents: Option<&'t Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// The dialect in which a workload is put to an engine.
pub const fn dialect_of_workload(workload: Workload) -> Dialect {
    match workload {
        Workload::Completion => Dialect::Completions,
        Workload::Chat => Dialect::ChatCompletions,
        Workload::Embedding => Dialect::Embeddings,
        Workload::Rerank => Dialect::Rerank,
    }
}

/// Writes a task as a request for `model`. Fails when what the task carries is nothing that an engine could read; the
/// error names the task's member.
pub fn engine_request(
    task: &TaskRequest,
    model: &str,
    media_allowed: bool,
) -> Result<EngineRequest, ApiError> {
    let dialect = dialect_of_workload(task.workload);
    let streams = can_stream(dialect);
    let prompt = task.prompt.as_deref();
    let mut body = Body {
        model,
        messages: None,
        prompt: None,
        input: None,
        query: None,
        documents: None,
        max_tokens: task.max_tokens.filter(|_| streams),
        seed: task.seed.filter(|_| streams),
        stream: streams.then_some(true),
        stream_options: streams.then_some(StreamOptions { include_usage: true }),
    };
    match task.workload {
        Workload::Completion => body.prompt = prompt,
        Workload::Chat => body.messages = Some(messages(task)),
        Workload::Embedding => body.input = task.input.as_ref(),
        Workload::Rerank => {
            body.query = prompt;
            body.documents = task.input.as_ref();
        }
    }
    let body = Bytes::from(serde_json::to_vec(&body).expect("JSON values can always be written"));
    let rules = RequestRules {
        model_required: true,
        media_allowed,
    };
    let facts =
        read_request(dialect, &body, &rules).map_err(|error| in_words_of_task(error, task.workload))?;
    let (prefix_hashes, places) = (facts.prefix_hashes, facts.places);
    Ok(EngineRequest {
        dialect,
        path: path_of_dialect(dialect),
        body,
        streams,
        prefix_hashes,
        places,
    })
}

fn messages(task: &TaskRequest) -> Value {
    match (&task.messages, &task.prompt) {
        (Some(messages), _) => messages.iter().cloned().map(Value::Object).collect(),
        (None, prompt) => serde_json::json!([{"role": "user", "content": prompt}]),
    }
}

/// An engine's `documents` and `query` are a task's `input` and `prompt`.
fn in_words_of_task(mut error: ApiError, workload: Workload) -> ApiError {
    if workload == Workload::Rerank {
        let renamed = |text: &str| match text.strip_prefix("documents") {
            Some(rest) => Some(format!("input{rest}")),
            None => text.strip_prefix("query").map(|rest| format!("prompt{rest}")),
        };
        if let Some(message) = renamed(&error.message) {
            error.message = message.into();
        }
        error.param = error.param.map(|param| renamed(&param).unwrap_or(param));
    }
    error
}

/// Reads an engine's answer to a task.
///
/// Of a chat only the content becomes tokens: what a model thinks before it answers is not the answer.
pub struct TaskReader {
    dialect: Dialect,
    watch: StreamWatch,
    parser: SseParser,
    /// The answer of a workload that does not stream.
    output: Vec<u8>,
    tokens: u32,
}

impl TaskReader {
    /// Reads an answer in `dialect`.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            watch: StreamWatch::new(dialect),
            parser: SseParser::new(),
            output: Vec::new(),
            tokens: 0,
        }
    }

    /// Takes the next bytes and calls `emit` for each event in them. Fails with the engine's own error.
    pub fn feed(&mut self, chunk: &[u8], mut emit: impl FnMut(Event)) -> Result<(), ApiError> {
        let too_long = || ApiError::new(ErrorCode::WorkerReset, "the engine's answer is too long");
        if !can_stream(self.dialect) {
            if self.output.len() + chunk.len() > OUTPUT_LEN_MAX {
                return Err(too_long());
            }
            self.output.extend_from_slice(chunk);
            return Ok(());
        }
        self.watch.feed(chunk);
        let tokens = &mut self.tokens;
        self.parser
            .feed(chunk, |event| {
                each_text(event.data, |text| {
                    emit(Event::Token { t: text, i: *tokens });
                    *tokens = tokens.saturating_add(1);
                });
            })
            .map_err(|_| too_long())?;
        self.watch.error().map_or(Ok(()), Err)
    }

    /// Whether the answer's own end has come; nothing that follows matters.
    pub fn has_ended(&self) -> bool {
        self.watch.has_ended()
    }

    /// What was used, as far as is known by now.
    pub fn usage(&self) -> TokenUsage {
        self.watch.usage()
    }

    /// The body has ended: emits what is left and gives what was used.
    pub fn finish(mut self, mut emit: impl FnMut(Event)) -> Result<TokenUsage, ApiError> {
        if !can_stream(self.dialect) {
            let value = serde_json::from_slice(&self.output).map_err(|error| {
                ApiError::new(ErrorCode::WorkerReset, "the engine's answer cannot be read")
                    .with_internal(error.to_string())
            })?;
            let told = usage_of_body(&self.output);
            emit(Event::Output { value });
            return Ok(TokenUsage {
                tokens_out: told.tokens_out.or(Some(0)),
                ..told
            });
        }
        match self.watch.finish() {
            StreamEnd::Complete => Ok(self.watch.usage()),
            StreamEnd::Error(error) => Err(error),
            StreamEnd::Cut { .. } => Err(ApiError::new(
                ErrorCode::WorkerReset,
                "the engine went away in the middle of its answer",
            )),
        }
    }
}

/// Calls `text` for each piece of answer in a chunk of chat or completions.
fn each_text(data: &[u8], mut text: impl FnMut(String)) {
    let data = std::str::from_utf8(data).unwrap_or_default();
    if !data.starts_with('{') {
        return;
    }
    // What cannot be read has no text; how the stream ends is the watch's to say.
    let _: Result<(), JsonError> = Scanner::new(data).object(|scanner, key| {
        if key.decode() != "choices" || scanner.kind()? != Kind::Array {
            return scanner.skip(&mut ()).map(|_| ());
        }
        scanner.array(|scanner, _| texts_of(scanner, 0, &mut text))
    });
}

/// The texts of a choice, or of its delta.
fn texts_of(scanner: &mut Scanner<'_>, depth: u8, text: &mut impl FnMut(String)) -> Result<(), JsonError> {
    if scanner.kind()? != Kind::Object {
        return scanner.skip(&mut ()).map(|_| ());
    }
    scanner.object(|scanner, key| match (&*key.decode(), scanner.kind()?) {
        ("text" | "content", Kind::String) => {
            let piece = scanner.string()?.decode();
            if !piece.is_empty() {
                text(piece.into_owned());
            }
            Ok(())
        }
        ("delta", Kind::Object) if depth == 0 => texts_of(scanner, depth + 1, text),
        _ => scanner.skip(&mut ()).map(|_| ()),
    })
}
