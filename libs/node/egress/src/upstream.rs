//! Upstream proxies: the node's own way out.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use crate::dial::DialError;
use crate::policy::EgressPolicy;
use crate::serve::Shared;
use crate::target::{Host, Target};

/// How long a proxy that failed is left alone, at first; doubles up to the second.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// The largest head of a proxy's answer, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// How many addresses of a name one proxy is asked for.
const ADDRESSES_ASKED_MAX: usize = 2;
/// The longest name or password that SOCKS5 takes, in bytes.
const CREDENTIAL_BYTES_MAX: usize = 255;

/// An upstream proxy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Not `http://`, `socks5://` or `socks5h://`.
    #[error("an upstream proxy is http://, socks5:// or socks5h://[user:password@]host:port")]
    Address,
    /// A name or password is empty, too long, or wrongly escaped.
    #[error("the name or password of an upstream proxy is empty, too long or wrongly escaped")]
    Credentials,
}

/// Who resolves names when an upstream proxy is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveAt {
    /// The node: the proxy is asked for an address that was checked.
    Node,
    /// The proxy, because only it can: it is trusted not to lead into private networks.
    Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Socks5,
}

struct Credentials {
    user: String,
    password: Zeroizing<String>,
}

/// A proxy that the node goes through.
pub struct UpstreamProxy {
    kind: Kind,
    at: Target,
    credentials: Option<Credentials>,
    resolve_at: ResolveAt,
}

impl UpstreamProxy {
    /// Reads `http://`, `socks5://` or `socks5h://`, then `[user:password@]host:port`; `%` escapes in user and
    /// password. `socks5h` resolves at the proxy, the others at the node.
    pub fn parse(url: &str) -> Result<Self, UpstreamError> {
        let (scheme, rest) = url.split_once("://").ok_or(UpstreamError::Address)?;
        let (kind, resolve_at, port) = match scheme {
            "http" => (Kind::Http, ResolveAt::Node, None),
            "socks5" => (Kind::Socks5, ResolveAt::Node, Some(1080)),
            "socks5h" => (Kind::Socks5, ResolveAt::Proxy, Some(1080)),
            _ => return Err(UpstreamError::Address),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => (Some(read_credentials(credentials)?), host),
            None => (None, rest),
        };
        let at = Target::parse(host, port).map_err(|_| UpstreamError::Address)?;
        Ok(Self {
            kind,
            at,
            credentials,
            resolve_at,
        })
    }

    /// Says who resolves.
    #[must_use]
    pub fn resolving_at(mut self, resolve_at: ResolveAt) -> Self {
        self.resolve_at = resolve_at;
        self
    }
}

/// Without user and password.
impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} proxy at {}", self.kind, self.at)
    }
}

fn read_credentials(text: &str) -> Result<Credentials, UpstreamError> {
    let (user, password) = text.split_once(':').ok_or(UpstreamError::Credentials)?;
    let user = unescape(user)?;
    let password = unescape(password)?;
    let fits = |text: &str| (1..=CREDENTIAL_BYTES_MAX).contains(&text.len());
    // HTTP's basic scheme ends the user at the first colon.
    if !fits(&user) || !fits(&password) || user.contains(':') {
        return Err(UpstreamError::Credentials);
    }
    Ok(Credentials {
        user: user.as_str().to_owned(),
        password,
    })
}

fn unescape(text: &str) -> Result<Zeroizing<String>, UpstreamError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(UpstreamError::Credentials);
        };
        bytes.push(u8::try_from(high << 4 | low).expect("two hexadecimal digits"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| UpstreamError::Credentials)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// What is to be reached, and how to find its addresses if the proxy shall not.
pub(crate) struct Names<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) policy: &'a EgressPolicy,
    pub(crate) target: &'a Target,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures: u32,
    rests_until: Option<Instant>,
}

/// The upstream proxies of a node. Each owner keeps to one of them as long as it is well.
pub struct Upstreams {
    proxies: Vec<(UpstreamProxy, Mutex<Health>)>,
}

