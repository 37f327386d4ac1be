//! Black-box tests: the built programs, real engines, and what may happen to them.

mod cancels;
mod first_steps;
mod kills;
