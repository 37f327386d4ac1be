//! Watches the directory in which engines announce themselves.
