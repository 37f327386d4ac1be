//! W3C trace context: taking it from a request, giving it to the next one.
//!
//! Without an exporter the headers pass through unchanged, so that a trace of the client still holds together at the
//! engine. <https://www.w3.org/TR/trace-context/>

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Who called, and in which trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What other tracing systems want to have passed on.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// More of `tracestate` than this need not be passed on.
const TRACESTATE_BYTES_MAX: usize = 4096;

/// Makes the span a child of the request's caller, if the request names one.
pub fn set_parent(span: &Span, incoming: &HeaderMap) {
    let Some(caller) = incoming.get(TRACEPARENT).and_then(parse) else {
        return;
    };
    let state = tracestate(incoming).find_map(|value| value.to_str().ok()?.parse::<TraceState>().ok());
    let caller = SpanContext::new(
        caller.trace,
        caller.span,
        caller.flags,
        true,
        state.unwrap_or_default(),
    );
    // Fails only for a span that nobody records, which has no parent to set.
    let _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

/// Puts trace context on the next request: the span's when it is recorded, else what came in, unchanged.
pub fn propagate(span: &Span, incoming: &HeaderMap, outgoing: &mut HeaderMap) {
    if super::tracing_enabled() && inject(span, outgoing) {
        return;
    }
    outgoing.remove(TRACEPARENT);
    outgoing.remove(TRACESTATE);
    let Some(traceparent) = incoming.get(TRACEPARENT).filter(|value| parse(value).is_some()) else {
        return;
    };
    outgoing.insert(TRACEPARENT, traceparent.clone());
    for value in tracestate(incoming) {
        outgoing.append(TRACESTATE, value.clone());
    }
}

/// Puts the span's own context on a request. False, and nothing done, when nobody records the span.
pub fn inject(span: &Span, outgoing: &mut HeaderMap) -> bool {
    let context = span.context();
    let current = context.span().span_context().clone();
    if !current.is_valid() {
        return false;
    }
    let text = format!(
        "00-{}-{}-{:02x}",
        current.trace_id(),
        current.span_id(),
        current.trace_flags().to_u8() & 1
    );
    let Ok(value) = HeaderValue::try_from(text) else {
        return false;
    };
    outgoing.insert(TRACEPARENT, value);
    outgoing.remove(TRACESTATE);
    let state = current.trace_state().header();
    if let Some(value) = HeaderValue::try_from(state)
        .ok()
        .filter(|value| !value.is_empty())
    {
        outgoing.insert(TRACESTATE, value);
    }
    true
}

struct Caller {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

/// `VERSION-TRACE-SPAN-FLAGS`. A later version may have more after the flags; version 00 may not.
fn parse(value: &HeaderValue) -> Option<Caller> {
    let text = value.to_str().ok()?;
    let mut parts = text.splitn(5, '-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let whole = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !whole || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    if trace == TraceId::INVALID || span == SpanId::INVALID {
        return None;
    }
    Some(Caller {
        trace,
        span,
        flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
    })
}

fn tracestate(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    let values = headers.get_all(TRACESTATE);
    let short_enough = values.iter().map(HeaderValue::len).sum::<usize>() <= TRACESTATE_BYTES_MAX;
    values.into_iter().filter(move |_| short_enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[track_caller]
    fn check(traceparent: &str, accepted: bool) {
        assert_eq!(
            parse(&HeaderValue::from_str(traceparent).unwrap()).is_some(),
            accepted,
            "{traceparent}"
        );
    }

    #[test]
    fn traceparent_as_the_standard_says() {
        check(CALLER, true);
        check(
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later",
            true,
        );
        check(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            false,
        );
        check("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false);
        check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false);
        check("", false);
    }

    #[test]
    fn without_an_exporter_it_passes_through_unchanged() {
        let mut incoming = HeaderMap::new();
        incoming.insert(TRACEPARENT, HeaderValue::from_static(CALLER));
        incoming.append(TRACESTATE, HeaderValue::from_static("a=1"));
        incoming.append(TRACESTATE, HeaderValue::from_static("b=2"));
        let mut outgoing = HeaderMap::new();
        outgoing.insert(TRACEPARENT, HeaderValue::from_static("stale"));
        propagate(&Span::none(), &incoming, &mut outgoing);
        assert_eq!(incoming, outgoing);

        incoming.insert(TRACEPARENT, HeaderValue::from_static("nonsense"));
        propagate(&Span::none(), &incoming, &mut outgoing);
        assert!(
            outgoing.is_empty(),
            "a context that is not one is not passed on: {outgoing:?}"
        );
    }
}
