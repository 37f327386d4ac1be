//! Identifiers: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, beginning with a letter or a digit.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest identifier, in bytes.
pub const ID_LEN_MAX: usize = 128;

/// Why a text is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text is longer than [`ID_LEN_MAX`] bytes.
    #[error("has {0} bytes, {ID_LEN_MAX} are allowed")]
    TooLong(usize),
    /// The text holds a character that is not allowed, or begins with one that may not stand first.
    #[error(
        "has {0:?} at byte {1}; letters, digits, '.', '_' and '-' are allowed, the first a letter or a digit"
    )]
    Character(char, usize),
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_LEN_MAX {
        return Err(IdError::TooLong(text.len()));
    }
    for (at, c) in text.char_indices() {
        let allowed = c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-'));
        if !allowed {
            return Err(IdError::Character(c, at));
        }
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it an identifier.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The identifier as text.
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

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

identifier! {
    /// A machine that runs a node daemon. Chosen by its operator, unique in the fleet.
    NodeId
}
identifier! {
    /// The hardware under a node: stays the same when the node is renamed.
    MachineId
}
identifier! {
    /// A named set of interchangeable replicas. The same pool may have replicas on several nodes.
    PoolId
}
identifier! {
    /// One engine process or one sandbox, unique within its node and pool.
    ReplicaId
}
identifier! {
    /// One running control plane. New at each start, so that leases of a dead one are recognised.
    ControlPlaneId
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str, expect: &Result<(), IdError>) {
        assert_eq!(PoolId::new(text).map(|_| ()), *expect, "{text:?}");
        let json = serde_json::to_string(text).unwrap();
        assert_eq!(
            serde_json::from_str::<PoolId>(&json).is_ok(),
            expect.is_ok(),
            "{text:?}"
        );
    }

    #[test]
    fn only_safe_texts_are_identifiers() {
        case("pool-0", &Ok(()));
        case("0", &Ok(()));
        case("A.b_c-9", &Ok(()));
        case(&"x".repeat(128), &Ok(()));
        case("", &Err(IdError::Empty));
        case(&"x".repeat(129), &Err(IdError::TooLong(129)));
        case(".hidden", &Err(IdError::Character('.', 0)));
        case("a/b", &Err(IdError::Character('/', 1)));
        case("a b", &Err(IdError::Character(' ', 1)));
        case("ä", &Err(IdError::Character('ä', 0)));
        case("a\n", &Err(IdError::Character('\n', 1)));
    }
}
