//! What black-box tests share: the built programs as processes, real engines, and bounded waits.
//!
//! Every test has directories and ports of its own, so all of them may run at once. Every process that a test starts is
//! ended by its handle's drop, by its id, together with its process group.

mod clients;
mod dockerd;
mod gate;
mod process;
mod skip;
mod sse;
mod system;
mod wait;

pub use clients::{clients, node, python};
pub use dockerd::{BASE_IMAGE, Dockerd};
pub use gate::{Gate, Kept};
pub use process::{Program, binary, is_alive, kill_9, processes_with, signal};
pub use skip::skipped;
pub use sse::{SseEvent, sse_events};
pub use system::{
    ControlPlane, Node, System, TOKEN, busy_slots, demo_model, engine_pid, engine_program, free_port,
    pool_toml,
};
pub use wait::{Deadline, eventually, eventually_async};
