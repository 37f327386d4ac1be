//! The executor around [`Life`]: it does the effects and chooses nothing.

use std::time::{Duration, Instant};

use model_store::Progress;
use pool_registry_types::{HANDOFF_SCHEMA, Handoff};
use process::{Child, Lifetime, Output, Request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Supervision;
use crate::command::{self, Values};
use crate::fetch::{self, Fetched};
use crate::life::{Effect, Event, Life, Policy};
use crate::port::ReservedPort;
use crate::probe::{self, Answer};
use crate::recipe::{self, Recipe, Start};
use crate::spec::EngineSpec;
use crate::status::Phase;

/// Room for events that nobody has looked at yet; whoever has one waits for room.
const EVENTS_MAX: usize = 16;

/// The bound of an engine's log.
const ENGINE_LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How many of the last lines of its log are told when an engine ends.
const LAST_WORDS_LINES: usize = 3;

/// How much of each of them.
const LAST_WORDS_CHARS_MAX: usize = 300;

/// How often a starting engine is asked, at first and at last.
const PROBE_INTERVAL_MIN: Duration = Duration::from_millis(20);
const PROBE_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// How often the progress of one long step is published.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the engine until it has been stopped.
pub(super) async fn run(supervision: &Supervision, stop: &CancellationToken) {
    let (events, mut inbox) = mpsc::channel(EVENTS_MAX);
    let (mut life, effects) = Life::new(supervision.policy, seed());
    let mut executor = Executor {
        supervision,
        events,
        generation: 0,
        fetching: None,
        fetched: None,
        engine: None,
        failed: None,
        unannounced: None,
        stopping: false,
    };
    executor.perform(effects);
    executor.publish(&life);
    while life.phase() != Phase::Stopped {
        let event = next_event(&mut inbox, &life, &mut executor, stop).await;
        log_event(supervision, &event, executor.stopping);
        let announce_again = executor.unannounced.is_some() && event == Event::Answered;
        let effects = life.step(Instant::now(), event);
        executor.perform(effects);
        if announce_again && life.phase() == Phase::Ready {
            executor.write_handoff();
        }
        executor.forget_ended(&life);
        executor.publish(&life);
    }
}

/// Differs from one provisioner to the next, also when they were started at the same moment.
fn seed() -> u64 {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    (u64::from(std::process::id()) << 32) ^ u64::from(since_1970.subsec_nanos())
}

async fn next_event(
    inbox: &mut mpsc::Receiver<News>,
    life: &Life,
    executor: &mut Executor<'_>,
    stop: &CancellationToken,
) -> Event {
    if let Some(error) = executor.failed.take() {
        return Event::StartFailed(error);
    }
    loop {
        let wake_at = life.wake_at();
        tokio::select! {
            biased;
            Some(news) = inbox.recv() => {
                if let Some(event) = executor.take_in(news) {
                    return event;
                }
            }
            () = stop.cancelled(), if !executor.stopping => {
                executor.stopping = true;
                return Event::Stop;
            }
            () = sleep_until(wake_at), if wake_at.is_some() => return Event::Tick,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// What the executor's helpers report. The number says to which start it belongs: news of an older one is dropped.
enum News {
    Fetched(u64, Box<Result<Fetched, String>>),
    Answered(u64, Option<Answer>),
    Unanswered(u64, String),
    Exited(u64, process::Exit),
}

struct Executor<'a> {
    supervision: &'a Supervision,
    events: mpsc::Sender<News>,
    generation: u64,
    fetching: Option<AbortOnDrop>,
    fetched: Option<Fetched>,
    engine: Option<Engine>,
    /// Why the process could not be started, until the life has been told.
    failed: Option<String>,
    /// Why the handoff could not be written; tried again at each answer.
    unannounced: Option<String>,
    /// Whether the life has been told to stop.
    stopping: bool,
}

/// A running process and what belongs to it.
struct Engine {
    child: Child,
    port: ReservedPort,
    /// What it said about itself when it first answered.
    answer: Option<Answer>,
    _prober: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Executor<'_> {
    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Fetch => self.fetch(),
                Effect::CancelFetch => self.fetching = None,
                Effect::Start => self.start(),
                Effect::WriteHandoff => self.write_handoff(),
                Effect::RemoveHandoff => self.remove_handoff(),
                Effect::Terminate => {
                    self.engine.as_ref().map(|engine| engine.child.terminate());
                }
                Effect::Kill => {
                    self.engine.as_ref().map(|engine| engine.child.kill());
                }
            }
        }
    }

    /// Makes an event of news, unless the news is about what is no more.
    fn take_in(&mut self, news: News) -> Option<Event> {
        match news {
            News::Fetched(generation, _) | News::Answered(generation, _) if generation != self.generation => {
                None
            }
            News::Unanswered(generation, _) | News::Exited(generation, _)
                if generation != self.generation =>
            {
                None
            }
            News::Fetched(_, result) => {
                self.fetching = None;
                Some(match *result {
                    Ok(fetched) => {
                        self.fetched = Some(fetched);
                        Event::Fetched
                    }
                    Err(error) => Event::FetchFailed(error),
                })
            }
            News::Answered(_, answer) => {
                if let (Some(engine), Some(answer)) = (&mut self.engine, answer) {
                    engine.answer = Some(answer);
                }
                Some(Event::Answered)
            }
            News::Unanswered(_, error) => Some(Event::Unanswered(error)),
            News::Exited(_, exit) => Some(Event::Exited(self.last_words(exit))),
        }
    }

    fn fetch(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        let supervision = self.supervision;
        let status = supervision.status.clone();
        let told = std::sync::Mutex::new(None::<Instant>);
        let progress = Progress::new(move |step| {
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let new_step = status
                .borrow()
                .progress
                .as_ref()
                .is_none_or(|before| before.what != step.what);
            let due = told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL);
            if new_step || due || step.total == Some(step.done) {
                *told = Some(Instant::now());
                status.send_modify(|status| status.progress = Some(step));
            }
        });
        let (spec, settings, recipe) = (
            supervision.spec.clone(),
            supervision.settings.clone(),
            supervision.recipe.clone(),
        );
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let result = fetch::fetch(&spec, &settings, &recipe, &progress).await;
            let result = result.map_err(|error| daemon::exit::chain(&error));
            // The receiver is gone only when nobody keeps the engine any more.
            let _ = events.send(News::Fetched(generation, Box::new(result))).await;
        });
        self.fetching = Some(AbortOnDrop(task));
    }

    fn start(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        let (Some(fetched), Some(start)) = (&self.fetched, &self.supervision.recipe.start) else {
            return;
        };
        match self
            .supervision
            .spawn_engine(fetched, start, generation, self.events.clone())
        {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => self.failed = Some(error),
        }
    }

    fn last_words(&self, exit: process::Exit) -> String {
        let log = &self.supervision.files.engine_log;
        let lines = process::log::tail(log, LAST_WORDS_LINES);
        let lines: Vec<String> = lines
            .iter()
            .map(|line| line.chars().take(LAST_WORDS_CHARS_MAX).collect())
            .collect();
        let lines = lines.join(" | ");
        format!(
            "the engine {exit}; its last words: {lines} (all of them in {})",
            log.display()
        )
    }

    fn write_handoff(&mut self) {
        let supervision = self.supervision;
        let (Some(engine), Some(fetched)) = (&self.engine, &self.fetched) else {
            return;
        };
        let handoff = supervision.handoff(engine, fetched);
        self.unannounced = match handoff_watcher::write(&supervision.settings.handoff_dir, &handoff) {
            Ok(path) => {
                tracing::info!(url = handoff.url, handoff = %path.display(), "the engine answers");
                None
            }
            Err(error) => {
                let error = daemon::exit::chain(&error);
                tracing::error!(error, "the engine answers, and nobody learns of it");
                Some(format!(
                    "the engine answers, but its handoff cannot be written: {error}"
                ))
            }
        };
    }

    fn remove_handoff(&mut self) {
        self.unannounced = None;
        let supervision = self.supervision;
        let (pool_id, replica_id) = (&supervision.spec.pool_id, &supervision.spec.replica_id);
        if let Err(error) = handoff_watcher::remove(&supervision.settings.handoff_dir, pool_id, replica_id) {
            tracing::error!(error = %daemon::exit::chain(&error), "the handoff of an engine that is gone stays");
        }
    }

    /// Lets go of a process that has ended, and of its port.
    fn forget_ended(&mut self, life: &Life) {
        if matches!(life.phase(), Phase::BackingOff | Phase::Stopped) {
            self.engine = None;
        }
    }

    fn publish(&self, life: &Life) {
        let phase = life.phase();
        let engine = self.engine.as_ref();
        self.supervision.status.send_if_modified(|status| {
            let before = status.clone();
            status.phase = phase;
            status.last_error = self
                .unannounced
                .as_deref()
                .or(life.last_error())
                .map(str::to_owned);
            status.failures = life.failures();
            status.pid = engine.map(|engine| engine.child.identity().pid);
            status.url = engine.filter(|_| phase == Phase::Ready).map(Engine::url);
            if phase != Phase::Fetching {
                status.progress = None;
            }
            if let Some(fetched) = &self.fetched {
                status.engine_version.clone_from(&fetched.version);
            }
            *status != before
        });
    }
}

