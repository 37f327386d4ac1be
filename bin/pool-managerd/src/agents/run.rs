//! One run: the owner's sandbox, a CLI in it, a turn, and its events.
//!
//! ```text
//! own ─▶ idle CLI that fits? ─yes─▶ conversation ─▶ prompt ─▶ lines, events ─▶ TurnEnded ─▶ CLI is idle again
//!              └─no─▶ start one ──────┘                │
//!                                                      └ deadline, dropped stream: interrupt ─grace over─▶ kill
//! ```

use std::sync::Arc;
use std::time::Duration;

use agents::dialogue::Language;
use agents::dialogue::event::Outcome;
use agents::profile::EffortLevel;
use agents::{
    AgentEvent as Said, Dialogue, DialogueSettings, Level, Reaction, Refusal, Source, Turn, Variable,
};
use egress::{Base, Denied, Traffic};
use pool_registry_types::{AgentEffort, AgentEvent, AgentOutcome, AgentRun, WarmLevel};
use sandbox::WORKSPACE;
use task_api::ErrorCode;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::cli::{Cli, News, Wish, unix_ms};
use super::keeper::Held;
use super::live::{Owned, entrance_url, exec_request, values, write_files};
use super::parts::{PoolParts, SlotLease};
use super::words::{self, Words};
use super::workspaces::{OpenWorkspaces, Opened, WorkspaceTrouble};

/// How long a CLI may take to end a turn that was interrupted.
const INTERRUPT_GRACE: Duration = Duration::from_secs(3);
/// A reader that takes no event for so long has gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Nobody may ask for a longer turn.
const TURN_MAX: Duration = Duration::from_secs(24 * 3600);
const SIGINT: i32 = 2;
/// What a CLI is told instead of a key: it gets the run's on the way out.
const NO_KEY: &str = "remuda";

/// Runs to the last event. The claim and the slot are given back at the end.
pub(super) async fn run(mut held: Held, slot: SlotLease, asked: AgentRun, events: mpsc::Sender<AgentEvent>) {
    let live = held.live.clone();
    let mut run = Run {
        pool: live.pool.clone(),
        events,
        words: Words::new(asked.verbose),
        is_cancelled: false,
        workspace: None,
    };
    let stop = live.pool.stop_runs();
    let turn = run.go(&held, &asked);
    let outcome = tokio::select! {
        outcome = turn => outcome,
        () = live.lost.cancelled() => Err(Trouble::Lost),
        () = stop.cancelled() => Err(match live.node.stop_runs.is_cancelled() {
            true => Trouble::Stopped,
            false => Trouble::Drained,
        }),
    };
    held.keep = matches!(outcome, Ok(_) | Err(Trouble::Refused(_) | Trouble::Workspace(_)));
    if let Some(owned) = live.owned() {
        owned.run_ended(&live.pool);
    }
    // Also what a run has changed that failed or was cancelled: it is the owner's.
    if let Some(opened) = run.workspace.take() {
        let told = opened.take_back(&live).await;
        run.emit(told).await;
    }
    let outcome = outcome.unwrap_or_else(|trouble| trouble.outcome(&live.pool));
    // Room first: whoever hears of the end may come with the next run at once.
    drop(held);
    drop(slot);
    run.emit(AgentEvent::Ended { outcome }).await;
}

/// A sandbox has room for far fewer programs.
#[derive(Debug, thiserror::Error)]
#[error("all entrances of the sandbox's way out are taken")]
struct NoEntrance;

/// Why a run did not come to the CLI's own end.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the owner's sandbox is lost")]
    Lost,
    #[error("the node ends")]
    Stopped,
    #[error("the pool is drained, and the time that its runs had is over")]
    Drained,
    #[error("the owner's home cannot be used: {0}")]
    Own(String),
    #[error("{agent} does not start: {why}")]
    Start { agent: String, why: String },
    #[error("{0}")]
    Refused(String),
    #[error("{0} takes no prompt any more")]
    Deaf(String),
    #[error(transparent)]
    Workspace(#[from] WorkspaceTrouble),
}

