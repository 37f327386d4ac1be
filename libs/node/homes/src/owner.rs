//! Whose a home is, and the plain bytes of one.

use std::fmt;

use ring::digest;
use zeroize::{Zeroize, Zeroizing};

use crate::{HOME_BYTES_MAX, Slot};

/// The longest name of an owner, in bytes.
const OWNER_BYTES_MAX: usize = 512;
/// The longest name of an agent, in bytes.
const AGENT_BYTES_MAX: usize = 64;

/// Why a name cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("the name is empty")]
    Empty,
    /// It is too long.
    #[error("the name has {0} bytes, which is too long")]
    TooLong(usize),
    /// An agent's name has other characters than small letters, digits, `-` and `_`.
    #[error("the name has other characters than small letters, digits, '-' and '_'")]
    Character,
}

/// An owner that was authenticated. Without one, no home can be named; it cannot be copied by accident, and whoever
/// makes one says that this is who asks.
#[derive(PartialEq, Eq)]
pub struct OwnerHandle(Box<str>);

impl OwnerHandle {
    /// The handle of the owner that a key, an OIDC token or a sandbox's label has been checked to stand for.
    pub fn authenticated(name: &str) -> Result<Self, NameError> {
        match name.len() {
            0 => Err(NameError::Empty),
            length if length > OWNER_BYTES_MAX => Err(NameError::TooLong(length)),
            _ => Ok(Self(name.into())),
        }
    }

    /// The owner's name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OwnerHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("OwnerHandle").field(&self.0).finish()
    }
}

/// The name of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentName(Box<str>);

impl AgentName {
    /// Checks `name`: 1 to 64 small letters, digits, `-` and `_`.
    pub fn new(name: &str) -> Result<Self, NameError> {
        match name.len() {
            0 => return Err(NameError::Empty),
            length if length > AGENT_BYTES_MAX => return Err(NameError::TooLong(length)),
            _ => {}
        }
        let fits =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if !name.bytes().all(fits) {
            return Err(NameError::Character);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the home of this owner for this agent lies. The owner's name is hashed, because it may be anything.
pub(crate) fn slot_of(owner: &OwnerHandle, agent: &AgentName) -> Slot {
    let hash = digest::digest(&digest::SHA256, owner.0.as_bytes());
    let mut name = String::with_capacity(32 + 1 + agent.0.len());
    for byte in &hash.as_ref()[..16] {
        name.push_str(&format!("{byte:02x}"));
    }
    name.push('.');
    name.push_str(&agent.0);
    Slot::checked(name).expect("hexadecimal digits, a full stop and an agent's name")
}

/// Something that belongs to an owner and can take its home: a claimed sandbox.
pub trait OwnedBy {
    /// Whose it is.
    fn owner(&self) -> &OwnerHandle;
}

/// A home was about to be given to somebody else's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a home is given to its owner's own sandbox only")]
pub struct LendingRefused;

/// A home is larger than [`HOME_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the home is larger than {} MiB", HOME_BYTES_MAX >> 20)]
pub struct TooLarge;

/// The archive of a home as it came out of its owner's sandbox, to be sealed. It can be filled, and not be read.
#[derive(Default)]
pub struct PlainHome(Zeroizing<Vec<u8>>);

impl PlainHome {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes. Growing leaves no copy behind.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        let needed = self.0.len() + bytes.len();
        if needed > HOME_BYTES_MAX {
            return Err(TooLarge);
        }
        if needed > self.0.capacity() {
            let mut grown = Vec::with_capacity(needed.next_power_of_two().max(64 << 10));
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = Zeroizing::new(grown);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A home that was opened: bound to its owner until it is in that owner's sandbox, and wiped when it is dropped.
pub struct OpenHome {
    owner: OwnerHandle,
    buffer: Zeroizing<Vec<u8>>,
    start: usize,
    end: usize,
}

impl OpenHome {
    /// `buffer[start..end]` is the plain archive.
    pub(crate) fn new(owner: &str, buffer: Zeroizing<Vec<u8>>, start: usize, end: usize) -> Self {
        Self {
            owner: OwnerHandle(owner.into()),
            buffer,
            start,
            end,
        }
    }

    /// The archive, for unpacking into the sandbox and nothing else: somebody else's sandbox does not get it.
    pub fn archive_for(&self, sandbox: &impl OwnedBy) -> Result<&[u8], LendingRefused> {
        if *sandbox.owner() == self.owner {
            Ok(&self.buffer[self.start..self.end])
        } else {
            Err(LendingRefused)
        }
    }

    /// The archive, for sealing it again.
    pub(crate) fn plain(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// How many bytes the archive has.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the archive is empty.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}
