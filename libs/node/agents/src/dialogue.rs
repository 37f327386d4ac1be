//! Dialogues with running CLIs, as pure state machines: what is asked and what the CLI prints come in, events and lines
//! for its standard input come out.
//!
//! ```text
//! Starting ──Ready──▶ Idle ──prompt──▶ Turn ──TurnEnded──▶ Idle
//!     └──────────────────┴───exited──────┴──────────────▶ Ended
//! ```
//!
//! A prompt that comes while the CLI starts waits (one, no more). What differs between CLIs is a [`Language`]: how it
//! says these things. Whoever holds the process writes [`Reaction::lines`], closes the standard input when
//! [`Reaction::close_stdin`] says so, and keeps the deadline of a turn; a dialogue knows no time but `now_ms`, by which it
//! turns reset times into waits.
//!
//! Invariants: every line is answered (no panic, no error); one turn at a time; each turn begun ends exactly once; the
//! pieces of a message, put together after the last replacement, are what the CLI says it was.

mod acp;
mod claude;
mod codex_exec;
mod codex_server;
pub mod event;
mod failure;
mod gemini;
mod lines;
mod splitter;
mod text;

use serde::Deserialize;
use serde_json::Value;
use task_api::ErrorCode;

pub use event::{AgentEvent, Bounded, Failure, Outcome, Source};
pub use splitter::{LINE_BYTES_MAX, LineSplitter};

use crate::profile::{EndBy, Level, Profile};
use event::{RAW_BYTES_MAX, cut};

/// How much of standard error is kept to explain an end, in bytes.
const STDERR_BYTES_MAX: usize = 2048;

/// How a CLI writes its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Claude Code's `stream-json`, in both directions.
    ClaudeStreamJson,
    /// `codex app-server`.
    CodexAppServer,
    /// `codex exec --json`: one prompt.
    CodexExecJson,
    /// The Agent Client Protocol.
    Acp,
    /// Gemini CLI's `stream-json`: one prompt.
    GeminiStreamJson,
    /// Nothing is known: every line of standard output is text, and the end of the process is the end of the turn.
    Lines,
}

impl Language {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClaudeStreamJson => "claude_stream_json",
            Self::CodexAppServer => "codex_app_server",
            Self::CodexExecJson => "codex_exec_json",
            Self::Acp => "acp",
            Self::GeminiStreamJson => "gemini_stream_json",
            Self::Lines => "lines",
        }
    }

    /// Whether it takes more than one prompt.
    pub const fn can_stay_up(self) -> bool {
        matches!(self, Self::ClaudeStreamJson | Self::CodexAppServer | Self::Acp)
    }
}

/// What a CLI is told when it asks for permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approval {
    /// Yes: the sandbox is the limit.
    #[default]
    Allow,
    /// No.
    Deny,
}

/// What a dialogue begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DialogueSettings {
    /// The directory that the agent works in, as the sandbox sees it.
    pub workspace: String,
    /// The model that the CLI was started with, and the one for turns that name none. None: the CLI's own.
    pub model: Option<String>,
    /// Whether the CLI was pointed at an endpoint of ours: then the model is told at the start in any case.
    pub own_endpoint: bool,
    /// The conversation to continue.
    pub session: Option<String>,
    /// The answer to requests for permission.
    pub approval: Approval,
}

/// One prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What the person says.
    pub prompt: String,
    /// The model for this turn, and those after it. None: as before.
    pub model: Option<String>,
    /// How hard to think, in the CLI's word. None: as before. Only some languages can say it per turn.
    pub effort: Option<String>,
}

impl Turn {
    /// A prompt and nothing else.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            model: None,
            effort: None,
        }
    }
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaction {
    /// What happened, in order.
    pub events: Vec<AgentEvent>,
    /// Lines for the CLI's standard input, each without its end of line. A prompt for a CLI that takes one prompt only may
    /// have several.
    pub lines: Vec<String>,
    /// Whether the standard input is to be closed after these lines.
    pub close_stdin: bool,
}

impl Reaction {
    fn event(&mut self, event: AgentEvent) {
        self.events.push(event);
    }

