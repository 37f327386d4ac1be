//! One agent's task: from its acceptance to its last event.
//!
//! The same life as any other task of `/v2`. It may start over while the client has got no text of it; tools that were
//! used until then are told again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, LocalModel, NodeId, RunWorkspace};
use scheduler::{Outcome, Target, TaskSpec};
use task_api::{
    ApiError, ErrorCode, Event, TaskAccepted, TaskRequest, TaskState, ToolEvent, Usage, WorkspaceRequest,
};
use tracing::Instrument as _;

use super::home::{self, Homes};
use super::keys::TaskKey;
use super::link::{AgentLink, Refused, Told};
use super::outlet::model_address;
use super::workspaces;
use crate::access::Identity;
use crate::dispatch::{failed, lost, refused};
use crate::metrics::{PoolMetrics, TaskOutcome};
use crate::plane::{Grant, SharedPlane, Submission, millis};
use crate::rooms::answer::Correlation;
use crate::spans;
use crate::tasks::{Ending, LiveTask, accept, decision, put_into_store};

/// How long after the end of a task's time its node would end the turn by itself: the control plane is first.
const NODE_AFTER_US: Duration = Duration::from_secs(10);

/// How long a turn without a deadline may be silent beyond what an engine may.
const SILENCE_EXTRA: Duration = Duration::from_secs(60);

/// Takes an agent's task: it is in the queue or has a slot, is stored, and runs from here on by itself.
pub(crate) async fn start(
    plane: &SharedPlane,
    identity: &Identity,
    request: TaskRequest,
    correlation: &Correlation,
) -> Result<(Arc<LiveTask>, TaskAccepted), ApiError> {
    let arrived = Instant::now();
    let local_model = match request.local_model() {
        Some(model) => Some(prepare_local(plane, identity, model).await?),
        None => None,
    };
    if plane.settings.cloud_profile
        && let Some(agent) = &request.agent
    {
        // Makes the scheduler know where the owner's login is. That there is no ready pool now is its to say.
        let _ = Homes::of(plane).find(agent, &identity.owner).await;
    }
    let workspace = workspace_of(plane, &request)?;
    let submission = submit(plane, identity, &request, workspace.node.as_ref())?;
    let (task, accepted) = accept(plane, identity, &request, correlation, &submission)?;
    let stored_since = Instant::now();
    put_into_store(plane, &task, &accepted.task_id).await?;
    let runner = AgentRunner {
        plane: plane.clone(),
        run: run_of(&request, &accepted, identity, local_model.as_ref(), workspace.run),
        deadline: request.deadline_ms.map(|ms| arrived + Duration::from_millis(ms)),
        ending: Ending::new(plane.clone(), task.clone()),
        correlation_id: correlation.0.clone(),
        arrived,
        stored_for: stored_since.elapsed(),
        _key: local_model.map(|(key, _)| key),
    };
    plane.shutdown.spawn(
        "agent's task",
        daemon::shutdown::Kind::Work,
        runner.run(submission),
    );
    Ok((task, accepted))
}

/// A key for a model of ours, and where it works.
async fn prepare_local(
    plane: &SharedPlane,
    identity: &Identity,
    model: &str,
) -> Result<(TaskKey, LocalModel), ApiError> {
    let served = plane.guarded.with(|scheduler, _| scheduler.models());
    let known =
        |entry: &scheduler::ModelEntry| *entry.id == *model || entry.aliases.iter().any(|name| name == model);
    if !served.iter().any(known) {
        let message = format!("no replica serves {model} now; GET /v1/models tells what there is");
        return Err(ApiError::new(ErrorCode::NotFound, message).with_param("model"));
    }
    let base_url = model_address(plane).await?;
    let key = plane.access.task_keys().issue(&identity.owner, model);
    let local = LocalModel {
        base_url,
        key: key.expose().to_owned(),
        model: model.to_owned(),
    };
    Ok((key, local))
}

fn run_of(
    request: &TaskRequest,
    accepted: &TaskAccepted,
    identity: &Identity,
    local: Option<&(TaskKey, LocalModel)>,
    workspace: Option<RunWorkspace>,
) -> AgentRun {
    AgentRun {
        task_id: accepted.task_id.to_string(),
        owner: identity.owner.to_string(),
        prompt: request.prompt.clone().unwrap_or_default(),
        session_id: request.session_id.as_ref().map(ToString::to_string),
        model: request.model.clone().filter(|_| local.is_none()),
        effort: request.effort,
        timeout_ms: None,
        workspace,
        verbose: request.verbose.unwrap_or(false),
        local_model: local.map(|(_, model)| model.clone()),
    }
}

