//! Errors in Google's shape: a status in words beside the number, and when to come again among the details.

use bytes::Bytes;
use serde_json::{Value, json};
use task_api::{ApiError, ErrorCode};

/// The HTTP status and the body of an error. In a stream the body stands alone, without `data:`: that is what Google's
/// own clients look for.
pub fn gemini_error(error: &ApiError, correlation_id: Option<&str>) -> (u16, Bytes) {
    let status = error.code.http_status();
    let mut metadata = json!({});
    if let Some(id) = correlation_id {
        metadata["correlation_id"] = id.into();
    }
    if let Some(param) = &error.param {
        metadata["param"] = param.as_str().into();
    }
    let mut details = vec![json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code.as_str(), "domain": "remuda", "metadata": metadata,
    })];
    if let Some(retry_after_ms) = error.retry_after_ms {
        let seconds = retry_after_ms.div_ceil(1000).max(1);
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{seconds}s"),
        }));
    }
    let message = match &error.param {
        Some(param) => format!("{param}: {}", error.message),
        None => error.message.to_string(),
    };
    let body = json!({"error": {
        "code": status, "message": message, "status": status_name(status), "details": details,
    }});
    (status, body.to_string().into())
}

/// The canonical name of an HTTP status (`google.rpc.Code`).
const fn status_name(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        422 => "FAILED_PRECONDITION",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        400..=498 => "INVALID_ARGUMENT",
        502 | 503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    }
}

/// The error that stands in an answer of chat completions.
pub(super) fn told(error: &Value, status: u16) -> ApiError {
    let ours = error["code"].as_str();
    let code = ours.and_then(|code| serde_json::from_value::<ErrorCode>(code.into()).ok());
    match (code, error["message"].as_str()) {
        (Some(code), Some(message)) => ApiError::new(code, message.to_owned()),
        _ => crate::engine_error(status, json!({"error": error}).to_string().as_bytes()),
    }
}
