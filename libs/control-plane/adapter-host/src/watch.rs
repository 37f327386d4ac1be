//! Watching a stream that is passed on as it comes.
//!
//! ```text
//! chunk ──▶ client            (untouched; the beginning of an event waits for its end)
//!   └─────▶ StreamWatch ──▶ did the dialect's own end come? an error? what did it cost?
//! ```
//!
//! This is on the way of every streamed chunk, so it searches for the few places that matter and reads only those
//! (some tens of nanoseconds a chunk), where a parser would read all of it. A text inside a chunk cannot be taken for
//! one of those places: in JSON its quotes have backslashes.
//!
//! Usage. Where the engine tells (`usage`, or llama.cpp's `timings`, which its last chunk has even when nobody asked
//! for usage), that counts. Where it does not, every chunk with content counts as one token, which is what llama.cpp
//! and vLLM send.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use pool_registry_types::Dialect;
use task_api::ApiError;

use crate::error::engine_error;
use crate::json::{JsonError, Kind, Scanner};
use crate::sse::{Field, Lines};

/// How much of a line is looked at, in bytes. The longest lines are the last events of `/v1/responses`, which repeat
/// the whole answer; the usage of a longer one is not found, and the tokens counted on the way stand in for it.
const LINE_WATCHED_MAX: usize = 256 * 1024;

/// How much of an event is held back until its end comes, in bytes. A longer one goes out in pieces.
const HELD_LEN_MAX: usize = 64 * 1024;

/// Errors in a stream have no status of their own.
pub(crate) const STATUS_IN_STREAM: u16 = 502;

/// Tokens, as the engine told them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens read, those from a cache included.
    pub tokens_in: Option<u64>,
    /// Tokens generated.
    pub tokens_out: Option<u64>,
}

impl TokenUsage {
    /// What `newer` says, and where it says nothing, this.
    #[must_use]
    pub(crate) fn updated_by(self, newer: Self) -> Self {
        Self {
            tokens_in: newer.tokens_in.or(self.tokens_in),
            tokens_out: newer.tokens_out.or(self.tokens_out),
        }
    }
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// With the dialect's own end.
    Complete,
    /// With an error event of the engine; the client has it.
    Error(ApiError),
    /// Without either: the engine or something before it went away. The client has to be told.
    Cut {
        /// An event had begun whose end never came.
        mid_event: bool,
    },
}

/// Watches one stream.
#[derive(Debug)]
pub struct StreamWatch {
    dialect: Dialect,
    lines: Lines,
    /// What the `event` field of the event at hand says.
    event: EventKind,
    /// Whether a field of an event has come whose end has not.
    in_event: bool,
    has_data: bool,
    has_ended: bool,
    error: Option<ApiError>,
    /// Chunks with content so far.
    contents: u64,
    usage: TokenUsage,
    /// The beginning of an event that the client does not have yet.
    held: Vec<u8>,
    /// The client has the beginning of the event at hand.
    is_halved: bool,
}

/// What an event is for, in the dialects that say so (`/v1/responses`, `/v1/messages`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventKind {
    /// It does not say.
    Unnamed,
    Content,
    /// Nothing to see but perhaps usage.
    Usage,
    End,
    Error,
    Other,
}

impl EventKind {
    fn of(name: &[u8]) -> Self {
        match name {
            b"" => Self::Unnamed,
            b"error" | b"response.failed" => Self::Error,
            b"message_stop" | b"response.completed" | b"response.incomplete" => Self::End,
            b"message_start" | b"message_delta" => Self::Usage,
            b"content_block_delta" => Self::Content,
            _ if name.starts_with(b"response.") && name.ends_with(b".delta") => Self::Content,
            _ => Self::Other,
        }
    }
}

