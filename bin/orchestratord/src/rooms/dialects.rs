//! The endpoints under `/v1` that existing clients speak. Each request is a task like any other; its bytes pass through.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use adapter_host::{
    Assembler, RequestFacts, StreamEnd, StreamWatch, engine_error, error_body, usage_of_body,
};
use bytes::{Bytes, BytesMut};
use daemon::telemetry::trace_context;
use http::header::{ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use pool_registry_types::Dialect;
use scheduler::{DialectSet, Outcome, PREFIXES_MAX, Target, TaskSpec};
use task_api::{ApiError, ErrorCode, Priority};
use tracing::Instrument as _;

use crate::access::{self, Identity};
use crate::body::PlaneBody;
use crate::dispatch::{
    ANSWER_LEN_MAX, Answer, Job, PASSED_ON, dispatch, engine_headers, engine_path, lost, read_all,
    read_answer, read_out, refused, silent, within,
};
use crate::metrics::TaskOutcome;
use crate::plane::{AnswerBody, Plane, SharedPlane, Submission};
use crate::recent::{self, Seen};
use crate::relay::Relay;
use crate::rooms::answer::{self, Correlation};
use crate::serve::lane::{Asked, Known};
use crate::spans;

/// Names the session of a request, for clients that can set a header.
static SESSION_HEADER: HeaderName = HeaderName::from_static("x-session-id");

/// The class of a request: `batch` or `interactive`.
static PRIORITY_HEADER: HeaderName = HeaderName::from_static("x-priority");

/// How long the whole request may take, in milliseconds.
static DEADLINE_HEADER: HeaderName = HeaderName::from_static("x-deadline-ms");

/// Every header that is read in this room, by whoever: a request of the fast lane has no others.
pub(crate) static HEADERS: LazyLock<Known> = LazyLock::new(|| {
    let own = [
        AUTHORIZATION,
        ACCEPT,
        access::KEY_HEADER,
        answer::CORRELATION,
        SESSION_HEADER.clone(),
        PRIORITY_HEADER.clone(),
        DEADLINE_HEADER.clone(),
        trace_context::TRACEPARENT,
        trace_context::TRACESTATE,
    ];
    Known::new(own.into_iter().chain(PASSED_ON.iter().cloned()))
});

/// How many chunks without data (comments, pings) are kept while the first data is waited for.
const HELD_CHUNKS_MAX: usize = 64;

/// Answers one request whose body is still to come.
pub(crate) async fn handle(
    plane: &SharedPlane,
    dialect: Dialect,
    request: Request<Incoming>,
    correlation: &Correlation,
) -> Response<PlaneBody> {
    let span = spans::request(request.uri().path(), request.headers(), correlation.as_str());
    let (head, body) = request.into_parts();
    let work = async {
        // Who may not ask need not send a body.
        let identity = plane.access.asker(&head.headers)?;
        let body = read_body(plane, body).await?;
        run(plane, dialect, &identity, &head.headers, body, correlation).await
    };
    answered(plane, dialect, pin!(work).instrument(span).await, correlation)
}

/// Answers one request of the fast lane.
pub(crate) async fn handle_read(
    plane: &SharedPlane,
    asked: Asked<Dialect>,
    correlation: &Correlation,
) -> Response<PlaneBody> {
    let Asked {
        kind: dialect,
        headers,
        body,
    } = asked;
    let path = adapter_host::path_of_dialect(dialect);
    let span = spans::request(path, &headers, correlation.as_str());
    let result = match span.in_scope(|| plane.access.asker(&headers)) {
        // Pinned where it is made: awaited by value it would be copied into its place, all of its room.
        Ok(identity) => {
            let work = pin!(run(plane, dialect, &identity, &headers, body, correlation));
            work.instrument(span).await
        }
        Err(error) => Err(error),
    };
    answered(plane, dialect, result, correlation)
}

fn answered(
    plane: &SharedPlane,
    dialect: Dialect,
    result: Result<Response<PlaneBody>, ApiError>,
    correlation: &Correlation,
) -> Response<PlaneBody> {
    result.unwrap_or_else(|error| {
        if matches!(error.code.http_status(), 429 | 503 | 422) {
            plane.metrics.rejected(error.code);
        }
        failure(dialect, &error, correlation)
    })
}

pub(crate) fn wrong_method(dialect: Dialect, correlation: &Correlation) -> Response<PlaneBody> {
    let mut response = failure(
        dialect,
        &ApiError::new(ErrorCode::InvalidParams, "only POST means something here"),
        correlation,
    );
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// An error in the dialect's own shape.
fn failure(dialect: Dialect, error: &ApiError, correlation: &Correlation) -> Response<PlaneBody> {
    answer::log(error);
    let (status, body) = error_body(dialect, error, Some(correlation.as_str()));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = answer::json_bytes(status, body);
    answer::put_error_headers(response.headers_mut(), error);
    response
}

/// Does what a request of a dialect asks for.
pub(super) async fn run(
    plane: &SharedPlane,
    dialect: Dialect,
    identity: &Identity,
    headers: &HeaderMap,
    body: Bytes,
    correlation: &Correlation,
) -> Result<Response<PlaneBody>, ApiError> {
    let arrived = Instant::now();
    let facts = plane.read_request(dialect, &body)?;
    identity.may_ask(facts.model.as_deref())?;
    let wishes = Wishes::of(plane, identity, headers, &facts)?;
    let submission = spans::admission()
        .in_scope(|| plane.submit(&wishes.spec(dialect, &facts)))
        .map_err(refused)?;
    if matches!(submission, Submission::Waits(..)) {
        plane.metrics.enqueued();
    }
    let model: Option<Arc<str>> = facts.model.as_deref().map(Into::into);
    let asked = recent::Asked {
        dialect,
        priority: wishes.priority,
        owner: identity.owner.clone(),
        model: model.clone(),
        correlation_id: correlation.0.clone(),
        arrived,
    };
    let replica = match &submission {
        Submission::Placed(grant) => Some(grant.info()),
        Submission::Waits(..) => None,
    };
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let listed = plane.recent.list(asked, replica, waker);
    let work = Work {
        dialect,
        stream: facts.stream,
        seen: listed.seen(),
        job: Job {
            path: engine_path(dialect),
            places: facts.places,
            model,
            stream_instead: !facts.stream && facts.can_be_streamed,
            correlation_id: correlation.0.clone(),
            headers: engine_headers(headers),
            body: body.clone(),
            arrived,
            stored_for: Duration::ZERO,
        },
    };
    drop(facts);
    let answer = pin!(work.answer(plane, submission));
    let answer = plane.recent.unless_cancelled(work.seen, answer);
    let result = match wishes.deadline {
        None => answer.await,
        Some(left) => tokio::time::timeout(left, pin!(answer))
            .await
            .unwrap_or_else(|_| {
                Err(ApiError::new(
                    ErrorCode::DeadlineUnmet,
                    "the deadline passed before the answer had begun",
                ))
            }),
    };
    match &result {
        Ok(_) => listed.answered(),
        Err(error) => listed.failed(error),
    }
    result
}

pub(super) async fn read_body(plane: &Plane, mut body: Incoming) -> Result<Bytes, ApiError> {
    let len_max = usize::try_from(plane.settings.body_max_bytes).unwrap_or(usize::MAX);
    let too_long = || {
        ApiError::new(
            ErrorCode::RequestTooLarge,
            format!("the body has more than {len_max} bytes"),
        )
    };
    if body.size_hint().lower() > len_max as u64 {
        return Err(too_long());
    }
    let cut = |_| ApiError::new(ErrorCode::InvalidParams, "the body ended too early");
    let read = async {
        let Some(frame) = body.frame().await else {
            return Ok(Bytes::new());
        };
        let first = frame.map_err(cut)?.into_data().unwrap_or_default();
        if body.is_end_stream() {
            return if first.len() > len_max {
                Err(too_long())
            } else {
                Ok(first)
            };
        }
        let expected = usize::try_from(body.size_hint().lower())
            .unwrap_or(0)
            .min(len_max);
        let mut whole = BytesMut::with_capacity(first.len() + expected);
        whole.extend_from_slice(&first);
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(cut)?.into_data().unwrap_or_default();
            if whole.len() + data.len() > len_max {
                return Err(too_long());
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(plane.settings.body_timeout_ms, read)
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::new(
                ErrorCode::InvalidParams,
                "the body did not come in time",
            ))
        })
}

/// What a request says about where and when, besides its body.
struct Wishes {
    session: Option<u64>,
    prefixes: [u64; PREFIXES_MAX],
    prefixes_len: usize,
    priority: Priority,
    deadline: Option<Duration>,
    due: Option<Duration>,
}

impl Wishes {
    fn of(
        plane: &Plane,
        identity: &Identity,
        headers: &HeaderMap,
        facts: &RequestFacts<'_>,
    ) -> Result<Self, ApiError> {
        let named = answer::header(headers, &SESSION_HEADER).map(HeaderValue::as_bytes);
        let session = named.or(facts.cache_key.as_deref().map(str::as_bytes));
        let mut prefixes = [0; PREFIXES_MAX];
        let mut prefixes_len = 0;
        for (place, hash) in prefixes.iter_mut().zip(facts.prefix_hashes.iter()) {
            *place = plane.owned_hash(&identity.owner, hash);
            prefixes_len += 1;
        }
        let deadline = deadline_of(headers)?;
        Ok(Self {
            session: session.map(|session| plane.owned_hash(&identity.owner, session)),
            prefixes,
            prefixes_len,
            priority: priority_of(headers)?,
            deadline,
            due: deadline.map(|left| plane.now() + left),
        })
    }

    fn spec<'s>(&'s self, dialect: Dialect, facts: &'s RequestFacts<'_>) -> TaskSpec<'s> {
        TaskSpec {
            dialects: DialectSet::from(dialect),
            priority: self.priority,
            session: self.session,
            prefixes: &self.prefixes[..self.prefixes_len],
            deadline: self.due,
            ..TaskSpec::new(Target::Model(facts.model.as_deref().unwrap_or_default()))
        }
    }
}

