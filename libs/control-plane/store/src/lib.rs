//! Tasks, keys and the model catalog in one SQLite file.
//!
//! Owns: the file, its schema and migrations, one thread that writes it, and the keys in memory. Does not own: who may
//! do what, the events of a task (only its latest state is kept: after a restart a task can be read, not replayed).
//!
//! ```text
//!  insert_task, create_key ... ──bounded──▶ writer thread ──one transaction for all that wait──▶ remuda.db (WAL)
//!  finish_task (never waits) ──bounded──┘                                                         ▲
//!  task, list_tasks ─────────────────────▶ reader thread ─────────────────────────────────────────┘
//!  KeyTable::find (no I/O) ◀── snapshot, read again when another process has written
//! ```
//!
//! Invariants:
//! - What `insert_task` and the key functions have confirmed survives `kill -9` and a power cut.
//! - A write that fails, because the disk is full for one, is counted in [`Store::health`], and nothing waits for it.
//! - Keys are stored as SHA-256 hashes; the text of a key exists once, in the answer that creates it.
//! - Every queue and table has a bound: [`StoreSettings`].
//!
//! Deliberately absent: everything on the way of a `/v1` request but [`KeyTable::find`].

mod catalog;
mod error;
mod keys;
mod migrations;
mod settings;
mod store;
mod tasks;

pub use catalog::CatalogModel;
pub use error::StoreError;
pub use keys::{KeyId, KeyInfo, KeyTable, NewKey, NewKeySpec, Role};
pub use settings::StoreSettings;
pub use store::{Store, StoreHealth};
pub use tasks::{TaskFilter, TaskRecord};
