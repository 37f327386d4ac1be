//! Keeps a node known to its control planes: registers, sends heartbeats, deregisters.
//!
//! Owns: when to send what, to each control plane on its own, and the requests themselves. Does not own: what the node
//! reports, which is asked for at each report.
//!
//! The decisions are one pure function, [`step`](step()); [`Registration`] does what it says.
//!
//! Invariants:
//! - at most one request per control plane is under way, so reports arrive in order;
//! - failures are met by exponential back-off with full jitter, so a restarted control plane is not stormed;
//! - two heartbeats are at least [`BEAT_GAP_MIN`] apart, however often something changes;
//! - `sequence` and the report that carries it are made in one step, so a higher number never carries an older report.

mod driver;
mod report;
mod step;

pub use driver::{Options, Registration, Standing};
pub use report::{NodeReport, ReportSource, Reporter};
pub use step::{
    Answer, BEAT_GAP_MIN, Effect, Event, HEARTBEAT_MAX, HEARTBEAT_MIN, REFUSED_RETRY, RETRY_BASE, RETRY_MAX,
    State, Timing, step,
};
