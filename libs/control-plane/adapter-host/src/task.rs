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

/// The dialect in which a workload is put to an engine. None: it is no engine's work.
pub const fn dialect_of_workload(workload: Workload) -> Option<Dialect> {
    match workload {
        Workload::Completion => Some(Dialect::Completions),
        Workload::Chat => Some(Dialect::ChatCompletions),
        Workload::Embedding => Some(Dialect::Embeddings),
        Workload::Rerank => Some(Dialect::Rerank),
        Workload::Agent => None,
    }
}

/// Writes a task as a request for `model`. Fails when what the task carries is nothing that an engine could read; the
/// error names the task's member.
pub fn engine_request(
    task: &TaskRequest,
    model: &str,
    media_allowed: bool,
) -> Result<EngineRequest, ApiError> {
    let Some(dialect) = dialect_of_workload(task.workload) else {
        return Err(
            ApiError::new(ErrorCode::InvalidParams, "no engine does this workload").with_param("workload"),
        );
    };
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
        // Has no dialect, so it came no further than that.
        Workload::Agent => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(value: Value) -> TaskRequest {
        serde_json::from_value(value).unwrap()
    }

    fn asked(value: Value, dialect: Dialect, expect: &Value) {
        let request = engine_request(&task(value), "m", false).unwrap();
        assert_eq!(
            (request.dialect, request.path),
            (dialect, path_of_dialect(dialect))
        );
        assert_eq!(request.streams, can_stream(dialect));
        assert_eq!(&serde_json::from_slice::<Value>(&request.body).unwrap(), expect);
    }

    #[test]
    fn a_task_is_written_in_the_engines_words() {
        let usage = json!({"include_usage": true});
        asked(
            json!({"workload": "chat", "model": "x", "prompt": "hi", "max_tokens": 5, "seed": 1}),
            Dialect::ChatCompletions,
            &json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1,
                "stream": true, "stream_options": usage}),
        );
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u", "x": 1}]);
        asked(
            json!({"workload": "chat", "model": "x", "messages": messages}),
            Dialect::ChatCompletions,
            &json!({"model": "m", "messages": messages, "stream": true, "stream_options": usage}),
        );
        asked(
            json!({"workload": "completion", "model": "x", "prompt": "p"}),
            Dialect::Completions,
            &json!({"model": "m", "prompt": "p", "stream": true, "stream_options": usage}),
        );
        asked(
            json!({"workload": "embedding", "model": "x", "input": ["a", "b"], "max_tokens": 5}),
            Dialect::Embeddings,
            &json!({"model": "m", "input": ["a", "b"]}),
        );
        asked(
            json!({"workload": "rerank", "model": "x", "prompt": "q", "input": ["a", "b"]}),
            Dialect::Rerank,
            &json!({"model": "m", "query": "q", "documents": ["a", "b"]}),
        );
    }

    #[test]
    fn what_no_engine_could_read_is_refused_in_the_tasks_words() {
        let check = |value: Value, param: &str, message: &str| {
            let error = engine_request(&task(value), "m", false).unwrap_err();
            assert_eq!((error.param.as_deref(), &*error.message), (Some(param), message));
        };
        check(
            json!({"workload": "chat", "model": "x", "messages": [{"role": "user"}]}),
            "messages[0].content",
            "messages[0].content is required",
        );
        check(
            json!({"workload": "embedding", "model": "x", "input": []}),
            "input",
            "input must not be empty",
        );
        check(
            json!({"workload": "rerank", "model": "x", "prompt": "q", "input": [1]}),
            "input[0]",
            "input[0] must be a string or an object",
        );
    }

    fn read(dialect: Dialect, body: &str, chunk_len: usize) -> (Vec<Event>, Result<TokenUsage, ApiError>) {
        let mut reader = TaskReader::new(dialect);
        let mut events = Vec::new();
        for chunk in body.as_bytes().chunks(chunk_len) {
            if let Err(error) = reader.feed(chunk, |event| events.push(event)) {
                return (events, Err(error));
            }
        }
        let end = reader.finish(|event| events.push(event));
        (events, end)
    }

    fn token(t: &str, i: u32) -> Event {
        Event::Token { t: t.to_owned(), i }
    }

    #[test]
    fn a_stream_becomes_tokens() {
        let chunk = |delta: &str| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n");
        let said = [
            chunk("{\"role\":\"assistant\",\"content\":null}"),
            chunk("{\"reasoning_content\":\"hm\"}"),
            chunk("{\"content\":\"2\\n\"}"),
            chunk("{\"content\":\"01\"}"),
            chunk("{}"),
        ]
        .concat();
        let tokens = vec![token("2\n", 0), token("01", 1)];
        let told = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4}}\n\n";
        let usage = |tokens_in, tokens_out| {
            Ok(TokenUsage {
                tokens_in,
                tokens_out,
            })
        };
        for chunk_len in [1, 10, usize::MAX] {
            let whole = format!("{said}{told}data: [DONE]\n\n");
            let expect = (tokens.clone(), usage(Some(7), Some(4)));
            assert_eq!(read(Dialect::ChatCompletions, &whole, chunk_len), expect);
            let untold = format!("{said}data: [DONE]\n\n");
            let expect = (tokens.clone(), usage(None, Some(3)));
            assert_eq!(read(Dialect::ChatCompletions, &untold, chunk_len), expect);
            let (events, end) = read(Dialect::ChatCompletions, &said, chunk_len);
            assert_eq!(
                (events, end.unwrap_err().code),
                (tokens.clone(), ErrorCode::WorkerReset)
            );
            let failed = format!("{said}data: {{\"error\":{{\"message\":\"m\"}}}}\n\n");
            let (events, end) = read(Dialect::ChatCompletions, &failed, chunk_len);
            assert_eq!((events, &*end.unwrap_err().message), (tokens.clone(), "m"));
        }
        let text = "data: {\"choices\":[{\"text\":\"a\"},{\"text\":\"b\"}]}\n\ndata: [DONE]\n\n";
        assert_eq!(
            read(Dialect::Completions, text, 3).0,
            vec![token("a", 0), token("b", 1)]
        );
    }

    #[test]
    fn an_answer_that_is_no_text_is_one_output() {
        let body = r#"{"data":[{"embedding":[1.5]}],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;
        let (events, end) = read(Dialect::Embeddings, body, 5);
        assert_eq!(
            events,
            vec![Event::Output {
                value: serde_json::from_str(body).unwrap()
            }]
        );
        assert_eq!(
            end,
            Ok(TokenUsage {
                tokens_in: Some(3),
                tokens_out: Some(0)
            })
        );
        let (events, end) = read(Dialect::Embeddings, &body[..20], 5);
        assert_eq!((events.len(), end.unwrap_err().code), (0, ErrorCode::WorkerReset));
    }
}