impl StreamWatch {
    /// Watches a stream of `dialect` from its beginning.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            lines: Lines::new(LINE_WATCHED_MAX),
            event: EventKind::Unnamed,
            in_event: false,
            has_data: false,
            has_ended: false,
            error: None,
            contents: 0,
            usage: TokenUsage::default(),
            held: Vec::new(),
            is_halved: false,
        }
    }

    /// Looks at a chunk and gives what the client may have of it: whole events, so that a client whose engine dies in
    /// the middle of one gets an error that it can read. What is held back comes with a later chunk.
    ///
    /// A chunk of whole events, which is nearly every one, goes through as it is.
    pub fn relay(&mut self, chunk: Bytes) -> Bytes {
        let complete_len = self.feed(&chunk);
        if self.held.is_empty() && complete_len == chunk.len() {
            self.is_halved = false;
            return chunk;
        }
        let (whole, begun) = chunk.split_at(complete_len);
        let fits = !self.is_halved || complete_len > 0;
        let held_len = if complete_len > 0 {
            begun.len()
        } else {
            self.held.len() + begun.len()
        };
        let holds = fits && held_len <= HELD_LEN_MAX;
        self.is_halved = !holds;
        if !holds {
            // All of it goes out.
            return if self.held.is_empty() {
                chunk
            } else {
                self.released(&chunk)
            };
        }
        let out = match (self.held.is_empty(), whole.is_empty()) {
            (_, true) => Bytes::new(),
            (true, false) => chunk.slice(..complete_len),
            (false, false) => self.released(whole),
        };
        self.held.extend_from_slice(begun);
        out
    }

    fn released(&mut self, more: &[u8]) -> Bytes {
        let mut out = std::mem::take(&mut self.held);
        out.extend_from_slice(more);
        out.into()
    }

    /// What [`relay`](Self::relay) has held back: the client's when the stream turns out to have ended well.
    pub fn held_back(&mut self) -> Bytes {
        self.released(b"")
    }

    /// Whether the client has the beginning of an event whose end has not come.
    pub fn is_halved(&self) -> bool {
        self.is_halved
    }

    /// Looks at a chunk. Gives how many of its bytes belong to complete events: who holds the rest back until its end
    /// comes never sends a client half an event.
    pub fn feed(&mut self, chunk: &[u8]) -> usize {
        let mut complete_len = 0;
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(chunk, |line| {
            self.line(line.bytes);
            if !self.in_event {
                complete_len = line.next;
            }
        });
        self.lines = lines;
        complete_len
    }

    /// Whether anything that a client would take for an answer has come: data, and not only comments.
    pub fn has_data(&self) -> bool {
        self.has_data
    }

    /// Whether the dialect's own end, or an error event, has come; nothing that follows matters.
    pub fn has_ended(&self) -> bool {
        self.has_ended || self.error.is_some()
    }

    /// The engine's own error, if one has come.
    pub fn error(&self) -> Option<ApiError> {
        self.error.clone()
    }

    /// How many chunks with content have come.
    pub fn contents(&self) -> u64 {
        self.contents
    }

    /// What was used, as far as is known by now: what the engine told, else the chunks counted.
    pub fn usage(&self) -> TokenUsage {
        TokenUsage {
            tokens_out: self.usage.tokens_out.or(Some(self.contents)),
            ..self.usage
        }
    }

    /// The body has ended: how?
    pub fn finish(&mut self) -> StreamEnd {
        // Some servers close the connection instead of writing the last line's end.
        let mid_event = self.in_event || self.lines.unfinished().is_some();
        let lines = std::mem::take(&mut self.lines);
        if let Some(line) = lines.unfinished() {
            self.line(line.bytes);
        }
        match self.error.take() {
            Some(error) => StreamEnd::Error(error),
            None if self.has_ended => StreamEnd::Complete,
            None => StreamEnd::Cut { mid_event },
        }
    }

    #[inline]
    fn line(&mut self, line: &[u8]) {
        match Field::read(line) {
            Field::Data(data) => {
                self.in_event = true;
                self.has_data = true;
                match self.dialect {
                    Dialect::Messages | Dialect::CountTokens | Dialect::Responses => self.typed(data),
                    Dialect::ChatCompletions
                    | Dialect::Completions
                    | Dialect::Embeddings
                    | Dialect::Rerank => self.untyped(data),
                }
            }
            Field::Event(name) => {
                self.in_event = true;
                self.event = EventKind::of(name);
            }
            Field::Id(_) => self.in_event = true,
            Field::Dispatch => {
                self.in_event = false;
                self.event = EventKind::Unnamed;
            }
            Field::Other => {}
        }
    }

    /// A chunk of chat or completions.
    fn untyped(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.has_ended = true;
            return;
        }
        let needles = &*NEEDLES;
        if self.event == EventKind::Error || needles.error.find(data).is_some() {
            self.look_for_error(data);
        }
        let has_content = if self.dialect == Dialect::Completions {
            needles
                .text
                .find(data)
                .is_some_and(|at| begins_text(&data[at + needles.text.needle().len()..]))
        } else {
            needles
                .delta
                .find(data)
                .is_some_and(|at| has_content(&data[at + needles.delta.needle().len()..]))
        };
        self.contents += u64::from(has_content);
        if needles
            .usage
            .find(data)
            .is_some_and(|at| begins_object(&data[at + needles.usage.needle().len()..]))
            || needles.timings.find(data).is_some()
        {
            self.usage = self.usage.updated_by(usage_of(data));
        }
    }

    /// An event of a dialect whose events have types.
    fn typed(&mut self, data: &[u8]) {
        let kind = match self.event {
            EventKind::Unnamed => type_of(data),
            named => named,
        };
        match kind {
            EventKind::Content => self.contents += 1,
            EventKind::Usage => self.usage = self.usage.updated_by(usage_of(data)),
            EventKind::End => {
                self.usage = self.usage.updated_by(usage_of(data));
                self.has_ended = true;
            }
            EventKind::Error => self.fail(data),
            EventKind::Unnamed => self.look_for_error(data),
            EventKind::Other => {}
        }
    }

    fn look_for_error(&mut self, data: &[u8]) {
        if self.event == EventKind::Error || is_error(data) {
            self.fail(data);
        }
    }

    fn fail(&mut self, data: &[u8]) {
        if self.error.is_none() {
            self.error = Some(engine_error(STATUS_IN_STREAM, data));
        }
    }
}

