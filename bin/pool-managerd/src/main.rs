//! The node daemon: keeps pools at target and is the one door to their engines.

fn main() {}
