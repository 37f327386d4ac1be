//! Where requests go that name no host, because the proxy's own address was configured as the base address of an API.

use std::fmt;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::policy::PolicyError;
use crate::target::Target;

/// Where clients of the different APIs put a key.
const KEYS: [HeaderName; 3] = [
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Such a place, and the key that requests get on their way there instead of what they came with: a program never sees
/// it, and may stay up while keys change.
#[derive(Clone)]
pub struct Base {
    pub(crate) target: Target,
    authorization: HeaderValue,
}

/// Without the key.
impl fmt::Debug for Base {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Base")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Base {
    /// `http://host:port`, and a key. Whoever sets this vouches for where it leads.
    pub fn new(url: &str, key: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Base(url.to_owned());
        let authority = url.strip_prefix("http://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let target = Target::parse(authority, Some(80)).map_err(|_| wrong())?;
        let authorization = HeaderValue::try_from(format!("Bearer {key}"));
        let mut authorization = authorization.map_err(|_| PolicyError::Key)?;
        authorization.set_sensitive(true);
        Ok(Self {
            target,
            authorization,
        })
    }

    /// Puts the key where it belongs, and takes out what stood there.
    pub(crate) fn put_key(&self, headers: &mut HeaderMap) {
        for name in KEYS {
            headers.remove(name);
        }
        headers.insert(AUTHORIZATION, self.authorization.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_an_address_without_a_path() {
        for url in ["host:80", "https://host:80", "http://", "http://host:80/v1"] {
            assert!(Base::new(url, "k").is_err(), "{url}");
        }
        assert!(Base::new("http://host", "a\nb").is_err());
        let base = Base::new("http://host:81/", "the-key").unwrap();
        assert!(!format!("{base:?}").contains("the-key"));
    }
}
