//! Content-addressed store of model files.
