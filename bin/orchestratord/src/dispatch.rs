//! From a lease to the head of an engine's answer, over as many replicas as it takes.
//!
//! Nothing has been sent to the client while this runs, so every failure here is met by placing again: a refused slot at
//! once, a lost replica with that replica left out. What an engine refuses is the client's to know.

use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use adapter_host::{Rewrite, Verdict, engine_error, judge_engine_response};
use bytes::{Bytes, BytesMut};
use daemon::telemetry;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use pool_registry_types::Dialect;
use scheduler::{Outcome, Refusal, ReplicaInfo};
use task_api::{ApiError, ErrorCode};

use tracing::Instrument as _;

use crate::metrics::{PoolMetrics, TaskOutcome};
use crate::plane::{AnswerBody, Grant, LinkError, Plane, RETRY_AFTER_DEFAULT_MS, SharedPlane, Submission};
use crate::rooms::answer::CORRELATION;
use crate::spans;

/// The longest answer that is put together in memory before it is sent on.
pub(crate) const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;

/// How long the end of a body may come after the end of its answer.
pub(crate) const READ_OUT_MAX: Duration = Duration::from_millis(100);

/// What an engine is asked.
pub(crate) struct Job {
    /// The path at the engine.
    pub(crate) path: Uri,
    /// The client's body.
    pub(crate) body: Bytes,
    /// Where it may be rewritten.
    pub(crate) places: adapter_host::Places,
    /// The model as the client named it.
    pub(crate) model: Option<Arc<str>>,
    /// Whether an engine that only notices a cancel on streams can be asked for a stream instead.
    pub(crate) stream_instead: bool,
    /// Names the request in logs.
    pub(crate) correlation_id: HeaderValue,
    /// What of the client's headers concerns the engine: trace context and those of its dialect.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// When the task came.
    pub(crate) arrived: Instant,
    /// How much of the time since then the store has taken, which is neither admission nor placement.
    pub(crate) stored_for: Duration,
}

/// An engine's answer before any of its body was read.
pub(crate) struct Answer {
    pub(crate) grant: Grant,
    /// The counters of the pool that answers.
    pub(crate) pool: Arc<PoolMetrics>,
    pub(crate) response: Response<AnswerBody>,
    /// The engine was asked for a stream although the client wants none.
    pub(crate) assemble: bool,
    /// From the task's arrival to its slot.
    pub(crate) queued_for: Duration,
}

/// Headers of a client that an engine gets to see.
pub(crate) static PASSED_ON: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// What of a client's headers goes on to the engine.
pub(crate) fn engine_headers(incoming: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    // A look at each of the few that there are costs less than a look-up of each that might be.
    let passed = |name: &HeaderName| *name == ACCEPT || PASSED_ON.contains(name);
    let mut headers: Vec<_> = incoming
        .iter()
        .filter(|(name, _)| passed(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // Asking for the current span costs more than all the rest here.
    let span = if telemetry::tracing_enabled() {
        tracing::Span::current()
    } else {
        tracing::Span::none()
    };
    let mut trace = HeaderMap::new();
    telemetry::trace_context::propagate(&span, incoming, &mut trace);
    headers.extend(trace.iter().map(|(name, value)| (name.clone(), value.clone())));
    headers
}

/// Where engines speak `dialect`. Made once: a path that is parsed for each request shows in the profile.
pub(crate) fn engine_path(dialect: Dialect) -> Uri {
    static PATHS: [OnceLock<Uri>; 8] = [const { OnceLock::new() }; 8];
    let make = || Uri::from_static(adapter_host::path_of_dialect(dialect));
    match PATHS.get(dialect as usize) {
        Some(path) => path.get_or_init(make).clone(),
        None => make(),
    }
}

impl Job {
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
        let headers = request.headers_mut();
        headers.insert(CORRELATION, self.correlation_id.clone());
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
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
                        pool,
                        response,
                        assemble,
                        queued_for,
                    });
                }
                Verdict::PlaceAgain | Verdict::Failed => {
                    pool.ended(TaskOutcome::Retried);
                    let why = format!("it answered {}", response.status());
                    failed(&grant, &job.correlation_id, &why);
                    Box::pin(elsewhere(grant, response)).await?
                }
            },
            Err(Silence::Link(LinkError::Refused)) => grant.refused().map_err(refused)?,
            Err(Silence::Link(error)) => {
                pool.ended(TaskOutcome::Retried);
                lost(&grant, &job.correlation_id, &error);
                grant.requeue().map_err(refused)?
            }
            Err(Silence::TooLong) => {
                pool.ended(TaskOutcome::Failed);
                lost(&grant, &job.correlation_id, &"it has sent nothing for too long");
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
    let mut pieces = Pieces::new(len_max);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        pieces.push(data)?;
        if body.is_end_stream() {
            break;
        }
    }
    Ok(pieces.into_bytes())
}

/// As [`read_all`], for an engine's answer: one that is whole is not kept back because the engine does not end the body.
/// When nothing has come for [`READ_OUT_MAX`] and what has come is a JSON text from its beginning to its end, that is it.
pub(crate) async fn read_answer(mut body: AnswerBody, len_max: usize) -> Result<Bytes, String> {
    let mut pieces = Pieces::new(len_max);
    // Looked at once after each piece: an engine that sends slowly must not make us read all again and again.
    let mut is_judged = true;
    loop {
        let frame = if is_judged {
            body.frame().await
        } else {
            let soon = within(READ_OUT_MAX, pin!(body.frame())).await;
            let Some(frame) = soon else {
                if pieces.are_json() {
                    return Ok(pieces.into_bytes());
                }
                is_judged = true;
                continue;
            };
            frame
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame?.into_data() else { continue };
        pieces.push(data)?;
        if body.is_end_stream() {
            break;
        }
        is_judged = false;
    }
    Ok(pieces.into_bytes())
}

/// What has come of a body. Most come in one piece, which is then passed on without a copy.
struct Pieces {
    only: Bytes,
    several: BytesMut,
    len_max: usize,
}

impl Pieces {
    fn new(len_max: usize) -> Self {
        Self {
            only: Bytes::new(),
            several: BytesMut::new(),
            len_max,
        }
    }

    fn push(&mut self, data: Bytes) -> Result<(), String> {
        if self.only.len() + self.several.len() + data.len() > self.len_max {
            return Err(format!("the answer has more than {} bytes", self.len_max));
        }
        if self.only.is_empty() && self.several.is_empty() {
            self.only = data;
        } else {
            let only = std::mem::take(&mut self.only);
            self.several.extend_from_slice(&only);
            self.several.extend_from_slice(&data);
        }
        Ok(())
    }

    /// Whether they are one whole object or list.
    fn are_json(&self) -> bool {
        let bytes = if self.several.is_empty() {
            &self.only[..]
        } else {
            &self.several[..]
        };
        // A look at the last byte spares most texts that are not whole the whole reading.
        matches!(bytes.trim_ascii_end().last(), Some(b'}' | b']'))
            && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
    }

    fn into_bytes(self) -> Bytes {
        if self.several.is_empty() {
            self.only
        } else {
            self.several.freeze()
        }
    }
}

/// What `future` gives, unless that takes too long. What is ready at once needs no timer.
pub(crate) async fn within<F: Future>(bound: Duration, mut future: Pin<&mut F>) -> Option<F::Output> {
    let at_once = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    match at_once {
        Poll::Ready(output) => Some(output),
        Poll::Pending => tokio::time::timeout(bound, future).await.ok(),
    }
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
