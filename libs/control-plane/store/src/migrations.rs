//! The schema, step by step. A step that was released never changes; the next one is added below it.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// Step `n` leads from schema `n` to `n + 1`.
const STEPS: &[&str] = &["
    CREATE TABLE tasks (
        id         TEXT PRIMARY KEY,
        created_ms INTEGER NOT NULL,
        ended_ms   INTEGER,
        owner      TEXT NOT NULL,
        session    TEXT,
        state      TEXT NOT NULL,
        view       TEXT NOT NULL
    ) STRICT;
    CREATE INDEX tasks_by_time ON tasks (created_ms, id);
    CREATE INDEX tasks_by_owner ON tasks (owner, created_ms, id);
    CREATE INDEX tasks_unfinished ON tasks (created_ms) WHERE ended_ms IS NULL;

    CREATE TABLE keys (
        id         TEXT PRIMARY KEY,
        name       TEXT NOT NULL,
        owner      TEXT NOT NULL,
        role       TEXT NOT NULL,
        hash       BLOB NOT NULL UNIQUE,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        revoked_ms INTEGER
    ) STRICT;

    CREATE TABLE models (
        name     TEXT PRIMARY KEY,
        source   TEXT NOT NULL,
        sha256   TEXT NOT NULL,
        bytes    INTEGER NOT NULL,
        added_ms INTEGER NOT NULL
    ) STRICT;
"];

/// Brings the file to this version's schema, all steps or none.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::Sql {
        doing: "bring its tables up to date",
        source,
    };
    let known = i64::try_from(STEPS.len()).expect("there are few steps");
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(fail)?;
    let found: i64 = transaction
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fail)?;
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for step in &STEPS[done..] {
        transaction.execute_batch(step).map_err(fail)?;
    }
    if found < known {
        transaction
            .pragma_update(None, "user_version", known)
            .map_err(fail)?;
    }
    transaction.commit().map_err(fail)
}
