//! Reading a request: what has to be known of it, and whether an engine could read it at all.
//!
//! A body is read once, from front to back, and stays as it is: known members are checked as far as a wrong type would
//! make an engine fail instead of refuse, unknown ones pass. Where clients and engines disagree about what is allowed,
//! this is the lenient side; the engine has the last word and its refusal is passed on.

mod shape;
mod tools;

use std::borrow::Cow;

use pool_registry_types::Dialect;
use task_api::{ApiError, ErrorCode};

use crate::json::{JsonError, Kind, RawText, Scanner};
use crate::prefix::{self, Conversation, PrefixHashes, TextHasher};
use crate::request::shape::Media;
use crate::rewrite::Places;

/// The longest model name, in bytes.
pub const MODEL_LEN_MAX: usize = 256;

/// What a request must and may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// Whether a request without `model` is refused.
    pub model_required: bool,
    /// Whether pictures, sound and files may stand in it. False: they are refused with the place where they stand.
    pub media_allowed: bool,
}

/// What had to be known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// The model asked for.
    pub model: Option<Cow<'a, str>>,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// Whether the client's stream is to end with the usage (OpenAI's `stream_options.include_usage`).
    pub include_usage: bool,
    /// The most tokens to generate, when the client has set a bound.
    pub max_tokens: Option<u64>,
    /// Whether pictures, sound or files stand in it.
    pub has_media: bool,
    /// Whether the same answer can be had from an engine as a stream and put together.
    pub can_be_streamed: bool,
    /// What the client itself says to have in common with its other requests (`prompt_cache_key`).
    pub cache_key: Option<Cow<'a, str>>,
    /// How the prompt begins, the longest beginning first.
    pub prefix_hashes: PrefixHashes,
    /// Where the members stand that may be rewritten.
    pub places: Places,
}

/// Reads the body of a request.
///
/// Errors are `INVALID_PARAMS` and name the member at fault.
pub fn read_request<'a>(
    dialect: Dialect,
    body: &'a [u8],
    rules: &RequestRules,
) -> Result<RequestFacts<'a>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let message = format!("the body is not UTF-8 (at byte {})", error.valid_up_to());
        ApiError::new(ErrorCode::InvalidParams, message)
    })?;
    Reader::new(dialect, *rules).read(text).map_err(ApiError::from)
}

/// Why reading stopped. Boxed, so that a good request makes no room for it.
#[derive(Debug)]
pub(crate) struct Fault(Box<FaultKind>);

#[derive(Debug)]
enum FaultKind {
    /// The text is no JSON.
    Json(JsonError),
    /// The member `path` is not what it must be.
    Shape {
        path: String,
        problem: Cow<'static, str>,
    },
}

impl From<JsonError> for Fault {
    fn from(error: JsonError) -> Self {
        Self(Box::new(FaultKind::Json(error)))
    }
}

impl Fault {
    /// The member `path` is not what it must be.
    pub(crate) fn at(path: impl Into<String>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(FaultKind::Shape {
            path: path.into(),
            problem: problem.into(),
        }))
    }

    /// The same fault, seen from the value around it.
    pub(crate) fn inside(mut self, outer: impl FnOnce() -> String) -> Self {
        if let FaultKind::Shape { path, .. } = &mut *self.0 {
            let mut full = outer();
            if !path.is_empty() && !path.starts_with('[') && !full.is_empty() {
                full.push('.');
            }
            full.push_str(path);
            *path = full;
        }
        self
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        match *fault.0 {
            FaultKind::Json(error) => Self::new(
                ErrorCode::InvalidParams,
                format!("the body is not valid JSON: {error}"),
            ),
            FaultKind::Shape { path, problem } if path.is_empty() => {
                Self::new(ErrorCode::InvalidParams, format!("the body {problem}"))
            }
            FaultKind::Shape { path, problem } => {
                Self::new(ErrorCode::InvalidParams, format!("{path} {problem}")).with_param(path)
            }
        }
    }
}