impl Trouble {
    fn outcome(self, pool: &PoolParts) -> AgentOutcome {
        let code = match &self {
            Self::Lost | Self::Stopped | Self::Drained | Self::Deaf(_) => ErrorCode::WorkerReset,
            Self::Own(_) | Self::Start { .. } => ErrorCode::Internal,
            Self::Refused(_) => ErrorCode::InvalidParams,
            Self::Workspace(trouble) => trouble.code(),
        };
        tracing::warn!(pool_id = %pool.id, error = %self, "a run of an agent came to nothing");
        AgentOutcome::Failed {
            code: code.as_str().to_owned(),
            message: self.to_string(),
            retriable: code.retriable(),
            retry_after_ms: None,
        }
    }
}

struct Run {
    pool: Arc<PoolParts>,
    events: mpsc::Sender<AgentEvent>,
    words: Words,
    is_cancelled: bool,
    /// What is to be taken back when the run has ended.
    workspace: Option<Opened>,
}

/// Why a turn is being interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Deadline,
    Cancelled,
}

impl Run {
    /// Tells an event. Nobody listens: the run is cancelled.
    async fn emit(&mut self, event: AgentEvent) {
        if self.is_cancelled {
            return;
        }
        let sent = self.events.send_timeout(event, SEND_TIMEOUT).await;
        self.is_cancelled = sent.is_err();
    }

    async fn go(&mut self, held: &Held, asked: &AgentRun) -> Result<AgentOutcome, Trouble> {
        let live = &held.live;
        let pool = self.pool.clone();
        let own = live.own(&asked.owner).await;
        let owned = own.map_err(|error| Trouble::Own(daemon::exit::chain(&error)))?;
        let base = base(asked)?;
        let directory = self.open_workspace(held, owned, asked).await?;
        let mut denied = owned.denied();
        let wish = wish(&pool, asked, &directory);
        let thread = asked.session_id.as_deref().and_then(|name| owned.thread(name));

        let idle = owned.take_idle(|cli| fits(cli, &wish, thread.as_deref()));
        let (mut cli, level) = match idle {
            Some(cli) => (cli, WarmLevel::Hot),
            None => {
                let cli = self.start((held, owned), asked, &wish, thread.as_deref()).await?;
                let level = match held.level {
                    warm_pool::Level::Cold => WarmLevel::Cold,
                    warm_pool::Level::Warm | warm_pool::Level::Shared | warm_pool::Level::Hot => {
                        WarmLevel::Warm
                    }
                };
                (cli, level)
            }
        };
        // One that was started for this run has moved nothing for another.
        let before = match level {
            WarmLevel::Hot => cli.entrance.traffic(),
            WarmLevel::Cold | WarmLevel::Warm => Traffic::default(),
        };
        // The key is never in the sandbox, and works at this CLI's entrance until the turn is over.
        let lent = base.map(|base| cli.entrance.lend(base));
        pool.metrics.claims[level as usize].inc();
        self.emit(AgentEvent::Claimed {
            level,
            sandbox_id: live.sandbox.id().to_string(),
        })
        .await;
        let is_starting = level != WarmLevel::Hot;
        let conversation = self.choose_conversation(&mut cli, thread.as_deref()).await;
        let outcome = match conversation {
            Ok(()) => self.turn(&mut cli, asked, is_starting, owned, &mut denied).await,
            Err(trouble) => Err(trouble),
        };
        drop(lent);
        if let Some(name) = &asked.session_id
            && let Some(thread) = &cli.conversation
        {
            owned.name_thread(name, thread);
        }
        let after = cli.entrance.traffic();
        let (sent_bytes, received_bytes) = (
            after.sent_bytes - before.sent_bytes,
            after.received_bytes - before.received_bytes,
        );
        pool.metrics.run_sent.note(sent_bytes);
        pool.metrics.run_received.note(received_bytes);
        self.emit(AgentEvent::Egress {
            sent_bytes,
            received_bytes,
        })
        .await;
        self.put_away(cli, owned, asked).await;
        outcome
    }

    /// Where the run works: in what it asks for, in what its session has worked in, or where nothing is.
    async fn open_workspace(
        &mut self,
        held: &Held,
        owned: &Owned,
        asked: &AgentRun,
    ) -> Result<String, Trouble> {
        let events = self.events.clone();
        let opened = OpenWorkspaces::open(&held.live, owned, asked, events.closed()).await?;
        let Some(opened) = opened else {
            return Ok(WORKSPACE.to_owned());
        };
        let directory = opened.directory();
        self.words.set_directory(&directory);
        self.workspace = Some(opened);
        Ok(directory)
    }

