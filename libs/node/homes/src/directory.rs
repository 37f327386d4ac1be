//! A store in a directory.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sealed::SEALED_BYTES_MAX;
use crate::{HomeStore, LockedSlot, Part, Slot, StoreError};

/// How long to wait for a slot's lock. One is held for a few writes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(2);
/// The most that is read of a file.
const FILE_BYTES_MAX: u64 = SEALED_BYTES_MAX as u64;

/// The steps of one write, in their order. A hook is called before each, `Half` in the middle of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Making the temporary file.
    Create(Part),
    /// Half of it is written.
    Half(Part),
    /// Telling the disk to keep it.
    Sync(Part),
    /// Giving it its name.
    Rename(Part),
    /// Telling the disk to keep the name.
    SyncDirectory(Part),
    /// All is done, and nobody was told yet.
    Done(Part),
}

type Hook = Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>;

/// A store in a directory: `SLOT.home` and `SLOT.lock` there, `SLOT.mark` there or in a directory of their own.
pub struct DirectoryStore {
    homes: PathBuf,
    marks: PathBuf,
    hook: Option<Hook>,
}

impl DirectoryStore {
    /// Opens it, making the directories (mode 0700) and clearing away what a dead writer left. With `marks` on another
    /// disk, putting the homes back as they once were is noticed even by a node that starts anew.
    pub fn open(homes: &Path, marks: &Path) -> Result<Self, StoreError> {
        for directory in [homes, marks] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(classify)?;
        }
        let store = Self {
            homes: homes.to_owned(),
            marks: marks.to_owned(),
            hook: None,
        };
        store.sweep()?;
        Ok(store)
    }

    /// Calls `hook` at every step of a write; an error from it ends the write there and then, as if the process had
    /// died: nothing is cleaned up. For tests of exactly that.
    #[must_use]
    pub fn with_hook(mut self, hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    fn path(&self, slot: &Slot, part: Part) -> PathBuf {
        match part {
            Part::Home => self.homes.join(format!("{}.home", slot.as_str())),
            Part::Mark => self.marks.join(format!("{}.mark", slot.as_str())),
        }
    }

    /// Temporary files belong to whoever has the slot's lock; without one, nobody needs them.
    fn sweep(&self) -> Result<(), StoreError> {
        for directory in [&self.homes, &self.marks] {
            for entry in fs::read_dir(directory).map_err(classify)? {
                let path = entry.map_err(classify)?.path();
                if path.extension().is_none_or(|extension| extension != "temporary") {
                    continue;
                }
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                let slot = name.trim_end_matches(".temporary").trim_end_matches(".home");
                let slot = Slot::checked(slot.trim_end_matches(".mark").to_owned());
                if let Some(slot) = slot {
                    let _lock = self.take_lock(&slot)?;
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(classify(error)),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The lock is the file's, so the kernel gives it back however its holder dies. The file stays: somebody may be
    /// waiting on it.
    fn take_lock(&self, slot: &Slot) -> Result<File, StoreError> {
        let path = self.homes.join(format!("{}.lock", slot.as_str()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(classify)?;
        let end = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked),
                Err(TryLockError::Error(error)) => return Err(classify(error)),
            }
        }
    }
}

impl HomeStore for DirectoryStore {
    fn lock(&self, slot: &Slot) -> Result<Box<dyn LockedSlot + '_>, StoreError> {
        let lock = self.take_lock(slot)?;
        Ok(Box::new(LockedFiles {
            store: self,
            slot: slot.clone(),
            _lock: lock,
        }))
    }

    fn slots(&self) -> Result<Vec<Slot>, StoreError> {
        let mut slots = Vec::new();
        for (directory, suffix) in [(&self.homes, ".home"), (&self.marks, ".mark")] {
            for entry in fs::read_dir(directory).map_err(classify)? {
                let name = entry.map_err(classify)?.file_name();
                let slot = name.to_str().and_then(|name| name.strip_suffix(suffix));
                slots.extend(slot.and_then(|slot| Slot::checked(slot.to_owned())));
            }
        }
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }
}

struct LockedFiles<'s> {
    store: &'s DirectoryStore,
    slot: Slot,
    _lock: File,
}

impl LockedSlot for LockedFiles<'_> {
    fn read(&mut self, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        read_bounded(&self.store.path(&self.slot, part))
    }

    fn write(&mut self, part: Part, bytes: &[u8]) -> Result<(), StoreError> {
        let hook = |step| self.store.hook.as_ref().map_or(Ok(()), |hook| hook(step));
        write_whole(&self.store.path(&self.slot, part), bytes, part, &hook)
    }
}

/// The file, or none. Not more than a home may have.
pub(crate) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::Io(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(StoreError::Io)?;
    if bytes.len() > SEALED_BYTES_MAX {
        return Err(StoreError::TooLarge);
    }
    Ok(Some(bytes))
}

/// Writes aside, syncs, renames, syncs the directory. Whoever calls this holds the lock for `path`.
pub(crate) fn write_whole(
    path: &Path,
    bytes: &[u8],
    part: Part,
    hook: &dyn Fn(Step) -> io::Result<()>,
) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".temporary");
    let temporary = PathBuf::from(temporary);
    let directory = path.parent().expect("the path is in a directory");
    let write = || -> io::Result<()> {
        hook(Step::Create(part))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        hook(Step::Half(part))?;
        file.write_all(second)?;
        hook(Step::Sync(part))?;
        file.sync_all()?;
        hook(Step::Rename(part))?;
        fs::rename(&temporary, path)?;
        hook(Step::SyncDirectory(part))?;
        File::open(directory)?.sync_all()?;
        hook(Step::Done(part))
    };
    write().map_err(|error| {
        // A full disk gets its room back at once; any other leftover is overwritten or swept.
        if error.kind() == io::ErrorKind::StorageFull {
            let _ = fs::remove_file(&temporary);
        }
        classify(error)
    })
}

pub(crate) fn classify(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoRoom(error),
        _ => StoreError::Io(error),
    }
}
