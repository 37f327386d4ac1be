//! Identifiers of tasks and sessions. A client may choose them; otherwise they are new UUIDs (version 7, RFC 9562).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest task or session id, in bytes.
pub(crate) const CLIENT_ID_LEN_MAX: usize = 128;

/// The longest id of a workspace, in bytes: its node's name stands in it.
const WORKSPACE_ID_LEN_MAX: usize = 192;

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {len_max} characters of A-Z a-z 0-9 . _ : -")]
pub struct TaskIdError {
    len_max: usize,
}

fn check(text: &str, len_max: usize) -> Result<(), TaskIdError> {
    let fits = (1..=len_max).contains(&text.len());
    let clean = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
    if fits && clean {
        Ok(())
    } else {
        Err(TaskIdError { len_max })
    }
}

macro_rules! client_id {
    ($(#[$doc:meta])* $name:ident, $len_max:expr, $schema_len_max:tt, $pattern:tt) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, min_length = 1, max_length = $schema_len_max, pattern = $pattern)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a client's text.
            pub fn new(text: impl AsRef<str>) -> Result<Self, TaskIdError> {
                check(text.as_ref(), $len_max)?;
                Ok(Self(Arc::from(text.as_ref())))
            }

            /// A new id that nobody has.
            pub fn generate() -> Self {
                let mut buffer = uuid::Uuid::encode_buffer();
                Self(Arc::from(&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer)))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = TaskIdError;
            fn try_from(text: String) -> Result<Self, TaskIdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
    };
}

client_id! {
    /// A task.
    TaskId, CLIENT_ID_LEN_MAX, 128, "^[A-Za-z0-9._:-]{1,128}$"
}
client_id! {
    /// Tasks that belong together and profit from the same replica's warm cache.
    SessionId, CLIENT_ID_LEN_MAX, 128, "^[A-Za-z0-9._:-]{1,128}$"
}
client_id! {
    /// A directory that an agent works in.
    WorkspaceId, WORKSPACE_ID_LEN_MAX, 192, "^[A-Za-z0-9._:-]{1,192}$"
}
