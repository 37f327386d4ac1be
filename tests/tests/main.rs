//! Black-box tests: the built programs, real engines, and what may happen to them.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod agent_streams;
mod agents;
mod bad_input;
mod canary;
mod cancels;
mod clock;
mod command_line;
mod discovery;
mod disk;
mod error_bodies;
mod faulty_engines;
mod first_steps;
mod kills;
mod kills_handing_off;
mod kills_registering;
mod kills_reloading;
mod kills_waiting;
mod logins;
mod logs;
mod metrics;
mod mutual_tls;
mod network;
mod openapi;
mod pictures;
mod polled_nodes;
mod readme;
mod real_clients;
mod requests_listed;
mod storms;
mod tls_up;
mod traces;
mod walk_through;
mod workspaces;