/// What a proxy said.
enum Answer {
    /// The proxy is not well: try another one, and leave this one alone.
    Unwell(io::Error),
    /// The proxy is well, and the target is not.
    Target(io::Error),
}

impl Upstreams {
    /// These proxies; `None` when there is none.
    pub fn new(proxies: Vec<UpstreamProxy>) -> Option<Self> {
        let proxies: Vec<_> = proxies
            .into_iter()
            .map(|proxy| (proxy, Mutex::default()))
            .collect();
        (!proxies.is_empty()).then_some(Self { proxies })
    }

    /// How many are well, of how many.
    pub fn well(&self) -> (usize, usize) {
        let now = Instant::now();
        let well = (0..self.proxies.len())
            .filter(|at| self.is_well(*at, now))
            .count();
        (well, self.proxies.len())
    }

    /// Connects to every proxy each `interval`, for ever, so that a dead one is known before it is needed and one that
    /// came back is used again.
    pub async fn check_forever(&self, interval: Duration, connect_timeout: Duration) {
        loop {
            for at in 0..self.proxies.len() {
                match self.greet(at, connect_timeout).await {
                    Ok(()) => self.note_well(at),
                    Err(error) => self.note_unwell(at, &error),
                }
            }
            sleep(interval).await;
        }
    }

    /// Through the owner's own proxy, or the next one that is well. Never without one.
    pub(crate) async fn connect(
        &self,
        owner: &str,
        names: &Names<'_>,
        connect_timeout: Duration,
    ) -> Result<TcpStream, DialError> {
        let mut checked: Option<Vec<IpAddr>> = None;
        let mut last = io::Error::other("no upstream proxy is well");
        for at in self.order(owner) {
            let (proxy, _) = &self.proxies[at];
            let mut targets = vec![names.target.clone()];
            if proxy.resolve_at == ResolveAt::Node {
                if checked.is_none() {
                    checked = Some(names.shared.checked_addresses(names.policy, names.target).await?);
                }
                let addresses = checked.iter().flatten().take(ADDRESSES_ASKED_MAX);
                let port = names.target.port;
                targets = addresses
                    .map(|address| Target {
                        host: Host::Address(*address),
                        port,
                    })
                    .collect();
            }
            let mut target_error = None;
            for target in &targets {
                let attempt = timeout(connect_timeout, through(proxy, target)).await;
                match attempt.unwrap_or_else(|_| Err(Answer::Unwell(io::ErrorKind::TimedOut.into()))) {
                    Ok(stream) => {
                        self.note_well(at);
                        return Ok(stream);
                    }
                    Err(Answer::Target(error)) => target_error = Some(error),
                    Err(Answer::Unwell(error)) => {
                        self.note_unwell(at, &error);
                        last = error;
                        target_error = None;
                        break;
                    }
                }
            }
            if let Some(error) = target_error {
                return Err(DialError::Unreachable(error));
            }
        }
        Err(DialError::Unreachable(last))
    }

    /// The owner's order: by the hash of owner and proxy, so that a proxy that fails moves its own owners only. Those
    /// that are not well come last: they are better than nothing.
    fn order(&self, owner: &str) -> Vec<usize> {
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.proxies.len()).collect();
        order.sort_by_cached_key(|at| {
            let mut hasher = FixedState::default().build_hasher();
            owner.hash(&mut hasher);
            self.proxies[*at].0.at.hash(&mut hasher);
            (!self.is_well(*at, now), hasher.finish())
        });
        order
    }

    fn is_well(&self, at: usize, now: Instant) -> bool {
        self.health(at).rests_until.is_none_or(|until| now >= until)
    }

    fn health(&self, at: usize) -> Health {
        *self.proxies[at].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_well(&self, at: usize) {
        let (proxy, health) = &self.proxies[at];
        let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.failures > 0 {
            tracing::info!(proxy = %proxy.at, "an upstream proxy is well again");
        }
        *health = Health::default();
    }

    fn note_unwell(&self, at: usize, error: &io::Error) {
        let (proxy, health) = &self.proxies[at];
        let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = REST_MIN
            .saturating_mul(1 << health.failures.min(16))
            .min(REST_MAX);
        if health.failures == 0 {
            tracing::warn!(proxy = %proxy.at, %error, "an upstream proxy is not well");
        }
        health.failures = health.failures.saturating_add(1);
        health.rests_until = Some(Instant::now() + rest);
    }

    /// Whether the proxy answers at all; SOCKS5 also whether it takes the credentials.
    async fn greet(&self, at: usize, connect_timeout: Duration) -> io::Result<()> {
        let (proxy, _) = &self.proxies[at];
        let greeting = async {
            let mut stream = connect_to(proxy).await?;
            match proxy.kind {
                Kind::Http => Ok(()),
                Kind::Socks5 => socks5_greeting(&mut stream, proxy.credentials.as_ref()).await,
            }
        };
        timeout(connect_timeout, greeting).await?
    }
}

