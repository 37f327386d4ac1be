//! Agent pools: real CLIs and a fake one, in real sandboxes, against a scripted provider.

mod docker;
mod egress;
mod logins;
mod orders;
mod place;
mod real;
mod restarts;
mod runs;
mod workspaces;
