//! What one connection, and one sandbox, may take.

use std::time::Duration;

/// The largest head of a request, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// The most headers in a request.
pub(crate) const HEADERS_MAX: usize = 128;
/// How many addresses of a name are tried.
pub(crate) const ADDRESSES_MAX: usize = 6;
/// Buffer of each direction of a tunnel, in bytes.
pub(crate) const COPY_BYTES: usize = 16 * 1024;

/// Limits of a sandbox's connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Time for a request's head to arrive.
    pub head_timeout: Duration,
    /// Time to resolve a name.
    pub resolve_timeout: Duration,
    /// Time to connect to one address, or through one upstream proxy.
    pub connect_timeout: Duration,
    /// A connection on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// A connection is closed after this time, whatever it does.
    pub total_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            head_timeout: Duration::from_secs(20),
            resolve_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            total_timeout: Duration::from_secs(6 * 3600),
        }
    }
}
