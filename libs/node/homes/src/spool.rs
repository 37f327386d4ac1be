//! What was taken back and is not in the store yet, sealed, on this node's disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sealed::Sealed;
use crate::{
    AgentName, DirectoryStore, HomeError, HomeStore, Homes, LockedSlot, OwnerHandle, Part, Slot, StoreError,
};

/// A directory of homes on their way to the store.
///
/// What is here is never older than what the store has under the same fence: it is written first, and cleared once
/// the store has it.
pub struct Spool {
    files: DirectoryStore,
    directory: PathBuf,
}

impl Spool {
    /// Opens it, making the directory (mode 0700).
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        Ok(Self::over(DirectoryStore::open(directory, directory)?, directory))
    }

    /// A spool whose files are written by `files`, a store in `directory`: for tests that die at each of its steps.
    pub fn over(files: DirectoryStore, directory: &Path) -> Self {
        Self {
            files,
            directory: directory.to_owned(),
        }
    }

    pub(crate) fn lock(&self, slot: &Slot) -> Result<Box<dyn LockedSlot + '_>, StoreError> {
        self.files.lock(slot)
    }

    /// Forgets what the store has now. Whoever calls this holds the slot's lock.
    pub(crate) fn clear(&self, slot: &Slot) -> Result<(), StoreError> {
        match fs::remove_file(self.directory.join(format!("{}.home", slot.as_str()))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::Io(error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn drain(&self, homes: &Homes) -> Result<(usize, usize), HomeError> {
        let (mut stored, mut lost) = (0, 0);
        for slot in self.files.slots()? {
            match self.drain_slot(homes, &slot) {
                Ok(true) => stored += 1,
                Ok(false) => {}
                Err(HomeError::Fenced { .. }) => lost += 1,
                Err(error) => return Err(error),
            }
        }
        Ok((stored, lost))
    }

    /// Brings one into the store, if there is one. One that has lost to a newer opening is cleared.
    pub(crate) fn drain_slot(&self, homes: &Homes, slot: &Slot) -> Result<bool, HomeError> {
        let mut locked = self.lock(slot)?;
        let Some(bytes) = locked.read(Part::Home)? else {
            return Ok(false);
        };
        let sealed = Sealed::parse(bytes)?;
        sealed.prove(homes.keys())?;
        let subject = sealed.subject.clone();
        let owner = OwnerHandle::authenticated(&subject.owner).map_err(|_| crate::SealError::Tampered)?;
        let agent = AgentName::new(&subject.agent).map_err(|_| crate::SealError::Tampered)?;
        if crate::owner::slot_of(&owner, &agent) != *slot {
            return Err(crate::SealError::OtherOwner.into());
        }
        let home = sealed.open(homes.keys())?;
        let written = homes.write(&owner, &agent, subject.fence, None, home.plain());
        if matches!(written, Ok(_) | Err(HomeError::Fenced { .. })) {
            self.clear(slot)?;
        }
        written.map(|_| true)
    }
}