    fn write(&mut self, line: &Value) {
        self.lines.push(line.to_string());
    }
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is a turn, or a prompt that waits.
    #[error("the agent is in the middle of a turn")]
    Busy,
    /// There is no turn.
    #[error("the agent is in no turn")]
    Idle,
    /// The process has ended, or takes no further prompt.
    #[error("the agent has ended")]
    Ended,
    /// The CLI cannot do it while it runs.
    #[error("the agent cannot be told this while it runs: start it again")]
    Impossible,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Idle,
    Turn { interrupted: bool },
    Ended,
}

/// What the speakers of all languages share.
#[derive(Debug)]
struct Common {
    agent: String,
    level: Level,
    settings: DialogueSettings,
    phase: Phase,
    /// A prompt that came while the CLI was starting.
    waiting: Option<Turn>,
    /// The model that a new conversation has without being told.
    model_at_start: Option<String>,
    text: text::Text,
    /// The end of what came on standard error during this turn.
    stderr: String,
}

impl Common {
    /// The CLI takes prompts.
    fn ready(&mut self, reaction: &mut Reaction) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Idle;
            reaction.event(AgentEvent::Ready);
        }
    }

    fn begin_turn(&mut self) {
        self.phase = Phase::Turn { interrupted: false };
        self.text = text::Text::default();
        self.stderr.clear();
    }

    fn in_turn(&self) -> bool {
        matches!(self.phase, Phase::Turn { .. })
    }

    /// Ends the turn, if there is one.
    fn end_turn(&mut self, outcome: Outcome, reaction: &mut Reaction) {
        let Phase::Turn { interrupted } = self.phase else {
            return;
        };
        let outcome = match outcome {
            // In some languages an interrupted turn ends as a failure.
            Outcome::Failed(_) if interrupted => Outcome::Interrupted,
            outcome => outcome,
        };
        self.phase = Phase::Idle;
        reaction.event(AgentEvent::TurnEnded { outcome });
        if self.level == Level::OneShot {
            reaction.close_stdin = true;
        }
    }

    fn failed(&self, status: Option<u64>, message: &str, retry_after_ms: Option<u64>) -> Outcome {
        Outcome::Failed(failure::failure(&self.agent, status, message, retry_after_ms))
    }

    fn keep_stderr(&mut self, line: &str) {
        self.stderr.push_str(&cut(line, STDERR_BYTES_MAX));
        self.stderr.push('\n');
        let excess = self.stderr.len().saturating_sub(STDERR_BYTES_MAX);
        self.stderr.drain(..self.stderr.ceil_char_boundary(excess));
    }
}

/// What a language does. What it cannot do is left out.
trait Speaker: Send + std::fmt::Debug {
    /// In `Starting`: the first lines.
    fn start(&mut self, common: &mut Common, reaction: &mut Reaction);
    /// In `Turn`, which has just begun: the prompt.
    fn prompt(&mut self, common: &mut Common, turn: &Turn, reaction: &mut Reaction);
    /// In `Turn`: ends it the CLI's own way.
    fn interrupt(&mut self, _common: &mut Common, _reaction: &mut Reaction) -> Result<(), Refusal> {
        Err(Refusal::Impossible)
    }
    /// In `Idle`: an empty conversation.
    fn new_conversation(&mut self, _common: &mut Common, _reaction: &mut Reaction) -> Result<(), Refusal> {
        Err(Refusal::Impossible)
    }
    /// In `Idle`: an older conversation.
    fn resume(
        &mut self,
        _common: &mut Common,
        _session: &str,
        _reaction: &mut Reaction,
    ) -> Result<(), Refusal> {
        Err(Refusal::Impossible)
    }
    /// At any time: one object from standard output. False: it is not known, or not here.
    fn value(&mut self, common: &mut Common, now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool;
    /// At any time: a line of standard output that is no JSON object. False: it is not known.
    fn plain(&mut self, _common: &mut Common, _line: &str, _reaction: &mut Reaction) -> bool {
        false
    }
    /// In `Turn`: the process has ended with code 0. How the turn ended, when that is an end in this language.
    fn ended_well(&mut self, _common: &mut Common) -> Option<Outcome> {
        None
    }
}

/// A dialogue with one process of a CLI.
#[derive(Debug)]
pub struct Dialogue {
    common: Common,
    speaker: Box<dyn Speaker>,
    language: Language,
    exit_codes: Vec<(i32, ErrorCode, String)>,
    end_by: EndBy,
}

impl Dialogue {
    /// A dialogue with a process that was started by `profile` at `level`.
    pub fn new(profile: &Profile, level: Level, settings: DialogueSettings) -> Self {
        let start = profile.start(level);
        let endpoint = profile.endpoint.as_ref().filter(|_| settings.own_endpoint);
        let model_id = endpoint.and_then(|endpoint| endpoint.model_id.as_ref());
        let speaker: Box<dyn Speaker> = match start.language {
            Language::ClaudeStreamJson => Box::new(claude::Claude::default()),
            Language::CodexAppServer => Box::new(codex_server::CodexServer::default()),
            Language::CodexExecJson => Box::new(codex_exec::CodexExec),
            Language::Acp => Box::new(acp::Acp::new(acp::Names {
                model: model_id.cloned(),
                resumed: start.resume_id.clone(),
            })),
            Language::GeminiStreamJson => Box::new(gemini::GeminiStream::default()),
            Language::Lines => Box::new(lines::Lines),
        };
        let exit_codes = profile.exit_codes.iter();
        let told = settings.own_endpoint || profile.tells_model(level);
        Self {
            common: Common {
                agent: profile.name.clone(),
                level,
                model_at_start: settings.model.clone().filter(|_| told),
                settings,
                phase: Phase::Starting,
                waiting: None,
                text: text::Text::default(),
                stderr: String::new(),
            },
            speaker,
            language: start.language,
            exit_codes: exit_codes
                .filter_map(|(code, meaning)| {
                    Some((code.parse().ok()?, meaning.code, meaning.meaning.clone()))
                })
                .collect(),
            end_by: start.end.by,
        }
    }

