//! Black-box tests against the built binaries.