fn priority_of(headers: &HeaderMap) -> Result<Priority, ApiError> {
    match answer::header(headers, &PRIORITY_HEADER).map(HeaderValue::as_bytes) {
        None | Some(b"interactive") => Ok(Priority::Interactive),
        Some(b"batch") => Ok(Priority::Batch),
        Some(_) => Err(ApiError::new(
            ErrorCode::InvalidParams,
            "x-priority must be interactive or batch",
        )
        .with_param(PRIORITY_HEADER.as_str())),
    }
}

fn deadline_of(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = answer::header(headers, &DEADLINE_HEADER) else {
        return Ok(None);
    };
    let milliseconds = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match milliseconds.filter(|ms| (1..=task_api::DEADLINE_MS_MAX).contains(ms)) {
        Some(ms) => Ok(Some(Duration::from_millis(ms))),
        None => Err(ApiError::new(
            ErrorCode::InvalidParams,
            format!(
                "x-deadline-ms must be a number from 1 to {}",
                task_api::DEADLINE_MS_MAX
            ),
        )
        .with_param(DEADLINE_HEADER.as_str())),
    }
}

/// One request on its way to an answer.
struct Work {
    dialect: Dialect,
    stream: bool,
    /// Its name in the list.
    seen: Seen,
    job: Job,
}

