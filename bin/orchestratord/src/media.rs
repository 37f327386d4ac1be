//! Pictures and sound: taken where the replicas say that they can use them, refused with their place otherwise.

use adapter_host::{EngineRequest, RequestFacts, RequestRules, engine_request, read_request};
use pool_registry_types::{Dialect, PoolId};
use task_api::{ApiError, TaskRequest};

use crate::plane::Plane;

impl Plane {
    /// Whether pictures and sound can be sent to `model`, or to whatever `pool` serves.
    pub(crate) fn takes_media(&self, model: Option<&str>, pool: Option<&PoolId>) -> bool {
        self.guarded
            .with(|scheduler, _| scheduler.takes_media(model, pool))
    }

    /// Reads a request of a dialect. Only one with pictures or sound in it costs a look at the replicas.
    pub(crate) fn read_request<'b>(
        &self,
        dialect: Dialect,
        body: &'b [u8],
    ) -> Result<RequestFacts<'b>, ApiError> {
        let rules = |media_allowed| RequestRules {
            model_required: true,
            media_allowed,
        };
        let facts = read_request(dialect, body, &rules(true))?;
        if facts.has_media && !self.takes_media(facts.model.as_deref(), None) {
            // Once more, for the error that names the place.
            return read_request(dialect, body, &rules(false));
        }
        Ok(facts)
    }

    /// Writes a task as its engine reads it. Only one that text alone does not explain costs a look at the replicas.
    pub(crate) fn engine_request(&self, task: &TaskRequest, model: &str) -> Result<EngineRequest, ApiError> {
        match engine_request(task, model, false) {
            Err(_) if self.takes_media(Some(model), task.pool.as_ref()) => engine_request(task, model, true),
            written => written,
        }
    }
}
