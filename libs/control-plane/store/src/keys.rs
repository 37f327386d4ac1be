//! API keys: hashed on disk, found in constant time in memory.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::StoreError;

/// What every key of ours begins with, so that scanners for leaked secrets can tell them.
const PREFIX: &str = "rmd_";
/// The longest text that is looked up at all.
const PRESENTED_LEN_MAX: usize = 1024;
/// The longest name or owner, in characters.
const FIELD_LEN_MAX: usize = 128;

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
    /// Everything.
    Admin,
    /// Registers nodes and sends heartbeats, nothing else.
    Node,
}

impl Role {
    /// The role as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no role; there are user, admin and node")]
pub struct RoleError;

impl FromStr for Role {
    type Err = RoleError;
    fn from_str(text: &str) -> Result<Self, RoleError> {
        [Self::User, Self::Admin, Self::Node]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(RoleError)
    }
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

type Hash = [u8; 32];

/// The valid keys, in memory. A snapshot: hold it for one request, take it again for the next.
#[derive(Clone, Default)]
pub struct KeyTable {
    /// By the first eight bytes of the hash, the whole of which is then compared in constant time.
    by_hash: HashMap<u64, Vec<(Hash, Arc<KeyInfo>)>>,
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.by_hash.values().flatten().map(|(_, info)| &info.id))
            .finish()
    }
}

impl KeyTable {
    /// A table of keys given in the settings, comma-separated, each `KEY`, `OWNER=KEY` or `OWNER:ROLE=KEY`. A key with
    /// an owner and no role is a user's; a bare key is the administrator's.
    pub fn from_settings(keys: &str) -> Result<Self, StoreError> {
        let mut table = Self::default();
        for (at, entry) in keys
            .split(',')
            .map(str::trim)
            .enumerate()
            .filter(|(_, entry)| !entry.is_empty())
        {
            let bad = |why| StoreError::BadKeyList { number: at + 1, why };
            let (owner, role, secret) =
                split_entry(entry).map_err(|_| bad("has a role that is none of user, admin, node"))?;
            let is_named = secret.len() < entry.len();
            if !is_named && secret.contains(':') {
                return Err(bad(
                    "has a `:` and no owner before it; right would be KEY, OWNER=KEY or OWNER:ROLE=KEY",
                ));
            }
            if !is_named && secret.trim_matches('=').is_empty() {
                return Err(bad("is empty; right would be KEY, OWNER=KEY or OWNER:ROLE=KEY"));
            }
            if is_named && check_field("owner", owner).is_err() {
                return Err(bad("has no owner of 1 to 128 characters before its `=`"));
            }
            if secret.len() > PRESENTED_LEN_MAX {
                return Err(bad("is longer than 1,024 bytes"));
            }
            if secret.bytes().any(|byte| !byte.is_ascii_graphic()) {
                return Err(bad("has a space or a character that no header can carry"));
            }
            let info = KeyInfo {
                id: KeyId(Arc::from(format!("settings-{}", at + 1))),
                name: Arc::from("from the settings"),
                owner: Arc::from(owner),
                role,
                created_ms: 0,
                expires_ms: None,
                revoked_ms: None,
            };
            table.add(hash(secret.as_bytes()), info);
        }
        Ok(table)
    }

    fn add(&mut self, hash: Hash, info: KeyInfo) {
        self.by_hash
            .entry(bucket(&hash))
            .or_default()
            .push((hash, Arc::new(info)));
    }

    /// Whose key this is; None when it is unknown, revoked, or past its end.
    pub fn find(&self, presented: &[u8], now_ms: u64) -> Option<Arc<KeyInfo>> {
        if presented.len() > PRESENTED_LEN_MAX {
            return None;
        }
        let hash = hash(presented);
        let known = self.by_hash.get(&bucket(&hash))?;
        let (_, info) = known.iter().find(|(known, _)| bool::from(known.ct_eq(&hash)))?;
        info.expires_ms
            .is_none_or(|end| now_ms < end)
            .then(|| Arc::clone(info))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.by_hash.values().map(Vec::len).sum()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }
}

/// Owner, role and key of one entry. What stands before the first `=` is an owner only when a key follows, so a bare
/// key may end with the `=` of base64.
fn split_entry(entry: &str) -> Result<(&str, Role, &str), RoleError> {
    let named = entry
        .split_once('=')
        .filter(|(_, key)| key.bytes().any(|byte| byte != b'='));
    let Some((who, key)) = named else {
        return Ok(("operator", Role::Admin, entry));
    };
    match who.split_once(':') {
        Some((owner, role)) => Ok((owner, role.parse()?, key)),
        None => Ok((who, Role::User, key)),
    }
}

fn hash(secret: &[u8]) -> Hash {
    Sha256::digest(secret).into()
}

fn bucket(hash: &Hash) -> u64 {
    let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { doing, source }
}

fn check_field(field: &'static str, text: &str) -> Result<(), StoreError> {
    let fits = (1..=FIELD_LEN_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        Ok(())
    } else {
        Err(StoreError::BadKeyField { field })
    }
}

