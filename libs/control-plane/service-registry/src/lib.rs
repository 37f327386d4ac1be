//! Which nodes are alive and what they offer: a pure state machine.
