//! Gets, builds, starts and keeps an engine.

fn main() {}