    /// Keeps the CLI for the owner's next run, or ends it. One whose conversation nobody named is given an empty one
    /// already now, so that the next run does not wait for it.
    async fn put_away(&mut self, mut cli: Cli, owned: &Owned, asked: &AgentRun) {
        let mut is_kept = self.pool.level() == Level::Hot && cli.can_go_on();
        if is_kept
            && asked.session_id.is_none()
            && let Ok(reaction) = cli.dialogue.new_conversation()
        {
            is_kept = cli.write(&reaction).await;
            cli.conversation = None;
            cli.is_fresh = true;
        }
        let surplus = if is_kept { owned.keep_idle(cli) } else { Some(cli) };
        if let Some(cli) = surplus {
            let grace = Duration::from_millis(self.pool.start().end.grace_ms);
            tokio::spawn(cli.end(grace));
        }
    }

    fn no_start(&self, error: &dyn std::error::Error) -> Trouble {
        Trouble::Start {
            agent: self.pool.agent.as_str().to_owned(),
            why: crate::door::chain(error),
        }
    }

    async fn start(
        &mut self,
        (held, owned): (&Held, &Owned),
        asked: &AgentRun,
        wish: &Wish,
        thread: Option<&str>,
    ) -> Result<Cli, Trouble> {
        let pool = self.pool.clone();
        let profile = &pool.profile;
        let taken = owned.egress.entrance();
        let entrance = taken.ok_or_else(|| self.no_start(&NoEntrance))?;
        let endpoint = wish.endpoint.as_ref();
        let model = endpoint.or(asked.model.as_ref());
        let base_url = endpoint.map(|_| entrance_url(entrance.entrance()));
        let values = values(&wish.directory)
            .with_some(Variable::Model, model)
            .with_some(Variable::Effort, effort_word(&pool, asked.effort))
            .with_some(Variable::Session, thread)
            .with_some(Variable::BaseUrl, base_url)
            .with_some(Variable::Key, endpoint.map(|_| NO_KEY));
        let line = profile
            .start_command(pool.level(), &values)
            .map_err(|error| Trouble::Refused(error.to_string()))?;
        let sandbox = &held.live.sandbox;
        let written = write_files(sandbox, &line.files).await;
        written.map_err(|error| self.no_start(&error))?;
        let settings = DialogueSettings {
            workspace: wish.directory.clone(),
            model: model.cloned(),
            session: thread.map(str::to_owned),
            own_endpoint: endpoint.is_some(),
            ..DialogueSettings::default()
        };
        let dialogue = Dialogue::new(profile, pool.level(), settings);
        let request = exec_request(&line, &wish.directory, entrance.entrance());
        let spoken = (dialogue, pool.start().language);
        let started = Cli::start(sandbox, request, spoken, wish.clone(), entrance).await;
        let (mut cli, reaction) = started.map_err(|error| self.no_start(&error))?;
        if self.react(&mut cli, reaction).await.is_err() {
            return Err(Trouble::Deaf(pool.agent.as_str().to_owned()));
        }
        Ok(cli)
    }

