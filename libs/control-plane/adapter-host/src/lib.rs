//! Dialects: what clients and engines speak, read and answered.
