//! The end of a task: told exactly once, also when whoever runs it is dropped.

use std::sync::Arc;

use task_api::{ApiError, ErrorCode, Event, TaskState};

use super::LiveTask;
use super::runner::record;
use crate::access::now_ms;
use crate::plane::{SharedPlane, rfc3339};

/// A task that has not ended. Dropped before its end, it tells the task's readers that the end will not come.
pub(crate) struct Ending {
    plane: SharedPlane,
    pub(crate) task: Arc<LiveTask>,
    over: bool,
}

impl Ending {
    pub(crate) fn new(plane: SharedPlane, task: Arc<LiveTask>) -> Self {
        Self {
            plane,
            task,
            over: false,
        }
    }

    pub(crate) fn fail(&mut self, error: &ApiError) {
        let state = match error.code {
            ErrorCode::Cancelled => TaskState::Cancelled,
            ErrorCode::DeadlineUnmet => TaskState::Expired,
            ErrorCode::QueueFullDropLru => TaskState::Evicted,
            _ => TaskState::Failed,
        };
        if let Some(internal) = &error.internal {
            let task_id = self.task.lock().view.task_id.clone();
            tracing::warn!(%task_id, %error, internal, "a task has failed");
        }
        let event = Event::Error {
            code: error.code,
            message: error.message.to_string(),
            retriable: error.code.retriable(),
            retry_after_ms: error.retry_after_ms,
        };
        self.end(event, state, Some(error));
    }

    pub(crate) fn end(&mut self, event: Event, state: TaskState, error: Option<&ApiError>) {
        self.over = true;
        let usage = match &event {
            Event::End(usage) => Some(*usage),
            _ => None,
        };
        self.task.append([event], |view| {
            view.state = state;
            view.ended_at = Some(rfc3339(now_ms()));
            view.usage = usage;
            view.error = error.map(|error| error.body(Some(view.correlation_id.clone())));
        });
        let id = self.task.lock().view.task_id.clone();
        self.plane.tasks.ended(id);
        self.plane.store.finish_task(record(&self.task));
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.over {
            self.fail(&ApiError::new(
                ErrorCode::WorkerReset,
                "the control plane was shut down before the task had ended",
            ));
        }
    }
}
