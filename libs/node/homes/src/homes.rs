//! Opening homes and taking them back.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::keys::KeyRing;
use crate::mark::Mark;
use crate::owner::slot_of;
use crate::sealed::{Kind, Sealed, Subject, seal};
use crate::{
    AgentName, HomeStore, LockedSlot, OpenHome, OwnerHandle, Part, PlainHome, SealError, Slot, Spool,
    StoreError,
};

/// Why a home was not opened or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The store could not do it.
    #[error("the store of homes did not do it")]
    Store(#[from] StoreError),
    /// What is stored does not open.
    #[error("the home does not open")]
    Seal(#[from] SealError),
    /// The record of the highest version does not open.
    #[error("the record of the home's version does not open")]
    Mark(#[source] SealError),
    /// An older home was put in the place of a newer one.
    #[error("the home is version {found}, but version {seen} was there already: an old one was put back")]
    RolledBack {
        /// The version that is there.
        found: u64,
        /// The highest that was seen.
        seen: u64,
    },
    /// The record of the highest version is older than the home.
    #[error("the home is version {found}, but only {seen} is on record: an old record was put back")]
    MarkRolledBack {
        /// The version that is there.
        found: u64,
        /// The highest on record.
        seen: u64,
    },
    /// There was a home, and it is gone.
    #[error("the home is gone, and version {seen} was there")]
    Missing {
        /// The highest version that was seen.
        seen: u64,
    },
    /// The home was opened again since: what an older sandbox brings is not taken.
    #[error(
        "the home was opened again since (fence {fence}, now {current}): nothing is taken from an older sandbox"
    )]
    Fenced {
        /// The fence that was presented.
        fence: u64,
        /// The one that counts.
        current: u64,
    },
    /// Another version is there than expected. Pack the home again and put it with this ticket.
    #[error("the home is version {}, another one was expected", current.version)]
    Conflict {
        /// What is there.
        current: Ticket,
    },
    /// A fence that was never given out.
    #[error("fence {fence} was never given out; the last was {current}: the store was put back")]
    UnknownFence {
        /// The fence that was presented.
        fence: u64,
        /// The highest that is known.
        current: u64,
    },
}

/// The right to put back what was opened: which version it was, and the fence.
///
/// It is no secret. A sandbox's init keeps it in its label ([`Display`](fmt::Display), [`FromStr`]), so that a node that
/// comes back knows what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The version that was opened or put last; 0 when there was none.
    pub version: u64,
    /// The number of this opening.
    pub fence: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.version, self.fence)
    }
}

impl FromStr for Ticket {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (version, fence) = text.split_once('.').ok_or(())?;
        Ok(Self {
            version: version.parse().map_err(|_| ())?,
            fence: fence.parse().map_err(|_| ())?,
        })
    }
}

/// A home that was opened for a sandbox.
pub struct Opened {
    /// For putting it back.
    pub ticket: Ticket,
    /// What is in it; `None` when the owner has no login yet.
    pub home: Option<OpenHome>,
}

/// A home that was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// For the next time.
    pub ticket: Ticket,
    /// The store could not be reached: it is safe on this node's disk, and goes on with
    /// [`drain_spool`](Homes::drain_spool) or the next opening.
    pub is_spooled: bool,
}

/// What is known of a home without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeStatus {
    /// Its version.
    pub version: u64,
    /// How large it is, sealed, in bytes.
    pub sealed_bytes: usize,
}

/// Sealed homes in a store.
pub struct Homes {
    store: Arc<dyn HomeStore>,
    keys: KeyRing,
    spool: Option<Spool>,
    /// What this process has seen, so that it also notices when home and mark are put back together.
    seen: Mutex<HashMap<Slot, Mark>>,
}

/// What a slot holds, proven.
struct Loaded {
    home: Option<Sealed>,
    /// The highest version and fence.
    mark: Mark,
    /// What is on record; one version behind after a death between the two writes.
    recorded: Mark,
}

impl Homes {
    /// Homes in `store`, sealed with the current key of `keys`.
    pub fn new(store: Arc<dyn HomeStore>, keys: KeyRing) -> Self {
        Self {
            store,
            keys,
            spool: None,
            seen: Mutex::default(),
        }
    }

