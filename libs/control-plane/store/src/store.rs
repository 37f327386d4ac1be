//! The store as its callers see it.

use std::sync::Arc;

use task_api::TaskId;

use crate::{
    CatalogModel, KeyInfo, KeyTable, NewKey, NewKeySpec, StoreError, StoreSettings, TaskFilter, TaskRecord,
};

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Writes that were lost since the start: they failed, or the queue was full.
    pub writes_lost: u64,
    /// Writes that wait.
    pub queue_depth: u64,
    /// What went wrong last, while the latest write has failed.
    pub failing: Option<String>,
}

/// A handle to the store. Cheap to clone; the threads end when the last one is dropped or after `close`.
#[derive(Clone, Debug)]
pub struct Store {
    _private: (),
}

#[expect(
    unused_variables,
    clippy::unimplemented,
    clippy::unused_async,
    clippy::needless_pass_by_value,
    reason = "the signatures come first"
)]
impl Store {
    /// Opens the file, makes or migrates its tables, ends what a former process left unfinished (as `WORKER_RESET`),
    /// and starts the threads. Blocks: call it before serving. `environment_keys` are those of `ORCHD_API_KEYS`.
    pub fn open(settings: StoreSettings, environment_keys: KeyTable) -> Result<Self, StoreError> {
        unimplemented!()
    }

    /// Opens the file for a command of the CLI beside a running daemon: leaves unfinished tasks alone.
    pub fn open_beside(settings: StoreSettings) -> Result<Self, StoreError> {
        unimplemented!()
    }

    /// Stores a new task; returns when it is safe on disk.
    pub async fn insert_task(&self, record: TaskRecord) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// Stores a task's newer state, later. Never waits: false when the queue is full and the write was lost.
    pub fn update_task(&self, record: TaskRecord) -> bool {
        unimplemented!()
    }

    /// Stores a task's end, later; also of a task that was never inserted. Never waits: false when it was lost.
    pub fn finish_task(&self, record: TaskRecord) -> bool {
        unimplemented!()
    }

    /// One task.
    pub async fn task(&self, task_id: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        unimplemented!()
    }

    /// A page of tasks, the newest first, and the cursor of the next page.
    pub async fn list_tasks(
        &self,
        filter: TaskFilter,
    ) -> Result<(Vec<TaskRecord>, Option<String>), StoreError> {
        unimplemented!()
    }

    /// Makes a key.
    pub async fn create_key(&self, spec: NewKeySpec) -> Result<NewKey, StoreError> {
        unimplemented!()
    }

    /// Every key, revoked ones too, the newest first.
    pub async fn list_keys(&self) -> Result<Vec<KeyInfo>, StoreError> {
        unimplemented!()
    }

    /// Ends a key by its id. Revoking it again changes nothing.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyInfo, StoreError> {
        unimplemented!()
    }

    /// The valid keys, in memory: no I/O, no lock that anybody holds for long. Keys that another process makes or
    /// revokes are noticed within about a second.
    pub fn keys(&self) -> Arc<KeyTable> {
        unimplemented!()
    }

    /// Adds a model to the catalog or replaces it.
    pub async fn put_model(&self, model: CatalogModel) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// The catalog, by name.
    pub async fn list_models(&self) -> Result<Vec<CatalogModel>, StoreError> {
        unimplemented!()
    }

    /// Takes a model out of the catalog. False when it was not there.
    pub async fn remove_model(&self, name: &str) -> Result<bool, StoreError> {
        unimplemented!()
    }

    /// How the store is.
    pub fn health(&self) -> StoreHealth {
        unimplemented!()
    }

    /// Writes what still waits and closes the file. Bounded by what waits; call it at the end of a drain.
    pub async fn close(&self) {
        unimplemented!()
    }
}
