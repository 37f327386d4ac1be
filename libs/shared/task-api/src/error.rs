//! Errors: one set of codes for the whole API, each with one HTTP status.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What went wrong, for a program.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The request is malformed; the message names the field.
    InvalidParams,
    /// The request's body is longer than is taken.
    RequestTooLarge,
    /// No key, or one that is not known.
    Unauthenticated,
    /// The key is known and may not do this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The thing exists in a state that rules the request out.
    Conflict,
    /// The pool's queue is full and the policy is to reject.
    AdmissionReject,
    /// The task was dropped from a full queue in favour of another.
    QueueFullDropLru,
    /// The deadline cannot be met, or was not met while the task waited.
    DeadlineUnmet,
    /// The pool exists and has no replica that is ready.
    PoolUnready,
    /// The pool or the nodes that had it are gone.
    PoolUnavailable,
    /// All slots are taken and the task may not wait.
    ReplicaExhausted,
    /// The engine stopped sending.
    DecodeTimeout,
    /// The engine or its node died while the task ran.
    WorkerReset,
    /// The client, or somebody who may, cancelled the task.
    Cancelled,
    /// The control plane itself failed.
    Internal,
}

impl ErrorCode {
    /// Every code, for documents and tests.
    pub const ALL: [Self; 16] = [
        Self::InvalidParams,
        Self::RequestTooLarge,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::AdmissionReject,
        Self::QueueFullDropLru,
        Self::DeadlineUnmet,
        Self::PoolUnready,
        Self::PoolUnavailable,
        Self::ReplicaExhausted,
        Self::DecodeTimeout,
        Self::WorkerReset,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The HTTP status that goes with the code.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidParams => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::RequestTooLarge => 413,
            Self::DeadlineUnmet => 422,
            Self::AdmissionReject | Self::QueueFullDropLru => 429,
            Self::Cancelled => 499,
            Self::Internal => 500,
            Self::WorkerReset => 502,
            Self::PoolUnready | Self::PoolUnavailable | Self::ReplicaExhausted => 503,
            Self::DecodeTimeout => 504,
        }
    }

    /// Whether the same request may succeed when it is sent again.
    pub const fn retriable(self) -> bool {
        match self {
            Self::AdmissionReject
            | Self::QueueFullDropLru
            | Self::PoolUnready
            | Self::PoolUnavailable
            | Self::ReplicaExhausted
            | Self::DecodeTimeout
            | Self::WorkerReset
            | Self::Internal => true,
            Self::InvalidParams
            | Self::RequestTooLarge
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::NotFound
            | Self::Conflict
            | Self::DeadlineUnmet
            | Self::Cancelled => false,
        }
    }

    /// The code as it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidParams => "INVALID_PARAMS",
            Self::RequestTooLarge => "REQUEST_TOO_LARGE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::AdmissionReject => "ADMISSION_REJECT",
            Self::QueueFullDropLru => "QUEUE_FULL_DROP_LRU",
            Self::DeadlineUnmet => "DEADLINE_UNMET",
            Self::PoolUnready => "POOL_UNREADY",
            Self::PoolUnavailable => "POOL_UNAVAILABLE",
            Self::ReplicaExhausted => "REPLICA_EXHAUSTED",
            Self::DecodeTimeout => "DECODE_TIMEOUT",
            Self::WorkerReset => "WORKER_RESET",
            Self::Cancelled => "CANCELLED",
            Self::Internal => "INTERNAL",
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For the person who sent the request: what happened, where, what to do. Holds no secret.
    pub message: Cow<'static, str>,
    /// The request's field that is at fault, as a JSON path without the leading `$.`.
    pub param: Option<String>,
    /// When to try again, computed from the state of the queue or the limit that refused.
    pub retry_after_ms: Option<u64>,
    /// For the operator's log only.
    pub internal: Option<String>,
}

impl ApiError {
    /// An error with a code and a message for the caller.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after_ms: None,
            internal: None,
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Adds what only the operator may read.
    #[must_use]
    pub fn with_internal(mut self, internal: impl Into<String>) -> Self {
        self.internal = Some(internal.into());
        self
    }

    /// The error as `/v2` answers carry it.
    pub fn body(&self, correlation_id: Option<String>) -> ErrorBody {
        ErrorBody {
            code: self.code,
            message: self.message.to_string(),
            param: self.param.clone(),
            retriable: self.code.retriable(),
            retry_after_ms: self.retry_after_ms,
            correlation_id,
        }
    }
}

/// The body of every error answer under `/v2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The request's correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_reads_the_same_in_json_and_in_text() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!((400..600).contains(&code.http_status()));
        }
    }
}
