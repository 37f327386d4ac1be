//! From a lease to the head of an engine's answer, over as many replicas as it takes.
//!
//! Nothing has been sent to the client while this runs, so every failure here is met by placing again: a refused slot at
//! once, a lost replica with that replica left out. What an engine refuses is the client's to know.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adapter_host::{Rewrite, Verdict, engine_error, judge_engine_response};
use bytes::{Bytes, BytesMut};
use daemon::telemetry;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use scheduler::{Outcome, Refusal, ReplicaInfo};
use task_api::{ApiError, CORRELATION_HEADER, ErrorCode};

use tracing::Instrument as _;

use crate::metrics::TaskOutcome;
use crate::plane::{AnswerBody, Grant, LinkError, Plane, RETRY_AFTER_DEFAULT_MS, SharedPlane, Submission};
use crate::spans;

/// The longest answer that is put together in memory before it is sent on.
pub(crate) const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;

/// How long the end of a body may come after the end of its answer.
const READ_OUT_MAX: Duration = Duration::from_millis(100);

/// What an engine is asked.
pub(crate) struct Job {
    /// The path at the engine.
    pub(crate) path: Uri,
    /// The client's body.
    pub(crate) body: Bytes,
    /// Where it may be rewritten.
    pub(crate) places: adapter_host::Places,
    /// The model as the client named it.
    pub(crate) model: Option<Box<str>>,
    /// Whether an engine that only notices a cancel on streams can be asked for a stream instead.
    pub(crate) stream_instead: bool,
    /// The client's headers that concern the engine: trace context and those of its dialect.
    pub(crate) headers: HeaderMap,
    /// When the task came.
    pub(crate) arrived: Instant,
    /// How much of the time since then the store has taken, which is neither admission nor placement.
    pub(crate) stored_for: Duration,
}

/// An engine's answer before any of its body was read.
pub(crate) struct Answer {
    pub(crate) grant: Grant,
    pub(crate) response: Response<AnswerBody>,
    /// The engine was asked for a stream although the client wants none.
    pub(crate) assemble: bool,
    /// From the task's arrival to its slot.
    pub(crate) queued_for: Duration,
}

/// Headers of a client that an engine gets to see.
const PASSED_ON: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// What of a client's headers goes on to the engine.
pub(crate) fn engine_headers(incoming: &HeaderMap, correlation_id: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(
        HeaderName::from_static(CORRELATION_HEADER),
        correlation_id.clone(),
    );
    if let Some(accept) = incoming.get(ACCEPT) {
        headers.insert(ACCEPT, accept.clone());
    }
    for name in PASSED_ON {
        if let Some(value) = incoming.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    // Asking for the current span costs more than all the rest here.
    let span = if telemetry::tracing_enabled() {
        tracing::Span::current()
    } else {
        tracing::Span::none()
    };
    telemetry::trace_context::propagate(&span, incoming, &mut headers);
    headers
}

impl Job {
    /// Names the request in logs.
    pub(crate) fn correlation_id(&self) -> &HeaderValue {
        &self.headers[CORRELATION_HEADER]
    }

    fn request_for(&self, info: &ReplicaInfo) -> (Request<Bytes>, bool) {
        let assemble = self.stream_instead && info.cancel_on_stream_only;
        let model = self.model.as_deref().and_then(|asked| engine_name(info, asked));
        let body = if assemble || model.is_some() {
            Bytes::from(self.places.rewrite(
                &self.body,
                &Rewrite {
                    stream: assemble,
                    model,
                },
            ))
        } else {
            self.body.clone()
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        (request, assemble)
    }
}

/// The engine's own name of the model, when the client used another one.
fn engine_name<'i>(info: &'i ReplicaInfo, asked: &str) -> Option<&'i str> {
    if info.models.iter().any(|model| model.id == asked) {
        return None;
    }
    let model = info
        .models
        .iter()
        .find(|model| model.aliases.iter().any(|alias| alias == asked));
    model.map(|model| model.id.as_str())
}

/// Waits for the slot and asks engines until one answers. `placed` is told of each placement.
pub(crate) async fn dispatch(
    plane: &SharedPlane,
    job: &Job,
    mut submission: Submission,
    mut placed: impl FnMut(&Grant),
) -> Result<Answer, ApiError> {
    loop {
        let placement = spans::placement();
        let grant = match submission {
            Submission::Placed(grant) => grant,
            waits => waits
                .granted()
                .instrument(placement.clone())
                .await
                .map_err(refused)?,
        };
        spans::placed(&placement, &grant);
        drop(placement);
        placed(&grant);
        let queued_for = job.arrived.elapsed();
        let pool = plane.metrics.pool(&grant.info().pool_id);
        pool.dispatched(queued_for.saturating_sub(job.stored_for));
        // Pinned where they are, here and below: a future that is wrapped is copied into the wrapper.
        let asked = pin!(ask(plane, job, &grant))
            .instrument(spans::dispatch(grant.info()))
            .await;
        submission = match asked {
            Ok((response, assemble)) => match judge_engine_response(response.status(), response.headers()) {
                Verdict::Pass | Verdict::Refused => {
                    return Ok(Answer {
                        grant,
                        response,
                        assemble,
                        queued_for,
                    });
                }
                Verdict::PlaceAgain | Verdict::Failed => {
                    pool.ended(TaskOutcome::Retried);
                    let why = format!("it answered {}", response.status());
                    failed(&grant, job.correlation_id(), &why);
                    elsewhere(grant, response).await?
                }
            },
            Err(Silence::Link(LinkError::Refused)) => grant.refused().map_err(refused)?,
            Err(Silence::Link(error)) => {
                pool.ended(TaskOutcome::Retried);
                lost(&grant, job.correlation_id(), &error);
                grant.requeue().map_err(refused)?
            }
            Err(Silence::TooLong) => {
                pool.ended(TaskOutcome::Failed);
                lost(&grant, job.correlation_id(), &"it has sent nothing for too long");
                return Err(silent(plane));
            }
        };
    }
}

