//! The OpenAPI document, generated from the rooms' own declarations.

use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use crate::rooms::{health, nodes, pools, tasks};

#[derive(OpenApi)]
#[openapi(
    info(title = "Remuda", description = "Tasks, pools and nodes of a Remuda control plane", license(name = "Apache-2.0")),
    paths(
        tasks::submit, tasks::list, tasks::show, tasks::events, tasks::cancel,
        nodes::register, nodes::heartbeat, nodes::callback, nodes::deregister, nodes::list, nodes::show,
        nodes::drain, nodes::undrain,
        pools::list, pools::show, pools::drain, pools::undrain, pools::reload,
        health::live, health::ready, health::capabilities, health::version, health::metrics,
    ),
    components(schemas(task_api::Event)),
    security(("key" = [])),
    modifiers(&Key)
)]
struct Document;

struct Key;

impl utoipa::Modify for Key {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("key", scheme);
    }
}

/// The document.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
