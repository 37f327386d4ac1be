//! The one way out of a sandbox: serves a proxied connection that something in it has opened.
//!
//! Owns: reading the proxy's requests, the allow list, resolving, dialling, upstream proxies, counting bytes. Does not
//! own: how the connection comes out of the sandbox (it is given as a byte stream), what happens to a report of a
//! denied attempt.
//!
//! ```text
//! CONNECT host:port ───┐                                        ┌─ direct: only to the address that was checked
//! GET http://host/… ───┼─▶ name and port allowed? ─▶ resolve ───┤
//! GET /… (base) ───────┘        │ no                  │ private? └─ upstream proxy: the owner's own first, then others
//!                               ▼                     ▼
//!                          403 as plain text, and a report with host, port and reason
//! ```
//!
//! Invariants:
//! - Nothing is dialled that the policy did not allow by name and port, or as an address that is named as such.
//! - A name is resolved once, here; the addresses are checked, and only a checked one is dialled. What a name resolves
//!   to a moment later does not matter. (An upstream proxy that resolves by itself is trusted to: see [`ResolveAt`].)
//! - Loopback, private, link-local, shared, reserved and translated addresses are refused unless they are permitted.
//! - A request is read by hyper, and what goes on is written anew: no second request hides in a first.
//! - Heads are bounded in size and time, connections in number, idle time and total time. Copying goes through small
//!   fixed buffers, so a slow reader slows its own stream only.
//! - With upstream proxies, nothing goes out directly, also when all of them are down.
//!
//! Deliberately absent: looking into TLS. A tunnel to an allowed host carries what its two ends want.

mod address;
mod base;
mod dial;
mod forward;
mod limits;
mod meter;
mod policy;
mod resolve;
mod serve;
mod target;
mod upstream;

pub use address::{Network, is_public};
pub use base::Base;
pub use limits::Limits;
pub use meter::{Meter, Traffic};
pub use policy::{EgressPolicy, PolicyError};
pub use resolve::{Resolve, Resolving, SystemResolver};
pub use serve::{Denied, Egress, EntranceMeter, Lent, Reason, ServeError, Shared};
pub use target::{Host, Target, TargetError};
pub use upstream::{ResolveAt, UpstreamError, UpstreamProxy, Upstreams};
