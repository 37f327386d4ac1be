//! Tasks on disk.

use task_api::{TaskId, TaskState, TaskView};

/// A task as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRecord {
    /// The task as clients see it.
    pub view: TaskView,
    /// When it came, milliseconds since 1970: what the list is ordered by.
    pub created_ms: u64,
    /// When it ended, milliseconds since 1970.
    pub ended_ms: Option<u64>,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only in this state.
    pub state: Option<TaskState>,
    /// Only of this session.
    pub session: Option<String>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// At most so many, 1 to 1,000.
    pub limit: u32,
}

/// Tells tasks apart.
pub(crate) type Id = TaskId;