    /// Also keeps what is taken back on this node's disk until the store has it. Wanted when the store is elsewhere; a
    /// store on this disk is its own spool.
    #[must_use]
    pub fn with_spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Opens the owner's home for a new sandbox. From now on nothing is taken from older ones, so what may still be in
    /// one must be salvaged before.
    pub fn open(&self, owner: &OwnerHandle, agent: &AgentName) -> Result<Opened, HomeError> {
        let slot = slot_of(owner, agent);
        if let Some(spool) = &self.spool {
            match spool.drain_slot(self, &slot) {
                // An older sandbox's, and lost already.
                Ok(_) | Err(HomeError::Fenced { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut locked = self.store.lock(&slot)?;
        let loaded = self.load(&mut *locked, &slot, owner, agent)?;
        if loaded.home.is_none() && loaded.mark.version > 0 {
            return Err(HomeError::Missing {
                seen: loaded.mark.version,
            });
        }
        let mark = Mark {
            version: loaded.mark.version,
            fence: loaded.mark.fence + 1,
        };
        let home = match loaded.home {
            Some(home) if home.subject.kind == Kind::Home => Some(home.open(&self.keys)?),
            _ => None,
        };
        self.record(&mut *locked, &slot, mark)?;
        Ok(Opened {
            ticket: Ticket {
                version: mark.version,
                fence: mark.fence,
            },
            home,
        })
    }

    /// Takes a changed home back: the next version, if the ticket still stands. When this returns, it survives the
    /// machine. A sandbox's puts must come one after the other.
    pub fn put(
        &self,
        owner: &OwnerHandle,
        agent: &AgentName,
        ticket: Ticket,
        home: &PlainHome,
    ) -> Result<Saved, HomeError> {
        self.take(owner, agent, ticket, Some(ticket.version), home)
    }

    /// Takes a home from a sandbox that outlived its node, or again after a `put` whose end is not known: whatever was
    /// put under its fence is older than what it has now, so the version in the ticket does not matter.
    pub fn salvage(
        &self,
        owner: &OwnerHandle,
        agent: &AgentName,
        ticket: Ticket,
        home: &PlainHome,
    ) -> Result<Saved, HomeError> {
        self.take(owner, agent, ticket, None, home)
    }

    /// To the spool first, so that what is there is never older than what the store has; then to the store.
    fn take(
        &self,
        owner: &OwnerHandle,
        agent: &AgentName,
        ticket: Ticket,
        expected: Option<u64>,
        home: &PlainHome,
    ) -> Result<Saved, HomeError> {
        let Some(spool) = &self.spool else {
            let ticket = self.write(owner, agent, ticket.fence, expected, home.bytes())?;
            return Ok(Saved {
                ticket,
                is_spooled: false,
            });
        };
        let slot = slot_of(owner, agent);
        let subject = subject(Kind::Home, ticket.version + 1, ticket.fence, owner, agent);
        let mut spooled = spool.lock(&slot)?;
        spooled.write(Part::Home, &seal(&subject, home.bytes(), self.keys.current())?)?;
        match self.write(owner, agent, ticket.fence, expected, home.bytes()) {
            Ok(ticket) => {
                spool.clear(&slot)?;
                Ok(Saved {
                    ticket,
                    is_spooled: false,
                })
            }
            Err(HomeError::Store(_)) => Ok(Saved {
                ticket,
                is_spooled: true,
            }),
            Err(HomeError::Fenced { fence, current }) => {
                spool.clear(&slot)?;
                Err(HomeError::Fenced { fence, current })
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the owner's login. Works whatever is stored, so an owner whose home was damaged can log in again. A
    /// sandbox that still has it can put nothing back.
    pub fn remove(&self, owner: &OwnerHandle, agent: &AgentName) -> Result<(), HomeError> {
        let slot = slot_of(owner, agent);
        if let Some(spool) = &self.spool {
            let _spooled = spool.lock(&slot)?;
            spool.clear(&slot)?;
        }
        let mut locked = self.store.lock(&slot)?;
        let recorded = self.recorded(&mut *locked, &slot).unwrap_or_default();
        let stored = locked
            .read(Part::Home)
            .ok()
            .flatten()
            .and_then(|bytes| Sealed::parse(bytes).ok());
        let stored = stored
            .filter(|home| home.prove(&self.keys).is_ok())
            .map(|home| home.subject);
        let stored = stored.filter(|subject| subject.check(owner, agent).is_ok());
        let seen = self.remembered(&slot);
        let versions = [
            recorded.version,
            seen.version,
            stored.as_ref().map_or(0, |subject| subject.version),
        ];
        let fences = [
            recorded.fence,
            seen.fence,
            stored.as_ref().map_or(0, |subject| subject.fence),
        ];
        let mark = Mark {
            version: versions.into_iter().max().unwrap_or(0) + 1,
            fence: fences.into_iter().max().unwrap_or(0) + 1,
        };
        let subject = subject(Kind::Removed, mark.version, mark.fence, owner, agent);
        let sealed = seal(&subject, &[], self.keys.current())?;
        // The mark is at most one version behind a home, in this order and after a death between the two.
        let before = Mark {
            version: mark.version - 1,
            fence: mark.fence,
        };
        self.record(&mut *locked, &slot, before)?;
        locked.write(Part::Home, &sealed)?;
        self.record(&mut *locked, &slot, mark)
    }

    /// What is known of the owner's home; `None` without a login.
    pub fn status(&self, owner: &OwnerHandle, agent: &AgentName) -> Result<Option<HomeStatus>, HomeError> {
        let slot = slot_of(owner, agent);
        let mut locked = self.store.lock(&slot)?;
        let loaded = self.load(&mut *locked, &slot, owner, agent)?;
        let home = loaded.home.filter(|home| home.subject.kind == Kind::Home);
        Ok(home.map(|home| HomeStatus {
            version: home.subject.version,
            sealed_bytes: home.bytes().len(),
        }))
    }

    /// Brings everything that is spooled into the store; gives how many, and how many had lost to a newer opening.
    pub fn drain_spool(&self) -> Result<(usize, usize), HomeError> {
        self.spool.as_ref().map_or(Ok((0, 0)), |spool| spool.drain(self))
    }

    pub(crate) fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Writes the next version under `fence`, if that is still the last one given out.
    pub(crate) fn write(
        &self,
        owner: &OwnerHandle,
        agent: &AgentName,
        fence: u64,
        expected: Option<u64>,
        archive: &[u8],
    ) -> Result<Ticket, HomeError> {
        let slot = slot_of(owner, agent);
        let mut locked = self.store.lock(&slot)?;
        let loaded = self.load(&mut *locked, &slot, owner, agent)?;
        let Mark {
            version,
            fence: current,
        } = loaded.mark;
        if fence < current {
            return Err(HomeError::Fenced { fence, current });
        }
        if fence > current {
            return Err(HomeError::UnknownFence { fence, current });
        }
        if expected.is_some_and(|expected| expected != version) {
            return Err(HomeError::Conflict {
                current: Ticket { version, fence },
            });
        }
        if loaded.recorded != loaded.mark {
            self.record(&mut *locked, &slot, loaded.mark)?;
        }
        let mark = Mark {
            version: version + 1,
            fence,
        };
        let subject = subject(Kind::Home, mark.version, fence, owner, agent);
        let sealed = seal(&subject, archive, self.keys.current())?;
        locked.write(Part::Home, &sealed)?;
        // The home is safe now. Were its version not put on record, the next write or opening does it first.
        self.remember(&slot, mark);
        let _ = self.record(&mut *locked, &slot, mark);
        Ok(Ticket {
            version: mark.version,
            fence,
        })
    }

    /// Reads and proves what is there.
    fn load(
        &self,
        locked: &mut dyn LockedSlot,
        slot: &Slot,
        owner: &OwnerHandle,
        agent: &AgentName,
    ) -> Result<Loaded, HomeError> {
        let recorded = self.recorded(locked, slot)?;
        let remembered = self.remembered(slot);
        if recorded.fence < remembered.fence {
            return Err(HomeError::RolledBack {
                found: recorded.version,
                seen: remembered.version,
            });
        }
        let Some(bytes) = locked.read(Part::Home)? else {
            let version = recorded.version.max(remembered.version);
            return Ok(Loaded {
                home: None,
                mark: Mark { version, ..recorded },
                recorded,
            });
        };
        let home = Sealed::parse(bytes)?;
        home.subject.check(owner, agent)?;
        home.prove(&self.keys)?;
        let found = home.subject.version;
        let seen = recorded.version.max(remembered.version);
        if found < seen {
            return Err(HomeError::RolledBack { found, seen });
        }
        if found > recorded.version + 1 || home.subject.fence > recorded.fence {
            return Err(HomeError::MarkRolledBack {
                found,
                seen: recorded.version,
            });
        }
        let mark = Mark {
            version: found,
            fence: recorded.fence,
        };
        self.remember(slot, mark);
        Ok(Loaded {
            home: Some(home),
            mark,
            recorded,
        })
    }

    fn recorded(&self, locked: &mut dyn LockedSlot, slot: &Slot) -> Result<Mark, HomeError> {
        let Some(bytes) = locked.read(Part::Mark)? else {
            return Ok(Mark::default());
        };
        let (mark, _) = Mark::decode(&bytes, slot, &self.keys).map_err(HomeError::Mark)?;
        Ok(mark)
    }

    fn record(&self, locked: &mut dyn LockedSlot, slot: &Slot, mark: Mark) -> Result<(), HomeError> {
        locked.write(Part::Mark, &mark.encode(slot, self.keys.current()))?;
        self.remember(slot, mark);
        Ok(())
    }

    fn remembered(&self, slot: &Slot) -> Mark {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(slot).copied().unwrap_or_default()
    }

    fn remember(&self, slot: &Slot, mark: Mark) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(slot.clone()).or_default();
        known.version = known.version.max(mark.version);
        known.fence = known.fence.max(mark.fence);
    }
}

fn subject(kind: Kind, version: u64, fence: u64, owner: &OwnerHandle, agent: &AgentName) -> Subject {
    Subject {
        kind,
        version,
        fence,
        owner: owner.name().into(),
        agent: agent.as_str().into(),
    }
}
