//! Agents' tasks: their way to a node, what they tell, the key by which one may use a model of our own, and logins.
//!
//! ```text
//! task ──slot──▶ link: POST runs at the node's door ──▶ events, one a line ──▶ runner ──▶ the task's events
//!                 │ model "local:NAME"
//!                 └──▶ keys: one for this task and model ──▶ the sandbox ──▶ outlet or main port ──▶ the dialects' room
//! ```
//!
//! Owns no sandbox and no login: a node does. Invariants: a run is for the owner of its task and nobody else; a task's key
//! ends with the task; nothing that a client is told holds a login.

pub(crate) mod home;
pub(crate) mod keys;
pub(crate) mod link;
pub(crate) mod logins;
pub(crate) mod outlet;
mod runner;
pub(crate) mod workspaces;

pub(crate) use runner::start;