    /// Says the prompt and follows the turn to its end.
    async fn turn(
        &mut self,
        cli: &mut Cli,
        asked: &AgentRun,
        is_starting: bool,
        owned: &Owned,
        denied: &mut broadcast::Receiver<Denied>,
    ) -> Result<AgentOutcome, Trouble> {
        let agent = self.pool.agent.as_str().to_owned();
        let deaf = || Trouble::Deaf(agent.clone());
        let model = match &asked.local_model {
            Some(local) => Some(local.model.clone()),
            None => asked.model.clone(),
        };
        let turn = Turn {
            prompt: asked.prompt.clone(),
            model,
            effort: effort_word(&self.pool, asked.effort),
        };
        cli.is_fresh = false;
        let said = cli.dialogue.prompt(turn).map_err(|_| deaf())?;
        self.react(cli, said).await.map_err(|()| deaf())?;
        self.emit(AgentEvent::Prompted).await;

        let timeouts = &self.pool.profile.timeouts;
        let longest = asked.timeout_ms.map_or_else(
            || timeouts.turn(effort_level(asked.effort)),
            Duration::from_millis,
        );
        let longest = longest.min(TURN_MAX);
        // A CLI that only starts has the time to start on top.
        let mut deadline = Instant::now() + longest;
        if is_starting && !self.words.is_up() {
            deadline += Duration::from_secs(timeouts.ready_s);
        }
        let mut stop: Option<(Stop, Instant)> = None;
        let events = self.events.clone();
        loop {
            let until = stop.map_or(deadline, |(_, until)| until);
            tokio::select! {
                news = cli.news() => {
                    let ended = self.hear(cli, news, owned, asked).await;
                    if let Some(outcome) = ended {
                        // What was denied was told before the CLI knew of it.
                        while let Ok(attempt) = denied.try_recv() {
                            self.tell_denied(cli.entrance.entrance(), &attempt).await;
                        }
                        return Ok(end_of(outcome, stop, longest, &agent));
                    }
                }
                attempt = denied.recv() => if let Ok(attempt) = attempt {
                    self.tell_denied(cli.entrance.entrance(), &attempt).await;
                },
                () = tokio::time::sleep_until(until) => match stop {
                    None => {
                        stop = Some((Stop::Deadline, Instant::now() + INTERRUPT_GRACE));
                        self.interrupt(cli).await;
                    }
                    Some(_) => {
                        cli.kill();
                        return Ok(end_of(Outcome::Interrupted, stop, longest, &agent));
                    }
                },
                () = events.closed(), if stop.is_none() => {
                    self.is_cancelled = true;
                    stop = Some((Stop::Cancelled, Instant::now() + INTERRUPT_GRACE));
                    self.interrupt(cli).await;
                }
            }
            if self.words.take_ready() && stop.is_none() {
                deadline = Instant::now() + longest;
            }
        }
    }

    /// Tells of an attempt of this run's CLI; those of the owner's other runs are theirs.
    async fn tell_denied(&mut self, entrance: u16, attempt: &Denied) {
        if attempt.entrance == entrance {
            self.emit(words::denied(attempt)).await;
        }
    }

    /// Goes on in the conversation that is asked for, or in an empty one.
    async fn choose_conversation(&mut self, cli: &mut Cli, thread: Option<&str>) -> Result<(), Trouble> {
        let is_in_it = thread.is_some() && cli.conversation.as_deref() == thread;
        if cli.is_fresh || is_in_it {
            return Ok(());
        }
        let chosen = match thread {
            Some(thread) => cli.dialogue.resume(thread),
            None => cli.dialogue.new_conversation(),
        };
        let agent = self.pool.agent.as_str().to_owned();
        let chosen = chosen.map_err(|_| Trouble::Deaf(agent.clone()))?;
        cli.conversation = thread.map(str::to_owned);
        let said = self.react(cli, chosen).await;
        said.map(|_| ()).map_err(|()| Trouble::Deaf(agent))
    }

    /// Ends the turn the CLI's own way, or by a signal where it has none.
    async fn interrupt(&mut self, cli: &mut Cli) {
        match cli.dialogue.interrupt() {
            Ok(reaction) => {
                // One that takes nothing is killed when the grace is over.
                let _ = self.react(cli, reaction).await;
            }
            Err(Refusal::Impossible) => cli.signal(SIGINT),
            Err(_) => {}
        }
    }

    /// What the CLI has printed. The outcome, when its turn has ended.
    async fn hear(&mut self, cli: &mut Cli, news: News, owned: &Owned, asked: &AgentRun) -> Option<Outcome> {
        let mut ended = None;
        match news {
            News::Lines(lines) => {
                for (source, line) in lines {
                    if let Some(raw) = self.words.raw(source, &line) {
                        self.emit(raw).await;
                    }
                    let reaction = cli.dialogue.line(unix_ms(), source, &line);
                    self.note_conversation(cli, &reaction, owned, asked);
                    let outcome = self.react(cli, reaction).await.unwrap_or_default();
                    ended = ended.or(outcome);
                }
            }
            News::Exited(code) => {
                let reaction = cli.dialogue.exited(code);
                let outcome = self.react(cli, reaction).await.unwrap_or_default();
                ended = outcome.or(Some(Outcome::Interrupted));
            }
        }
        ended
    }

