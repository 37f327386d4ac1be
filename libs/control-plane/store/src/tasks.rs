//! Tasks on disk: the latest state of each, as clients see it.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use task_api::{ErrorBody, ErrorCode, TaskState, TaskView};

use crate::StoreError;

/// The longest page of a list.
pub(crate) const PAGE_MAX: u32 = 1000;

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
    /// At most so many; brought into 1 to 1,000.
    pub limit: u32,
}

fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Queued => "queued",
        TaskState::Placed => "placed",
        TaskState::Running => "running",
        TaskState::Completed => "completed",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
        TaskState::Expired => "expired",
        TaskState::Evicted => "evicted",
    }
}

fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { doing, source }
}

/// Adds a task; false when there is one of this id.
pub(crate) fn insert(connection: &Connection, record: &TaskRecord) -> Result<bool, StoreError> {
    write(connection, record, "ON CONFLICT (id) DO NOTHING")
}

/// Adds a task or takes its newer state. A task that has ended stays as it is.
pub(crate) fn put(connection: &Connection, record: &TaskRecord) -> Result<bool, StoreError> {
    write(
        connection,
        record,
        "ON CONFLICT (id) DO UPDATE SET ended_ms = excluded.ended_ms, state = excluded.state, view = excluded.view
         WHERE tasks.ended_ms IS NULL",
    )
}

fn write(connection: &Connection, record: &TaskRecord, conflict: &str) -> Result<bool, StoreError> {
    let view = serde_json::to_string(&record.view).map_err(StoreError::Record)?;
    let insert = "INSERT INTO tasks (id, created_ms, ended_ms, owner, session, state, view) VALUES (?, ?, ?, ?, ?, ?, ?)";
    let mut statement = connection
        .prepare_cached(&format!("{insert} {conflict}"))
        .map_err(sql("write a task"))?;
    let changed = statement.execute(params![
        record.view.task_id.as_str(),
        record.created_ms.cast_signed(),
        record.ended_ms.map(u64::cast_signed),
        record.view.owner,
        record.view.session_id.as_ref().map(task_api::SessionId::as_str),
        state_name(record.view.state),
        view,
    ]);
    Ok(changed.map_err(sql("write a task"))? > 0)
}

/// A row as it comes from SQLite: the JSON is read outside of its callback, where it may fail in its own way.
type Raw = (String, i64, Option<i64>);

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn record((view, created_ms, ended_ms): Raw) -> Result<TaskRecord, StoreError> {
    Ok(TaskRecord {
        view: serde_json::from_str(&view).map_err(StoreError::Record)?,
        created_ms: created_ms.cast_unsigned(),
        ended_ms: ended_ms.map(i64::cast_unsigned),
    })
}

pub(crate) fn get(connection: &Connection, id: &str) -> Result<Option<TaskRecord>, StoreError> {
    let read = || {
        let mut statement =
            connection.prepare_cached("SELECT view, created_ms, ended_ms FROM tasks WHERE id = ?")?;
        statement.query_row([id], raw).optional()
    };
    read().map_err(sql("read a task"))?.map(record).transpose()
}

/// A page, the newest first, and the next page's cursor.
pub(crate) fn list(
    connection: &Connection,
    filter: &TaskFilter,
) -> Result<(Vec<TaskRecord>, Option<String>), StoreError> {
    let limit = filter.limit.clamp(1, PAGE_MAX);
    let (text, values) = list_query(filter, limit)?;
    let read = || {
        let mut statement = connection.prepare_cached(&text)?;
        statement
            .query_map(params_from_iter(values), raw)?
            .collect::<rusqlite::Result<Vec<Raw>>>()
    };
    let rows = read().map_err(sql("list tasks"))?;
    let more = rows.len() > limit as usize;
    let page: Result<Vec<TaskRecord>, StoreError> =
        rows.into_iter().take(limit as usize).map(record).collect();
    let page = page?;
    let next = page
        .last()
        .filter(|_| more)
        .map(|last| format!("{}.{}", last.created_ms, last.view.task_id));
    Ok((page, next))
}

