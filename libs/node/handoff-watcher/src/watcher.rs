//! Watching the directory.
//!
//! A scan looks at every file's stamp (inode, size, times) and reads those whose stamp is new. inotify only says when
//! to scan: events are counted as "something happened", so an overflow of the kernel's queue, or a file system that
//! sends none, costs at most one scan interval.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pool_registry_types::{Handoff, PoolId, ReplicaId};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::liveness::{Liveness, liveness};
use crate::parse::{FILE_BYTES_MAX, FileProblem, parse};

/// The most handoff files of one node.
pub const FILES_MAX: usize = 8192;

/// Events this close together make one scan.
const EVENTS_GATHER: Duration = Duration::from_millis(5);

/// A file that was changed this lately is read again: its stamp may not show a second change within one clock tick of
/// its file system.
const STAMP_DOUBT: Duration = Duration::from_secs(2);

/// Told of each file that was read: how long that took, and whether it was a handoff.
pub type Observe = Arc<dyn Fn(Duration, bool) + Send + Sync>;

/// How to watch.
#[derive(Clone)]
pub struct WatchOptions {
    /// The handoff directory. Created when it is missing.
    pub directory: PathBuf,
    /// The longest time until a change is seen where no events come.
    pub scan_interval: Duration,
    /// Whether the files of processes that are gone for ever are deleted.
    pub delete_dead: bool,
    /// For metrics.
    pub observe: Observe,
}

/// The directory's content as of the last scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandoffSet {
    /// The good files.
    pub handoffs: BTreeMap<(PoolId, ReplicaId), Handoff>,
    /// The others, by file name.
    pub problems: BTreeMap<String, FileProblem>,
}

/// Watches one directory.
pub struct Watcher {
    options: WatchOptions,
    known: BTreeMap<String, Known>,
    published: watch::Sender<Arc<HandoffSet>>,
}

#[derive(Clone)]
struct Known {
    stamp: Stamp,
    /// Boxed: problems are small and rare, handoffs are large.
    content: Result<Box<Handoff>, FileProblem>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    settled: bool,
}

impl Watcher {
    /// A watcher that has looked at the directory once. Blocks for as long as that takes.
    pub fn new(options: WatchOptions) -> Self {
        let (published, _) = watch::channel(Arc::new(HandoffSet::default()));
        let mut watcher = Self {
            options,
            known: BTreeMap::new(),
            published,
        };
        watcher.scan();
        watcher
    }

