//! Does what [`step`](crate::step()) says: one task and at most one request per control plane.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daemon::tls::Sides;
use pool_registry_types::{
    Capabilities, HeartbeatRequest, HeartbeatResponse, MachineId, NodeId, RegisterRequest, RegisterResponse,
};
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::report::Reporter;
use crate::step::{Answer, Effect, Event, State, Timing, step};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last request may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How to reach the control planes, and as whom.
#[derive(Clone)]
pub struct Options {
    /// Addresses of the control planes, such as `http://control:8080`, without a slash at the end.
    pub control_planes: Vec<String>,
    /// Which node this is.
    pub node_id: NodeId,
    /// The hardware under it.
    pub machine_id: MachineId,
    /// Where control planes reach the node's one door.
    pub address: String,
    /// The node daemon's version.
    pub version: String,
    /// The heartbeat interval when a control plane has no wish.
    pub heartbeat_interval: Duration,
    /// Sent as a bearer token, when there is one.
    pub api_token: Option<String>,
    /// The client, with its TLS settings.
    pub client: reqwest::Client,
}

/// Where the node stands with one control plane, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not let in yet, or lost; the text says why as far as it is known.
    Trying(String),
    /// The last report was accepted.
    Registered,
    /// The control plane says no.
    Refused(String),
}

/// A node's standing registration with all its control planes.
pub struct Registration {
    changed: watch::Sender<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
    standings: Vec<(String, watch::Receiver<Standing>)>,
}

impl Registration {
    /// Begins to register. Must be called within a runtime. The tasks end with [`Registration::stop`].
    pub fn start(options: &Options, reporter: &Reporter) -> Self {
        let (changed, _) = watch::channel(());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let mut standings = Vec::new();
        for url in &options.control_planes {
            let (standing, seen) = watch::channel(Standing::Trying("not asked yet".to_owned()));
            let peer = Peer {
                url: url.trim_end_matches('/').to_owned(),
                options: options.clone(),
                reporter: reporter.clone(),
                standing,
                told_capabilities: None,
            };
            tasks.spawn(peer.run(changed.subscribe(), stop.clone()));
            standings.push((url.clone(), seen));
        }
        tasks.close();
        Self {
            changed,
            stop,
            tasks,
            standings,
        }
    }

    /// Says that the node has something new to report.
    pub fn changed(&self) {
        self.changed.send_replace(());
    }

    /// Where the node stands with each control plane.
    pub fn standings(&self) -> Vec<(String, Standing)> {
        self.standings
            .iter()
            .map(|(url, seen)| (url.clone(), seen.borrow().clone()))
            .collect()
    }

    /// Deregisters everywhere and ends. Takes a little over two seconds at most.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// One control plane.
struct Peer {
    url: String,
    options: Options,
    reporter: Reporter,
    standing: watch::Sender<Standing>,
    /// What the control plane was last told of the hardware.
    told_capabilities: Option<Capabilities>,
}

impl Peer {
    async fn run(mut self, mut changed: watch::Receiver<()>, stop: CancellationToken) {
        let mut state = State::new(Instant::now());
        let mut pending = None;
        loop {
            let event = match pending.take() {
                Some(event) => event,
                None => Self::wait(state, &mut changed, &stop).await,
            };
            let timing = Timing {
                interval: self.options.heartbeat_interval,
                luck: rand::random(),
            };
            let (next, effect) = step(state, Instant::now(), event, timing);
            state = next;
            match effect {
                Effect::Nothing => {}
                Effect::Register | Effect::Heartbeat => {
                    let answer = tokio::select! {
                        answer = self.send(effect) => Event::Answered(answer),
                        () = stop.cancelled() => Event::Stop,
                    };
                    // A change during the request is kept by the receiver and seen at the next wait.
                    pending = Some(answer);
                }
                Effect::Deregister => self.deregister().await,
            }
            if state == State::Left {
                return;
            }
        }
    }

    /// Waits for what happens next while no request is under way. Cancel safe.
    async fn wait(state: State, changed: &mut watch::Receiver<()>, stop: &CancellationToken) -> Event {
        let due = state.due().unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            () = tokio::time::sleep_until(due.into()) => Event::Due,
            Ok(()) = changed.changed() => Event::Changed,
        }
    }

