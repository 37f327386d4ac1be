//! One task's way from its acceptance to its last event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use adapter_host::{EngineRequest, TaskReader, TokenUsage};
use http::{HeaderMap, Uri};
use http_body_util::BodyExt as _;
use scheduler::{DialectSet, Outcome, Target, TaskSpec, Waiting};
use task_api::{
    ApiError, ErrorCode, Event, PlacementDecision, TaskAccepted, TaskId, TaskLinks, TaskRequest, TaskState,
    TaskView, Usage, Workload,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Ending, EventLog, LiveState, LiveTask};
use crate::access::{Identity, now_ms};
use crate::dispatch::{Answer, Job, dispatch, engine_headers, lost, refused, silent};
use crate::metrics::TaskOutcome;
use crate::plane::{Grant, Plane, SharedPlane, Submission, millis, rfc3339};
use crate::rooms::answer::Correlation;
use crate::spans;

/// Takes a task: it is in the queue or has a slot, is stored, and runs from here on by itself.
pub(crate) async fn start(
    plane: &SharedPlane,
    identity: &Identity,
    request: TaskRequest,
    headers: &HeaderMap,
    correlation: &Correlation,
) -> Result<(Arc<LiveTask>, TaskAccepted), ApiError> {
    request.validate()?;
    if request.workload == Workload::Agent {
        return crate::agents::start(plane, identity, request, correlation).await;
    }
    let arrived = Instant::now();
    let model = request
        .model
        .clone()
        .unwrap_or_else(|| model_of_pool(plane, &request));
    let engine = plane.engine_request(&request, &model)?;
    let submission = submit(plane, identity, &request, &engine)?;
    let (task, accepted) = accept(plane, identity, &request, correlation, &submission)?;
    let stored_since = Instant::now();
    put_into_store(plane, &task, &accepted.task_id).await?;
    let runner = Runner {
        plane: plane.clone(),
        ending: Ending::new(plane.clone(), task.clone()),
        engine,
        job: Job {
            path: Uri::from_static("/"),
            body: bytes::Bytes::new(),
            places: adapter_host::Places::default(),
            model: None,
            stream_instead: false,
            correlation_id: correlation.0.clone(),
            headers: engine_headers(headers),
            arrived,
            stored_for: stored_since.elapsed(),
        },
        deadline: request.deadline_ms.map(|ms| arrived + Duration::from_millis(ms)),
    };
    plane
        .shutdown
        .spawn("task", daemon::shutdown::Kind::Work, runner.run(submission));
    Ok((task, accepted))
}

/// A task that cannot be stored is not taken.
pub(crate) async fn put_into_store(plane: &Plane, task: &LiveTask, id: &TaskId) -> Result<(), ApiError> {
    let stored = plane.store.insert_task(record(task)).await;
    stored.map_err(|error| {
        plane.tasks.remove(id);
        not_stored(id, &error)
    })
}

fn not_stored(id: &TaskId, error: &store::StoreError) -> ApiError {
    if matches!(error, store::StoreError::TaskExists) {
        return ApiError::new(ErrorCode::Conflict, format!("there is a task {id} already"))
            .with_param("task_id");
    }
    ApiError::new(
        ErrorCode::PoolUnavailable,
        "the task could not be stored and was not taken; try again",
    )
    .with_retry_after_ms(crate::plane::RETRY_AFTER_DEFAULT_MS)
    .with_internal(daemon::exit::chain(error))
}

/// A task that names only a pool is for the model that the pool serves.
fn model_of_pool(plane: &Plane, request: &TaskRequest) -> String {
    let models = plane.guarded.with(|scheduler, _| scheduler.models());
    let served = models.into_iter().find(|model| {
        request
            .pool
            .as_ref()
            .is_some_and(|pool| model.pools.contains(pool))
    });
    served.map_or_else(|| "default".to_owned(), |model| model.id.to_string())
}

