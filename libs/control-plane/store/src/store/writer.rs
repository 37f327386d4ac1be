//! The writing thread: takes all that waits, writes it in one transaction, and confirms it when that is on the disk.
//!
//! When a transaction fails, those who wait for it are told, and what nobody waits for is kept and tried again every
//! second, as much as the queue would hold; what goes beyond is counted as lost.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::oneshot;

use super::{Shared, now_ms, sql};
use crate::{KeyTable, StoreError, StoreSettings, TaskRecord, keys, tasks};

/// The most writes in one transaction.
const BATCH_MAX: usize = 512;
/// How often other processes' changes, failed writes and old tasks are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The most tasks that are removed at once, so that no write waits long for it.
const PRUNE_MAX: u64 = 500;

/// Something to write.
pub(super) enum Write {
    /// A task's newer state; nobody waits for it.
    Put(Box<TaskRecord>),
    /// Anything else; somebody waits for it.
    Act(Box<dyn Act>),
    /// Reads the keys again, after all that was sent before is written.
    LoadKeys(oneshot::Sender<()>),
    /// Writes what waits, and ends.
    Close(oneshot::Sender<()>),
}

impl Write {
    /// A write with an answer, which comes when the transaction is on the disk.
    pub(super) fn act<T: Send + 'static>(
        act: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (done, answer) = oneshot::channel();
        (
            Self::Act(Box::new(Asked {
                act: Some(act),
                result: None,
                done,
            })),
            answer,
        )
    }
}

/// A write in two steps: done within the transaction, answered after it.
pub(super) trait Act: Send {
    /// Does it. True when it failed in a way that says that the whole transaction is lost.
    fn perform(&mut self, connection: &Connection) -> bool;
    /// Tells the result; with a reason that the transaction failed, that.
    fn answer(self: Box<Self>, failed: Option<&rusqlite::Error>);
}

struct Asked<T, F> {
    act: Option<F>,
    result: Option<Result<T, StoreError>>,
    done: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T, StoreError> + Send> Act for Asked<T, F> {
    fn perform(&mut self, connection: &Connection) -> bool {
        let Some(act) = self.act.take() else { return false };
        let result = act(connection);
        let lost = matches!(&result, Err(StoreError::Sql { source, .. }) if ends_transaction(source));
        self.result = Some(result);
        lost
    }

    fn answer(self: Box<Self>, failed: Option<&rusqlite::Error>) {
        let own = self.result.unwrap_or(Err(StoreError::Closed));
        let result = match failed {
            None => own,
            Some(error) if own.is_ok() || self.act.is_some() => Err(StoreError::Sql {
                doing: "write",
                source: copy_error(error),
            }),
            Some(_) => own,
        };
        // Whoever asked may be gone; then nobody needs the answer.
        let _ = self.done.send(result);
    }
}

/// SQLite's errors cannot be cloned; the code and the text can.
fn copy_error(error: &rusqlite::Error) -> rusqlite::Error {
    let code = error
        .sqlite_error()
        .copied()
        .unwrap_or_else(|| rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR));
    rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
}

/// Whether the error is about the file and not about one statement.
fn ends_transaction(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    )
}