impl Engine {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }
}

impl Supervision {
    fn gpu_mask(&self) -> &str {
        self.spec
            .device_mask
            .as_deref()
            .unwrap_or(&self.settings.gpu_mask)
    }

    fn spawn_engine(
        &self,
        fetched: &Fetched,
        start: &Start,
        generation: u64,
        events: mpsc::Sender<News>,
    ) -> Result<Engine, String> {
        let port = ReservedPort::any().map_err(|error| format!("no port on loopback is free: {error}"))?;
        let feature_args: Vec<String> = feature_args(&self.recipe, &self.spec.features);
        let values = Values {
            port: port.number(),
            model_path: &fetched.model_path,
            model_name: &fetched.model_name,
            threads: threads(&self.spec, start, fetched),
        };
        let command = command::command(
            &fetched.program,
            start,
            &feature_args,
            &self.spec,
            values,
            self.gpu_mask(),
        );
        tracing::info!(program = %fetched.program.display(), port = values.port, "starting the engine");
        let output = Output::Log {
            path: self.files.engine_log.clone(),
            bytes_max: ENGINE_LOG_BYTES_MAX,
            on_line: None,
        };
        let exited = events.clone();
        let request = Request {
            command,
            lifetime: Lifetime::Tied,
            output,
        };
        let child = process::spawn(request, move |exit| {
            // On the thread of the process, which has nothing else to do.
            let _ = exited.blocking_send(News::Exited(generation, exit));
        })
        .map_err(|error| daemon::exit::chain(&error))?;
        let paths = self.recipe.probe.clone();
        let prober = tokio::spawn(keep_probing(values.port, paths, self.policy, generation, events));
        Ok(Engine {
            child,
            port,
            answer: None,
            _prober: AbortOnDrop(prober),
        })
    }