enum Silence {
    Link(LinkError),
    TooLong,
}

async fn ask(plane: &Plane, job: &Job, grant: &Grant) -> Result<(Response<AnswerBody>, bool), Silence> {
    let link = plane.link(grant.info()).map_err(Silence::Link)?;
    let (mut request, assemble) = job.request_for(grant.info());
    let engine = spans::engine(grant.info());
    if !engine.is_none() {
        telemetry::trace_context::inject(&engine, request.headers_mut());
    }
    let answer = pin!(link.send(grant.info(), &plane.id, request));
    match tokio::time::timeout(plane.settings.engine_silence_ms, answer.instrument(engine)).await {
        Ok(Ok(response)) => Ok((response, assemble)),
        Ok(Err(error)) => Err(Silence::Link(error)),
        Err(_) => Err(Silence::TooLong),
    }
}

/// Writes down why a replica was left, and leaves it.
pub(crate) fn lost(grant: &Grant, correlation_id: &HeaderValue, why: &dyn std::fmt::Display) {
    failed(grant, correlation_id, why);
    grant.take_out_replica();
}

/// Writes down what went wrong at a replica, and for whom.
pub(crate) fn failed(grant: &Grant, correlation_id: &HeaderValue, why: &dyn std::fmt::Display) {
    let info: &Arc<ReplicaInfo> = grant.info();
    let correlation_id = correlation_id.to_str().unwrap_or_default();
    tracing::warn!(
        correlation_id,
        pool_id = %info.pool_id, replica_id = %info.replica_id, node_id = %info.node_id, %why,
        "a replica gave no answer, or not all of it"
    );
}

/// The engine answered with an error that another replica might not give. When there is none that could take the task
/// now, its answer is the client's, but for an engine that is only busy or loading: that is worth waiting for.
async fn elsewhere(grant: Grant, response: Response<AnswerBody>) -> Result<Submission, ApiError> {
    let status = response.status().as_u16();
    let body = read_all(response.into_body(), adapter_host::ENGINE_ERROR_LEN_MAX)
        .await
        .unwrap_or_default();
    let error = engine_error(status, &body);
    // An engine that fails because it cannot make sense of the request would do so everywhere.
    if error.code == ErrorCode::InvalidParams {
        grant.finish(Outcome::Failed);
        return Err(error);
    }
    let worth_waiting = matches!(status, 429 | 503);
    match grant.requeue() {
        Ok(Submission::Placed(next)) => Ok(Submission::Placed(next)),
        Ok(waits) if worth_waiting => Ok(waits),
        Ok(_) | Err(_) => Err(error),
    }
}

/// The whole of a body, if it is not longer than `len_max`.
pub(crate) async fn read_all(mut body: AnswerBody, len_max: usize) -> Result<Bytes, String> {
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.len() + data.len() + first.as_ref().map_or(0, Bytes::len) > len_max {
            return Err(format!("the answer has more than {len_max} bytes"));
        }
        match first.take() {
            // Most answers come in one piece, which is then passed on without a copy.
            None if whole.is_empty() => {
                let is_all = body.is_end_stream();
                if is_all {
                    return Ok(data);
                }
                first = Some(data);
            }
            earlier => {
                if let Some(earlier) = earlier {
                    whole.extend_from_slice(&earlier);
                }
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// Reads what follows an answer's own end, so that the connection can serve the next request. An engine that does not end
/// the body is not waited for: dropping the body closes its connection.
pub(crate) async fn read_out(mut body: AnswerBody) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // Either way the answer is whole.
    let _ = tokio::time::timeout(READ_OUT_MAX, rest).await;
}

/// A refusal of the scheduler as the client sees it.
pub(crate) fn refused(refusal: Refusal) -> ApiError {
    let error = ApiError::new(refusal.code(), refusal.to_string());
    let waits = matches!(error.code.http_status(), 429 | 503);
    match refusal.retry_after_ms() {
        Some(retry_after_ms) => error.with_retry_after_ms(retry_after_ms),
        None if waits => error.with_retry_after_ms(RETRY_AFTER_DEFAULT_MS),
        None => error,
    }
}

pub(crate) fn silent(plane: &Plane) -> ApiError {
    let waited = plane.settings.engine_silence_ms.as_millis();
    ApiError::new(
        ErrorCode::DecodeTimeout,
        format!("the engine sent nothing for {waited} ms"),
    )
}
