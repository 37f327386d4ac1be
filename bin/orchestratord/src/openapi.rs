//! The OpenAPI document, generated from the rooms' own declarations.

use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, PathItem, Ref, RefOr, Response, ResponseBuilder};

use crate::rooms::{agents, execute, health, nodes, pools, tasks, workspaces};

#[derive(OpenApi)]
#[openapi(
    info(title = "Remuda", description = "Tasks, pools and nodes of a Remuda control plane", license(name = "Apache-2.0")),
    paths(
        tasks::submit, tasks::list, tasks::show, tasks::events, tasks::cancel,
        execute::execute, agents::list, agents::log_in, agents::status, agents::remove, agents::enter,
        workspaces::upload, workspaces::remove, workspaces::files, workspaces::diff, workspaces::archive,
        nodes::register, nodes::heartbeat, nodes::callback, nodes::deregister, nodes::list, nodes::show,
        nodes::drain, nodes::undrain,
        pools::list, pools::show, pools::drain, pools::undrain, pools::reload,
        health::live, health::ready, health::capabilities, health::version, health::metrics,
    ),
    components(schemas(task_api::Event)),
    security(("key" = [])),
    modifiers(&Key, &Parameters, &Refusals, &Bodies)
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

/// A parameter is left out where a body may say `null`.
struct Parameters;

impl utoipa::Modify for Parameters {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let operations = openapi.paths.paths.values_mut().flat_map(operations);
        for parameter in operations
            .filter_map(|operation| operation.parameters.as_mut())
            .flatten()
        {
            if let RefOr::T(parameter) = parameter
                && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
                && let SchemaType::Array(types) = &mut object.schema_type
            {
                types.retain(|kind| *kind != Type::Null);
            }
        }
    }
}

/// What every page that asks for a key may answer, said once.
struct Refusals;

impl utoipa::Modify for Refusals {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for operation in openapi.paths.paths.values_mut().flat_map(operations) {
            let asks_for_key = |required: &Vec<SecurityRequirement>| !required.is_empty();
            if !operation.security.as_ref().is_none_or(asks_for_key) {
                continue;
            }
            for (status, why) in [
                ("401", "no key, or one that is not known"),
                ("403", "the key may not do this"),
            ] {
                let responses = &mut operation.responses.responses;
                responses.entry(status.to_owned()).or_insert_with(|| refusal(why));
            }
        }
    }
}

/// What every page that takes a body may answer, said once.
struct Bodies;

impl utoipa::Modify for Bodies {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let with_body = openapi.paths.paths.values_mut().flat_map(operations);
        for operation in with_body.filter(|operation| operation.request_body.is_some()) {
            let responses = &mut operation.responses.responses;
            responses
                .entry("413".to_owned())
                .or_insert_with(|| refusal("the body is longer than is taken"));
        }
    }
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.post, &mut path.delete]
        .into_iter()
        .flatten()
}

fn refusal(why: &str) -> RefOr<Response> {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
    let response = ResponseBuilder::new()
        .description(why)
        .content("application/json", body.build());
    RefOr::T(response.build())
}

/// The document.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
