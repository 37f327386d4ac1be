//! Pooled HTTP connections to engines and nodes.
