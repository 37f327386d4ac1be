//! API keys: hashed on disk, found in constant time in memory.

use std::fmt;
use std::sync::Arc;

/// Names a key without giving it away: what `remuda keys list` shows and `revoke` takes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Submits tasks and sees its owner's.
    #[default]
    User,
    /// Also sees everybody's tasks, drains and reloads pools.
    Admin,
    /// Registers nodes and sends heartbeats, nothing else.
    Node,
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKeySpec {
    /// What it is for, in its owner's words.
    pub name: String,
    /// The person or service account that it stands for.
    pub owner: String,
    /// What it may do.
    pub role: Role,
    /// When it ends to be valid, milliseconds since 1970. None: never.
    pub expires_ms: Option<u64>,
}

/// A key that was just made.
pub struct NewKey {
    /// What is kept of it.
    pub info: KeyInfo,
    /// The key itself, `rmd_...`: shown once and stored nowhere.
    pub secret: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// What is kept of a key. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Names it.
    pub id: KeyId,
    /// What it is for.
    pub name: Arc<str>,
    /// Whom it stands for.
    pub owner: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends to be valid, milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// When it was revoked, milliseconds since 1970.
    pub revoked_ms: Option<u64>,
}

/// The valid keys, in memory. A snapshot: hold it for one request, take it again for the next.
#[derive(Debug, Default)]
pub struct KeyTable {
    _private: (),
}

#[expect(unused_variables, clippy::unimplemented, reason = "the signatures come first")]
impl KeyTable {
    /// A table of keys given in the settings (`ORCHD_API_KEYS`: `[owner[:role]=]key`, comma-separated), without a store.
    pub fn from_settings(keys: &str) -> Result<Self, crate::StoreError> {
        unimplemented!()
    }

    /// Whose key this is; None when it is unknown, revoked, or past its end.
    pub fn find(&self, presented: &[u8], now_ms: u64) -> Option<Arc<KeyInfo>> {
        unimplemented!()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
}
