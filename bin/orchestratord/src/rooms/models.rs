//! `GET /v1/models`: what is really there now.

use adapter_host::{ListedModel, model_body, models_body, wants_anthropic};
use axum::extract::State;
use axum::response::IntoResponse;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use scheduler::ModelEntry;
use task_api::{ApiError, ErrorCode};

use super::answer::{Id, Page};
use crate::plane::SharedPlane;

pub(crate) async fn list(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.user(&headers)?;
    let models = plane.guarded.with(|scheduler, _| scheduler.models());
    let listed: Vec<ListedModel<'_>> = models.iter().map(|model| listed(&plane, model)).collect();
    let body = models_body(&listed, wants_anthropic(&headers));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

pub(crate) async fn show(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<String>) -> Page {
    plane.access.user(&headers)?;
    let models = plane.guarded.with(|scheduler, _| scheduler.models());
    let found = models
        .iter()
        .find(|model| *model.id == *id || model.aliases.contains(&id));
    let model = found.ok_or_else(|| {
        ApiError::new(
            ErrorCode::NotFound,
            format!("no replica serves the model {id:?} now"),
        )
    })?;
    let body = model_body(&listed(&plane, model), wants_anthropic(&headers));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

fn listed<'m>(plane: &SharedPlane, model: &'m ModelEntry) -> ListedModel<'m> {
    ListedModel {
        id: &model.id,
        created_s: plane.started_ms / 1000,
        context_length: model.context_length,
    }
}