    async fn send(&mut self, what: Effect) -> Answer {
        let (sequence, report) = self.reporter.next();
        let incarnation = self.reporter.incarnation().to_owned();
        let capabilities = report.capabilities;
        if what == Effect::Register {
            let body = RegisterRequest {
                node_id: self.options.node_id.clone(),
                machine_id: self.options.machine_id.clone(),
                address: self.options.address.clone(),
                pools: report.pools,
                draining: report.draining,
                capabilities: capabilities.clone(),
                version: self.options.version.clone(),
                incarnation,
                sequence,
            };
            let request = self
                .options
                .client
                .post(format!("{}/v2/nodes/register", self.url))
                .json(&body);
            let answer = self
                .exchange::<RegisterResponse>(request, |answer| answer.next_heartbeat_ms)
                .await;
            if matches!(answer, Answer::Accepted { .. }) {
                self.told_capabilities = Some(capabilities);
            }
            return answer;
        }
        let news = self.told_capabilities.as_ref() != Some(&capabilities);
        let body = HeartbeatRequest {
            pools: report.pools,
            draining: report.draining,
            capabilities: news.then(|| capabilities.clone()),
            incarnation,
            sequence,
            time_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        };
        let url = format!("{}/v2/nodes/{}/heartbeat", self.url, self.options.node_id);
        let request = self.options.client.post(url).json(&body);
        let answer = self
            .exchange::<HeartbeatResponse>(request, |answer| answer.next_heartbeat_ms)
            .await;
        if matches!(answer, Answer::Accepted { .. }) {
            self.told_capabilities = Some(capabilities);
        }
        answer
    }

    async fn deregister(&self) {
        if matches!(*self.standing.borrow(), Standing::Refused(_)) {
            // The name may be another node's, which goes on.
            return;
        }
        let url = format!("{}/v2/nodes/{}", self.url, self.options.node_id);
        let request = self
            .authorised(self.options.client.delete(url))
            .timeout(DEREGISTER_TIMEOUT);
        match request.send().await {
            Ok(response) if response.status().is_success() => {
                tracing::info!(control_plane = self.url, "deregistered");
            }
            Ok(response) => {
                tracing::warn!(control_plane = self.url, status = %response.status(), "deregistering was refused");
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    control_plane = self.url,
                    error,
                    "cannot deregister; the control plane will time us out"
                );
            }
        }
    }

    /// Sends a request and sorts its end.
    async fn exchange<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        read: impl Fn(T) -> u64,
    ) -> Answer {
        let outcome = self.authorised(request).timeout(REQUEST_TIMEOUT).send().await;
        let response = match outcome {
            Ok(response) => response,
            Err(error) => return self.failed(chain(&error)),
        };
        let status = response.status();
        let body = match bounded(response).await {
            Ok(body) => body,
            Err(error) => return self.failed(error),
        };
        if status.is_success() {
            return match serde_json::from_slice::<T>(&body) {
                Ok(answer) => self.accepted(read(answer)),
                Err(error) => self.failed(format!("its answer is not that of a control plane: {error}")),
            };
        }
        match status {
            StatusCode::NOT_FOUND => {
                self.show(Standing::Trying("the control plane does not know this node".to_owned()));
                Answer::Unknown
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.refused(format!(
                "{status}: the token is not the one that the control plane expects; set LLORCH_API_TOKEN to the same \
                 value on both sides"
            )),
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                self.refused(format!("{status}: {}", excerpt(&body)))
            }
            status => self.failed(format!("{status}: {}", excerpt(&body))),
        }
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.options.api_token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn accepted(&self, next_heartbeat_ms: u64) -> Answer {
        self.show(Standing::Registered);
        Answer::Accepted { next_heartbeat_ms }
    }

    fn refused(&self, why: String) -> Answer {
        self.show(Standing::Refused(why));
        Answer::Refused
    }

    fn failed(&self, why: String) -> Answer {
        self.show(Standing::Trying(why));
        Answer::Failed
    }

    /// Publishes a standing and logs it once, when it is another one than before.
    fn show(&self, standing: Standing) {
        let news = self.standing.send_if_modified(|shown| {
            let news = *shown != standing;
            *shown = standing.clone();
            news
        });
        if !news {
            return;
        }
        let control_plane = self.url.as_str();
        match standing {
            Standing::Registered => tracing::info!(control_plane, "registered"),
            Standing::Refused(why) => {
                tracing::error!(control_plane, why, "the control plane refuses this node");
            }
            Standing::Trying(why) => tracing::warn!(control_plane, why, "not registered; trying again"),
        }
    }
}

async fn bounded(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The beginning of an answer, for a log line.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    line
}

/// The error and its causes in one line, without the URL that every log line names already.
fn chain(error: &reqwest::Error) -> String {
    let sides = Sides {
        us: "node",
        them: "control plane",
    };
    if let Some(refusal) = daemon::tls::explain(error, sides) {
        return refusal;
    }
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        String::new()
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let layer = cause.to_string();
        if !text.ends_with(&layer) {
            text = if text.is_empty() {
                layer
            } else {
                format!("{text}: {layer}")
            };
        }
        source = cause.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}
