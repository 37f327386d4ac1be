//! Coding-agent CLIs: how each is installed, started, pointed at a model, fed and read.
//!
//! [`Profile`] is what a file of `agents/` says about one CLI. [`Dialogue`] speaks with a running one: lines of its
//! output come in, [`AgentEvent`]s and lines for its standard input go out. Neither starts a process, knows a clock or
//! holds a login; reading profile files and [`install`] are the only I/O.
//!
//! ```text
//! agents/claude.toml ──Profile::load──▶ Profile ──start_command(level, values)──▶ CommandLine ──▶ whoever runs it
//!                                          │                                                        │ stdout, stderr
//!                                          └──dialogue(level, settings)──▶ Dialogue ◀──line─────────┘
//!                                                          prompt ──────▶    │ ──▶ lines for stdin, events
//! ```
//!
//! Invariants: no line of a CLI is fatal, what a dialogue does not know becomes [`AgentEvent::Raw`]; text is neither
//! lost, reordered nor doubled; a turn that was begun ends with exactly one [`AgentEvent::TurnEnded`], at the latest when
//! the process ends; a value never changes the meaning of what it is put into.

pub mod dialogue;
pub mod install;
pub mod profile;
pub mod template;

pub use dialogue::{AgentEvent, Dialogue, DialogueSettings, Reaction, Refusal, Source, Turn};
pub use profile::{CommandLine, Level, Profile, ProfileError};
pub use template::{Template, TemplateError, Values, Variable};