/// What a task works in, and the one node that has it.
#[derive(Default)]
struct TaskWorkspace {
    run: Option<RunWorkspace>,
    node: Option<NodeId>,
}

fn workspace_of(plane: &SharedPlane, request: &TaskRequest) -> Result<TaskWorkspace, ApiError> {
    match &request.workspace {
        None => Ok(TaskWorkspace::default()),
        Some(WorkspaceRequest::Cloned(clone)) => Ok(TaskWorkspace {
            run: Some(RunWorkspace::Cloned {
                url: clone.git.clone(),
                reference: clone.reference.clone(),
            }),
            node: None,
        }),
        Some(WorkspaceRequest::Kept(id)) => {
            let (id, node) = workspaces::parts(id)?;
            let here = home::replicas(plane, request.agent.as_deref());
            if !here.iter().any(|replica| replica.info.node_id == node) {
                let agent = request.agent.as_deref().unwrap_or_default();
                let message = format!("the workspace is on node {node}, which has no pool of {agent} now");
                return Err(ApiError::new(ErrorCode::NotFound, message).with_param("workspace"));
            }
            Ok(TaskWorkspace {
                run: Some(RunWorkspace::Kept { id }),
                node: Some(node),
            })
        }
    }
}

fn submit(
    plane: &SharedPlane,
    identity: &Identity,
    request: &TaskRequest,
    node: Option<&NodeId>,
) -> Result<Submission, ApiError> {
    let agent = request.agent.as_deref().unwrap_or_default();
    let target = match &request.pool {
        Some(pool) => Target::AgentInPool { agent, pool },
        None => Target::Agent(agent),
    };
    let mut placement = request.placement.clone();
    if let Some(node) = node {
        placement.get_or_insert_default().nodes = vec![node.clone()];
    }
    let spec = TaskSpec {
        priority: request.priority,
        placement: placement.as_ref(),
        session: request
            .session_id
            .as_ref()
            .map(|id| plane.owned_hash(&identity.owner, ("session", agent, id.as_str()))),
        owner: Some(owner_hash(plane, &identity.owner, agent)),
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

/// By which an owner's tasks for one agent find the node with their sandbox.
pub(crate) fn owner_hash(plane: &SharedPlane, owner: &str, agent: &str) -> u64 {
    plane.owned_hash(owner, ("agent", agent))
}

/// Runs one task. Dropped before its end, it tells the task's readers that it will not come.
struct AgentRunner {
    plane: SharedPlane,
    run: AgentRun,
    deadline: Option<Instant>,
    ending: Ending,
    correlation_id: HeaderValue,
    arrived: Instant,
    stored_for: Duration,
    /// Works until the task has ended.
    _key: Option<TaskKey>,
}

/// What has come of a run so far.
struct Progress {
    pool: Arc<PoolMetrics>,
    queued_for: Duration,
    tokens: u32,
    first_text: Option<Duration>,
    usage: adapter_host::TokenUsage,
    /// Bytes sent and received.
    egress: Option<(u64, u64)>,
}

impl Progress {
    fn usage(&self, arrived: Instant) -> Usage {
        let so_far = arrived.elapsed();
        let first_text = self.first_text.unwrap_or(so_far);
        Usage {
            tokens_in: self.usage.tokens_in.unwrap_or(0),
            tokens_out: self.usage.tokens_out.unwrap_or(0),
            queue_ms: millis(self.queued_for),
            first_token_ms: millis(first_text),
            decode_ms: millis(so_far.saturating_sub(first_text)),
            egress_sent_bytes: self.egress.map(|(sent, _)| sent),
            egress_received_bytes: self.egress.map(|(_, received)| received),
        }
    }
}

/// How reading a run's events ended.
enum Read {
    /// The agent is done.
    Completed,
    /// Something else has ended it, and it is worth starting over while no text was told.
    Lost(String),
    /// The agent has failed.
    Failed(ApiError),
}

impl AgentRunner {
    async fn run(mut self, submission: Submission) {
        let cancel = self.ending.task.cancel.clone();
        let deadline = self.deadline;
        let expired = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        // Dropping the work ends the turn and gives back its slot before the last event is told.
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ApiError::new(ErrorCode::Cancelled, "the task was cancelled")),
            () = expired => Err(ApiError::new(ErrorCode::DeadlineUnmet, "the deadline passed")),
            done = self.work(submission) => done,
        };
        match outcome {
            Ok(usage) => self.ending.end(Event::End(usage), TaskState::Completed, None),
            Err(error) => self.ending.fail(&error),
        }
    }

    async fn work(&self, mut submission: Submission) -> Result<Usage, ApiError> {
        loop {
            let grant = submission.granted().await.map_err(refused)?;
            let mut progress = self.placed(&grant);
            let begun = self.begin(&grant).instrument(spans::dispatch(grant.info())).await;
            let mut events = match begun {
                Ok(events) => events,
                Err(refusal) => {
                    submission = self.elsewhere(refusal, grant, &progress.pool)?;
                    continue;
                }
            };
            let read = self
                .read(&mut events, &grant, &mut progress)
                .instrument(spans::stream())
                .await;
            progress.pool.tokens(progress.usage);
            let error = match read {
                Read::Completed => {
                    progress.pool.ended(TaskOutcome::Completed);
                    grant.finish(Outcome::Completed);
                    return Ok(progress.usage(self.arrived));
                }
                Read::Lost(why) if progress.first_text.is_none() => {
                    progress.pool.ended(TaskOutcome::Retried);
                    failed(&grant, &self.correlation_id, &why);
                    submission = grant.requeue().map_err(refused)?;
                    continue;
                }
                Read::Lost(why) => {
                    failed(&grant, &self.correlation_id, &why);
                    ApiError::new(
                        ErrorCode::WorkerReset,
                        "the agent's sandbox or its node went away in the middle of the answer; what was sent is not complete",
                    )
                    .with_internal(why)
                }
                Read::Failed(error) => error,
            };
            progress.pool.ended(TaskOutcome::Failed);
            grant.finish(Outcome::Failed);
            return Err(error);
        }
    }

    /// The task has a slot.
    fn placed(&self, grant: &Grant) -> Progress {
        let placed = decision(grant);
        self.ending.task.append([], |view| {
            view.state = TaskState::Placed;
            view.placements.push(placed);
        });
        let queued_for = self.arrived.elapsed();
        let pool = self.plane.metrics.pool(&grant.info().pool_id);
        pool.dispatched(queued_for.saturating_sub(self.stored_for));
        Progress {
            pool,
            queued_for,
            tokens: 0,
            first_text: None,
            usage: adapter_host::TokenUsage::default(),
            egress: None,
        }
    }

    /// The node has said no, and nothing has begun: another one is asked, unless that would say the same.
    fn elsewhere(&self, refusal: Refused, grant: Grant, pool: &PoolMetrics) -> Result<Submission, ApiError> {
        match refusal {
            Refused::Slot => grant.refused().map_err(refused),
            Refused::Out(why) | Refused::NoAnswer(why) => {
                pool.ended(TaskOutcome::Retried);
                lost(&grant, &self.correlation_id, &why);
                grant.requeue().map_err(refused)
            }
            Refused::Final(error) => {
                pool.ended(TaskOutcome::Failed);
                grant.finish(Outcome::Failed);
                Err(error)
            }
        }
    }

    async fn begin(&self, grant: &Grant) -> Result<Told<AgentEvent>, Refused> {
        let run = AgentRun {
            timeout_ms: self
                .deadline
                .map(|deadline| millis(deadline.saturating_duration_since(Instant::now()) + NODE_AFTER_US)),
            ..self.run.clone()
        };
        let link = AgentLink::to(&self.plane, grant.info())?;
        let bound = self.plane.settings.engine_silence_ms;
        let begun = tokio::time::timeout(bound, link.run(run)).await;
        begun.unwrap_or_else(|_| Err(Refused::NoAnswer("it has sent nothing for too long".to_owned())))
    }

    async fn read(&self, events: &mut Told<AgentEvent>, grant: &Grant, progress: &mut Progress) -> Read {
        // A node ends a turn that takes too long; its silence beyond that is its own.
        let longest = self.deadline.map_or(Duration::ZERO, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        let silence_max = self.plane.settings.engine_silence_ms.max(longest) + SILENCE_EXTRA;
        loop {
            let event = match tokio::time::timeout(silence_max, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(why))) => return Read::Lost(why),
                Ok(None) => return Read::Lost("the events ended without their end".to_owned()),
                Err(_) => {
                    let message = format!("the agent's node sent nothing for {} ms", silence_max.as_millis());
                    return Read::Failed(ApiError::new(ErrorCode::DecodeTimeout, message));
                }
            };
            match event {
                AgentEvent::Ended { outcome } => return ended(outcome),
                other => self.take(other, grant, progress),
            }
        }
    }

    /// Tells the client's side of an event.
    fn take(&self, event: AgentEvent, grant: &Grant, progress: &mut Progress) {
        let told = match event {
            AgentEvent::Claimed { level, .. } => {
                progress.pool.claimed(level);
                let info = grant.info();
                Event::Started {
                    pool_id: info.pool_id.clone(),
                    replica_id: info.replica_id.clone(),
                    node_id: info.node_id.clone(),
                    level: Some(level),
                }
            }
            AgentEvent::Text { text } => {
                self.begin_text(grant, progress);
                let i = progress.tokens;
                progress.tokens = progress.tokens.saturating_add(1);
                Event::Token { t: text, i }
            }
            AgentEvent::TextReplaced { kept_bytes, text } => {
                self.begin_text(grant, progress);
                let mut whole = self.ending.task.lock().events.text();
                let kept = usize::try_from(kept_bytes).unwrap_or(usize::MAX);
                whole.truncate(whole.floor_char_boundary(kept));
                whole.push_str(&text);
                Event::TextReplaced { t: whole }
            }
            AgentEvent::ToolStarted { id, name, input } => {
                Event::Tool(ToolEvent::Started { id, name, input })
            }
            AgentEvent::ToolFinished {
                id,
                ok,
                output,
                truncated,
            } => Event::Tool(ToolEvent::Finished {
                id,
                ok,
                output,
                truncated,
            }),
            AgentEvent::FilesChanged { paths } => Event::Files { paths },
            AgentEvent::Usage {
                tokens_in,
                tokens_out,
            } => {
                progress.usage.tokens_in = Some(tokens_in);
                progress.usage.tokens_out = Some(tokens_out);
                Event::Metrics(progress.usage(self.arrived))
            }
            AgentEvent::Limit {
                message,
                retry_after_ms,
            } => Event::Limit {
                message,
                retry_after_ms,
            },
            AgentEvent::EgressDenied { host, port, reason } => {
                progress.pool.egress_denied();
                Event::EgressDenied { host, port, reason }
            }
            AgentEvent::Egress {
                sent_bytes,
                received_bytes,
            } => {
                progress.egress = Some((sent_bytes, received_bytes));
                Event::Metrics(progress.usage(self.arrived))
            }
            AgentEvent::Workspace { id, changed, problem } => {
                let Some(workspace_id) = workspaces::named(&id, &grant.info().node_id) else {
                    return;
                };
                Event::Workspace {
                    workspace_id,
                    changed,
                    problem,
                }
            }
            AgentEvent::Raw { source, line } if self.run.verbose => Event::Raw { source, line },
            AgentEvent::Raw { .. }
            | AgentEvent::Prompted
            | AgentEvent::Session { .. }
            | AgentEvent::Ended { .. } => return,
        };
        self.ending
            .task
            .append([told], |view| view.state = TaskState::Running);
    }

    /// The client gets text: from now on the task cannot start over.
    fn begin_text(&self, grant: &Grant, progress: &mut Progress) {
        if progress.first_text.is_none() {
            let after = self.arrived.elapsed();
            progress.first_text = Some(after);
            progress.pool.first_token(after);
            grant.started();
        }
    }
}

fn ended(outcome: AgentOutcome) -> Read {
    match outcome {
        AgentOutcome::Completed => Read::Completed,
        AgentOutcome::Cancelled => {
            Read::Failed(ApiError::new(ErrorCode::Cancelled, "the turn was interrupted"))
        }
        AgentOutcome::Failed {
            code,
            message,
            retry_after_ms,
            ..
        } => match super::link::code(&code).unwrap_or(ErrorCode::Internal) {
            ErrorCode::WorkerReset => Read::Lost(message),
            code => Read::Failed(ApiError {
                retry_after_ms,
                ..ApiError::new(code, message)
            }),
        },
    }
}