/// What is searched for, made ready once.
struct Needles {
    error: Finder<'static>,
    delta: Finder<'static>,
    text: Finder<'static>,
    usage: Finder<'static>,
    timings: Finder<'static>,
}

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    // Finds `"error":` and `"object":"error"`.
    error: Finder::new(b"error\""),
    delta: Finder::new(b"\"delta\":"),
    text: Finder::new(b"\"text\":"),
    usage: Finder::new(b"\"usage\":"),
    timings: Finder::new(b"\"timings\":"),
});

fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii_start()
}

fn begins_object(bytes: &[u8]) -> bool {
    trimmed(bytes).starts_with(b"{")
}

/// Whether a string that is not empty begins here.
fn begins_text(bytes: &[u8]) -> bool {
    matches!(trimmed(bytes), [b'"', next, ..] if *next != b'"')
}

/// Whether the delta that begins here has content: text, reasoning, or a piece of a tool call.
fn has_content(bytes: &[u8]) -> bool {
    let delta = trimmed(bytes);
    if let Some(text) = delta.strip_prefix(b"{\"content\":") {
        if begins_text(text) {
            return true;
        }
    } else if delta.starts_with(b"{}") {
        return false;
    }
    let mut found = false;
    let mut scanner = Scanner::new(text_of(delta));
    let walked: Result<(), JsonError> = scanner.object(|scanner, key| {
        let counts = matches!(
            &*key.decode(),
            "content" | "reasoning_content" | "reasoning" | "refusal" | "tool_calls"
        );
        let value = scanner.raw()?;
        found |= counts && !matches!(value, "null" | "\"\"" | "[]");
        Ok(())
    });
    walked.is_ok() && found
}