/// What is known so far.
struct Reader<'a> {
    dialect: Dialect,
    model_required: bool,
    facts: RequestFacts<'a>,
    media: Media,
    conversation: Conversation,
    prompt: Option<&'a str>,
    system: Option<u64>,
    tools: Option<u64>,
    has_content: bool,
    has_documents: bool,
    wants_logprobs: bool,
}

impl<'a> Reader<'a> {
    fn new(dialect: Dialect, rules: RequestRules) -> Self {
        let places = Places {
            is_empty: true,
            has_stream_options: matches!(dialect, Dialect::ChatCompletions | Dialect::Completions),
            ..Places::default()
        };
        let facts = RequestFacts {
            model: None,
            stream: false,
            include_usage: false,
            max_tokens: None,
            has_media: false,
            can_be_streamed: crate::dialect::can_stream(dialect),
            cache_key: None,
            prefix_hashes: PrefixHashes::default(),
            places,
        };
        Self {
            dialect,
            model_required: rules.model_required,
            facts,
            media: Media {
                allowed: rules.media_allowed,
                found: false,
            },
            conversation: Conversation::default(),
            prompt: None,
            system: None,
            tools: None,
            has_content: false,
            has_documents: false,
            wants_logprobs: false,
        }
    }

    fn read(mut self, text: &'a str) -> Result<RequestFacts<'a>, Fault> {
        let mut scanner = Scanner::new(text);
        if scanner.kind()? != Kind::Object {
            return Err(Fault::at("", "must be a JSON object"));
        }
        self.facts.places.head = scanner.span_from(0).end + 1;
        scanner.object(|scanner, key| self.member(scanner, key))?;
        scanner.end()?;
        self.finish()
    }

    fn member(&mut self, scanner: &mut Scanner<'a>, key: RawText<'a>) -> Result<(), Fault> {
        self.facts.places.is_empty = false;
        let key = key.decode();
        scanner.next_byte();
        let start = scanner.at();
        match &*key {
            "model" => self.facts.model = shape::text_or_null(scanner, "model")?.map(RawText::decode),
            "stream" => self.facts.stream = shape::boolean_or_null(scanner, "stream")?,
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                self.facts.max_tokens = shape::count_or_null(scanner, &key)?;
            }
            "stream_options" => self.facts.include_usage = shape::stream_options(scanner)?,
            "prompt_cache_key" => {
                self.facts.cache_key = shape::text_or_null(scanner, &key)?.map(RawText::decode);
            }
            "logprobs" => self.wants_logprobs = scanner.raw()? == "true",
            "system" | "instructions" => {
                let mut hasher = TextHasher::default();
                scanner.skip(&mut hasher)?;
                self.system = Some(hasher.value());
            }
            _ => self.content(scanner, &key)?,
        }
        self.facts.places.note(&key, scanner.span_from(start));
        Ok(())
    }