fn submit(
    plane: &SharedPlane,
    identity: &Identity,
    request: &TaskRequest,
    engine: &EngineRequest,
) -> Result<Submission, ApiError> {
    let target = match (&request.model, &request.pool) {
        (Some(model), Some(pool)) => Target::ModelInPool { model, pool },
        (Some(model), None) => Target::Model(model),
        (None, Some(pool)) => Target::Pool(pool),
        (None, None) => {
            return Err(ApiError::new(
                ErrorCode::InvalidParams,
                "model is needed unless pool is given",
            ));
        }
    };
    let prefixes: Vec<u64> = engine
        .prefix_hashes
        .iter()
        .map(|hash| plane.owned_hash(&identity.owner, hash))
        .collect();
    let spec = TaskSpec {
        dialects: DialectSet::from(engine.dialect),
        priority: request.priority,
        placement: request.placement.as_ref(),
        session: request
            .session_id
            .as_ref()
            .map(|id| plane.owned_hash(&identity.owner, id.as_str().as_bytes())),
        prefixes: &prefixes,
        deadline: request
            .deadline_ms
            .map(|ms| plane.now() + Duration::from_millis(ms)),
        ..TaskSpec::new(target)
    };
    spans::admission()
        .in_scope(|| plane.submit(&spec))
        .map_err(|refusal| {
            plane.metrics.rejected(refusal.code());
            refused(refusal)
        })
}

/// Makes the task visible, as placed or waiting.
pub(crate) fn accept(
    plane: &SharedPlane,
    identity: &Identity,
    request: &TaskRequest,
    correlation: &Correlation,
    submission: &Submission,
) -> Result<(Arc<LiveTask>, TaskAccepted), ApiError> {
    let waiting = match submission {
        Submission::Placed(_) => Waiting {
            position: 0,
            estimated_start_ms: 0,
        },
        Submission::Waits(_, waiting) => *waiting,
    };
    let id = request.task_id.clone().unwrap_or_else(TaskId::generate);
    let created_ms = now_ms();
    let view = TaskView {
        task_id: id.clone(),
        session_id: request.session_id.clone(),
        workload: request.workload,
        dialect: None,
        priority: request.priority,
        model: request.model.clone(),
        agent: request.agent.clone(),
        owner: identity.owner.to_string(),
        state: TaskState::Queued,
        position: None,
        placements: Vec::new(),
        created_at: rfc3339(created_ms),
        ended_at: None,
        usage: None,
        error: None,
        correlation_id: correlation.as_str().to_owned(),
    };
    let mut events = EventLog::default();
    let waits = match submission {
        Submission::Placed(_) => None,
        Submission::Waits(waiter, _) => {
            plane.metrics.enqueued();
            let Waiting {
                position,
                estimated_start_ms,
            } = waiting;
            events.push(Event::Queued {
                position,
                estimated_start_ms,
            });
            Some(waiter.task())
        }
    };
    let (events_seen, _) = watch::channel(events.seen());
    let task = Arc::new(LiveTask {
        state: std::sync::Mutex::new(LiveState { view, events, waits }),
        events_seen,
        cancel: CancellationToken::new(),
        owner: identity.owner.clone(),
        created_ms,
    });
    if !plane.tasks.insert(task.clone()) {
        return Err(
            ApiError::new(ErrorCode::Conflict, format!("there is a task {id} already")).with_param("task_id"),
        );
    }
    let this = format!("/v2/tasks/{id}");
    let links = TaskLinks {
        events: format!("{this}/events"),
        cancel: format!("{this}/cancel"),
        this,
    };
    let accepted = TaskAccepted {
        task_id: id,
        position: waiting.position,
        estimated_start_ms: waiting.estimated_start_ms,
        links,
    };
    Ok((task, accepted))
}

/// The task as the store keeps it.
pub(crate) fn record(task: &LiveTask) -> store::TaskRecord {
    let view = task.lock().view.clone();
    let ended_ms = view.state.is_end().then(now_ms);
    store::TaskRecord {
        view,
        created_ms: task.created_ms,
        ended_ms,
    }
}

/// Where a task was placed, and why.
pub(crate) fn decision(grant: &Grant) -> PlacementDecision {
    let info = grant.info();
    PlacementDecision {
        pool_id: info.pool_id.clone(),
        replica_id: info.replica_id.clone(),
        node_id: info.node_id.clone(),
        reasons: grant.reasons().to_strings(),
    }
}

/// Runs one task.
pub(crate) struct Runner {
    plane: SharedPlane,
    ending: Ending,
    engine: EngineRequest,
    job: Job,
    deadline: Option<Instant>,
}

/// What a task has come to.
struct Done {
    usage: Usage,
}