fn text_of(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// The `type` of an event that has no `event` field; [`EventKind::Unnamed`] when that has none either.
fn type_of(data: &[u8]) -> EventKind {
    if let Some(name) = data.strip_prefix(b"{\"type\":\"") {
        let end = memchr::memchr(b'"', name).unwrap_or(name.len());
        return EventKind::of(&name[..end]);
    }
    let mut kind = EventKind::Unnamed;
    each_member(data, |key, value| {
        if key == "type" {
            kind = EventKind::of(value.trim_matches('"').as_bytes());
        }
    });
    kind
}

/// Whether an event without a type is an error: `error` is there and not null, or `object` says so.
fn is_error(data: &[u8]) -> bool {
    let mut found = false;
    each_member(data, |key, value| {
        found |= (key == "error" && value != "null") || (key == "object" && value == "\"error\"");
    });
    found
}

fn each_member(data: &[u8], mut member: impl FnMut(&str, &str)) {
    // What cannot be read says nothing.
    let _: Result<(), JsonError> = Scanner::new(text_of(data)).object(|scanner, key| {
        let value = scanner.raw()?;
        member(&key.decode(), value);
        Ok(())
    });
}

/// The usage in an event: at its top, or in the `message` or `response` that it carries.
pub(crate) fn usage_of(data: &[u8]) -> TokenUsage {
    let mut found = Found::default();
    let _: Result<(), JsonError> = found.event(&mut Scanner::new(text_of(data)), 0);
    found.usage()
}

/// The usage in the value of a `usage` member.
pub(crate) fn usage_of_member(raw: &str) -> TokenUsage {
    let mut found = Found::default();
    let _: Result<(), JsonError> = found.figures(&mut Scanner::new(raw));
    found.usage()
}

/// The usage of a whole answer that was not streamed.
///
/// Where `usage` stands once, which is the rule, nothing else is read: an answer may be megabytes of numbers.
pub fn usage_of_body(body: &[u8]) -> TokenUsage {
    let needle = &NEEDLES.usage;
    let mut places = needle.find_iter(body);
    match (places.next(), places.next()) {
        (Some(at), None) => usage_of_member(text_of(trimmed(&body[at + needle.needle().len()..]))),
        _ => usage_of(body),
    }
}

#[derive(Default)]
struct Found {
    usage: TokenUsage,
    /// Anthropic counts what comes from a cache or goes into it beside `input_tokens`.
    cached_beside: u64,
    timed: TokenUsage,
    timed_cached: u64,
}

impl Found {
    fn usage(self) -> TokenUsage {
        let plus = |tokens: Option<u64>, more: u64| tokens.map(|tokens| tokens.saturating_add(more));
        let told = TokenUsage {
            tokens_in: plus(self.usage.tokens_in, self.cached_beside),
            ..self.usage
        };
        let timed = TokenUsage {
            tokens_in: plus(self.timed.tokens_in, self.timed_cached),
            ..self.timed
        };
        timed.updated_by(told)
    }

    fn event(&mut self, scanner: &mut Scanner<'_>, depth: u8) -> Result<(), JsonError> {
        scanner.object(|scanner, key| {
            if scanner.kind()? != Kind::Object {
                return scanner.skip(&mut ()).map(|_| ());
            }
            match &*key.decode() {
                "usage" | "timings" => self.figures(scanner),
                "message" | "response" if depth == 0 => self.event(scanner, depth + 1),
                _ => scanner.skip(&mut ()).map(|_| ()),
            }
        })
    }

    fn figures(&mut self, scanner: &mut Scanner<'_>) -> Result<(), JsonError> {
        scanner.object(|scanner, key| {
            let figure: Option<u64> = scanner.raw()?.parse().ok();
            let Some(figure) = figure else { return Ok(()) };
            match &*key.decode() {
                "prompt_tokens" | "input_tokens" => self.usage.tokens_in = Some(figure),
                "completion_tokens" | "output_tokens" => self.usage.tokens_out = Some(figure),
                "cache_read_input_tokens" | "cache_creation_input_tokens" => {
                    self.cached_beside = self.cached_beside.saturating_add(figure);
                }
                "prompt_n" => self.timed.tokens_in = Some(figure),
                "cache_n" => self.timed_cached = figure,
                "predicted_n" => self.timed.tokens_out = Some(figure),
                _ => {}
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use task_api::ErrorCode;

    fn watched(dialect: Dialect, stream: &str, chunk_len: usize) -> (StreamEnd, StreamWatch) {
        let mut watch = StreamWatch::new(dialect);
        for chunk in stream.as_bytes().chunks(chunk_len) {
            watch.feed(chunk);
        }
        (watch.finish(), watch)
    }

    fn ends(dialect: Dialect, stream: &str, expect: &StreamEnd) {
        for chunk_len in [1, 2, 5, usize::MAX] {
            assert_eq!(
                &watched(dialect, stream, chunk_len).0,
                expect,
                "{stream:?} in chunks of {chunk_len}"
            );
        }
    }

    const CHAT: Dialect = Dialect::ChatCompletions;
    const CUT: StreamEnd = StreamEnd::Cut { mid_event: false };
    const CUT_INSIDE: StreamEnd = StreamEnd::Cut { mid_event: true };

    #[test]
    fn only_the_dialects_own_end_is_an_end() {
        ends(CHAT, "", &CUT);
        ends(CHAT, ": ping\n\n", &CUT);
        ends(CHAT, "data: {}\n\n", &CUT);
        ends(CHAT, "data: {}\n", &CUT_INSIDE);
        ends(CHAT, "data: {}\n\ndata: {\"cho", &CUT_INSIDE);
        ends(CHAT, "data: {}\n\ndata: [DONE]\n\n", &StreamEnd::Complete);
        ends(CHAT, "data: {}\r\n\r\ndata: [DONE]\r\n\r\n", &StreamEnd::Complete);
        ends(CHAT, "data:{}\r\rdata:[DONE]", &StreamEnd::Complete);
        ends(
            CHAT,
            "data: {\"choices\":[{\"delta\":{\"content\":\"[DONE]\"}}]}\n\n",
            &CUT,
        );
        ends(Dialect::Messages, "data: [DONE]\n\n", &CUT);
        ends(
            Dialect::Messages,
            "event: message_stop\ndata: {}\n\n",
            &StreamEnd::Complete,
        );
        ends(
            Dialect::Messages,
            "data: {\"type\":\"message_stop\"}\n\n",
            &StreamEnd::Complete,
        );
        ends(
            Dialect::Messages,
            "data: { \"a\": 1, \"type\": \"message_stop\" }\n\n",
            &StreamEnd::Complete,
        );
        ends(
            Dialect::Messages,
            "event: message_delta\ndata: {\"text\":\"message_stop\"}\n\n",
            &CUT,
        );
        for end in ["completed", "incomplete"] {
            let stream = format!("event: response.{end}\ndata: {{\"response\":{{}}}}\n\n");
            ends(Dialect::Responses, &stream, &StreamEnd::Complete);
        }
        ends(
            Dialect::Responses,
            "data: {\"type\":\"response.created\"}\n\n",
            &CUT,
        );
    }

    #[test]
    fn an_error_after_a_200_is_an_error() {
        let failed = |dialect, stream: &str, code, message: &str| {
            let expect = StreamEnd::Error(ApiError::new(code, message.to_owned()));
            ends(dialect, stream, &expect);
            ends(dialect, &format!("{stream}data: [DONE]\n\n"), &expect);
        };
        let error =
            "data: {\"error\":{\"code\":500,\"message\":\"no memory\",\"type\":\"server_error\"}}\n\n";
        for dialect in [CHAT, Dialect::Completions, Dialect::Responses, Dialect::Messages] {
            failed(dialect, error, ErrorCode::WorkerReset, "no memory");
            failed(
                dialect,
                &format!("event: error\n{error}"),
                ErrorCode::WorkerReset,
                "no memory",
            );
        }
        let vllm = "data: {\"object\":\"error\",\"message\":\"too long\",\"code\":400}\n\n";
        failed(CHAT, vllm, ErrorCode::InvalidParams, "too long");
        let anthropic = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n";
        failed(Dialect::Messages, anthropic, ErrorCode::WorkerReset, "busy");
        let response =
            "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"busy\"}}}\n\n";
        failed(Dialect::Responses, response, ErrorCode::WorkerReset, "busy");
        // llama.cpp's, which leaves out what Anthropic puts around it.
        let bare = "event: error\ndata: {\"code\":500,\"message\":\"busy\",\"type\":\"server_error\"}\n\n";
        failed(Dialect::Messages, bare, ErrorCode::WorkerReset, "busy");
    }

    #[test]
    fn what_a_model_says_is_no_error() {
        for text in ["error", "\\\"error\\\":{}", "x error", "\\\"usage\\\":{}"] {
            let chunk = format!(
                "data: {{\"error\":null,\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
            );
            let (end, watch) = watched(CHAT, &format!("{chunk}data: [DONE]\n\n"), 9);
            assert_eq!((end, watch.contents()), (StreamEnd::Complete, 1), "{text}");
        }
    }

    #[test]
    fn chunks_with_content_are_counted() {
        let count = |dialect, data: &str| {
            watched(dialect, &format!("data: {data}\n\n"), usize::MAX)
                .1
                .contents()
        };
        let delta = |delta: &str| {
            count(
                CHAT,
                &format!("{{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}"),
            )
        };
        assert_eq!(delta("{\"content\":\"x\"}"), 1);
        assert_eq!(delta(" { \"content\" : \"x\" }"), 1);
        assert_eq!(delta("{\"role\":\"assistant\",\"content\":\"x\"}"), 1);
        assert_eq!(delta("{\"reasoning_content\":\"x\"}"), 1);
        assert_eq!(delta("{\"content\":null,\"reasoning_content\":\"x\"}"), 1);
        assert_eq!(delta("{\"tool_calls\":[{\"index\":0}]}"), 1);
        for nothing in [
            "{}",
            "{\"content\":\"\"}",
            "{\"role\":\"assistant\",\"content\":null}",
            "null",
            "{\"content\":",
        ] {
            assert_eq!(delta(nothing), 0, "{nothing}");
        }
        assert_eq!(count(Dialect::Completions, "{\"choices\":[{\"text\":\"x\"}]}"), 1);
        assert_eq!(count(Dialect::Completions, "{\"choices\":[{\"text\": \"\"}]}"), 0);
        assert_eq!(count(Dialect::Messages, "{\"type\":\"content_block_delta\"}"), 1);
        assert_eq!(
            count(Dialect::Responses, "{\"type\":\"response.output_text.delta\"}"),
            1
        );
        assert_eq!(
            count(Dialect::Responses, "{\"type\":\"response.output_item.added\"}"),
            0
        );
    }

    #[test]
    fn usage_is_the_engines_word() {
        let used = |dialect, data: &str| {
            let usage = watched(dialect, &format!("data: {data}\n\n"), 11).1.usage();
            (usage.tokens_in, usage.tokens_out)
        };
        assert_eq!(used(CHAT, "{\"usage\":null}"), (None, Some(0)));
        assert_eq!(
            used(CHAT, "{\"usage\": {\"prompt_tokens\":3,\"completion_tokens\":4}}"),
            (Some(3), Some(4))
        );
        assert_eq!(
            used(
                CHAT,
                "{\"timings\":{\"cache_n\":2,\"prompt_n\":3,\"predicted_n\":4}}"
            ),
            (Some(5), Some(4))
        );
        let both =
            "{\"usage\":{\"prompt_tokens\":9},\"timings\":{\"cache_n\":2,\"prompt_n\":3,\"predicted_n\":4}}";
        assert_eq!(used(CHAT, both), (Some(9), Some(4)));
        let messages = "{\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\
            \"cache_read_input_tokens\":6,\"output_tokens\":0}}}\n\ndata: {\"type\":\"message_delta\",\
            \"usage\":{\"output_tokens\":8}}";
        assert_eq!(used(Dialect::Messages, messages), (Some(7), Some(8)));
        let responses = "{\"type\":\"response.completed\",\"response\":{\"tools\":[{\"usage\":{\"input_tokens\":99}}],\
            \"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}";
        assert_eq!(used(Dialect::Responses, responses), (Some(3), Some(4)));
    }

    #[test]
    fn usage_of_a_whole_answer_is_found_at_once_or_by_reading() {
        let check = |body: &str, tokens_in, tokens_out| {
            assert_eq!(
                usage_of_body(body.as_bytes()),
                TokenUsage {
                    tokens_in,
                    tokens_out
                },
                "{body}"
            );
        };
        check(
            r#"{"data":[[1,2]],"usage": {"prompt_tokens":3,"total_tokens":3}}"#,
            Some(3),
            None,
        );
        check(
            r#"{"tools":[{"usage":{"input_tokens":9}}],"usage":{"input_tokens":3}}"#,
            Some(3),
            None,
        );
        check(r#"{"x":{"usage":{"type":"object"}}}"#, None, None);
        check(r#"{"timings":{"prompt_n":3,"predicted_n":4}}"#, Some(3), Some(4));
        check(r#"{"usage":"#, None, None);
        check("", None, None);
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut watch = StreamWatch::new(CHAT);
        for _ in 0..64 {
            watch.feed(&[b'x'; 64 * 1024]);
        }
        assert!(watch.lines.waiting_len() <= LINE_WATCHED_MAX);
        watch.feed(b"\n\ndata: [DONE]\n\n");
        assert_eq!(watch.finish(), StreamEnd::Complete);
    }

    #[test]
    fn an_event_is_passed_on_as_a_whole() {
        let mut watch = StreamWatch::new(CHAT);
        let mut relay = |chunk: &'static str| watch.relay(Bytes::from_static(chunk.as_bytes()));
        assert_eq!(relay("data: a\n\n"), "data: a\n\n");
        assert_eq!(relay("data: b\n\nda"), "data: b\n\n");
        assert_eq!(relay("ta: "), "");
        assert_eq!(relay("c\n"), "");
        assert_eq!(relay("\ndata: d\n\nx"), "data: c\n\ndata: d\n\n");
        assert_eq!(watch.finish(), CUT_INSIDE);
        assert!(!watch.is_halved());
        assert_eq!(watch.held_back(), "x");
    }

    #[test]
    fn a_long_event_goes_out_in_pieces() {
        let mut watch = StreamWatch::new(CHAT);
        let mut relay = |chunk: Vec<u8>| (watch.relay(Bytes::from(chunk)).len(), watch.is_halved());
        assert_eq!(relay(vec![b'x'; HELD_LEN_MAX]), (0, false));
        assert_eq!(relay(vec![b'x'; 1]), (HELD_LEN_MAX + 1, true));
        assert_eq!(relay(vec![b'x'; 5]), (5, true));
        assert_eq!(relay(b"x\n\nda".to_vec()), (3, false));
        assert_eq!(relay(b"ta: 1\n\n".to_vec()), (9, false));
        assert_eq!(relay(vec![b'x'; HELD_LEN_MAX + 1]), (HELD_LEN_MAX + 1, true));
        assert_eq!(relay(b"\n\n".to_vec()), (2, false));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_halved(
            events in proptest::collection::vec(("[a-z]{0,9}", prop_oneof![Just("\n"), Just("\r"), Just("\r\n")]), 0..8),
            tail in "[a-z]{0,5}",
            chunk_len in 1usize..20,
        ) {
            let end: String = events.iter().map(|(data, end)| format!("data: {data}{end}{end}")).collect();
            let stream = end.clone() + &tail;
            let mut watch = StreamWatch::new(CHAT);
            let mut passed = Vec::new();
            for chunk in stream.as_bytes().chunks(chunk_len) {
                passed.extend_from_slice(&watch.relay(Bytes::copy_from_slice(chunk)));
                prop_assert!(!watch.is_halved());
            }
            prop_assert!(passed.len() <= end.len());
            prop_assert!(passed.len() + 1 >= end.len(), "a line feed after a return may come late");
            passed.extend_from_slice(&watch.held_back());
            prop_assert_eq!(passed, stream.into_bytes());
        }

        #[test]
        fn cuts_make_no_difference(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}"), Just("\n\n"), Just("\n"), Just("\r"),
                    Just("data: [DONE]"), Just("data: {\"error\":{\"message\":\"m\"}}"), Just("event: message_stop"),
                    Just("event: error"), Just("data: {\"type\":\"content_block_delta\"}"), Just(":"), Just("é"),
                    Just("data: {\"usage\":{\"prompt_tokens\":3}}"),
                ],
                0..16,
            ),
            chunk_len in 1usize..40,
        ) {
            let stream = pieces.concat();
            for dialect in crate::dialect::DIALECTS {
                let (one, other) = (watched(dialect, &stream, usize::MAX), watched(dialect, &stream, chunk_len));
                prop_assert_eq!(one.0, other.0);
                prop_assert_eq!(one.1.usage(), other.1.usage());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for dialect in crate::dialect::DIALECTS {
                let mut watch = StreamWatch::new(dialect);
                prop_assert!(watch.feed(&bytes) <= bytes.len());
                watch.finish();
            }
        }
    }
}