    fn handoff(&self, engine: &Engine, fetched: &Fetched) -> Handoff {
        let identity = engine.child.identity();
        let mask = self.gpu_mask();
        Handoff {
            pool_id: self.spec.pool_id.clone(),
            replica_id: self.spec.replica_id.clone(),
            engine: self.recipe.name.clone(),
            url: engine.url(),
            engine_version: fetched.version.clone(),
            slots: Some(
                engine
                    .answer
                    .and_then(|answer| answer.slots)
                    .unwrap_or(self.spec.slots),
            ),
            schema: Some(HANDOFF_SCHEMA),
            model: Some(fetched.model_name.clone()),
            device_mask: (mask != "all").then(|| mask.to_owned()),
            pid: Some(identity.pid),
            supervisor_pid: Some(std::process::id()),
            start_time_ticks: Some(identity.start_time_ticks),
            boot_id: Some(identity.boot_id.clone()),
            spec_hash: Some(self.spec_hash.clone()),
            other: std::collections::BTreeMap::new(),
        }
    }
}

/// How many threads the engine is told to take. None: it chooses.
fn threads(spec: &EngineSpec, start: &Start, fetched: &Fetched) -> Option<u32> {
    let size_bytes = std::fs::metadata(&fetched.model_path).map_or(u64::MAX, |metadata| metadata.len());
    let small = size_bytes < start.one_thread_below_mb.saturating_mul(1_000_000);
    spec.threads.or(small.then_some(1))
}

fn feature_args(recipe: &Recipe, features: &[String]) -> Vec<String> {
    features
        .iter()
        .filter_map(|name| recipe.features.get(name))
        .flat_map(|feature| feature.args.clone())
        .collect()
}

/// Asks the engine until it answers, and then from time to time whether it still does.
async fn keep_probing(
    port: u16,
    paths: recipe::Probe,
    policy: Policy,
    generation: u64,
    events: mpsc::Sender<News>,
) {
    let mut interval = PROBE_INTERVAL_MIN;
    let answer = loop {
        match probe::probe(port, &paths, policy.probe_timeout).await {
            Ok(answer) => break answer,
            Err(error) => {
                let news = News::Unanswered(generation, daemon::exit::chain(&error));
                if events.send(news).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(interval).await;
        interval = (interval * 5 / 4).min(PROBE_INTERVAL_MAX);
    };
    let mut news = News::Answered(generation, Some(answer));
    loop {
        if events.send(news).await.is_err() {
            return;
        }
        tokio::time::sleep(policy.probe_interval).await;
        news = match probe::probe_health(port, &paths, policy.probe_timeout).await {
            Ok(()) => News::Answered(generation, None),
            Err(error) => News::Unanswered(generation, daemon::exit::chain(&error)),
        };
    }
}

fn log_event(supervision: &Supervision, event: &Event, stopping: bool) {
    let (pool_id, replica_id) = (&supervision.spec.pool_id, &supervision.spec.replica_id);
    match event {
        Event::Exited(_) if stopping => tracing::info!(%pool_id, %replica_id, "the engine has ended"),
        Event::FetchFailed(error) | Event::StartFailed(error) | Event::Exited(error) => {
            tracing::warn!(%pool_id, %replica_id, error, "the engine is down");
        }
        Event::Stop => tracing::info!(%pool_id, %replica_id, "ending the engine"),
        Event::Fetched | Event::Answered | Event::Unanswered(_) | Event::Tick => {}
    }
}