async fn through(proxy: &UpstreamProxy, target: &Target) -> Result<TcpStream, Answer> {
    let mut stream = connect_to(proxy).await.map_err(Answer::Unwell)?;
    match proxy.kind {
        Kind::Http => http_connect(&mut stream, target, proxy.credentials.as_ref()).await?,
        Kind::Socks5 => {
            socks5_greeting(&mut stream, proxy.credentials.as_ref())
                .await
                .map_err(Answer::Unwell)?;
            socks5_connect(&mut stream, target).await?;
        }
    }
    Ok(stream)
}

/// The operator has named the proxy, so it may be anywhere.
async fn connect_to(proxy: &UpstreamProxy) -> io::Result<TcpStream> {
    let stream = match &proxy.at.host {
        Host::Name(name) => TcpStream::connect((&**name, proxy.at.port)).await?,
        Host::Address(address) => TcpStream::connect((*address, proxy.at.port)).await?,
    };
    // As for every other connection.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn http_connect(
    stream: &mut TcpStream,
    target: &Target,
    credentials: Option<&Credentials>,
) -> Result<(), Answer> {
    let mut head = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
    if let Some(Credentials { user, password }) = credentials {
        let pair = Zeroizing::new(format!("{user}:{}", password.as_str()));
        head.push_str("Proxy-Authorization: Basic ");
        head.push_str(&crate::forward::base64(pair.as_bytes()));
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.map_err(Answer::Unwell)?;
    // Byte by byte: what comes after the head belongs to the tunnel.
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(Answer::Unwell(io::Error::other("the proxy's answer is too long")));
        }
        answer.push(stream.read_u8().await.map_err(Answer::Unwell)?);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let parsed = parsed.parse(&answer).ok().and(parsed.code);
    match parsed {
        Some(200..=299) => Ok(()),
        Some(code @ (400 | 403 | 404 | 502 | 504)) => Err(Answer::Target(io::Error::other(format!(
            "the proxy answered {code}"
        )))),
        Some(code) => Err(Answer::Unwell(io::Error::other(format!(
            "the proxy answered {code}"
        )))),
        None => Err(Answer::Unwell(io::Error::other("the proxy does not speak HTTP"))),
    }
}

/// Greeting and, when the proxy wants it, user and password (RFC 1928 and 1929).
async fn socks5_greeting(stream: &mut TcpStream, credentials: Option<&Credentials>) -> io::Result<()> {
    let offer: &[u8] = if credentials.is_some() {
        &[5, 2, 0, 2]
    } else {
        &[5, 1, 0]
    };
    stream.write_all(offer).await?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await?;
    match (choice, credentials) {
        ([5, 0], _) => Ok(()),
        ([5, 2], Some(Credentials { user, password })) => {
            let mut message = Zeroizing::new(vec![1]);
            for part in [user.as_bytes(), password.as_bytes()] {
                message.push(u8::try_from(part.len()).expect("at most 255 bytes"));
                message.extend_from_slice(part);
            }
            stream.write_all(&message).await?;
            let mut verdict = [0; 2];
            stream.read_exact(&mut verdict).await?;
            if verdict[1] == 0 {
                Ok(())
            } else {
                Err(io::Error::other("the proxy refuses user and password"))
            }
        }
        ([5, _], _) => Err(io::Error::other("the proxy takes none of the ways to log in")),
        _ => Err(io::Error::other("the proxy does not speak SOCKS5")),
    }
}

