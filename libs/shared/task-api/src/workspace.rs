//! The directory that an agent's task works in.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{ApiError, ErrorCode, WorkspaceId};

/// The longest address of a repository, in bytes.
const URL_LEN_MAX: usize = 2048;
/// The longest name of a branch or a tag, in bytes.
const REFERENCE_LEN_MAX: usize = 255;

/// What a task works in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum WorkspaceRequest {
    /// One that was uploaded, or that another task has worked in.
    Kept(WorkspaceId),
    /// A new one, cloned from a repository.
    Cloned(CloneRequest),
}

/// A repository to clone, with the newest commit alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// Its address: `https://` or `http://`, without a login in it.
    #[schema(min_length = 1, max_length = 2048)]
    pub git: String,
    /// A branch or a tag. The repository's own choice without it.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub reference: Option<String>,
}

impl<'de> Deserialize<'de> for WorkspaceRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WorkspaceRequest;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the id of a workspace, or an object with `git`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                WorkspaceId::deserialize(StrDeserializer::new(text)).map(WorkspaceRequest::Kept)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                CloneRequest::deserialize(MapAccessDeserializer::new(map)).map(WorkspaceRequest::Cloned)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl WorkspaceRequest {
    pub(crate) fn validate(&self) -> Result<(), ApiError> {
        let Self::Cloned(clone) = self else { return Ok(()) };
        let wrong = |field: &str, message: String| {
            Err(ApiError::new(ErrorCode::InvalidParams, message).with_param(field))
        };
        let rest = ["https://", "http://"]
            .iter()
            .find_map(|scheme| clone.git.strip_prefix(scheme));
        let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        let is_plain = clone.git.bytes().all(|byte| byte.is_ascii_graphic());
        match authority {
            Some(authority) if authority.contains('@') => {
                let message =
                    "workspace.git must not hold a login: others would see it; upload the directory instead";
                return wrong("workspace.git", message.to_owned());
            }
            Some(authority) if !authority.is_empty() && is_plain && clone.git.len() <= URL_LEN_MAX => {}
            _ => {
                let message = format!(
                    "workspace.git must be an address that begins with https:// or http://, of at most {URL_LEN_MAX} bytes"
                );
                return wrong("workspace.git", message);
            }
        }
        let is_reference = |name: &str| {
            let clean = |byte: u8| byte.is_ascii_graphic() && !b"~^:?*[\\".contains(&byte);
            (1..=REFERENCE_LEN_MAX).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(clean)
        };
        match &clone.reference {
            Some(name) if !is_reference(name) => wrong(
                "workspace.ref",
                format!("workspace.ref must name a branch or a tag, with at most {REFERENCE_LEN_MAX} bytes"),
            ),
            _ => Ok(()),
        }
    }
}
