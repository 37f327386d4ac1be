//! A whole node: its door and its server with fake engines, its keeping of engines with real ones.
//!
//! Fakes stand for engines where a test needs a failure at a moment of its choice.

#![expect(clippy::unwrap_used, reason = "a broken assumption fails the test")]

mod agents;
mod bench;
mod door;
mod kept;
mod pages;
mod program;
mod settings;
