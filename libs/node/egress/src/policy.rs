//! What may be reached.

use std::net::IpAddr;

use crate::address::{Network, is_public};
use crate::serve::Reason;
use crate::target::{Host, Target, TargetError};

/// The port of a rule that names none.
const PORT_DEFAULT: u16 = 443;

/// A rule that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is neither a name, nor a suffix, nor an address.
    #[error("{rule:?} allows nothing: it is to be host, *.domain or an address, then perhaps :port or :*")]
    Rule {
        /// The rule.
        rule: String,
        /// Why.
        #[source]
        source: TargetError,
    },
    /// It is no network.
    #[error("{0:?} is no address and no network such as 10.0.0.0/8")]
    Network(String),
    /// The base is no `http://host:port`.
    #[error("{0:?} is no base address: it is to be http://host:port, without a path")]
    Base(String),
    /// The key cannot be sent.
    #[error("the key cannot stand in a header")]
    Key,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Exactly(Host),
    /// Everything below this domain, and not the domain itself.
    Below(Box<str>),
}

#[derive(Clone, Debug)]
struct Rule {
    hosts: Hosts,
    /// `None` allows every port.
    port: Option<u16>,
}

impl Rule {
    fn parse(text: &str) -> Result<Self, TargetError> {
        let (host, port) = match text.strip_suffix(":*") {
            Some(host) => (host, None),
            None => {
                let at = text
                    .rfind(':')
                    .filter(|at| text.rfind(']').is_none_or(|bracket| bracket < *at));
                let is_bare_v6 = !text.starts_with('[') && text.matches(':').count() > 1;
                match at.filter(|_| !is_bare_v6) {
                    Some(at) => {
                        let port = text[at + 1..].parse().ok().filter(|port| *port != 0);
                        (&text[..at], Some(port.ok_or(TargetError::Port)?))
                    }
                    None => (text, Some(PORT_DEFAULT)),
                }
            }
        };
        let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
        let hosts = match below {
            Some(domain) => match Host::parse(domain)? {
                Host::Name(domain) => Hosts::Below(domain),
                Host::Address(_) => return Err(TargetError::Host),
            },
            None => Hosts::Exactly(Host::parse(host)?),
        };
        Ok(Self { hosts, port })
    }

    fn allows_host(&self, host: &Host) -> bool {
        match (&self.hosts, host) {
            (Hosts::Exactly(own), host) => own == host,
            (Hosts::Below(domain), Host::Name(name)) => name
                .strip_suffix(&**domain)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            (Hosts::Below(_), Host::Address(_)) => false,
        }
    }
}

/// What a sandbox may reach. Empty, it may reach nothing.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    rules: Vec<Rule>,
    networks: Vec<Network>,
}

impl EgressPolicy {
    /// Nothing is allowed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows `host`, `*.domain` or `.domain` (what is below it, not itself), or an address; on port 443, on `:port`,
    /// or on every port (`:*`). An address that is allowed so may also be private.
    pub fn allow(mut self, rule: &str) -> Result<Self, PolicyError> {
        let parsed = Rule::parse(rule).map_err(|source| PolicyError::Rule {
            rule: rule.to_owned(),
            source,
        })?;
        self.rules.push(parsed);
        Ok(self)
    }

    /// Allowed names may also resolve to addresses in this network, though it is not the open internet.
    pub fn permit_network(mut self, network: &str) -> Result<Self, PolicyError> {
        let parsed = network
            .parse()
            .map_err(|()| PolicyError::Network(network.to_owned()))?;
        self.networks.push(parsed);
        Ok(self)
    }

    /// Whether this host may be reached on this port.
    pub(crate) fn check(&self, target: &Target) -> Result<(), Reason> {
        let mut hosts = self
            .rules
            .iter()
            .filter(|rule| rule.allows_host(&target.host))
            .peekable();
        if hosts.peek().is_none() {
            return Err(match target.host {
                Host::Name(_) => Reason::HostNotAllowed,
                Host::Address(_) => Reason::AddressNotNamed,
            });
        }
        if hosts.any(|rule| rule.port.is_none_or(|port| port == target.port)) {
            Ok(())
        } else {
            Err(Reason::PortNotAllowed)
        }
    }

    /// Whether an address that an allowed name resolved to may be dialled.
    pub(crate) fn permits(&self, address: IpAddr) -> bool {
        is_public(address) || self.networks.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &EgressPolicy, target: &str, expect: Result<(), Reason>) {
        assert_eq!(
            policy.check(&Target::parse(target, None).unwrap()),
            expect,
            "{target}"
        );
    }

    #[test]
    fn rules_allow_what_they_say() {
        let mut policy = EgressPolicy::new();
        check(&policy, "api.example.com:443", Err(Reason::HostNotAllowed));
        for rule in [
            "API.example.com",
            "*.example.org",
            ".example.net:8443",
            "any.example:*",
            "10.0.0.7:80",
            "[::1]:81",
        ] {
            policy = policy.allow(rule).unwrap();
        }
        check(&policy, "api.EXAMPLE.com.:443", Ok(()));
        check(&policy, "api.example.com:80", Err(Reason::PortNotAllowed));
        check(&policy, "xapi.example.com:443", Err(Reason::HostNotAllowed));
        check(
            &policy,
            "api.example.com.evil.test:443",
            Err(Reason::HostNotAllowed),
        );
        check(&policy, "a.b.example.org:443", Ok(()));
        check(&policy, "example.org:443", Err(Reason::HostNotAllowed));
        check(&policy, "evilexample.org:443", Err(Reason::HostNotAllowed));
        check(&policy, "a.example.net:8443", Ok(()));
        check(&policy, "any.example:1", Ok(()));
        check(&policy, "10.0.0.7:80", Ok(()));
        check(&policy, "10.0.0.8:80", Err(Reason::AddressNotNamed));
        check(&policy, "[::ffff:10.0.0.7]:80", Err(Reason::AddressNotNamed));
        check(&policy, "[::1]:81", Ok(()));
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for rule in [
            "",
            "*",
            "*.",
            "*.*.com",
            "a b",
            "host:0",
            "host:x",
            "https://host",
            "*.10.0.0.1",
            "host/path",
        ] {
            assert!(EgressPolicy::new().allow(rule).is_err(), "{rule}");
        }
        assert!(EgressPolicy::new().permit_network("10.0.0.0/40").is_err());
    }
}
