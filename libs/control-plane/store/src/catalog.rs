//! The model catalog: which models this installation has got, by the name that people use.

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
