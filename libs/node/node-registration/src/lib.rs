//! Keeps a node known to its control planes.
