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
        let usage = crate::watch::usage_of_body(body.as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn assembled(dialect: Dialect, stream: &str, chunk_len: usize) -> Result<(Value, TokenUsage), ApiError> {
        let mut assembler = Assembler::new(dialect).unwrap();
        for chunk in stream.as_bytes().chunks(chunk_len) {
            assembler.feed(chunk)?;
        }
        let (body, usage) = assembler.finish()?;
        Ok((serde_json::from_slice(&body).unwrap(), usage))
    }

    fn data(events: &[Value]) -> String {
        events.iter().map(|event| format!("data: {event}\n\n")).collect()
    }

    fn chat(events: &[Value], expect: &Value) {
        let stream = data(events) + "data: [DONE]\n\n";
        for chunk_len in [1, 50, usize::MAX] {
            assert_eq!(
                &assembled(Dialect::ChatCompletions, &stream, chunk_len).unwrap().0,
                expect
            );
        }
    }

    fn delta(delta: &Value) -> Value {
        json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    #[test]
    fn tool_calls_come_in_pieces_and_at_once() {
        let call = |call: Value| delta(&json!({"tool_calls": [call]}));
        let function = |name: &str, arguments: &str| json!({"name": name, "arguments": arguments});
        chat(
            &[
                delta(&json!({"role": "assistant", "content": null})),
                call(json!({"index": 0, "id": "a", "type": "function", "function": function("f", "")})),
                call(json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g"}})),
                call(json!({"index": 0, "function": {"arguments": "{\"x\":"}})),
                call(json!({"index": 1, "function": {"arguments": "{}"}})),
                call(json!({"index": 0, "function": {"arguments": "\"\u{1f600}\"}"}})),
                json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
            ],
            &json!({
                "id": "c", "object": "chat.completion",
                "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                    "role": "assistant", "content": "",
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": function("f", "{\"x\":\"\u{1f600}\"}")},
                        {"id": "b", "type": "function", "function": function("g", "{}")},
                    ],
                }}],
            }),
        );
    }

    #[test]
    fn members_that_nobody_knows_are_kept() {
        chat(
            &[
                json!({"id": "c", "service_tier": "x", "choices": [
                    {"index": 1, "delta": {"content": "b"}, "finish_reason": null, "stop_reason": null},
                    {"index": 0, "delta": {"content": "a", "audio": {"id": 1}}, "finish_reason": null},
                ]}),
                json!({"id": "c", "service_tier": null, "choices": [
                    {"index": 1, "delta": {"refusal": "no"}, "finish_reason": "stop", "stop_reason": 7}]}),
                json!({"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "x": 3}}),
            ],
            &json!({
                "id": "c", "service_tier": "x", "object": "chat.completion",
                "usage": {"prompt_tokens": 1, "completion_tokens": 2, "x": 3},
                "choices": [
                    {"index": 0, "finish_reason": null,
                        "message": {"role": "assistant", "content": "a", "audio": {"id": 1}}},
                    {"index": 1, "finish_reason": "stop", "stop_reason": 7,
                        "message": {"role": "assistant", "content": "b", "refusal": "no"}},
                ],
            }),
        );
    }

    #[test]
    fn usage_of_several_choices_is_added_up() {
        let usage = |tokens_out: u64| json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens_out, "total_tokens": 9}});
        let stream = data(&[usage(3), usage(4)]) + "data: [DONE]\n\n";
        let (answer, used) = assembled(Dialect::ChatCompletions, &stream, 9).unwrap();
        assert_eq!(
            answer["usage"],
            json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12})
        );
        assert_eq!(
            used,
            TokenUsage {
                tokens_in: Some(5),
                tokens_out: Some(7)
            }
        );
        // The usage so far in each chunk, as vLLM tells it on request: the last one counts.
        let so_far = |tokens_out: u64| json!({"choices": [{"index": 0, "text": "x"}], "usage": {"prompt_tokens": 5, "completion_tokens": tokens_out}});
        let stream = data(&[so_far(1), so_far(2)]) + "data: [DONE]\n\n";
        let (answer, used) = assembled(Dialect::Completions, &stream, 9).unwrap();
        assert_eq!(answer["choices"][0]["text"], "xx");
        assert_eq!(
            used,
            TokenUsage {
                tokens_in: Some(5),
                tokens_out: Some(2)
            }
        );
    }

    #[test]
    fn blocks_of_messages_are_put_together() {
        let event = |kind: &str, members: Value| {
            let mut members = members;
            members["type"] = kind.into();
            format!("event: {kind}\ndata: {members}\n\n")
        };
        let start = |index: u64, block: Value| {
            event(
                "content_block_start",
                json!({"index": index, "content_block": block}),
            )
        };
        let delta =
            |index: u64, delta: Value| event("content_block_delta", json!({"index": index, "delta": delta}));
        let stream = [
            event("message_start", json!({"message": {"id": "m", "type": "message", "role": "assistant", "content": [],
                "model": "x", "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 1}}})),
            event("ping", json!({})),
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            delta(0, json!({"type": "thinking_delta", "thinking": "h"})),
            delta(0, json!({"type": "thinking_delta", "thinking": "m"})),
            delta(0, json!({"type": "signature_delta", "signature": "s"})),
            start(1, json!({"type": "text", "text": ""})),
            delta(1, json!({"type": "text_delta", "text": "a\n"})),
            delta(1, json!({"type": "citations_delta", "citation": {"n": [1]}})),
            delta(1, json!({"type": "citations_delta", "citation": {"n": []}})),
            start(2, json!({"type": "tool_use", "id": "t", "name": "f", "input": {}})),
            delta(2, json!({"type": "input_json_delta", "partial_json": ""})),
            delta(2, json!({"type": "input_json_delta", "partial_json": "{\"x\": "})),
            delta(2, json!({"type": "input_json_delta", "partial_json": "[1]}"})),
            start(3, json!({"type": "tool_use", "id": "u", "name": "g"})),
            delta(3, json!({"type": "input_json_delta", "partial_json": "{\"cut"})),
            event("message_delta", json!({"delta": {"stop_reason": "tool_use", "stop_sequence": null},
                "usage": {"output_tokens": 9}})),
            event("message_stop", json!({})),
        ]
        .concat();
        let expect = json!({
            "id": "m", "type": "message", "role": "assistant", "model": "x", "stop_reason": "tool_use",
            "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 9},
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "a\n", "citations": [{"n": [1]}, {"n": []}]},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1]}},
                {"type": "tool_use", "id": "u", "name": "g", "input": {}},
            ],
        });
        for chunk_len in [1, 50, usize::MAX] {
            let (answer, usage) = assembled(Dialect::Messages, &stream, chunk_len).unwrap();
            assert_eq!(answer, expect);
            assert_eq!(
                usage,
                TokenUsage {
                    tokens_in: Some(3),
                    tokens_out: Some(9)
                }
            );
        }
    }

    #[test]
    fn a_response_is_its_last_event() {
        for end in ["response.completed", "response.incomplete"] {
            let stream = data(&[
                json!({"type": "response.created", "response": {"id": "r", "status": "in_progress"}}),
                json!({"type": end, "response": {"id": "r", "output": []}}),
            ]);
            assert_eq!(
                assembled(Dialect::Responses, &stream, 9).unwrap().0,
                json!({"id": "r", "output": []})
            );
        }
        let stream = data(&[json!({"type": "response.failed", "response": {"error": {"message": "m"}}})]);
        assert_eq!(
            assembled(Dialect::Responses, &stream, 9).unwrap_err().message,
            "m"
        );
    }

    #[test]
    fn what_cannot_be_an_answer_fails() {
        let check = |dialect, stream: &str, message: &str| {
            let error = assembled(dialect, stream, 9).unwrap_err();
            assert_eq!(
                (error.code, &*error.message),
                (ErrorCode::WorkerReset, message),
                "{stream}"
            );
        };
        let (gone, unread) = (
            "the engine went away in the middle of its answer",
            "the engine's answer cannot be read",
        );
        check(Dialect::ChatCompletions, "", gone);
        check(Dialect::ChatCompletions, "data: {}\n\n", gone);
        check(
            Dialect::ChatCompletions,
            "data: {\"error\":{\"message\":\"m\"}}\n\ndata: [DONE]\n\n",
            "m",
        );
        check(Dialect::ChatCompletions, "data: {]\n\ndata: [DONE]\n\n", unread);
        check(Dialect::ChatCompletions, "data: [1]\n\ndata: [DONE]\n\n", unread);
        check(
            Dialect::Responses,
            "event: response.completed\ndata: {}\n\n",
            unread,
        );
        let many: Vec<Value> = (0..=PARTS_MAX)
            .map(|index| json!({"choices": [{"index": index}]}))
            .collect();
        check(Dialect::ChatCompletions, &data(&many), unread);
    }

    #[test]
    fn an_answer_without_end_is_refused() {
        let mut assembler = Assembler::new(Dialect::ChatCompletions).unwrap();
        let chunk = data(&[delta(&json!({"content": "x".repeat(1024 * 1024)}))]);
        let fed = (0..100)
            .take_while(|_| assembler.feed(chunk.as_bytes()).is_ok())
            .count();
        assert!((60..64).contains(&fed), "{fed}");
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_comes_out_is_json(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("data: "), Just("event: message_start"), Just("{"), Just("}"), Just("["), Just("]"), Just(","),
                    Just("\"choices\":"), Just("\"delta\":"), Just("\"index\":1"), Just("\"content\":\"x\""), Just("\n\n"),
                    Just("\"tool_calls\":"), Just("\"function\":"), Just("\"arguments\":\"{\""), Just("\"usage\":{}"),
                    Just("\"type\":\"content_block_delta\""), Just("\"partial_json\":\"1\""), Just("\"logprobs\":{\"a\":[1]}"),
                    Just("\"content_block\":"), Just("\"message\":"), Just("\"text\":\"t\""), Just("null"), Just("\"\\n\":1"),
                ],
                0..30,
            ),
            chunk_len in 1usize..30,
        ) {
            let ends = "\n\ndata: [DONE]\n\nevent: message_stop\ndata: {}\n\n";
            let stream = pieces.concat() + ends;
            for dialect in [Dialect::ChatCompletions, Dialect::Completions, Dialect::Messages, Dialect::Responses] {
                let one = assembled(dialect, &stream, chunk_len);
                prop_assert_eq!(one.ok(), assembled(dialect, &stream, usize::MAX).ok());
            }
        }
    }
}
