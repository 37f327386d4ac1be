//! Black-box tests: the built programs, real engines, and what may happen to them.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod bad_input;
mod cancels;
mod clock;
mod command_line;
mod discovery;
mod disk;
mod faulty_engines;
mod first_steps;
mod kills;
mod logs;
mod metrics;
mod mutual_tls;
mod network;
mod openapi;
mod real_clients;
mod storms;
mod traces;
mod walk_through;
