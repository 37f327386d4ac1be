//! Admission, placement and the life of a task: a pure state machine.