impl Runner {
    async fn run(mut self, submission: Submission) {
        self.job.path = Uri::from_static(self.engine.path);
        self.job.body = self.engine.body.clone();
        let cancel = self.ending.task.cancel.clone();
        let deadline = self.deadline;
        let expired = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        // Dropping the work gives back its slot and closes its connection before the last event is told.
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ApiError::new(ErrorCode::Cancelled, "the task was cancelled")),
            () = expired => Err(ApiError::new(ErrorCode::DeadlineUnmet, "the deadline passed")),
            done = self.work(submission) => done,
        };
        match outcome {
            Ok(done) => self
                .ending
                .end(Event::End(done.usage), TaskState::Completed, None),
            Err(error) => self.ending.fail(&error),
        }
    }

    async fn work(&self, mut submission: Submission) -> Result<Done, ApiError> {
        loop {
            let answer = dispatch(&self.plane, &self.job, submission, |grant| self.placed(grant)).await?;
            if !answer.response.status().is_success() {
                let status = answer.response.status().as_u16();
                let body = answer.response.into_body();
                let body = crate::dispatch::read_all(body, adapter_host::ENGINE_ERROR_LEN_MAX)
                    .await
                    .unwrap_or_default();
                answer.grant.finish(Outcome::Failed);
                return Err(adapter_host::engine_error(status, &body));
            }
            match self.read(answer).instrument(spans::stream()).await? {
                Ok(done) => return Ok(done),
                Err((grant, why)) => {
                    lost(&grant, &self.job.correlation_id, &why);
                    submission = grant.requeue().map_err(refused)?;
                }
            }
        }
    }

    /// Reads an answer to its end. The inner error is an answer that broke off before anything was told.
    async fn read(&self, answer: Answer) -> Result<Result<Done, (Grant, String)>, ApiError> {
        let Answer {
            pool,
            grant,
            response,
            queued_for,
            ..
        } = answer;
        let mut body = response.into_body();
        let mut reader = TaskReader::new(self.engine.dialect);
        let mut first_token: Option<Duration> = None;
        // None: the answer is whole.
        let cut: Option<String> = loop {
            let frame = tokio::time::timeout(self.plane.settings.engine_silence_ms, body.frame());
            let chunk = match frame.await.map_err(|_| silent(&self.plane))? {
                // The end of the body is the end of an answer that is no stream.
                None => {
                    break self
                        .engine
                        .streams
                        .then(|| "the answer ended without its end".to_owned());
                }
                Some(Err(why)) => break Some(why),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let mut events = Vec::new();
            reader.feed(&chunk, |event| events.push(event))?;
            if !events.is_empty() {
                if first_token.is_none() {
                    let after = self.job.arrived.elapsed();
                    first_token = Some(after);
                    pool.first_token(after);
                    grant.started();
                }
                self.ending
                    .task
                    .append(events, |view| view.state = TaskState::Running);
            }
            if reader.has_ended() || (!self.engine.streams && http_body::Body::is_end_stream(&body)) {
                break None;
            }
        };
        let Some(why) = cut else {
            let ended = self.job.arrived.elapsed();
            let mut events = Vec::new();
            let told = reader.finish(|event| events.push(event))?;
            self.ending.task.append(events, |_| {});
            crate::dispatch::read_out(body).await;
            pool.tokens(told);
            pool.ended(TaskOutcome::Completed);
            grant.finish(Outcome::Completed);
            return Ok(Ok(Done {
                usage: usage(told, queued_for, first_token.unwrap_or(ended), ended),
            }));
        };
        if first_token.is_none() {
            pool.ended(TaskOutcome::Retried);
            return Ok(Err((grant, why)));
        }
        lost(&grant, &self.job.correlation_id, &why);
        pool.ended(TaskOutcome::Failed);
        pool.tokens(reader.usage());
        grant.finish(Outcome::Failed);
        Err(ApiError::new(
            ErrorCode::WorkerReset,
            "the engine went away in the middle of the answer; what was sent is not complete",
        ))
    }

    fn placed(&self, grant: &Grant) {
        let (info, decision) = (grant.info(), decision(grant));
        let started = Event::Started {
            pool_id: info.pool_id.clone(),
            replica_id: info.replica_id.clone(),
            node_id: info.node_id.clone(),
            level: None,
        };
        self.ending.task.append([started], |view| {
            view.state = TaskState::Placed;
            view.placements.push(decision);
        });
    }
}

fn usage(told: TokenUsage, queued_for: Duration, first_token: Duration, ended: Duration) -> Usage {
    Usage {
        tokens_in: told.tokens_in.unwrap_or(0),
        tokens_out: told.tokens_out.unwrap_or(0),
        queue_ms: millis(queued_for),
        first_token_ms: millis(first_token),
        decode_ms: millis(ended.saturating_sub(first_token)),
        ..Usage::default()
    }
}
