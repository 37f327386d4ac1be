//! What somebody wants to reach.

use std::fmt;
use std::net::IpAddr;

/// The longest host name, in bytes.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Why a text names nothing that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is no host name and no address.
    #[error("it is no host name and no address")]
    Host,
    /// There is no port, or it is 0.
    #[error("it has no port")]
    Port,
}

/// A host: a name in small letters without a full stop at the end, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name.
    Name(Box<str>),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Reads a name or an address; IPv6 with or without brackets. A name that some resolvers take for an address
    /// (`0x7f.1`, `2130706433`) is none.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(bare) = bare {
            return bare
                .parse()
                .map(|address| Self::Address(IpAddr::V6(address)))
                .map_err(|_| TargetError::Host);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(is_label) {
            return Err(TargetError::Host);
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(TargetError::Host);
        }
        Ok(Self::Name(name.to_ascii_lowercase().into()))
    }
}

fn is_label(label: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(fits)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(formatter),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl Target {
    /// Reads `host:port`, or `host` when there is a port to take for it.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match text[after_bracket..].rfind(':') {
            // A bare IPv6 address has colons of its own, and no port.
            Some(_) if after_bracket == 0 && text.matches(':').count() > 1 => (text, default_port),
            Some(at) => {
                let digits = &text[after_bracket + at + 1..];
                if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(TargetError::Port);
                }
                (&text[..after_bracket + at], digits.parse().ok())
            }
            None => (text, default_port),
        };
        let host = Host::parse(host)?;
        let port = port.filter(|port| *port != 0).ok_or(TargetError::Port)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        let read = Target::parse(text, None).ok().map(|target| target.to_string());
        assert_eq!(read.as_deref(), expect, "{text}");
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        check("API.Example.com.:443", Some("api.example.com:443"));
        check("127.0.0.1:80", Some("127.0.0.1:80"));
        check("[::1]:80", Some("[::1]:80"));
        for text in [
            "",
            ":",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "host:80x",
            "a b:80",
            "a..b:80",
            "-a.b:80",
            "2130706433:80",
            "0x7f.1:80",
            "0x7f000001:80",
            "127.1:80",
            "1.2.3.4.5:80",
            "[::1]",
            "[::1:80",
            "::1:80",
            "[fe80::1%eth0]:80",
            "user@host:80",
            "ho\0st:80",
            "\u{ff11}27.0.0.1:80",
            "host/:80",
            "*:80",
        ] {
            check(text, None);
        }
        check(&format!("{}:80", "a".repeat(64)), None);
        check(&format!("{}:80", "a.".repeat(128)), None);
    }
}