    /// The process was started, and a login that it shall use is in place.
    pub fn start(&mut self) -> Reaction {
        let mut reaction = Reaction::default();
        self.speaker.start(&mut self.common, &mut reaction);
        reaction
    }

    /// Says a prompt, or keeps it until the CLI is ready.
    pub fn prompt(&mut self, turn: Turn) -> Result<Reaction, Refusal> {
        let mut reaction = Reaction::default();
        match self.common.phase {
            Phase::Turn { .. } => return Err(Refusal::Busy),
            Phase::Ended => return Err(Refusal::Ended),
            Phase::Starting if self.common.waiting.is_some() => return Err(Refusal::Busy),
            Phase::Starting => self.common.waiting = Some(turn),
            Phase::Idle => self.say(&turn, &mut reaction),
        }
        Ok(reaction)
    }

    /// Ends the turn the CLI's own way. It ends when the CLI says so, and not at once.
    ///
    /// [`Refusal::Impossible`]: the CLI knows no other way than a signal; the turn ends as interrupted when the process
    /// does.
    pub fn interrupt(&mut self) -> Result<Reaction, Refusal> {
        let mut reaction = Reaction::default();
        match &mut self.common.phase {
            Phase::Starting => {
                self.common.waiting.take().ok_or(Refusal::Idle)?;
                reaction.event(AgentEvent::TurnEnded {
                    outcome: Outcome::Interrupted,
                });
            }
            Phase::Idle => return Err(Refusal::Idle),
            Phase::Ended => return Err(Refusal::Ended),
            Phase::Turn { interrupted } => {
                *interrupted = true;
                self.speaker.interrupt(&mut self.common, &mut reaction)?;
            }
        }
        Ok(reaction)
    }

    /// Begins an empty conversation. [`AgentEvent::Cleared`] tells when it is there; a prompt may come before that.
    pub fn new_conversation(&mut self) -> Result<Reaction, Refusal> {
        self.between_turns()?;
        let mut reaction = Reaction::default();
        self.speaker.new_conversation(&mut self.common, &mut reaction)?;
        Ok(reaction)
    }

    /// Goes on with an older conversation. A prompt may follow at once.
    pub fn resume(&mut self, session: &str) -> Result<Reaction, Refusal> {
        self.between_turns()?;
        let mut reaction = Reaction::default();
        self.speaker.resume(&mut self.common, session, &mut reaction)?;
        Ok(reaction)
    }

    /// The model for turns that name none.
    pub fn set_model(&mut self, model: impl Into<String>) {
        self.common.settings.model = Some(model.into());
    }

