//! The proxy over real sockets on loopback: what gets through, what does not, and what happens to bytes.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

mod flow;
mod reach;
mod support;
mod upstreams;
