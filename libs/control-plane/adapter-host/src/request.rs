//! Reading a request: what has to be known of it, and whether an engine could read it at all.
//!
//! A body is read once, from front to back, and stays as it is: known members are checked as far as a wrong type would
//! make an engine fail instead of refuse, unknown ones pass. Where clients and engines disagree about what is allowed,
//! this is the lenient side; the engine has the last word and its refusal is passed on.

mod shape;

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
                self.tools = shape::tools(scanner)?;
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
