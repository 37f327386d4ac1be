//! Opening: the file, its permissions, its tables, the two threads.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rusqlite::{Connection, OpenFlags};

use super::writer::Writer;
use super::{Read, Shared, Store, now_ms, sql};
use crate::{KeyTable, StoreError, StoreSettings, keys, migrations, tasks};

/// How many reads may wait.
const READS_MAX: usize = 256;
/// The size of the write-ahead log after which it is written back, in pages.
const CHECKPOINT_PAGES: i64 = 1000;
/// The write-ahead log is cut to this size when it is written back.
const JOURNAL_BYTES_MAX: i64 = 16 << 20;

/// Who opens the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// The one control plane that it belongs to.
    ControlPlane,
    /// Somebody beside it.
    Visitor,
}

pub(super) fn open(
    settings: StoreSettings,
    settings_keys: KeyTable,
    opener: As,
) -> Result<Store, StoreError> {
    let path = settings.path.clone();
    make_file(&path)?;
    let lock = match opener {
        As::ControlPlane => Some(lock(&path)?),
        As::Visitor => None,
    };
    let mut connection = connect(&settings)?;
    migrations::migrate(&mut connection, &path)?;
    if opener == As::ControlPlane {
        let transaction = connection.transaction().map_err(sql("end unfinished tasks"))?;
        let ended = tasks::end_unfinished(&transaction, now_ms(), &jiff::Timestamp::now().to_string())?;
        transaction.commit().map_err(sql("end unfinished tasks"))?;
        if ended > 0 {
            tracing::warn!(
                tasks = ended,
                "tasks of a former run had not ended; they are marked as failed"
            );
        }
    }
    let shared = Arc::new(Shared::default());
    shared
        .keys
        .store(Arc::new(keys::load(&connection, &settings_keys)?));
    let reading = connect(&settings)?;

    let (writer, writes) = sync_channel(settings.queue_max.max(1));
    let (reader, reads) = sync_channel(READS_MAX);
    let state = Writer::new(connection, settings, settings_keys, Arc::clone(&shared), lock)?;
    spawn("store-writer", move || state.run(&writes))?;
    spawn("store-reader", move || answer_reads(&reading, &reads))?;
    Ok(Store {
        shared,
        writer,
        reader,
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(StoreError::Thread)
}

fn answer_reads(connection: &Connection, reads: &Receiver<Read>) {
    for read in reads {
        read(connection);
    }
}

/// Makes the directory and the file before SQLite does, so that nobody else may read them. The log and its index take
/// over the file's permissions.
fn make_file(path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::Make {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(fail)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(fail)
}

/// Two control planes in one file would end each other's tasks. The kernel gives the lock back when its holder dies.
fn lock(path: &Path) -> Result<File, StoreError> {
    let fail = |source| StoreError::Make {
        path: path.to_owned(),
        source,
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(name)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(fail(source)),
    }
}

fn connect(settings: &StoreSettings) -> Result<Connection, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&settings.path, flags)?;
        connection.busy_timeout(settings.busy_timeout)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // Every commit is on the disk before it is confirmed, also through a power cut.
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_MAX)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    };
    open().map_err(|source| StoreError::Open {
        path: settings.path.clone(),
        source,
    })
}
