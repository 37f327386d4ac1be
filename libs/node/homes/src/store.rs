//! Where sealed homes lie.

use std::fmt;
use std::io;

/// Why a store did not do it. Nothing was changed, or all of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has held the lock for too long.
    #[error("the home is locked by somebody else")]
    Locked,
    /// The disk is full.
    #[error("there is no room for the home")]
    NoRoom(#[source] io::Error),
    /// What is stored is larger than a home may be.
    #[error("what is stored is larger than a home may be")]
    TooLarge,
    /// Reading or writing failed.
    #[error("the home cannot be read or written")]
    Io(#[source] io::Error),
}

/// The place of one owner's home for one agent: a name that is fit for a file.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(Box<str>);

impl Slot {
    /// A slot of this name, if it could be one: `a-z 0-9 . _ -`, no full stop first.
    pub fn checked(name: String) -> Option<Self> {
        let fits = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
        };
        let good = !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(fits);
        good.then(|| Self(name.into_boxed_str()))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The two things that a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The sealed home.
    Home,
    /// Which version and fence are the highest.
    Mark,
}

/// A store of sealed homes. It sees ciphertext only, and decides nothing.
pub trait HomeStore: Send + Sync {
    /// Locks a slot against every other user of the store, in this process and others. Waits for a bounded time.
    fn lock(&self, slot: &Slot) -> Result<Box<dyn LockedSlot + '_>, StoreError>;

    /// All slots that hold something.
    fn slots(&self) -> Result<Vec<Slot>, StoreError>;
}

/// A slot that is locked until this is dropped.
pub trait LockedSlot {
    /// What is there.
    fn read(&mut self, part: Part) -> Result<Option<Vec<u8>>, StoreError>;

    /// Puts `bytes` there. When this returns, they survive the machine; when it fails or dies, the old ones are there
    /// or the new ones, whole.
    fn write(&mut self, part: Part, bytes: &[u8]) -> Result<(), StoreError>;
}
