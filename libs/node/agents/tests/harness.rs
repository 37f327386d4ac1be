//! Real CLIs, driven by dialogues against the stand-in for their providers, and what they said on paper.

pub(crate) mod cli;
pub(crate) mod golden;
pub(crate) mod mutation;
pub(crate) mod normal;
pub(crate) mod scenario;
