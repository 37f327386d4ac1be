//! The control plane: takes tasks, decides where they run, streams answers.
//!
//! | module | what it owns |
//! |---|---|
//! | `settings` | what can be set |
//! | `control_plane` | starting and stopping it all |
//! | `serve` | worker threads and connections |
//! | `rooms` | the HTTP endpoints |
//! | `dispatch`, `relay` | a task's way to an engine, and the answer's way back |
//! | `tasks` | the tasks of `/v2`, their events, their readers |
//! | `plane` | the scheduler behind its lock, leases and waits that give themselves back, the ways to nodes |
//! | `fleet` | reports, time, probes, polled nodes |
//! | `recent` | the requests of `/v1` as tasks that can be looked at |
//! | `media` | whether pictures and sound are taken |
//! | `access` | keys to owners and roles |

mod access;
mod agents;
mod body;
mod control_plane;
mod dispatch;
mod fleet;
mod media;
mod metrics;
mod openapi;
mod plane;
mod recent;
mod relay;
mod rooms;
mod serve;
mod settings;
mod spans;
mod tasks;

pub use control_plane::{ControlPlane, LocalNode, StartError};
pub use settings::{AdmissionPolicy, Settings};
