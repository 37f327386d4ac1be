//! Errors in the shape that each dialect's clients expect, and what an engine's own errors mean.
//!
//! Our [`ErrorCode`] stands in OpenAI's `code`; its `type` and Anthropic's follow from the HTTP status, because that is
//! what those clients' libraries choose their exceptions by.

use bytes::Bytes;
use pool_registry_types::Dialect;
use serde::Serialize;
use task_api::{ApiError, ErrorCode};

use crate::dialect::is_anthropic;
use crate::json::Scanner;

/// How much of an engine's own message is passed on, in bytes.
const ENGINE_MESSAGE_LEN_MAX: usize = 2048;

/// How much of an engine's error answer is worth reading, in bytes.
pub const ENGINE_ERROR_LEN_MAX: usize = 64 * 1024;

#[derive(Serialize)]
struct OpenAiError<'e> {
    message: &'e str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'e str>,
    code: &'e str,
}

impl<'e> OpenAiError<'e> {
    fn new(error: &'e ApiError) -> Self {
        let code = match error.code {
            // The code by which OpenAI's clients know a wrong key.
            ErrorCode::Unauthenticated => "invalid_api_key",
            code => code.as_str(),
        };
        let kind = openai_type(error.code.http_status());
        Self {
            message: &error.message,
            kind,
            param: error.param.as_deref(),
            code,
        }
    }
}

#[derive(Serialize)]
struct AnthropicError<'e> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'e str,
}

impl<'e> AnthropicError<'e> {
    fn new(error: &'e ApiError) -> Self {
        Self {
            kind: anthropic_type(error.code.http_status()),
            message: &error.message,
        }
    }
}

const fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "service_unavailable_error",
        _ => "server_error",
    }
}

const fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers can always be written as JSON")
}

/// The HTTP status and the body of an error answer.
pub fn error_body(dialect: Dialect, error: &ApiError, correlation_id: Option<&str>) -> (u16, Bytes) {
    #[derive(Serialize)]
    struct OpenAi<'e> {
        error: OpenAiError<'e>,
    }
    #[derive(Serialize)]
    struct Anthropic<'e> {
        #[serde(rename = "type")]
        kind: &'static str,
        error: AnthropicError<'e>,
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'e str>,
    }
    let body = if is_anthropic(dialect) {
        to_bytes(&Anthropic {
            kind: "error",
            error: AnthropicError::new(error),
            request_id: correlation_id,
        })
    } else {
        to_bytes(&OpenAi {
            error: OpenAiError::new(error),
        })
    };
    (error.code.http_status(), body.into())
}

/// The bytes that tell a client in mid-stream that no more will come. Nothing follows them, no `[DONE]` either.
///
/// What was sent before may have been cut inside an event; the bytes begin with a blank line when `mid_event` says so,
/// so that they are an event of their own.
pub fn error_event(dialect: Dialect, error: &ApiError, mid_event: bool) -> Bytes {
    let mut out = if mid_event { b"\n\n".to_vec() } else { Vec::new() };
    match dialect {
        Dialect::Messages | Dialect::CountTokens => {
            let (_, body) = error_body(dialect, error, None);
            push_event(&mut out, Some("error"), &body);
        }
        Dialect::Responses => push_responses_error(&mut out, error),
        Dialect::ChatCompletions | Dialect::Completions | Dialect::Embeddings | Dialect::Rerank => {
            let (_, body) = error_body(dialect, error, None);
            push_event(&mut out, None, &body);
        }
    }
    out.into()
}

/// Two events: OpenAI's libraries raise at the first (because of its `error` member), Codex reads the second.
fn push_responses_error(out: &mut Vec<u8>, error: &ApiError) {
    #[derive(Serialize)]
    struct Error<'e> {
        #[serde(rename = "type")]
        kind: &'static str,
        code: &'static str,
        message: &'e str,
        param: Option<&'e str>,
        error: OpenAiError<'e>,
    }
    #[derive(Serialize)]
    struct Failed<'e> {
        #[serde(rename = "type")]
        kind: &'static str,
        response: FailedResponse<'e>,
    }
    #[derive(Serialize)]
    struct FailedResponse<'e> {
        object: &'static str,
        status: &'static str,
        output: [u8; 0],
        error: OpenAiError<'e>,
    }
    let code = error.code.as_str();
    let event = Error {
        kind: "error",
        code,
        message: &error.message,
        param: error.param.as_deref(),
        error: OpenAiError::new(error),
    };
    push_event(out, Some("error"), &to_bytes(&event));
    let response = FailedResponse {
        object: "response",
        status: "failed",
        output: [],
        error: OpenAiError::new(error),
    };
    push_event(
        out,
        Some("response.failed"),
        &to_bytes(&Failed {
            kind: "response.failed",
            response,
        }),
    );
}

