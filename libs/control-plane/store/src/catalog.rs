//! The model catalog: which models this installation has got, by the name that people use.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// A model in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogModel {
    /// The name.
    pub name: String,
    /// Where it came from: `hf:ORG/REPO/FILE`, an address, a path.
    pub source: String,
    /// The file's SHA-256, in hex.
    pub sha256: String,
    /// The file's size.
    pub bytes: u64,
    /// When it was added, milliseconds since 1970.
    pub added_ms: u64,
}

pub(crate) fn put(connection: &Connection, model: &CatalogModel) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO models (name, source, sha256, bytes, added_ms) VALUES (?, ?, ?, ?, ?)";
    let mut statement = connection.prepare_cached(sql)?;
    let (bytes, added_ms) = (model.bytes.cast_signed(), model.added_ms.cast_signed());
    statement.execute(params![model.name, model.source, model.sha256, bytes, added_ms])?;
    Ok(())
}

pub(crate) fn list(connection: &Connection) -> rusqlite::Result<Vec<CatalogModel>> {
    let mut statement = connection
        .prepare_cached("SELECT name, source, sha256, bytes, added_ms FROM models ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        Ok(CatalogModel {
            name: row.get(0)?,
            source: row.get(1)?,
            sha256: row.get(2)?,
            bytes: row.get::<_, i64>(3)?.cast_unsigned(),
            added_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        })
    })?;
    rows.collect()
}

pub(crate) fn remove(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    Ok(connection
        .prepare_cached("DELETE FROM models WHERE name = ?")?
        .execute([name])?
        > 0)
}