/// How far an answer came before anything was sent to the client.
enum Begun {
    Response(Response<PlaneBody>),
    /// It broke off: the task may start over.
    Lost(crate::plane::Grant, String),
}

impl Work {
    async fn answer(
        &self,
        plane: &SharedPlane,
        mut submission: Submission,
    ) -> Result<Response<PlaneBody>, ApiError> {
        // The list has the replica of a request that was placed at once.
        let mut is_listed = matches!(submission, Submission::Placed(_));
        loop {
            let answer = dispatch(plane, &self.job, submission, |grant| {
                if !std::mem::take(&mut is_listed) {
                    plane.recent.placed(self.seen, grant.info());
                }
            })
            .await?;
            let silence_max = plane.settings.engine_silence_ms;
            if !answer.response.status().is_success() {
                return Err(refusal_of_engine(answer).await);
            }
            let begun = if self.stream {
                self.begin_stream(plane, answer).await?
            } else if answer.assemble {
                self.put_together(plane, answer).await?
            } else {
                within(silence_max, pin!(self.whole(answer)))
                    .await
                    .ok_or_else(|| silent(plane))?
            };
            match begun {
                Begun::Response(response) => return Ok(response),
                Begun::Lost(grant, why) => {
                    plane
                        .metrics
                        .pool(&grant.info().pool_id)
                        .ended(TaskOutcome::Retried);
                    lost(&grant, &self.job.correlation_id, &why);
                    submission = grant.requeue().map_err(refused)?;
                }
            }
        }
    }

    /// An answer that is not a stream: read as a whole, so that a client never gets half of one.
    async fn whole(&self, answer: Answer) -> Begun {
        let Answer {
            grant,
            pool,
            response,
            ..
        } = answer;
        let (head, body) = response.into_parts();
        let bytes = match read_answer(body, ANSWER_LEN_MAX).await {
            Ok(bytes) => bytes,
            Err(why) => return Begun::Lost(grant, why),
        };
        pool.first_token(self.job.arrived.elapsed());
        pool.tokens(usage_of_body(&bytes));
        pool.ended(TaskOutcome::Completed);
        grant.ending(self.seen).finish(Outcome::Completed);
        let mut response = Response::new(PlaneBody::full(bytes));
        *response.status_mut() = head.status;
        pass_content_type(&head.headers, &mut response);
        Begun::Response(response)
    }