fn push_event(out: &mut Vec<u8>, name: Option<&str>, data: &[u8]) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

/// What an engine's answer means before any of its body has been passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Give it to the client.
    Pass,
    /// The engine refuses this request and would refuse it everywhere: give the refusal to the client, in the client's
    /// shape when it is not yet (see [`engine_error`]).
    Refused,
    /// This replica cannot do it now; another one may.
    PlaceAgain,
    /// The engine failed at this request. Another replica may be tried once, and a body is worth reading
    /// ([`engine_error`]): an engine that could not read the request says so with a 500 too.
    Failed,
}

/// Judges an engine's answer by its status.
pub fn judge_engine_response(status: http::StatusCode, headers: &http::HeaderMap) -> Verdict {
    if headers
        .keys()
        .any(|name| name.as_str() == pool_registry_types::NODE_REFUSAL_HEADER)
    {
        return Verdict::PlaceAgain;
    }
    match status.as_u16() {
        200..=299 => Verdict::Pass,
        // The engine has no such model (any more), wants another key than we have, is full, or still loads: all of
        // that is between us and the engine.
        401 | 403 | 404 | 408 | 425 | 429 | 502 | 503 | 504 => Verdict::PlaceAgain,
        400..=499 | 501 => Verdict::Refused,
        _ => Verdict::Failed,
    }
}

/// What an engine's error answer (or error event) says, as an error of ours.
///
/// Knows the shapes of OpenAI, of llama.cpp (the same with a number as `code`), of Anthropic and of vLLM (without
/// `error` around it). An engine that failed because it could not make sense of the request is the client's error.
pub fn engine_error(status: u16, body: &[u8]) -> ApiError {
    let said = EngineError::read(body);
    let status = said
        .status
        .filter(|status| (400..600).contains(status))
        .unwrap_or(status);
    let message = said
        .message
        .unwrap_or_else(|| format!("the engine answered with status {status}"));
    let is_clients = matches!(status, 400 | 405..=428 | 430..=499 | 501)
        || said
            .kind
            .is_some_and(|kind| kind == "invalid_request_error" || kind == "exceed_context_size_error")
        || (status == 500 && blames_request(&message));
    let code = match status {
        413 => ErrorCode::RequestTooLarge,
        _ if is_clients => ErrorCode::InvalidParams,
        429 | 503 => ErrorCode::ReplicaExhausted,
        504 => ErrorCode::DecodeTimeout,
        _ => ErrorCode::WorkerReset,
    };
    ApiError::new(code, message)
}

/// llama.cpp answers 500 when it cannot make sense of a request; only the message tells.
fn blames_request(message: &str) -> bool {
    const BEGINNINGS: [&str; 7] = [
        "[json.exception.",
        "Failed to parse messages",
        "Failed to parse tools",
        "Unsupported param",
        "Only no echo",
        "parse error",
        "\"prompt\" elements must be",
    ];
    BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        || message.contains("input is not supported")
        || message.contains("is required")
        || message.contains("too large to process")
}

/// The members of an engine's error that say something.
#[derive(Default)]
struct EngineError {
    status: Option<u16>,
    kind: Option<String>,
    message: Option<String>,
}

impl EngineError {
    fn read(body: &[u8]) -> Self {
        let mut said = Self::default();
        let text = std::str::from_utf8(body).unwrap_or_default().trim();
        if said.members(&mut Scanner::new(text)).is_none()
            && !text.is_empty()
            && !text.starts_with(['{', '<'])
        {
            said.message = Some(text.to_owned());
        }
        if let Some(message) = &mut said.message {
            let end = message.floor_char_boundary(ENGINE_MESSAGE_LEN_MAX);
            message.truncate(end);
        }
        said
    }

