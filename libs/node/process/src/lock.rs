//! Lock files (`flock`): held by an open file, so the kernel gives them back however their holder dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a note in a lock file may be.
const NOTE_BYTES_MAX: u64 = 64 * 1024;

/// A lock that this process holds until the value is dropped.
///
/// The file itself is never removed: another process may be waiting on it, and would then hold a lock that nobody else
/// can see.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock if nobody holds it. Makes the file and its directory when they are missing.
    pub fn try_acquire(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self {
                file,
                path: path.to_owned(),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock, trying for `timeout` at most.
    ///
    /// The owner of a lock that others watch with [`is_held`] takes it this way, because looking at a lock takes it for
    /// a moment. Blocks the thread.
    pub fn acquire(path: impl AsRef<Path>, timeout: Duration) -> io::Result<Option<Self>> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(lock) = Self::try_acquire(path.as_ref())? {
                return Ok(Some(lock));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Writes `note` into the file, for whoever wants to know who holds it.
    pub fn set_note(&mut self, note: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(note.as_bytes())?;
        self.file.flush()
    }

    /// What the last holder of the lock at `path` wrote; empty when there is nothing.
    pub fn note(path: impl AsRef<Path>) -> io::Result<String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let mut note = String::new();
        file.take(NOTE_BYTES_MAX).read_to_string(&mut note)?;
        Ok(note)
    }

    /// Where the lock is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether anybody holds the lock at `path`. A missing file is held by nobody.
pub fn is_held(path: impl AsRef<Path>) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // Shared, so that several watchers do not take each other for the holder.
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_one_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/lock");
        assert!(!is_held(&path).unwrap());
        let mut lock = LockFile::try_acquire(&path).unwrap().unwrap();
        assert_eq!(lock.path(), path);
        assert!(is_held(&path).unwrap());
        assert!(LockFile::try_acquire(&path).unwrap().is_none());
        assert!(
            LockFile::acquire(&path, Duration::from_millis(15))
                .unwrap()
                .is_none()
        );
        lock.set_note("a longer note").unwrap();
        lock.set_note("short").unwrap();
        assert_eq!(LockFile::note(&path).unwrap(), "short");
        drop(lock);
        assert!(!is_held(&path).unwrap());
        assert!(
            LockFile::acquire(&path, Duration::from_millis(15))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_missing_note_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(LockFile::note(directory.path().join("none")).unwrap(), "");
    }
}
