//! From what CLIs and providers say to the error codes of the API.

use task_api::ErrorCode;

use super::event::{Failure, MESSAGE_BYTES_MAX, cut};

/// Words that mean a login, whatever else stands around them.
const LOGIN_WORDS: [&str; 10] = [
    "unauthorized",
    "unauthenticated",
    "authentication",
    "authenticate",
    "not logged in",
    "please run /login",
    "invalid api key",
    "invalid key",
    "api key not valid",
    "token expired",
];

/// Words that mean a limit.
const LIMIT_WORDS: [&str; 6] = [
    "too many requests",
    "rate limit",
    "usage limit",
    "quota",
    "resource_exhausted",
    "limit reached",
];

/// What kind of failure it is.
pub(crate) fn code(status: Option<u64>, message: &str) -> ErrorCode {
    match status {
        Some(401 | 403) => return ErrorCode::Unauthenticated,
        Some(429) => return ErrorCode::AdmissionReject,
        Some(400 | 404 | 413 | 422) => return ErrorCode::InvalidParams,
        Some(408 | 504) => return ErrorCode::DecodeTimeout,
        Some(500..=599) => return ErrorCode::WorkerReset,
        _ => {}
    }
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&LOGIN_WORDS) {
        ErrorCode::Unauthenticated
    } else if says(&LIMIT_WORDS) {
        ErrorCode::AdmissionReject
    } else if says(&["timed out", "timeout"]) {
        ErrorCode::DecodeTimeout
    } else {
        ErrorCode::WorkerReset
    }
}

/// A failure of `agent` with what to do about it.
pub(crate) fn failure(
    agent: &str,
    status: Option<u64>,
    message: &str,
    retry_after_ms: Option<u64>,
) -> Failure {
    let code = code(status, message);
    let message = cut(message.trim(), MESSAGE_BYTES_MAX);
    let message = match code {
        ErrorCode::Unauthenticated => {
            format!("{agent} has no valid login: run `remuda login {agent}` ({message})")
        }
        _ if message.is_empty() => format!("{agent} failed without saying why"),
        _ => format!("{agent}: {message}"),
    };
    Failure {
        code,
        message,
        retry_after_ms: match code {
            ErrorCode::AdmissionReject => retry_after_ms,
            _ => None,
        },
    }
}

/// How long until a moment, given as Unix time in seconds.
pub(crate) fn until(now_ms: u64, at_s: u64) -> u64 {
    at_s.saturating_mul(1000).saturating_sub(now_ms)
}