async fn socks5_connect(stream: &mut TcpStream, target: &Target) -> Result<(), Answer> {
    let mut request = vec![5, 1, 0];
    match &target.host {
        Host::Address(IpAddr::V4(address)) => {
            request.push(1);
            request.extend_from_slice(&address.octets());
        }
        Host::Address(IpAddr::V6(address)) => {
            request.push(4);
            request.extend_from_slice(&address.octets());
        }
        Host::Name(name) => {
            request.push(3);
            request.push(u8::try_from(name.len()).expect("a name has at most 253 bytes"));
            request.extend_from_slice(name.as_bytes());
        }
    }
    request.extend_from_slice(&target.port.to_be_bytes());
    stream.write_all(&request).await.map_err(Answer::Unwell)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(Answer::Unwell)?;
    let [version, code, _, kind] = head;
    if version != 5 {
        return Err(Answer::Unwell(io::Error::other(
            "the proxy does not speak SOCKS5",
        )));
    }
    match code {
        0 => {}
        // Not allowed, network or host unreachable, refused, expired: it looked, and that is what it found.
        2..=6 => {
            return Err(Answer::Target(io::Error::other(format!(
                "the proxy answered {code}"
            ))));
        }
        _ => {
            return Err(Answer::Unwell(io::Error::other(format!(
                "the proxy answered {code}"
            ))));
        }
    }
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await.map_err(Answer::Unwell)?),
        _ => {
            return Err(Answer::Unwell(io::Error::other(
                "the proxy does not speak SOCKS5",
            )));
        }
    };
    let mut bound = vec![0; length + 2];
    stream.read_exact(&mut bound).await.map_err(Answer::Unwell)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_proxies() {
        let proxy = UpstreamProxy::parse("socks5h://ann:p%40ss%3a@proxy.test").unwrap();
        assert_eq!(proxy.at.to_string(), "proxy.test:1080");
        assert_eq!(proxy.resolve_at, ResolveAt::Proxy);
        let credentials = proxy.credentials.as_ref().unwrap();
        assert_eq!(
            (credentials.user.as_str(), credentials.password.as_str()),
            ("ann", "p@ss:")
        );
        assert_eq!(format!("{proxy:?}"), "Socks5 proxy at proxy.test:1080");
        assert!(UpstreamProxy::parse("http://127.0.0.1:3128/").is_ok());
        for url in [
            "ftp://host:1",
            "http://host",
            "host:80",
            "http://user@host:80",
            "http://:p@host:80",
            "http://u:%zz@h:80",
            "http://u:p@:80",
        ] {
            assert!(UpstreamProxy::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn an_owner_keeps_its_proxy_and_others_spread() {
        let proxies = (1..=4)
            .map(|port| UpstreamProxy::parse(&format!("http://h:{port}")).unwrap())
            .collect();
        let upstreams = Upstreams::new(proxies).unwrap();
        let first = |owner: &str| upstreams.order(owner)[0];
        let owners: Vec<String> = (0..100).map(|n| format!("owner-{n}")).collect();
        let before: Vec<usize> = owners.iter().map(|owner| first(owner)).collect();
        assert!((0..4).all(|at| before.iter().filter(|one| **one == at).count() > 5));
        upstreams.note_unwell(2, &io::Error::other("test"));
        for (owner, before) in owners.iter().zip(&before) {
            assert!(first(owner) == *before || *before == 2);
            assert_ne!(first(owner), 2);
        }
        assert_eq!(upstreams.well(), (3, 4));
        upstreams.note_well(2);
        assert!(
            owners
                .iter()
                .zip(&before)
                .all(|(owner, before)| first(owner) == *before)
        );
    }
}
