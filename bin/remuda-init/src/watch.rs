//! Watching a directory and all below it.
//!
//! Many changes make one notice: it is sent when nothing has happened for a moment, or some time after the first change
//! when things keep happening.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// How long nothing must have happened before a notice is sent.
const QUIET: Duration = Duration::from_millis(30);

/// How long a notice waits at most.
const NOTICE_MAX: Duration = Duration::from_millis(300);

/// How many directories are watched. A login's directory has few; more of them are not looked into.
const DIRECTORIES_MAX: usize = 512;

pub(crate) struct Watch {
    inotify: OwnedFd,
    directories: HashMap<i32, PathBuf>,
    pending: Option<Pending>,
}

struct Pending {
    first: Instant,
    last: Instant,
}

impl Watch {
    /// Watches `path`, which must be a directory.
    pub(crate) fn new(path: &Path) -> rustix::io::Result<Self> {
        let mut watch = Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            directories: HashMap::new(),
            pending: None,
        };
        watch.add(path)?;
        watch.add_below(path.to_owned());
        Ok(watch)
    }

    fn add(&mut self, path: &Path) -> rustix::io::Result<()> {
        if self.directories.len() >= DIRECTORIES_MAX {
            return Err(rustix::io::Errno::NOSPC);
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let number = inotify::add_watch(&self.inotify, path, flags)?;
        self.directories.insert(number, path.to_owned());
        Ok(())
    }

    fn add_below(&mut self, path: PathBuf) {
        let mut left = vec![path];
        while let Some(path) = left.pop() {
            let Ok(entries) = std::fs::read_dir(&path) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let path = entry.path();
                    if self.add(&path).is_err() {
                        // Gone again, or too many.
                        continue;
                    }
                    left.push(path);
                }
            }
        }
    }

    /// Reads what has happened.
    pub(crate) fn read(&mut self, now: Instant) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut made = Vec::new();
        let mut happened = false;
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::IGNORED) {
                self.directories.remove(&event.wd());
                continue;
            }
            happened = true;
            if flags.contains(ReadFlags::ISDIR)
                && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
                && let (Some(parent), Some(name)) = (self.directories.get(&event.wd()), event.file_name())
            {
                use std::os::unix::ffi::OsStrExt as _;
                made.push(parent.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
            }
        }
        for path in made {
            if self.add(&path).is_ok() {
                self.add_below(path);
            }
        }
        if happened {
            let first = self.pending.as_ref().map_or(now, |pending| pending.first);
            self.pending = Some(Pending { first, last: now });
        }
    }

    /// When a notice is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let pending = self.pending.as_ref()?;
        Some((pending.last + QUIET).min(pending.first + NOTICE_MAX))
    }

    /// Whether a notice is to be sent now. Asking takes it.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.pending = None;
        }
        due
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changes_make_one_notice_and_new_directories_are_watched() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(directory.path()).unwrap();
        let start = Instant::now();
        watch.read(start);
        assert_eq!(watch.due(), None);
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::fs::write(directory.path().join("a/file"), "1").unwrap();
        watch.read(start);
        assert_eq!(watch.due(), Some(start + QUIET));
        assert!(!watch.take_due(start));
        assert!(watch.take_due(start + QUIET));
        assert!(!watch.take_due(start + QUIET));
        // Whatever came while the new directories were found.
        watch.read(start);
        watch.pending = None;
        std::fs::write(directory.path().join("a/b/login.json"), "2").unwrap();
        watch.read(start);
        assert!(watch.due().is_some());
        // Things that keep happening do not put the notice off for ever.
        watch.read(start);
        watch.pending.as_mut().unwrap().last = start + NOTICE_MAX * 2;
        assert_eq!(watch.due(), Some(start + NOTICE_MAX));
    }
}
