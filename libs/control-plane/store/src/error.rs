//! What can go wrong with the store.

use std::path::PathBuf;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made ready.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer version.
    #[error("the store {} has schema {found}, this version knows {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What stands in it.
        found: i64,
        /// What this version knows.
        known: i64,
    },
    /// Another control plane has the file.
    #[error("the store {} is in use by another control plane", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file or its directory cannot be made.
    #[error("cannot make the store {}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("the store could not {doing}")]
    Sql {
        /// What was to be done.
        doing: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// There is a task of this id.
    #[error("there is a task of this id already")]
    TaskExists,
    /// A cursor that this store did not give out.
    #[error("the cursor is not one of this list")]
    BadCursor,
    /// No such key.
    #[error("there is no such key")]
    NoSuchKey,
    /// A key's name or owner is not usable.
    #[error("the {field} of a key must have 1 to 128 characters, none of them a control character")]
    BadKeyField {
        /// Which.
        field: &'static str,
    },
    /// A key in the settings cannot be read. Does not show it.
    #[error("key {number} of the list {why}")]
    BadKeyList {
        /// Which, counted from 1.
        number: usize,
        /// Why.
        why: &'static str,
    },
    /// Too many requests wait for the store.
    #[error("too much waits for the store")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A thread could not be started.
    #[error("the store's thread could not be started")]
    Thread(#[source] std::io::Error),
    /// A record could not be read or written as JSON.
    #[error("a record of the store is not what was written")]
    Record(#[source] serde_json::Error),
}
