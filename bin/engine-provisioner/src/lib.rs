//! Gets, builds, starts and keeps an engine.
