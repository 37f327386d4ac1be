//! From an allowed target to a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limits::ADDRESSES_MAX;
use crate::policy::EgressPolicy;
use crate::serve::{Reason, Shared};
use crate::target::{Host, Target};
use crate::upstream::Names;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum DialError {
    /// The policy does not allow it.
    Denied(Reason),
    /// The name has no address.
    Unresolved,
    /// Nothing answers there, or no upstream proxy got through.
    Unreachable(io::Error),
    /// It took too long.
    TimedOut,
}

/// Which way an allowed target may be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// What the sandbox asked for: through the upstream proxies, when there are any.
    World,
    /// The base: vouched for by who configured it, and always direct.
    Base,
}

impl Shared {
    /// Connects to what `policy` allows. `owner` chooses among upstream proxies.
    pub(crate) async fn dial(
        &self,
        policy: &EgressPolicy,
        target: &Target,
        way: Way,
        owner: &str,
    ) -> Result<TcpStream, DialError> {
        if way == Way::World {
            policy.check(target).map_err(DialError::Denied)?;
            if let Some(upstreams) = &self.upstreams {
                let names = Names {
                    shared: self,
                    policy,
                    target,
                };
                return upstreams
                    .connect(owner, &names, self.limits.connect_timeout)
                    .await;
            }
        }
        let addresses = match way {
            Way::World => self.checked_addresses(policy, target).await?,
            Way::Base => self.addresses(target).await?,
        };
        self.connect(&addresses, target.port).await
    }

    /// The addresses of the target that may be dialled: the only ones that are ever given to a socket.
    pub(crate) async fn checked_addresses(
        &self,
        policy: &EgressPolicy,
        target: &Target,
    ) -> Result<Vec<IpAddr>, DialError> {
        if let Host::Address(address) = target.host {
            // It is named as an address, which permits it.
            return Ok(vec![address]);
        }
        let mut addresses = self.addresses(target).await?;
        let first = addresses.first().copied();
        addresses.retain(|address| policy.permits(*address));
        match (addresses.is_empty(), first) {
            (false, _) => Ok(addresses),
            (true, Some(address)) => Err(DialError::Denied(Reason::AddressNotPermitted(address))),
            (true, None) => Err(DialError::Unresolved),
        }
    }

    async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, DialError> {
        let name = match &target.host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        match timeout(self.limits.resolve_timeout, self.resolver.resolve(name)).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
            Ok(Ok(_) | Err(_)) => Err(DialError::Unresolved),
            Err(_) => Err(DialError::TimedOut),
        }
    }

    async fn connect(&self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, DialError> {
        let mut last = DialError::Unresolved;
        for address in addresses.iter().take(ADDRESSES_MAX) {
            match timeout(
                self.limits.connect_timeout,
                TcpStream::connect(SocketAddr::new(*address, port)),
            )
            .await
            {
                Ok(Ok(stream)) => {
                    // Small writes are whole messages here; that they wait for each other helps nobody.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = DialError::Unreachable(error),
                Err(_) => last = DialError::TimedOut,
            }
        }
        Err(last)
    }
}
