//! Names of sandboxes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How long a name may be: it is part of a socket's path, and those are short.
const LENGTH_MAX: usize = 40;

/// Names one sandbox on one node, for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(String);

/// A name that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a sandbox's id has 1 to {LENGTH_MAX} characters of a-z, 0-9 and -, and does not begin with -")]
pub struct SandboxIdError;

impl SandboxId {
    /// A new name that nobody has.
    pub fn random() -> Self {
        Self(format!("s{:024x}", rand::random::<u128>() >> 32))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = SandboxIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > LENGTH_MAX || text.starts_with('-') || !text.bytes().all(fits) {
            return Err(SandboxIdError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::SandboxId;

    #[test]
    fn an_id_is_a_safe_file_name() {
        for good in ["a", "claude-3", &"x".repeat(40)] {
            assert_eq!(good.parse::<SandboxId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", "ä", &"x".repeat(41)] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
        let random = SandboxId::random();
        assert_eq!(random.as_str().parse::<SandboxId>().unwrap(), random);
        assert_ne!(random, SandboxId::random());
    }
}
