//! A CLI alone, with its dialogue and nothing of Remuda around it: what records the golden corpus.

#![expect(dead_code, reason = "the tests need more of it")]

#[path = "../../../libs/node/agents/tests/harness/cli.rs"]
pub(crate) mod cli;
#[path = "../../../libs/node/agents/tests/harness/golden.rs"]
pub(crate) mod golden;
