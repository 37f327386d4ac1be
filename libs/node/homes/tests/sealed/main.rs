//! Sealed homes in a directory: what goes in comes out, for its owner, in its newest version, whatever dies when.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

mod damage;
mod deaths;
mod issuer;
mod keys;
mod round_trip;
mod support;