    /// An answer that came as a stream, for a client that wants none.
    async fn put_together(&self, plane: &Plane, answer: Answer) -> Result<Begun, ApiError> {
        let Answer {
            grant,
            pool,
            response,
            ..
        } = answer;
        let mut assembler =
            Assembler::new(self.dialect).expect("only dialects that stream are asked for a stream");
        let mut body = response.into_body();
        let mut first = true;
        while !assembler.has_ended() {
            let chunk = match next_chunk(plane, &mut body).await? {
                Some(Ok(chunk)) => chunk,
                Some(Err(why)) => return Ok(Begun::Lost(grant, why)),
                None => break,
            };
            if first {
                pool.first_token(self.job.arrived.elapsed());
                first = false;
            }
            assembler.feed(&chunk)?;
        }
        if !assembler.has_ended() {
            return Ok(Begun::Lost(grant, "the stream ended without its end".to_owned()));
        }
        read_out(body).await;
        let (bytes, usage) = assembler.finish()?;
        pool.tokens(usage);
        pool.ended(TaskOutcome::Completed);
        grant.ending(self.seen).finish(Outcome::Completed);
        Ok(Begun::Response(answer::json_bytes(StatusCode::OK, bytes)))
    }

    /// A stream: its head goes out with its first data, so that until then the task can start over.
    async fn begin_stream(&self, plane: &SharedPlane, answer: Answer) -> Result<Begun, ApiError> {
        let Answer {
            grant,
            pool,
            response,
            ..
        } = answer;
        let (head, mut body) = response.into_parts();
        let mut watch = StreamWatch::new(self.dialect);
        let mut held = VecDeque::new();
        while !watch.has_data() && !watch.has_ended() && held.len() < HELD_CHUNKS_MAX {
            match next_chunk(plane, &mut body).await? {
                Some(Ok(chunk)) => {
                    let whole_events = watch.relay(chunk);
                    if !whole_events.is_empty() {
                        held.push_back(whole_events);
                    }
                }
                Some(Err(why)) => return Ok(Begun::Lost(grant, why)),
                None => break,
            }
        }
        if let Some(error) = watch.error() {
            return Err(error);
        }
        if !watch.has_data() && !watch.has_ended() {
            return match watch.finish() {
                StreamEnd::Error(error) => Err(error),
                StreamEnd::Complete | StreamEnd::Cut { .. } => {
                    Ok(Begun::Lost(grant, "the stream ended before it began".to_owned()))
                }
            };
        }
        pool.first_token(self.job.arrived.elapsed());
        grant.started();
        plane.recent.running(self.seen);
        let grant = grant.ending(self.seen);
        let silence_max = plane.settings.engine_silence_ms;
        let relay = Relay::new(
            self.dialect,
            watch,
            held,
            (body, grant),
            pool,
            silence_max,
            self.job.correlation_id.clone(),
        );
        let mut response = Response::new(PlaneBody::Relay(Box::new(relay)));
        pass_content_type(&head.headers, &mut response);
        response
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(Begun::Response(response))
    }
}

/// The next bytes of an answer that has not begun for the client yet.
async fn next_chunk(plane: &Plane, body: &mut AnswerBody) -> Result<Option<Result<Bytes, String>>, ApiError> {
    loop {
        let frame = within(plane.settings.engine_silence_ms, pin!(body.frame())).await;
        match frame.ok_or_else(|| silent(plane))? {
            None => return Ok(None),
            Some(Err(why)) => return Ok(Some(Err(why))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(Ok(data)));
                }
            }
        }
    }
}

/// What an engine refuses is the client's to know, in the shape of the client's dialect.
async fn refusal_of_engine(answer: Answer) -> ApiError {
    let status = answer.response.status().as_u16();
    let body = read_all(answer.response.into_body(), adapter_host::ENGINE_ERROR_LEN_MAX)
        .await
        .unwrap_or_default();
    answer.grant.finish(Outcome::Failed);
    engine_error(status, &body)
}

fn pass_content_type(head: &HeaderMap, response: &mut Response<PlaneBody>) {
    if let Some(content_type) = head.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    debug_assert!(
        !response.headers().contains_key(CONTENT_LENGTH),
        "hyper knows the length"
    );
}
