//! Sandboxes by real drivers: what can be done in them, what cannot, and what is left of them.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "sandboxes/escapes.rs"]
mod escapes;
#[path = "sandboxes/place.rs"]
mod place;
#[path = "sandboxes/remote.rs"]
mod remote;
#[path = "sandboxes/use_them.rs"]
mod use_them;