    /// What the model is to read, and everything that is of no interest.
    fn content(&mut self, scanner: &mut Scanner<'a>, key: &str) -> Result<(), Fault> {
        use Dialect::{ChatCompletions, Completions, CountTokens, Embeddings, Messages, Rerank, Responses};
        match (self.dialect, key) {
            (ChatCompletions | Messages | CountTokens, "messages") => {
                self.conversation = shape::messages(scanner, &mut self.media)?;
                self.has_content = true;
            }
            (ChatCompletions | Messages | CountTokens | Responses, "tools") => {
                self.tools = tools::list(self.dialect, scanner)?;
            }
            (Responses, "input") if scanner.kind()? == Kind::String => {
                self.prompt = Some(scanner.string()?.inner());
                self.has_content = true;
            }
            (Responses, "input") => {
                self.prompt = None;
                self.conversation = shape::items(scanner, &mut self.media)?;
                self.has_content = true;
            }
            (Completions, "prompt") | (Embeddings, "input") => {
                self.prompt = shape::prompt(scanner, key)?;
                self.has_content = true;
            }
            (Embeddings, "encoding_format") => {
                shape::text_or_null(scanner, key)?;
            }
            (Rerank, "query") => {
                shape::text(scanner, "query")?;
                self.has_content = true;
            }
            (Rerank, "documents" | "texts") => {
                shape::documents(scanner, key)?;
                self.has_documents = true;
            }
            _ => {
                scanner.skip(&mut ())?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<RequestFacts<'a>, Fault> {
        match self.facts.model.as_deref() {
            None | Some("") if self.model_required => return Err(Fault::at("model", "is required")),
            Some(model) if model.len() > MODEL_LEN_MAX => {
                return Err(Fault::at(
                    "model",
                    format!("must have at most {MODEL_LEN_MAX} bytes"),
                ));
            }
            _ => {}
        }
        let content_key = match self.dialect {
            Dialect::ChatCompletions | Dialect::Messages | Dialect::CountTokens => "messages",
            Dialect::Responses | Dialect::Embeddings => "input",
            Dialect::Completions => "prompt",
            Dialect::Rerank => "query",
        };
        if !self.has_content {
            return Err(Fault::at(content_key, "is required"));
        }
        if self.dialect == Dialect::Rerank && !self.has_documents {
            return Err(Fault::at("documents", "is required"));
        }
        self.facts.has_media = self.media.found;
        // llama-server refuses this pair on streams and takes it otherwise.
        self.facts.can_be_streamed &= !(self.wants_logprobs && self.tools.is_some());
        self.facts.prefix_hashes = self.prefix_hashes();
        Ok(self.facts)
    }

    fn prefix_hashes(&self) -> PrefixHashes {
        if !crate::dialect::can_stream(self.dialect) {
            return PrefixHashes::default();
        }
        let base = (self.system.is_some() || self.tools.is_some()).then(|| {
            let mut hasher = TextHasher::default();
            hasher.mix(self.tools.unwrap_or_default());
            hasher.mix(self.system.unwrap_or_default());
            hasher.value()
        });
        match self.prompt {
            Some(prompt) => prefix::of_prompt(prompt, base),
            None => self.conversation.hashes(base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const STRICT: RequestRules = RequestRules {
        model_required: true,
        media_allowed: false,
    };
    const LENIENT: RequestRules = RequestRules {
        model_required: false,
        media_allowed: true,
    };

    fn refused(dialect: Dialect, body: &str, param: Option<&str>, message: &str) {
        let error = read_request(dialect, body.as_bytes(), &STRICT).expect_err(body);
        assert_eq!(error.code, ErrorCode::InvalidParams);
        assert_eq!(
            (error.param.as_deref(), &*error.message),
            (param, message),
            "{body}"
        );
    }

    /// A chat with these messages is refused at `param`.
    fn refused_messages(dialect: Dialect, messages: &Value, param: &str, problem: &str) {
        let body = json!({"model": "m", "messages": messages}).to_string();
        refused(dialect, &body, Some(param), &format!("{param} {problem}"));
    }

    fn taken(dialect: Dialect, body: &Value) {
        let body = body.to_string();
        read_request(dialect, body.as_bytes(), &LENIENT).unwrap_or_else(|error| panic!("{body}: {error}"));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let chat = Dialect::ChatCompletions;
        refused(
            chat,
            "",
            None,
            "the body is not valid JSON: the text ends where a value should be at byte 0",
        );
        refused(chat, "[]", None, "the body must be a JSON object");
        refused(
            chat,
            "{",
            None,
            "the body is not valid JSON: expected a key in quotes at byte 1",
        );
        refused(
            chat,
            "{} x",
            None,
            "the body is not valid JSON: something follows the value at byte 3",
        );
        let error = read_request(chat, b"{\"a\":\"\xff\"}", &STRICT).unwrap_err();
        assert_eq!(error.message, "the body is not UTF-8 (at byte 6)");
        let nested = format!("{{\"a\":{}", "[".repeat(200_000));
        refused(
            chat,
            &nested,
            None,
            "the body is not valid JSON: nested too deep at byte 131",
        );
    }

    #[test]
    fn known_members_have_their_types() {
        let check = |member: &str, value: Value, problem: &str| {
            let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], member: value});
            let name = member.split('.').next().unwrap();
            refused(
                Dialect::ChatCompletions,
                &body.to_string(),
                Some(name),
                &format!("{name} {problem}"),
            );
        };
        check("model", json!(1), "must be a string");
        check("model", json!(""), "is required");
        check("model", json!(null), "is required");
        check("model", json!("x".repeat(257)), "must have at most 256 bytes");
        check("stream", json!("true"), "must be true or false");
        check("stream", json!(1), "must be true or false");
        check("max_tokens", json!("5"), "must be a whole number");
        check("max_tokens", json!(1.5), "must be a whole number");
        check("max_completion_tokens", json!([]), "must be a whole number");
        check("stream_options", json!(true), "must be an object");
        check("tools", json!({}), "must be an array");
        check("messages", json!("x"), "must be an array");
        check("messages", json!(null), "must be an array");
        check("messages", json!([]), "must not be empty");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (dialect, param) in [
            (Dialect::ChatCompletions, "messages"),
            (Dialect::Messages, "messages"),
            (Dialect::CountTokens, "messages"),
            (Dialect::Completions, "prompt"),
            (Dialect::Embeddings, "input"),
            (Dialect::Responses, "input"),
            (Dialect::Rerank, "query"),
        ] {
            refused(
                dialect,
                r#"{"model":"m"}"#,
                Some(param),
                &format!("{param} is required"),
            );
            refused(dialect, "{}", Some("model"), "model is required");
        }
        refused(
            Dialect::Rerank,
            r#"{"model":"m","query":"q"}"#,
            Some("documents"),
            "documents is required",
        );
    }

    #[test]
    fn messages_that_would_make_an_engine_fail_are_refused() {
        let chat = Dialect::ChatCompletions;
        refused_messages(chat, &json!(["x"]), "messages[0]", "must be an object");
        refused_messages(
            chat,
            &json!([{"content": "x"}]),
            "messages[0].role",
            "is required",
        );
        refused_messages(
            chat,
            &json!([{"role": 1, "content": "x"}]),
            "messages[0].role",
            "must be a string",
        );
        refused_messages(
            chat,
            &json!([{"role": "user"}]),
            "messages[0].content",
            "is required",
        );
        let user = json!({"role": "user", "content": "x"});
        let content = |content: Value| json!([user, {"role": "user", "content": content}]);
        refused_messages(
            chat,
            &content(json!(5)),
            "messages[1].content",
            "must be a string or an array",
        );
        refused_messages(
            chat,
            &content(json!({})),
            "messages[1].content",
            "must be a string or an array",
        );
        refused_messages(
            chat,
            &content(json!(["x"])),
            "messages[1].content[0]",
            "must be an object",
        );
        refused_messages(
            chat,
            &content(json!([{"text": "x"}])),
            "messages[1].content[0].type",
            "is required",
        );
        refused_messages(
            chat,
            &content(json!([{"type": 1}])),
            "messages[1].content[0].type",
            "must be a string",
        );
        refused_messages(
            chat,
            &content(json!([{"type": "text"}])),
            "messages[1].content[0].text",
            "is required",
        );
        refused_messages(
            chat,
            &content(json!([{"type": "text", "text": null}])),
            "messages[1].content[0].text",
            "must be a string",
        );
        let calls = |calls: Value| json!([{"role": "assistant", "tool_calls": calls}]);
        refused_messages(
            chat,
            &calls(json!("x")),
            "messages[0].tool_calls",
            "must be an array",
        );
        refused_messages(
            chat,
            &calls(json!([1])),
            "messages[0].tool_calls[0]",
            "must be an object",
        );
        refused_messages(
            chat,
            &calls(json!([{"type": "function", "function": 1}])),
            "messages[0].tool_calls[0].function",
            "must be an object",
        );
        refused_messages(
            chat,
            &calls(json!([{"type": "function", "function": {"name": 1}}])),
            "messages[0].tool_calls[0].function.name",
            "must be a string",
        );
    }

    #[test]
    fn media_is_refused_where_it_stands_unless_allowed() {
        let part = |kind: &str| json!({"type": kind, kind: {"url": "data:"}});
        let picture = |content: Value| json!([{"role": "user", "content": content}]);
        for kind in ["image_url", "input_audio", "input_video", "file"] {
            let problem = format!("is of type {kind}: this model takes text only");
            let messages = picture(json!([{"type": "text", "text": "x"}, part(kind)]));
            refused_messages(
                Dialect::ChatCompletions,
                &messages,
                "messages[0].content[1]",
                &problem,
            );
            let body = json!({"messages": messages}).to_string();
            assert!(
                read_request(Dialect::ChatCompletions, body.as_bytes(), &LENIENT)
                    .unwrap()
                    .has_media
            );
        }
        let result =
            json!({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]});
        refused_messages(
            Dialect::Messages,
            &picture(json!([result])),
            "messages[0].content[0].content[0]",
            "is of type image: this model takes text only",
        );
        let body = json!({"model": "m", "input": [{"role": "user", "content": [
            {"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "data:"},
        ]}]});
        refused(
            Dialect::Responses,
            &body.to_string(),
            Some("input[0].content[1]"),
            "input[0].content[1] is of type input_image: this model takes text only",
        );
    }

    #[test]
    fn what_real_clients_send_is_taken() {
        // A message of OpenAI's own library given back as it came.
        let echoed = json!({"role": "assistant", "content": "x", "refusal": null, "annotations": [], "audio": null,
            "function_call": null, "tool_calls": null, "name": null});
        let call = json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "d", "type": "custom", "custom": {"name": "f", "input": "x"}},
        ]});
        let result = json!({"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]});
        taken(
            Dialect::ChatCompletions,
            &json!({
                "model": "m", "messages": [{"role": "developer", "content": "x"}, echoed, call, result],
                "stream": null, "stream_options": null, "max_tokens": -1, "temperature": 1, "response_format": {"type": "text"},
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "x": [{}],
            }),
        );
        // Claude Code.
        taken(
            Dialect::Messages,
            &json!({
                "model": "claude-x", "max_tokens": 32000, "stream": true, "metadata": {"user_id": "u"},
                "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
                "thinking": {"type": "adaptive"}, "context_management": {"edits": []}, "betas": ["x"],
                "tools": [{"name": "Bash", "description": "d", "input_schema": {"type": "object"}},
                    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls"}},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": "x", "is_error": false},
                        {"type": "tool_result", "tool_use_id": "t"},
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
                    ]},
                ],
            }),
        );
        // Codex.
        taken(
            Dialect::Responses,
            &json!({
                "model": "m", "instructions": "x", "store": false, "stream": true, "include": ["reasoning.encrypted_content"],
                "prompt_cache_key": "k", "reasoning": {"effort": "high", "summary": "auto"}, "parallel_tool_calls": true,
                "tools": [{"type": "function", "name": "shell", "strict": false, "parameters": {}}, {"type": "local_shell"},
                    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, {"type": "web_search"}],
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
                    {"type": "reasoning", "summary": [], "content": null, "encrypted_content": "x"},
                    {"type": "function_call", "call_id": "c", "name": "shell", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "x"},
                    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
                    {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
                ],
            }),
        );
        taken(Dialect::Completions, &json!({"prompt": ["a", "b"]}));
        taken(Dialect::Completions, &json!({"prompt": [1, 2, 3]}));
        taken(
            Dialect::Embeddings,
            &json!({"input": [[1, 2], [3]], "encoding_format": "base64"}),
        );
        taken(
            Dialect::Rerank,
            &json!({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
        );
        taken(Dialect::Rerank, &json!({"query": "q", "texts": ["a"]}));
    }

    #[test]
    fn the_facts_are_those_of_the_body() {
        let body = r#" {"a":{"model":"no","stream":true},"model":"m\u0065","stream":true,"max_tokens":10.0,
            "stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}],"prompt_cache_key":"k"}"#;
        let facts = read_request(Dialect::ChatCompletions, body.as_bytes(), &STRICT).unwrap();
        assert_eq!(facts.model.as_deref(), Some("me"));
        assert_eq!(
            (facts.stream, facts.include_usage, facts.max_tokens),
            (true, true, Some(10))
        );
        assert_eq!(facts.cache_key.as_deref(), Some("k"));
        assert!(facts.can_be_streamed && !facts.has_media);
        let facts_of = |body: Value| {
            let body = body.to_string();
            let facts = read_request(Dialect::ChatCompletions, body.as_bytes(), &LENIENT).unwrap();
            (facts.max_tokens, facts.can_be_streamed)
        };
        let messages = json!([{"role": "user", "content": "x"}]);
        let tool = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(
            facts_of(json!({"messages": messages, "max_tokens": -1})),
            (None, true)
        );
        assert_eq!(
            facts_of(json!({"messages": messages, "logprobs": true, "tools": [tool]})),
            (None, false)
        );
        assert_eq!(
            facts_of(json!({"messages": messages, "logprobs": false, "tools": [tool]})),
            (None, true)
        );
        assert_eq!(
            facts_of(json!({"messages": messages, "logprobs": true, "tools": []})),
            (None, true)
        );
    }

    fn hashes(dialect: Dialect, body: &Value) -> PrefixHashes {
        read_request(dialect, body.to_string().as_bytes(), &LENIENT)
            .unwrap()
            .prefix_hashes
    }

    #[test]
    fn the_next_turn_of_a_conversation_has_the_last_one_as_its_beginning() {
        let turns = |count: usize| {
            let messages: Vec<Value> = (0..count)
                .map(|n| {
                    let role = if n.is_multiple_of(2) { "user" } else { "assistant" };
                    // The last one carries a marker, as Claude Code sets it.
                    if n + 1 == count {
                        json!({"role": role, "content": [
                            {"type": "text", "text": format!("text {n}"), "cache_control": {"type": "ephemeral"}}]})
                    } else {
                        json!({"role": role, "content": format!("text {n}")})
                    }
                })
                .collect();
            json!({"system": "s", "tools": [{"name": "t"}], "messages": messages})
        };
        for count in 1..40 {
            let before = hashes(Dialect::Messages, &turns(count));
            let after = hashes(Dialect::Messages, &turns(count + 2));
            assert_eq!(after[2], before[0], "{count}");
        }
        let mut other = turns(3);
        other["system"] = json!("another");
        let (one, other) = (
            hashes(Dialect::Messages, &turns(3)),
            hashes(Dialect::Messages, &other),
        );
        assert!(one.iter().all(|hash| !other.contains(hash)));
    }

    #[test]
    fn what_stands_before_the_messages_counts_wherever_it_stands() {
        let first = r#"{"tools":[{"name":"t"}],"system":"s","messages":[{"role":"user","content":"x"}]}"#;
        let last = r#"{"messages":[{"role":"user","content":"x"}],"system":"s","tools":[{"name":"t"}]}"#;
        let read = |body: &str| {
            read_request(Dialect::Messages, body.as_bytes(), &LENIENT)
                .unwrap()
                .prefix_hashes
        };
        assert_eq!(read(first), read(last));
        assert_eq!(read(first).len(), 2);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_unreadable_is_taken(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for dialect in crate::dialect::DIALECTS {
                let taken = read_request(dialect, &bytes, &LENIENT).is_ok();
                prop_assert!(!taken || serde_json::from_slice::<Value>(&bytes).is_ok());
            }
        }

        #[test]
        fn what_is_taken_is_what_serde_json_reads(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("\"messages\":"), Just("\"input\":"), Just("\"role\":\"user\""), Just("\"content\":"),
                    Just("\"x\""), Just("["), Just("]"), Just("{"), Just("}"), Just(","), Just("\"type\":\"text\""),
                    Just("\"text\":\"x\""), Just("null"), Just("1"), Just("\"tools\":"), Just("\"stream\":true"),
                ],
                0..20,
            )
        ) {
            let body = format!("{{{}}}", pieces.concat());
            for dialect in crate::dialect::DIALECTS {
                let taken = read_request(dialect, body.as_bytes(), &LENIENT).is_ok();
                prop_assert!(!taken || serde_json::from_str::<Value>(&body).is_ok(), "{}", body);
            }
        }
    }
}