    /// None when there is no JSON object.
    fn members(&mut self, scanner: &mut Scanner<'_>) -> Option<()> {
        scanner
            .object(|scanner, key| {
                let key = key.decode();
                let holds_error = matches!(&*key, "error" | "response");
                if holds_error && scanner.kind()? == crate::json::Kind::Object {
                    self.members(scanner);
                    return Ok(());
                }
                let raw = scanner.raw()?;
                match &*key {
                    "message" | "detail" | "error" => {
                        self.message = serde_json::from_str(raw).ok().or(self.message.take());
                    }
                    "type" => self.kind = serde_json::from_str(raw).ok(),
                    "code" => self.status = raw.parse().ok(),
                    _ => {}
                }
                Ok::<(), crate::json::JsonError>(())
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, StatusCode};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn body(dialect: Dialect, error: &ApiError) -> (u16, Value) {
        let (status, body) = error_body(dialect, error, Some("c-1"));
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn each_dialect_has_its_own_shape() {
        let error = ApiError::new(ErrorCode::InvalidParams, "n is wrong")
            .with_param("n")
            .with_internal("secret");
        let openai = json!({"error": {
            "message": "n is wrong", "type": "invalid_request_error", "param": "n", "code": "INVALID_PARAMS"}});
        let anthropic = json!({"type": "error", "request_id": "c-1",
            "error": {"type": "invalid_request_error", "message": "n is wrong"}});
        for dialect in crate::dialect::DIALECTS {
            let expect = if is_anthropic(dialect) {
                &anthropic
            } else {
                &openai
            };
            assert_eq!(body(dialect, &error), (400, expect.clone()), "{dialect:?}");
        }
    }

    #[test]
    fn types_follow_from_the_status() {
        let types = |code| {
            let error = ApiError::new(code, "x");
            let (status, openai) = body(Dialect::ChatCompletions, &error);
            let (_, anthropic) = body(Dialect::Messages, &error);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                status,
                text(&openai["error"]["type"]),
                text(&openai["error"]["code"]),
                text(&anthropic["error"]["type"]),
            )
        };
        let check = |code, status, openai: &str, openai_code: &str, anthropic: &str| {
            let expect = (
                status,
                openai.to_owned(),
                openai_code.to_owned(),
                anthropic.to_owned(),
            );
            assert_eq!(types(code), expect);
        };
        check(
            ErrorCode::Unauthenticated,
            401,
            "authentication_error",
            "invalid_api_key",
            "authentication_error",
        );
        check(
            ErrorCode::RequestTooLarge,
            413,
            "invalid_request_error",
            "REQUEST_TOO_LARGE",
            "request_too_large",
        );
        check(
            ErrorCode::NotFound,
            404,
            "not_found_error",
            "NOT_FOUND",
            "not_found_error",
        );
        check(
            ErrorCode::AdmissionReject,
            429,
            "rate_limit_error",
            "ADMISSION_REJECT",
            "rate_limit_error",
        );
        check(
            ErrorCode::PoolUnready,
            503,
            "service_unavailable_error",
            "POOL_UNREADY",
            "overloaded_error",
        );
        check(
            ErrorCode::WorkerReset,
            502,
            "server_error",
            "WORKER_RESET",
            "api_error",
        );
        check(
            ErrorCode::DecodeTimeout,
            504,
            "server_error",
            "DECODE_TIMEOUT",
            "timeout_error",
        );
        check(
            ErrorCode::DeadlineUnmet,
            422,
            "invalid_request_error",
            "DEADLINE_UNMET",
            "invalid_request_error",
        );
    }

    #[test]
    fn an_error_event_is_an_error_to_whoever_watches() {
        let error = ApiError::new(ErrorCode::WorkerReset, "the engine\ndied");
        for dialect in crate::dialect::DIALECTS
            .into_iter()
            .filter(|dialect| crate::dialect::can_stream(*dialect))
        {
            for mid_event in [false, true] {
                let begun: &[u8] = if mid_event {
                    b"data: {\"cho"
                } else {
                    b"data: {}\n\n"
                };
                let mut watch = crate::StreamWatch::new(dialect);
                watch.feed(begun);
                watch.feed(&error_event(dialect, &error, mid_event));
                match watch.finish() {
                    crate::StreamEnd::Error(seen) => assert_eq!(seen.message, error.message, "{dialect:?}"),
                    end => panic!("{dialect:?}: {end:?}"),
                }
            }
        }
    }

    #[test]
    fn error_events_are_what_the_clients_read() {
        let error = ApiError::new(ErrorCode::WorkerReset, "gone");
        let event = |dialect| String::from_utf8(error_event(dialect, &error, false).to_vec()).unwrap();
        let openai = r#"{"message":"gone","type":"server_error","param":null,"code":"WORKER_RESET"}"#;
        assert_eq!(
            event(Dialect::ChatCompletions),
            format!("data: {{\"error\":{openai}}}\n\n")
        );
        assert_eq!(
            event(Dialect::Messages),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"gone\"}}\n\n"
        );
        let first = format!(
            "event: error\ndata: {{\"type\":\"error\",\"code\":\"WORKER_RESET\",\"message\":\"gone\",\"param\":null,\
             \"error\":{openai}}}\n\n"
        );
        let second = format!(
            "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{{\"object\":\"response\",\
             \"status\":\"failed\",\"output\":[],\"error\":{openai}}}}}\n\n"
        );
        assert_eq!(event(Dialect::Responses), first + &second);
    }

    #[test]
    fn an_engines_status_is_judged() {
        let judge =
            |status: u16| judge_engine_response(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        for (status, expect) in [
            (200, Verdict::Pass),
            (400, Verdict::Refused),
            (413, Verdict::Refused),
            (422, Verdict::Refused),
            (501, Verdict::Refused),
            (404, Verdict::PlaceAgain),
            (429, Verdict::PlaceAgain),
            (502, Verdict::PlaceAgain),
            (503, Verdict::PlaceAgain),
            (500, Verdict::Failed),
            (302, Verdict::Failed),
        ] {
            assert_eq!(judge(status), expect, "{status}");
        }
        let mut headers = HeaderMap::new();
        let refusal = HeaderValue::from_static("REPLICA_EXHAUSTED");
        headers.insert(pool_registry_types::NODE_REFUSAL_HEADER, refusal);
        assert_eq!(
            judge_engine_response(StatusCode::BAD_REQUEST, &headers),
            Verdict::PlaceAgain
        );
    }

    #[test]
    fn an_engines_words_are_kept() {
        let check = |status, body: &str, code, message: &str| {
            let error = engine_error(status, body.as_bytes());
            assert_eq!((error.code, &*error.message), (code, message), "{body}");
        };
        let llama = |code: u16, kind: &str, message: &str| {
            json!({"error": {"code": code, "message": message, "type": kind, "n_ctx": 512}}).to_string()
        };
        let (clients, engines) = (ErrorCode::InvalidParams, ErrorCode::WorkerReset);
        check(
            400,
            &llama(400, "exceed_context_size_error", "too long"),
            clients,
            "too long",
        );
        check(
            500,
            &llama(500, "server_error", "Compute error."),
            engines,
            "Compute error.",
        );
        check(
            503,
            &llama(503, "unavailable_error", "Loading model"),
            ErrorCode::ReplicaExhausted,
            "Loading model",
        );
        check(
            501,
            &llama(501, "not_supported_error", "no embeddings"),
            clients,
            "no embeddings",
        );
        let blamed = "Failed to parse messages: type must be string, but is null";
        check(500, &llama(500, "server_error", blamed), clients, blamed);
        check(
            500,
            &llama(500, "server_error", "image input is not supported - hint"),
            clients,
            "image input is not supported - hint",
        );
        check(
            404,
            r#"{"object":"error","message":"no such model","code":404}"#,
            engines,
            "no such model",
        );
        check(413, r#"{"error":"big"}"#, ErrorCode::RequestTooLarge, "big");
        check(422, r#"{"detail":"bad"}"#, clients, "bad");
        check(400, r#"{"error":"bad"}"#, clients, "bad");
        check(500, "out of memory", engines, "out of memory");
        check(
            502,
            "<html>nginx</html>",
            engines,
            "the engine answered with status 502",
        );
        check(
            500,
            "{\"error\":{\"message\":\"cut",
            engines,
            "the engine answered with status 500",
        );
        check(500, "", engines, "the engine answered with status 500");
        assert!(engine_error(500, "ä".repeat(5000).as_bytes()).message.len() <= ENGINE_MESSAGE_LEN_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), status: u16) {
            engine_error(status, &bytes);
        }
    }
}