pub(crate) fn create(connection: &Connection, spec: NewKeySpec, now_ms: u64) -> Result<NewKey, StoreError> {
    check_field("name", &spec.name)?;
    check_field("owner", &spec.owner)?;
    let secret = format!("{PREFIX}{}", hex(&rand::random::<[u8; 32]>()));
    let info = KeyInfo {
        id: KeyId(Arc::from(format!("key-{}", hex(&rand::random::<[u8; 6]>())))),
        name: Arc::from(spec.name),
        owner: Arc::from(spec.owner),
        role: spec.role,
        created_ms: now_ms,
        expires_ms: spec.expires_ms,
        revoked_ms: None,
    };
    let text =
        "INSERT INTO keys (id, name, owner, role, hash, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?, ?)";
    let hash = hash(secret.as_bytes());
    let values = params![
        info.id.as_str(),
        &*info.name,
        &*info.owner,
        info.role.as_str(),
        &hash[..],
        now_ms.cast_signed(),
        spec.expires_ms.map(u64::cast_signed)
    ];
    connection.execute(text, values).map_err(sql("write a key"))?;
    Ok(NewKey { info, secret })
}

const COLUMNS: &str = "id, name, owner, role, created_ms, expires_ms, revoked_ms, hash";

fn read_info(row: &Row<'_>) -> rusqlite::Result<KeyInfo> {
    let role: String = row.get(3)?;
    Ok(KeyInfo {
        id: KeyId(Arc::from(row.get::<_, String>(0)?)),
        name: Arc::from(row.get::<_, String>(1)?),
        owner: Arc::from(row.get::<_, String>(2)?),
        // A role of a newer version gives no more than the least.
        role: role.parse().unwrap_or(Role::User),
        created_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        expires_ms: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        revoked_ms: row.get::<_, Option<i64>>(6)?.map(i64::cast_unsigned),
    })
}

pub(crate) fn list(connection: &Connection) -> Result<Vec<KeyInfo>, StoreError> {
    let read = || {
        let text = format!("SELECT {COLUMNS} FROM keys ORDER BY created_ms DESC, id");
        connection
            .prepare_cached(&text)?
            .query_map([], read_info)?
            .collect::<rusqlite::Result<Vec<KeyInfo>>>()
    };
    read().map_err(sql("list the keys"))
}

/// Ends a key. One that was revoked before keeps its time.
pub(crate) fn revoke(connection: &Connection, id: &str, now_ms: u64) -> Result<KeyInfo, StoreError> {
    let write = || {
        connection.execute(
            "UPDATE keys SET revoked_ms = ? WHERE id = ? AND revoked_ms IS NULL",
            params![now_ms.cast_signed(), id],
        )?;
        let text = format!("SELECT {COLUMNS} FROM keys WHERE id = ?");
        connection
            .prepare_cached(&text)?
            .query_row([id], read_info)
            .optional()
    };
    write().map_err(sql("revoke a key"))?.ok_or(StoreError::NoSuchKey)
}

/// The keys of the file that are not revoked, added to those of the settings.
pub(crate) fn load(connection: &Connection, from_settings: &KeyTable) -> Result<KeyTable, StoreError> {
    let mut table = from_settings.clone();
    let mut read = || {
        let text = format!("SELECT {COLUMNS} FROM keys WHERE revoked_ms IS NULL");
        let mut statement = connection.prepare_cached(&text)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, Hash>(7)?, read_info(row)?)))?;
        for row in rows {
            let (hash, info) = row?;
            table.add(hash, info);
        }
        Ok(())
    };
    read().map_err(sql("read the keys"))?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(settings: &str, presented: &str, expect: Option<(&str, Role)>) {
        let table = KeyTable::from_settings(settings).unwrap();
        let found = table.find(presented.as_bytes(), 0);
        assert_eq!(
            found.as_ref().map(|info| (&*info.owner, info.role)),
            expect,
            "{settings:?} {presented:?}"
        );
    }

    #[test]
    fn keys_of_the_settings_are_found_whole_or_not_at_all() {
        check("secret", "secret", Some(("operator", Role::Admin)));
        check("secret", "secre", None);
        check("secret", "", None);
        check("", "", None);
        check("alice=s1, bob:admin=s2 ,", "s1", Some(("alice", Role::User)));
        check("alice=s1, bob:admin=s2 ,", "s2", Some(("bob", Role::Admin)));
        check("n:node=t0ken", "t0ken", Some(("n", Role::Node)));
        check("YWJj==", "YWJj==", Some(("operator", Role::Admin)));
        check("alice=YWJj=", "YWJj=", Some(("alice", Role::User)));
        check("secret", &"x".repeat(2000), None);
    }

    #[test]
    fn a_bad_list_says_which_key_and_not_what_it_is() {
        for (settings, number) in [
            ("good,bob:king=s3cr3t", 2),
            ("s3cr 3t", 1),
            ("a,b,s3cr3t\u{7f}", 3),
            (":::", 1),
            ("a,bob:s3cr3t", 2),
            ("=s3cr3t", 1),
            (":admin=s3cr3t", 1),
            ("bob:=s3cr3t", 1),
            ("good,==", 2),
        ] {
            let error = KeyTable::from_settings(settings).unwrap_err();
            assert!(
                matches!(error, StoreError::BadKeyList { number: found, .. } if found == number),
                "{error}"
            );
            assert!(!error.to_string().contains("s3cr"), "{error}");
        }
        assert!(!format!("{:?}", KeyTable::from_settings("s3cr3t").unwrap()).contains("s3cr"));
    }
}
