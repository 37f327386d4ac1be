//! The spans of a task: admission, placement, dispatch, engine, stream, under one for the request.
//!
//! Without an exporter none is made: each function then gives a span that is nothing and costs a load.

use daemon::telemetry::{trace_context, tracing_enabled};
use http::HeaderMap;
use scheduler::ReplicaInfo;
use tracing::{Span, field, info_span};

use crate::plane::Grant;

/// The whole request, a child of the client's own span if it names one.
pub(crate) fn request(path: &str, headers: &HeaderMap, correlation_id: &str) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    let span = info_span!("request", path, correlation_id, task_id = field::Empty);
    trace_context::set_parent(&span, headers);
    span
}

/// The decision to take a task.
pub(crate) fn admission() -> Span {
    if tracing_enabled() {
        info_span!("admission")
    } else {
        Span::none()
    }
}

/// The wait for a slot, and the choice of the replica.
pub(crate) fn placement() -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    info_span!(
        "placement",
        pool_id = field::Empty,
        replica_id = field::Empty,
        node_id = field::Empty,
        reasons = field::Empty
    )
}

/// Writes down what was chosen, and why.
pub(crate) fn placed(span: &Span, grant: &Grant) {
    if span.is_none() {
        return;
    }
    let info = grant.info();
    span.record("pool_id", info.pool_id.as_str());
    span.record("replica_id", info.replica_id.as_str());
    span.record("node_id", info.node_id.as_str());
    let reasons: Vec<String> = grant.reasons().iter().map(|reason| reason.to_string()).collect();
    span.record("reasons", reasons.join("; "));
}

/// The way to the node.
pub(crate) fn dispatch(info: &ReplicaInfo) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    info_span!("dispatch", pool_id = %info.pool_id, replica_id = %info.replica_id, node_id = %info.node_id)
}

/// From the request's first byte at the node to the head of the engine's answer.
pub(crate) fn engine(info: &ReplicaInfo) -> Span {
    if tracing_enabled() {
        info_span!("engine", engine = info.engine)
    } else {
        Span::none()
    }
}

/// The answer on its way.
pub(crate) fn stream() -> Span {
    if tracing_enabled() {
        info_span!("stream", tokens_out = field::Empty)
    } else {
        Span::none()
    }
}
