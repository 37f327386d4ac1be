//! Black-box tests: the built programs, real engines, and what may happen to them.

mod cancels;
mod command_line;
mod first_steps;
mod kills;
mod metrics;
