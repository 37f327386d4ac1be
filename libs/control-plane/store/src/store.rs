//! The store as its callers see it: a handle to two threads, one that writes and one that reads.

mod open;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rusqlite::Connection;
use task_api::TaskId;
use tokio::sync::oneshot;

use crate::{
    CatalogModel, KeyInfo, KeyTable, NewKey, NewKeySpec, StoreError, StoreSettings, TaskFilter, TaskRecord,
    catalog, keys, tasks,
};
use writer::Write;

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Writes that were lost since the start: the queue was full, or they failed for longer than could be kept.
    pub writes_lost: u64,
    /// Writes that wait.
    pub queue_depth: u64,
    /// What went wrong last, while writing fails.
    pub failing: Option<String>,
}

/// What both threads and all handles see.
#[derive(Debug, Default)]
struct Shared {
    keys: ArcSwap<KeyTable>,
    writes_lost: AtomicU64,
    queue_depth: AtomicU64,
    failing: Mutex<Option<String>>,
}

impl Shared {
    fn set_failing(&self, failing: Option<String>) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = failing;
    }

    fn lose(&self, writes: u64) {
        self.writes_lost.fetch_add(writes, Ordering::Relaxed);
    }
}

/// Something for the reading thread to do.
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the store. Cheap to clone; the threads end when the last one is dropped or after `close`.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    writer: SyncSender<Write>,
    reader: SyncSender<Read>,
}

impl Store {
    /// Opens the file, makes or migrates its tables, ends what a former process left unfinished (as `WORKER_RESET`),
    /// and starts the threads. Blocks: call it before serving. `settings_keys` are those of `ORCHD_API_KEYS`.
    pub fn open(settings: StoreSettings, settings_keys: KeyTable) -> Result<Self, StoreError> {
        open::open(settings, settings_keys, open::As::ControlPlane)
    }

    /// Opens the file for a command of the CLI beside a running control plane: leaves unfinished tasks alone.
    pub fn open_beside(settings: StoreSettings) -> Result<Self, StoreError> {
        open::open(settings, KeyTable::default(), open::As::Visitor)
    }

    // ---- tasks ----

    /// Stores a new task; returns when it is safe on disk. Cancel safe: once called, it is stored or fails, whether
    /// the answer is awaited or not.
    pub async fn insert_task(&self, record: TaskRecord) -> Result<(), StoreError> {
        let inserted = self
            .write(move |connection| tasks::insert(connection, &record))
            .await?;
        if inserted {
            Ok(())
        } else {
            Err(StoreError::TaskExists)
        }
    }

    /// Stores a task's newer state, later; a task that has ended stays as it is. Never waits: false when the queue is
    /// full and the write was lost.
    pub fn update_task(&self, record: TaskRecord) -> bool {
        self.send(Write::Put(Box::new(record)))
            .inspect_err(|_| self.shared.lose(1))
            .is_ok()
    }

    /// Stores a task's end, later; also of a task that was never inserted. Never waits: false when the queue is full
    /// and the write was lost. While the disk is full, as many ends as fit the queue are kept and tried again.
    pub fn finish_task(&self, record: TaskRecord) -> bool {
        self.update_task(record)
    }

    /// One task.
    pub async fn task(&self, task_id: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        self.read(move |connection| tasks::get(connection, task_id.as_str()))
            .await
    }

    /// A page of tasks, the newest first, and the cursor of the next page.
    pub async fn list_tasks(
        &self,
        filter: TaskFilter,
    ) -> Result<(Vec<TaskRecord>, Option<String>), StoreError> {
        self.read(move |connection| tasks::list(connection, &filter))
            .await
    }

    // ---- keys ----

    /// Makes a key. It is valid here when this returns, and in another process within about a second.
    pub async fn create_key(&self, spec: NewKeySpec) -> Result<NewKey, StoreError> {
        self.write_keys(move |connection| keys::create(connection, spec, now_ms()))
            .await
    }

    /// Every key, revoked ones too, the newest first.
    pub async fn list_keys(&self) -> Result<Vec<KeyInfo>, StoreError> {
        self.read(keys::list).await
    }

    /// Ends a key by its id. Revoking it again changes nothing.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyInfo, StoreError> {
        let id = id.to_owned();
        self.write_keys(move |connection| keys::revoke(connection, &id, now_ms()))
            .await
    }

    /// The valid keys, in memory: no I/O and no lock. Keys that another process makes or revokes are noticed within
    /// about a second.
    pub fn keys(&self) -> Arc<KeyTable> {
        self.shared.keys.load_full()
    }

    /// Whose key this is: [`KeyTable::find`] in the table of this moment.
    pub fn find_key(&self, presented: &[u8], now_ms: u64) -> Option<Arc<KeyInfo>> {
        self.shared.keys.load().find(presented, now_ms)
    }

    // ---- the catalog ----

    /// Adds a model to the catalog or replaces it.
    pub async fn put_model(&self, model: CatalogModel) -> Result<(), StoreError> {
        self.write(move |connection| catalog::put(connection, &model).map_err(sql("write a model")))
            .await
    }

    /// The catalog, by name.
    pub async fn list_models(&self) -> Result<Vec<CatalogModel>, StoreError> {
        self.read(|connection| catalog::list(connection).map_err(sql("list the models")))
            .await
    }

    /// Takes a model out of the catalog. False when it was not there.
    pub async fn remove_model(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |connection| catalog::remove(connection, &name).map_err(sql("remove a model")))
            .await
    }

    // ---- the store itself ----

    /// How the store is.
    pub fn health(&self) -> StoreHealth {
        StoreHealth {
            writes_lost: self.shared.writes_lost.load(Ordering::Relaxed),
            queue_depth: self.shared.queue_depth.load(Ordering::Relaxed),
            failing: self
                .shared
                .failing
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Writes what still waits and ends the writing thread. Bounded by what waits; call it at the end of a drain. What
    /// is written after it fails with [`StoreError::Closed`].
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let mut close = Write::Close(done);
        self.shared.queue_depth.fetch_add(1, Ordering::Relaxed);
        // The queue may be full for a moment: the end of a drain has the time to wait for it.
        for _ in 0..CLOSE_ATTEMPTS_MAX {
            match self.writer.try_send(close) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => close = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(CLOSE_ATTEMPT_INTERVAL).await;
        }
        // An error says that the thread has ended, which is what was asked for.
        let _ = closed.await;
    }

    fn send(&self, write: Write) -> Result<(), StoreError> {
        self.shared.queue_depth.fetch_add(1, Ordering::Relaxed);
        self.writer.try_send(write).map_err(|error| {
            self.shared.queue_depth.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => StoreError::Busy,
                TrySendError::Disconnected(_) => StoreError::Closed,
            }
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (write, answer) = Write::act(act);
        self.send(write)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes, and returns when the table in memory shows it.
    async fn write_keys<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let written = self.write(act).await?;
        let (loaded, answer) = oneshot::channel();
        self.send(Write::LoadKeys(loaded))?;
        answer.await.map_err(|_| StoreError::Closed)?;
        Ok(written)
    }

    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            // Whoever asked may be gone; then nobody needs the answer.
            let _ = done.send(act(connection));
        });
        self.reader.try_send(read).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

const CLOSE_ATTEMPTS_MAX: u32 = 1000;
const CLOSE_ATTEMPT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { doing, source }
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
