//! Gets, builds, starts and keeps an engine.
//!
//! Owns: engine recipes, getting an engine and its model, and one engine's whole life until its handoff is written and
//! removed. Does not own: which engines there are to be on a node (the node daemon's), what a handoff is worth (its
//! reader probes), and anything a client says to an engine.
//!
//! Two ways to run the same code:
//! - [`InProcess`]: a thread of this process keeps the engine, which dies with the process. For `remuda up`.
//! - [`launch::Launcher`]: an `engine-provisioner` process keeps it, outlives a restart of the node daemon, and ends
//!   when the daemon has been gone for a while. For `pool-managerd`.
//!
//! ```text
//! EngineSpec ──▶ get engine, get model ──▶ start ──▶ answers ──▶ handoff ──▶ watched ──▶ ends: handoff removed
//!                        ▲                                                                  │ pause, within a budget
//!                        └──────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! - One replica has one keeper: its lock file says who ([`launch::keeper`]). Keeping it twice changes nothing.
//! - Engines listen on 127.0.0.1 only and die with their keeper.
//! - A program or model from elsewhere is used only after its SHA-256 was checked, where one is known.

pub mod cli;
mod command;
mod fetch;
mod in_process;
pub mod launch;
pub mod life;
mod port;
mod probe;
pub mod recipe;
mod settings;
mod spec;
mod status;
mod supervise;

pub use fetch::{
    EngineError, EngineProgram, FetchError, Origin, ToolError, UnpackError, get_engine, local_model,
};
pub use in_process::InProcess;
pub use model_store::{Progress, Step, Unit};
pub use settings::Settings;
pub use spec::{CONTEXT_TOTAL_MAX, EngineSpec, SLOTS_MAX, SpecError, check_device_mask};
pub use status::{EngineStatus, Phase};
pub use supervise::{Claim, SuperviseError, Supervision, supervise};