    fn note_conversation(&self, cli: &mut Cli, reaction: &Reaction, owned: &Owned, asked: &AgentRun) {
        for event in &reaction.events {
            if let Said::Session { id } = event {
                cli.conversation = Some(id.clone());
                owned.name_thread(id, id);
                if let Some(name) = &asked.session_id {
                    owned.name_thread(name, id);
                }
            }
        }
    }

    /// Writes what is to be written and tells what is to be told. Err: the CLI takes nothing any more.
    async fn react(&mut self, cli: &mut Cli, reaction: Reaction) -> Result<Option<Outcome>, ()> {
        let is_taken = cli.write(&reaction).await;
        let mut ended = None;
        for event in reaction.events {
            if let Said::TurnEnded { outcome } = event {
                ended = Some(outcome);
            } else if let Some(event) = self.words.told(event) {
                self.emit(event).await;
            }
        }
        if is_taken || ended.is_some() {
            Ok(ended)
        } else {
            Err(())
        }
    }
}

/// How well an idle CLI fits a run. None: not at all.
fn fits(cli: &Cli, wish: &Wish, thread: Option<&str>) -> Option<u32> {
    if cli.wish != *wish {
        return None;
    }
    match (thread, cli.conversation.as_deref()) {
        (Some(thread), Some(current)) if thread == current => Some(3),
        // One that can be told an older conversation while it runs; others are started with it.
        (Some(_), _) => cli.can_resume().then_some(1),
        (None, None) => Some(2),
        (None, Some(_)) => Some(1),
    }
}

/// Where the run's model is, and the key that opens it.
fn base(asked: &AgentRun) -> Result<Option<Base>, Trouble> {
    let base = asked.local_model.as_ref();
    let base = base
        .map(|local| Base::new(&local.base_url, &local.key))
        .transpose();
    base.map_err(|error| Trouble::Refused(format!("`local_model`: {error}")))
}

fn wish(pool: &PoolParts, asked: &AgentRun, directory: &str) -> Wish {
    let says_effort_per_turn = pool.start().language == Language::CodexAppServer;
    Wish {
        effort: effort_word(pool, asked.effort).filter(|_| !says_effort_per_turn),
        endpoint: asked.local_model.as_ref().map(|local| local.model.clone()),
        directory: directory.to_owned(),
    }
}

fn effort_level(effort: Option<AgentEffort>) -> EffortLevel {
    match effort {
        Some(AgentEffort::Low) => EffortLevel::Low,
        None | Some(AgentEffort::Medium) => EffortLevel::Medium,
        Some(AgentEffort::High) => EffortLevel::High,
    }
}

/// The CLI's word for the effort that was asked for.
fn effort_word(pool: &PoolParts, effort: Option<AgentEffort>) -> Option<String> {
    effort?;
    pool.profile.effort_word(effort_level(effort)).map(str::to_owned)
}

fn end_of(outcome: Outcome, stop: Option<(Stop, Instant)>, longest: Duration, agent: &str) -> AgentOutcome {
    match (outcome, stop.map(|(stop, _)| stop)) {
        (Outcome::Completed, _) => AgentOutcome::Completed,
        (_, Some(Stop::Deadline)) => {
            let code = ErrorCode::DecodeTimeout;
            AgentOutcome::Failed {
                code: code.as_str().to_owned(),
                message: format!("{agent} was not done after {} ms", longest.as_millis()),
                retriable: code.retriable(),
                retry_after_ms: None,
            }
        }
        (_, Some(Stop::Cancelled)) | (Outcome::Interrupted, None) => AgentOutcome::Cancelled,
        (Outcome::Failed(failure), None) => AgentOutcome::Failed {
            code: failure.code.as_str().to_owned(),
            message: failure.message,
            retriable: failure.code.retriable(),
            retry_after_ms: failure.retry_after_ms,
        },
    }
}

/// Where a line came from, in the words of the wire.
pub(super) fn source_name(source: Source) -> &'static str {
    match source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
    }
}