    /// A line that the CLI has printed. `now_ms` is Unix time.
    pub fn line(&mut self, now_ms: u64, source: Source, line: &str) -> Reaction {
        let mut reaction = Reaction::default();
        let line = line.trim_end_matches(['\r', '\n']);
        let mut note = None;
        if line.len() > LINE_BYTES_MAX {
            note = Some("longer than a line may be: cut, and not read");
        } else if source == Source::Stderr {
            self.common.keep_stderr(line);
        } else {
            let known = self.stdout(now_ms, line, &mut reaction);
            if self.common.phase == Phase::Idle
                && let Some(turn) = self.common.waiting.take()
            {
                self.say(&turn, &mut reaction);
            }
            if known {
                return reaction;
            }
        }
        if !line.trim().is_empty() {
            reaction.event(AgentEvent::Raw {
                source,
                line: cut(line, RAW_BYTES_MAX),
                note,
            });
        }
        reaction
    }

    /// The process has ended. None: by a signal.
    pub fn exited(&mut self, code: Option<i32>) -> Reaction {
        let mut reaction = Reaction::default();
        if self.common.waiting.take().is_some() {
            self.common.begin_turn();
        }
        if self.common.in_turn() {
            let well = (code == Some(0)).then(|| self.speaker.ended_well(&mut self.common));
            let outcome = well.flatten().unwrap_or_else(|| self.ended_badly(code));
            self.common.end_turn(outcome, &mut reaction);
            reaction.close_stdin = false;
        }
        self.common.phase = Phase::Ended;
        reaction
    }

    /// Asks the CLI to end by itself. None: only a signal does it.
    pub fn close(&mut self) -> Option<Reaction> {
        (self.end_by == EndBy::CloseStdin).then(|| Reaction {
            close_stdin: true,
            ..Reaction::default()
        })
    }

    /// Whether a prompt would be taken.
    pub fn is_idle(&self) -> bool {
        match self.common.phase {
            Phase::Starting => self.common.waiting.is_none(),
            Phase::Idle => true,
            Phase::Turn { .. } | Phase::Ended => false,
        }
    }

    fn say(&mut self, turn: &Turn, reaction: &mut Reaction) {
        self.common.begin_turn();
        self.speaker.prompt(&mut self.common, turn, reaction);
        // These wait for the end of their input before they begin.
        if !self.language.can_stay_up() {
            reaction.close_stdin = true;
        }
    }

    fn stdout(&mut self, now_ms: u64, line: &str, reaction: &mut Reaction) -> bool {
        let object = match self.language {
            Language::Lines => None,
            _ => serde_json::from_str::<Value>(line).ok().filter(Value::is_object),
        };
        match object {
            Some(object) => self.speaker.value(&mut self.common, now_ms, &object, reaction),
            None => self.speaker.plain(&mut self.common, line, reaction),
        }
    }

    fn between_turns(&self) -> Result<(), Refusal> {
        match self.common.phase {
            // What is asked for must be said in order, and nothing can be said yet.
            Phase::Starting | Phase::Turn { .. } => Err(Refusal::Busy),
            Phase::Ended => Err(Refusal::Ended),
            Phase::Idle => Ok(()),
        }
    }

    fn ended_badly(&self, code: Option<i32>) -> Outcome {
        let agent = &self.common.agent;
        if let Some((_, error, meaning)) = self.exit_codes.iter().find(|(known, ..)| Some(*known) == code) {
            let advice = match error {
                ErrorCode::Unauthenticated => format!(": run `remuda login {agent}`"),
                _ => String::new(),
            };
            return Outcome::Failed(Failure {
                code: *error,
                message: format!("{agent}: {meaning}{advice}"),
                retry_after_ms: None,
            });
        }
        let how = match code {
            Some(code) => format!("ended with exit code {code} in the middle of a turn"),
            None => "was killed in the middle of a turn".to_owned(),
        };
        let last = self.common.stderr.trim().lines().last().unwrap_or_default();
        Outcome::Failed(Failure {
            code: match failure::code(None, last) {
                ErrorCode::Unauthenticated => ErrorCode::Unauthenticated,
                _ => ErrorCode::WorkerReset,
            },
            message: match last {
                "" => format!("{agent} {how}"),
                last => format!("{agent} {how}: {}", cut(last, event::MESSAGE_BYTES_MAX)),
            },
            retry_after_ms: None,
        })
    }
}

#[cfg(test)]
mod tests;
