//! Pooled HTTP connections to engines (HTTP/1.1) and to the doors of nodes (HTTP/2).
//!
//! Owns: connecting, reuse, and the bounds of both. Does not own: retries, slots, deadlines, meaning.
//!
//! - [`EngineClient`] keeps idle HTTP/1.1 connections to one origin, one shelf per worker thread. A connection is read
//!   by whoever reads its answer, and by nobody while it is idle: there is no task per connection, and dropping an
//!   answer closes its socket in the same instant, which is how an engine learns of a cancel. It is written by hand and
//!   not with hyper, because the proxied request and the waiting stream are what this project is measured by.
//! - [`NodeClient`] multiplexes requests over a few HTTP/2 connections per worker thread.
//!
//! Both report how far a failed request came ([`SendError::not_processed`]), because that decides whether it may be
//! sent again.

mod connect;
mod engine;
mod error;
mod framing;
mod node;
mod origin;
mod shelf;
mod wire;

pub use connect::ConnectOptions;
pub use engine::{EngineBody, EngineBodyError, EngineClient};
pub use error::{Cause, OriginError, SendError};
pub use node::{NodeBody, NodeClient, Pieces};
pub use origin::Origin;
pub use shelf::set_worker_index;