/// The thread's state.
pub(super) struct Writer {
    connection: Connection,
    settings: StoreSettings,
    settings_keys: KeyTable,
    shared: Arc<Shared>,
    /// Writes that failed and that nobody waits for, the oldest first.
    kept: VecDeque<Box<TaskRecord>>,
    /// Whether the latest attempt failed: then the next one waits for a tick, unless somebody asks.
    failing: bool,
    data_version: i64,
    /// How many tasks there are, counted at the start and kept up roughly: it only decides when to prune.
    tasks: u64,
    next_tick: Instant,
    /// Held as long as the thread runs.
    _lock: Option<File>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        settings: StoreSettings,
        settings_keys: KeyTable,
        shared: Arc<Shared>,
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let tasks = tasks::count(&connection).map_err(sql("count the tasks"))?;
        let data_version = data_version(&connection).unwrap_or(0);
        Ok(Self {
            connection,
            settings,
            settings_keys,
            shared,
            kept: VecDeque::new(),
            failing: false,
            data_version,
            tasks,
            next_tick: Instant::now() + TICK,
            _lock: lock,
        })
    }

    /// Runs until every handle is dropped or one asks to close.
    pub(super) fn run(mut self, writes: &Receiver<Write>) {
        loop {
            let wait = self.next_tick.saturating_duration_since(Instant::now());
            let closing = match writes.recv_timeout(wait) {
                Ok(first) => self.take_batch(first, writes),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            };
            if let Some(closed) = closing {
                self.finish();
                drop(self);
                // Nobody may wait for it any more.
                let _ = closed.send(());
                return;
            }
            if Instant::now() >= self.next_tick {
                self.tick();
                self.next_tick = Instant::now() + TICK;
            }
        }
    }

    /// A last attempt at what has failed before.
    fn finish(&mut self) {
        if !self.kept.is_empty() {
            self.commit(Vec::new());
            self.shared.lose(self.kept.len() as u64);
        }
    }

    /// Writes `first` and all that waits behind it; returns whom to tell when it was asked to close.
    fn take_batch(&mut self, first: Write, writes: &Receiver<Write>) -> Option<oneshot::Sender<()>> {
        let mut asked = Vec::new();
        let mut loads = Vec::new();
        let mut closing = None;
        let mut taken = 0;
        for write in std::iter::once(first).chain(writes.try_iter()) {
            self.shared.queue_depth.fetch_sub(1, Ordering::Relaxed);
            taken += 1;
            match write {
                Write::Put(record) => self.kept.push_back(record),
                Write::Act(act) => {
                    // An answered write sees all that was sent before it, and is seen by all that comes after it.
                    asked.push((self.kept.len(), act));
                }
                Write::LoadKeys(done) => loads.push(done),
                Write::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
            if taken >= BATCH_MAX {
                break;
            }
        }
        if self.failing && asked.is_empty() {
            self.lose_surplus();
        } else {
            self.commit(asked);
        }
        if !loads.is_empty() {
            self.load_keys();
            for done in loads {
                // Whoever asked may be gone.
                let _ = done.send(());
            }
        }
        closing
    }

    /// Writes all that is kept, and what was asked for, each after so many of the kept ones as stands beside it.
    fn commit(&mut self, mut asked: Vec<(usize, Box<dyn Act>)>) {
        if self.kept.is_empty() && asked.is_empty() {
            return;
        }
        match self.try_commit(&mut asked) {
            Ok(()) => {
                self.tasks += self.kept.len() as u64;
                self.kept.clear();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the store can write again");
                    self.shared.set_failing(None);
                }
                asked.into_iter().for_each(|(_, act)| act.answer(None));
            }
            Err(error) => {
                tracing::error!(error = %error, kept = self.kept.len(), "the store cannot write; it will try again");
                self.shared.set_failing(Some(error.to_string()));
                asked.into_iter().for_each(|(_, act)| act.answer(Some(&error)));
                self.failing = true;
                self.lose_surplus();
            }
        }
    }

    /// Keeps as much as the queue would hold, the newest.
    fn lose_surplus(&mut self) {
        let surplus = self.kept.len().saturating_sub(self.settings.queue_max);
        self.kept.drain(..surplus);
        self.shared.lose(surplus as u64);
    }

    fn try_commit(&mut self, asked: &mut [(usize, Box<dyn Act>)]) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let lost =
            || rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        let mut asked = asked.iter_mut().peekable();
        for (at, record) in self.kept.iter().enumerate() {
            while let Some((_, act)) = asked.next_if(|(after, _)| *after <= at) {
                if act.perform(&transaction) {
                    return Err(lost());
                }
            }
            match tasks::put(&transaction, record) {
                Ok(_) => {}
                Err(StoreError::Sql { source, .. }) if ends_transaction(&source) => return Err(source),
                Err(error) => {
                    tracing::error!(task_id = %record.view.task_id, error = %error, "a task could not be stored");
                    self.shared.lose(1);
                }
            }
        }
        for (_, act) in asked {
            if act.perform(&transaction) {
                return Err(lost());
            }
        }
        transaction.commit()
    }

    fn tick(&mut self) {
        self.commit(Vec::new());
        if let Ok(data_version) = data_version(&self.connection)
            && data_version != self.data_version
        {
            self.data_version = data_version;
            self.load_keys();
        }
        self.prune();
    }

    /// Reads the keys from the file. When that fails, the ones in memory stay.
    fn load_keys(&self) {
        match keys::load(&self.connection, &self.settings_keys) {
            Ok(table) => self.shared.keys.store(Arc::new(table)),
            Err(error) => {
                tracing::error!(error = %error, "the keys could not be read again; the former ones stay");
            }
        }
    }

    /// Removes some of the tasks that are too old or too many.
    fn prune(&mut self) {
        let keep_ms = u64::try_from(self.settings.tasks_keep.as_millis()).unwrap_or(u64::MAX);
        let surplus = self.tasks.saturating_sub(self.settings.tasks_max);
        match tasks::prune(
            &self.connection,
            now_ms().saturating_sub(keep_ms),
            surplus,
            PRUNE_MAX,
        ) {
            Ok(0) => {
                // The count runs ahead, because a task that is written twice counts twice.
                if surplus > 0 {
                    self.tasks = tasks::count(&self.connection).unwrap_or(self.tasks);
                }
            }
            Ok(removed) => self.tasks = self.tasks.saturating_sub(removed),
            Err(error) => tracing::warn!(error = %error, "old tasks could not be removed"),
        }
    }
}

/// Changes when another connection has committed.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}