fn list_query(filter: &TaskFilter, limit: u32) -> Result<(String, Vec<Value>), StoreError> {
    let mut text = "SELECT view, created_ms, ended_ms FROM tasks WHERE TRUE".to_owned();
    let mut values: Vec<Value> = Vec::new();
    if let Some(owner) = &filter.owner {
        text.push_str(" AND owner = ?");
        values.push(owner.clone().into());
    }
    if let Some(state) = filter.state {
        text.push_str(" AND state = ?");
        values.push(state_name(state).to_owned().into());
    }
    if let Some(session) = &filter.session {
        text.push_str(" AND session = ?");
        values.push(session.clone().into());
    }
    if let Some(cursor) = &filter.cursor {
        let (created_ms, id) = cursor.split_once('.').ok_or(StoreError::BadCursor)?;
        // A number reads a sign as well, which no page of ours gives.
        if !created_ms.starts_with(|c: char| c.is_ascii_digit()) || task_api::TaskId::new(id).is_err() {
            return Err(StoreError::BadCursor);
        }
        let created_ms: i64 = created_ms.parse().map_err(|_| StoreError::BadCursor)?;
        text.push_str(" AND (created_ms, id) < (?, ?)");
        values.extend([created_ms.into(), id.to_owned().into()]);
    }
    text.push_str(" ORDER BY created_ms DESC, id DESC LIMIT ?");
    values.push((i64::from(limit) + 1).into());
    Ok((text, values))
}

/// Ends what a former process left unfinished; returns how many there were.
pub(crate) fn end_unfinished(
    connection: &Connection,
    now_ms: u64,
    now_text: &str,
) -> Result<usize, StoreError> {
    let read = || {
        let mut statement =
            connection.prepare("SELECT view, created_ms, ended_ms FROM tasks WHERE ended_ms IS NULL")?;
        statement
            .query_map([], raw)?
            .collect::<rusqlite::Result<Vec<Raw>>>()
    };
    let rows = read().map_err(sql("find unfinished tasks"))?;
    let count = rows.len();
    for row in rows {
        let mut record = record(row)?;
        record.ended_ms = Some(now_ms);
        record.view.state = TaskState::Failed;
        record.view.position = None;
        record.view.ended_at = Some(now_text.to_owned());
        record.view.error = Some(ErrorBody {
            code: ErrorCode::WorkerReset,
            message: "the control plane was restarted while the task was not finished".to_owned(),
            param: None,
            retriable: ErrorCode::WorkerReset.retriable(),
            retry_after_ms: None,
            correlation_id: Some(record.view.correlation_id.clone()),
        });
        put(connection, &record)?;
    }
    Ok(count)
}

pub(crate) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .query_row("SELECT count(*) FROM tasks", [], |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

/// Removes up to `limit` ended tasks that are older than `before_ms`, then up to `surplus` of the oldest ended ones;
/// returns how many it removed. A task ends after it came, so the index on the time leads straight to the old ones.
pub(crate) fn prune(
    connection: &Connection,
    before_ms: u64,
    surplus: u64,
    limit: u64,
) -> rusqlite::Result<u64> {
    let sql = "DELETE FROM tasks WHERE id IN
        (SELECT id FROM tasks WHERE created_ms < ?1 AND ended_ms < ?1 ORDER BY created_ms, id LIMIT ?2)";
    let mut statement = connection.prepare_cached(sql)?;
    let old = statement.execute([before_ms.cast_signed(), limit.cast_signed()])? as u64;
    let surplus = surplus.saturating_sub(old).min(limit - old.min(limit));
    let surplus = if surplus > 0 {
        statement.execute([i64::MAX, surplus.cast_signed()])? as u64
    } else {
        0
    };
    Ok(old + surplus)
}