    /// The directory's content, now and at each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<HandoffSet>> {
        self.published.subscribe()
    }

    /// Watches until it is dropped. Never ends by itself: a directory that is gone is made again or waited for.
    pub async fn run(mut self) {
        let mut turns = tokio::time::interval(self.options.scan_interval.max(Duration::from_millis(10)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = Events::open(&self.options.directory);
        loop {
            let heard = match &mut events {
                Some(events) => tokio::select! {
                    heard = events.next() => heard,
                    _ = turns.tick() => Heard::Something,
                },
                None => {
                    turns.tick().await;
                    Heard::Something
                }
            };
            if heard == Heard::DirectoryGone {
                events = None;
            }
            if events.is_some() {
                tokio::time::sleep(EVENTS_GATHER).await;
            }
            // On a network file system a scan may take long, so it does not belong on a worker thread.
            let Ok(back) = tokio::task::spawn_blocking(move || {
                self.scan();
                self
            })
            .await
            else {
                tracing::error!("the scan of the handoff directory panicked; watching ends");
                return;
            };
            self = back;
            if events.is_none() {
                events = Events::open(&self.options.directory);
            }
        }
    }

    /// Looks at every file once and publishes what has changed.
    fn scan(&mut self) {
        let found = match self.look() {
            Ok(found) => found,
            Err(error) => {
                // What was known stays: an unreadable directory does not mean that the engines are gone.
                tracing::warn!(
                    directory = %self.options.directory.display(), %error,
                    "the handoff directory cannot be read; tried again"
                );
                return;
            }
        };
        self.known = found;
        let set = Arc::new(self.judge());
        let before = self.published.borrow().clone();
        if before == set {
            return;
        }
        for (file_name, problem) in &set.problems {
            if before.problems.get(file_name) != Some(problem) {
                tracing::warn!(file_name, "this handoff file {problem}");
            }
        }
        self.published.send_replace(set);
    }

    fn look(&self) -> io::Result<BTreeMap<String, Known>> {
        let directory = &self.options.directory;
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                fs::read_dir(directory)?
            }
            result => result?,
        };
        let mut found = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') || !name.ends_with(".json") || found.len() > FILES_MAX {
                continue;
            }
            if let Some(known) = self.look_at(&name, &entry.path()) {
                found.insert(name, known);
            }
        }
        Ok(found)
    }

    /// None: the file is gone again.
    fn look_at(&self, name: &str, path: &Path) -> Option<Known> {
        let stamp = match fs::metadata(path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => return Some(Known::unreadable(&error)),
        };
        if let Some(known) = self.known.get(name)
            && known.stamp == stamp
            && stamp.settled
        {
            return Some(known.clone());
        }
        let begun = Instant::now();
        let content = match read_bounded(path) {
            Ok(bytes) => parse(name, &bytes).map(Box::new),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(FileProblem::Unreadable(error.kind().to_string())),
        };
        (self.options.observe)(begun.elapsed(), content.is_ok());
        Some(Known { stamp, content })
    }

    /// Sorts what was read into handoffs and problems, without those of dead processes.
    fn judge(&self) -> HandoffSet {
        let mut set = HandoffSet::default();
        for (name, known) in &self.known {
            match &known.content {
                Ok(handoff) if liveness(handoff) == Liveness::Gone => {
                    if self.options.delete_dead {
                        self.delete_dead(name);
                    } else {
                        set.problems.insert(name.clone(), FileProblem::ProcessGone);
                    }
                }
                Ok(_) if set.handoffs.len() >= FILES_MAX => {
                    set.problems.insert(name.clone(), FileProblem::TooMany);
                }
                Ok(handoff) => {
                    let key = (handoff.pool_id.clone(), handoff.replica_id.clone());
                    set.handoffs.insert(key, Handoff::clone(handoff));
                }
                Err(problem) => {
                    set.problems.insert(name.clone(), problem.clone());
                }
            }
        }
        set
    }

    fn delete_dead(&self, name: &str) {
        let path = self.options.directory.join(name);
        // Between reading and deleting, a new engine may have put its own file under this name; that one stays.
        let still_dead = read_bounded(&path)
            .ok()
            .and_then(|bytes| parse(name, &bytes).ok())
            .is_some_and(|handoff| liveness(&handoff) == Liveness::Gone);
        if still_dead && fs::remove_file(&path).is_ok() {
            tracing::info!(file_name = name, "deleted the handoff of a process that is gone");
        }
    }
}

impl Known {
    fn unreadable(error: &io::Error) -> Self {
        let stamp = Stamp {
            inode: 0,
            size: 0,
            modified: (0, 0),
            changed: (0, 0),
            settled: false,
        };
        Self {
            stamp,
            content: Err(FileProblem::Unreadable(error.kind().to_string())),
        }
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            settled: age.is_some_and(|age| age >= STAMP_DOUBT),
        }
    }
}

/// One byte more than is allowed at most, so that the parser sees that it was too much.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Without NONBLOCK a named pipe under a handoff's name would hold the scan for ever.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("the flag is a small number");
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no ordinary file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Something,
    DirectoryGone,
}

/// The kernel's word that something has happened in the directory.
struct Events {
    descriptor: AsyncFd<OwnedFd>,
}

impl Events {
    /// None where there are no events: then the scans have to do.
    fn open(directory: &Path) -> Option<Self> {
        use inotify::{CreateFlags, WatchFlags};
        let descriptor = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let interest = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&descriptor, directory, interest).ok()?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that may be closed; an OwnedFd may not"
        )]
        let descriptor = AsyncFd::new(descriptor).ok()?;
        Some(Self { descriptor })
    }

    /// Waits for events and takes them all. Cancel safe.
    async fn next(&mut self) -> Heard {
        let Ok(mut ready) = self.descriptor.readable().await else {
            return Heard::DirectoryGone;
        };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.descriptor.get_ref(), &mut buffer);
        let mut heard = Heard::Something;
        loop {
            use inotify::ReadFlags;
            match reader.next() {
                Ok(event) => {
                    let gone = ReadFlags::DELETE_SELF
                        | ReadFlags::MOVE_SELF
                        | ReadFlags::IGNORED
                        | ReadFlags::UNMOUNT;
                    if event.events().intersects(gone) {
                        heard = Heard::DirectoryGone;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    ready.clear_ready();
                    return heard;
                }
                Err(_) => return Heard::DirectoryGone,
            }
        }
    }
}

#[cfg(test)]
mod tests;
