//! Where a client connects to: scheme, host, port and a base path.

use std::str::FromStr;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::{Scheme, Uri};

use crate::OriginError;

/// A parsed `http://host:port/base` or `https://...`.
#[derive(Clone, Debug)]
pub struct Origin {
    pub(crate) tls: bool,
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    pub(crate) authority: Arc<str>,
    pub(crate) host_header: HeaderValue,
    base_path: Arc<str>,
}

impl Origin {
    /// The host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, given or the scheme's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, for messages.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What stands before every path, without a slash at its end; mostly empty.
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// Whether the host is this machine's loopback, by address or by the name `localhost`.
    pub fn is_loopback(&self) -> bool {
        if self.host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        self.host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let uri: Uri = text.parse().map_err(|_| OriginError::NotAUrl(text.to_owned()))?;
        let authority = uri
            .authority()
            .ok_or_else(|| OriginError::NotAUrl(text.to_owned()))?;
        if authority.as_str().contains('@') {
            return Err(OriginError::Credentials);
        }
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(OriginError::Scheme(text.to_owned())),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(OriginError::NotAUrl(text.to_owned()));
        }
        let host_header =
            HeaderValue::from_str(authority.as_str()).map_err(|_| OriginError::NotAUrl(text.to_owned()))?;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let shown = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        Ok(Self {
            tls,
            host: Arc::from(host),
            port,
            authority: Arc::from(shown),
            host_header,
            base_path: Arc::from(uri.path().trim_end_matches('/')),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<(&str, &str, bool)>) {
        let origin = text.parse::<Origin>().ok();
        let seen = origin
            .as_ref()
            .map(|o| (o.authority(), o.base_path(), o.is_loopback()));
        assert_eq!(seen, expect, "{text:?}");
    }

    #[test]
    fn origins_are_read_strictly() {
        check("http://localhost:8081", Some(("localhost:8081", "", true)));
        check("http://127.0.0.1:8081/", Some(("127.0.0.1:8081", "", true)));
        check("http://[::1]:9/base/", Some(("[::1]:9", "/base", true)));
        check("https://gpu.example", Some(("gpu.example:443", "", false)));
        check(
            "http://127.0.0.1.example:1",
            Some(("127.0.0.1.example:1", "", false)),
        );
        check("ftp://x", None);
        check("localhost:8081", None);
        check("http://user:pw@host", None);
        check("", None);
    }
}
