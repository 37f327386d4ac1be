//! One sandbox's way out, and serving its connections.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder as Client, SendRequest};
use hyper::server::conn::http1::Builder as Server;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::Limits;
use crate::base::Base;
use crate::dial::{DialError, Way};
use crate::forward::{strip, to_origin};
use crate::limits::{COPY_BYTES, HEAD_BYTES_MAX, HEADERS_MAX};
use crate::meter::{Activity, Meter, Metered, Traffic, Watched};
use crate::policy::{EgressPolicy, PolicyError};
use crate::resolve::Resolve;
use crate::target::Target;
use crate::upstream::Upstreams;

/// The largest name of a host that a report carries, in bytes.
const REPORTED_BYTES_MAX: usize = 253;

/// Why something may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No rule names the host.
    #[error("the host is not on the list of allowed hosts")]
    HostNotAllowed,
    /// A rule names the host, and not this port.
    #[error("the port is not allowed for this host")]
    PortNotAllowed,
    /// It is a bare address that no rule names.
    #[error("addresses are refused unless they are named")]
    AddressNotNamed,
    /// The name leads to an address that is not the open internet's.
    #[error("the host leads to {0}, which is not an address of the open internet")]
    AddressNotPermitted(IpAddr),
    /// What is asked for is no host and port.
    #[error("this names no host and port")]
    NoTarget,
    /// The sandbox has as many connections as it may have.
    #[error("the sandbox has as many connections as it may have")]
    TooManyConnections,
}

/// An attempt that was denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What was to be reached; shortened when it is no name.
    pub host: String,
    /// On which port; 0 when none was said.
    pub port: u16,
    /// Why not.
    pub reason: Reason,
    /// The entrance at which the sandbox asked.
    pub entrance: u16,
}

/// How a connection ended that did not end by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing moved for too long.
    #[error("nothing moved for too long")]
    Idle,
    /// It has been open for as long as one may be.
    #[error("the connection was open for as long as one may be")]
    Total,
    /// The sandbox has too many.
    #[error("the sandbox has too many connections")]
    TooManyConnections,
    /// Its requests could not be read or answered.
    #[error("the proxied connection broke")]
    Http(#[source] hyper::Error),
    /// The tunnel broke.
    #[error("the tunnel broke")]
    Tunnel(#[source] std::io::Error),
}

/// What all sandboxes of a node have in common.
pub struct Shared {
    /// Resolves names.
    pub resolver: Arc<dyn Resolve>,
    /// The only ways out, when there are any.
    pub upstreams: Option<Arc<Upstreams>>,
    /// Limits of each sandbox.
    pub limits: Limits,
}

type Report = dyn Fn(Denied) + Send + Sync;

/// The entrances that have been given out, and where to look for the next one: the longest unused, so that what an ended
/// program has left behind is not taken for another one.
#[derive(Default)]
struct Entrances {
    last: u16,
    given: HashMap<u16, Given>,
}

struct Given {
    meter: Arc<Meter>,
    base: Option<Arc<Base>>,
    /// What may be reached from here besides what may be from all.
    allowed: Option<Arc<str>>,
}

struct Inner {
    shared: Arc<Shared>,
    owner: Box<str>,
    policy: Mutex<Arc<EgressPolicy>>,
    places: Semaphore,
    meter: Arc<Meter>,
    entrances: Mutex<Entrances>,
    report: Box<Report>,
}

/// A sandbox's way out. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

/// Counts what moves at one entrance, until it is dropped. Programs are told apart by the entrance that each is given.
#[derive(Debug)]
pub struct EntranceMeter {
    egress: Egress,
    entrance: u16,
    meter: Arc<Meter>,
}

impl EntranceMeter {
    /// Which entrance.
    pub fn entrance(&self) -> u16 {
        self.entrance
    }

    /// What was counted so far.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// Allows what the rule says, as [`EgressPolicy::allow`] reads it, at this entrance alone and until it is dropped.
    pub fn allow(&self, rule: &str) -> Result<(), PolicyError> {
        EgressPolicy::new().allow(rule)?;
        if let Some(given) = self.egress.entrances().given.get_mut(&self.entrance) {
            given.allowed = Some(rule.into());
        }
        Ok(())
    }

    /// Until what this gives is dropped, requests at this entrance that name no host go to `base`, with its key.
    pub fn lend(&self, base: Base) -> Lent {
        self.egress.lend(self.entrance, Some(base));
        Lent {
            egress: self.egress.clone(),
            entrance: self.entrance,
        }
    }
}

impl Drop for EntranceMeter {
    fn drop(&mut self) {
        self.egress.entrances().given.remove(&self.entrance);
    }
}

/// That requests at an entrance may go to a [`Base`]. Ends when it is dropped.
#[derive(Debug)]
pub struct Lent {
    egress: Egress,
    entrance: u16,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.egress.lend(self.entrance, None);
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Egress").finish_non_exhaustive()
    }
}

impl Egress {
    /// The way out of a sandbox that belongs to `owner`. `report` is called for every denied attempt; it must not block.
    pub fn new(
        shared: Arc<Shared>,
        policy: EgressPolicy,
        owner: &str,
        report: impl Fn(Denied) + Send + Sync + 'static,
    ) -> Self {
        let places = Semaphore::new(shared.limits.connections_max);
        Self(Arc::new(Inner {
            shared,
            owner: owner.into(),
            policy: Mutex::new(Arc::new(policy)),
            places,
            meter: Arc::default(),
            entrances: Mutex::default(),
            report: Box::new(report),
        }))
    }

    /// Another policy, for requests that come from now on. Tunnels that are open stay.
    pub fn set_policy(&self, policy: EgressPolicy) {
        *self.0.policy.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// What the sandbox has moved so far.
    pub fn traffic(&self) -> Traffic {
        self.0.meter.traffic()
    }

    /// An entrance that nobody else has, and what moves there. None: all of them are taken.
    pub fn entrance(&self) -> Option<EntranceMeter> {
        let mut entrances = self.entrances();
        let next = entrances.last.wrapping_add(1);
        let after_last = (0..=u16::MAX).map(|step| next.wrapping_add(step));
        // The first one is everybody's.
        let mut free =
            after_last.filter(|entrance| *entrance != 0 && !entrances.given.contains_key(entrance));
        let entrance = free.next()?;
        let meter = Arc::<Meter>::default();
        entrances.last = entrance;
        let given = Given {
            meter: Arc::clone(&meter),
            base: None,
            allowed: None,
        };
        entrances.given.insert(entrance, given);
        drop(entrances);
        Some(EntranceMeter {
            egress: self.clone(),
            entrance,
            meter,
        })
    }

    fn entrances(&self) -> MutexGuard<'_, Entrances> {
        self.0.entrances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entrance that nobody has any more has no base either.
    fn lend(&self, entrance: u16, base: Option<Base>) {
        if let Some(given) = self.entrances().given.get_mut(&entrance) {
            given.base = base.map(Arc::new);
        }
    }

    fn base(&self, entrance: u16) -> Option<Arc<Base>> {
        self.entrances().given.get(&entrance)?.base.clone()
    }

    /// What may be reached from an entrance.
    fn policy(&self, entrance: u16) -> Arc<EgressPolicy> {
        let given = self
            .entrances()
            .given
            .get(&entrance)
            .and_then(|given| given.allowed.clone());
        let usual = Arc::clone(&self.0.policy.lock().unwrap_or_else(PoisonError::into_inner));
        match given {
            Some(rule) => {
                let both = EgressPolicy::clone(&usual).allow(&rule);
                Arc::new(both.expect("the rule was read when it was allowed"))
            }
            None => usual,
        }
    }

    fn deny(&self, host: String, port: u16, reason: Reason, entrance: u16) {
        (self.0.report)(Denied {
            host,
            port,
            reason,
            entrance,
        });
    }

    /// Serves one connection that something in the sandbox has opened to the proxy at `entrance`, to its end. Dropping
    /// the future closes it.
    pub async fn serve<S>(&self, connection: S, entrance: u16) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limits = &self.0.shared.limits;
        let Ok(_place) = self.0.places.try_acquire() else {
            self.deny(String::new(), 0, Reason::TooManyConnections, entrance);
            return turn_away(connection, limits).await;
        };
        let activity = Arc::new(Activity::new());
        let connection = Watched {
            inner: connection,
            activity: Arc::clone(&activity),
        };
        tokio::select! {
            served = timeout(limits.total_timeout, Box::pin(self.requests(connection, entrance))) => {
                served.unwrap_or(Err(ServeError::Total))
            }
            () = activity.idle(limits.idle_timeout) => Err(ServeError::Idle),
        }
    }

    async fn requests<S>(&self, connection: Watched<S>, entrance: u16) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let meters = [
            Some(Arc::clone(&self.0.meter)),
            self.entrances()
                .given
                .get(&entrance)
                .map(|given| Arc::clone(&given.meter)),
        ];
        let session = Arc::new(Session {
            egress: self.clone(),
            entrance,
            meters,
            tunnel: Mutex::new(None),
            kept: tokio::sync::Mutex::new(None),
        });
        let service = service_fn({
            let session = Arc::clone(&session);
            move |request| {
                let session = Arc::clone(&session);
                async move { Ok::<_, Infallible>(session.answer(request).await) }
            }
        });
        Server::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.0.shared.limits.head_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .preserve_header_case(true)
            .half_close(true)
            .serve_connection(TokioIo::new(connection), service)
            .with_upgrades()
            .await
            .map_err(ServeError::Http)?;
        let tunnel = session
            .tunnel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((upgrade, mut world)) = tunnel else {
            return Ok(());
        };
        let mut sandbox = TokioIo::new(upgrade.await.map_err(ServeError::Http)?);
        copy_bidirectional_with_sizes(&mut sandbox, &mut world, COPY_BYTES, COPY_BYTES)
            .await
            .map(|_| ())
            .map_err(ServeError::Tunnel)
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// A connection to a server that the next request to the same server uses again.
struct Kept {
    target: Target,
    sender: SendRequest<Incoming>,
    driver: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One connection of the sandbox.
struct Session {
    egress: Egress,
    entrance: u16,
    /// What counts its bytes.
    meters: [Option<Arc<Meter>>; 2],
    /// Set by `CONNECT`, for after its answer.
    tunnel: Mutex<Option<(OnUpgrade, Metered<TcpStream>)>>,
    /// Requests on one connection come one after the other; an answer's body needs its connection until it ends.
    kept: tokio::sync::Mutex<Option<Kept>>,
}

impl Session {
    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let policy = self.egress.policy(self.entrance);
        let base = self.egress.base(self.entrance);
        let is_tunnel = request.method() == Method::CONNECT;
        let (target, way) = match read_target(&request, base.as_deref()) {
            Ok(found) => found,
            Err(asked) => {
                self.egress
                    .deny(shorten(&asked), 0, Reason::NoTarget, self.entrance);
                return plain(
                    StatusCode::BAD_REQUEST,
                    "remuda: this names no host and port\n".to_owned(),
                );
            }
        };
        if let (Way::Base, Some(base)) = (way, base) {
            base.put_key(request.headers_mut());
        }
        let done = if is_tunnel {
            self.open_tunnel(request, &policy, &target, way).await
        } else {
            self.forward(request, &policy, &target, way).await
        };
        done.unwrap_or_else(|error| self.refuse(&target, &error))
    }

    async fn dial(
        &self,
        policy: &EgressPolicy,
        target: &Target,
        way: Way,
    ) -> Result<Metered<TcpStream>, DialError> {
        let inner = &self.egress.0;
        let stream = inner.shared.dial(policy, target, way, &inner.owner).await?;
        Ok(Metered {
            inner: stream,
            meters: self.meters.clone(),
        })
    }

    async fn open_tunnel(
        &self,
        request: Request<Incoming>,
        policy: &EgressPolicy,
        target: &Target,
        way: Way,
    ) -> Result<Answer, DialError> {
        let world = self.dial(policy, target, way).await?;
        let upgrade = hyper::upgrade::on(request);
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, world));
        Ok(Response::new(
            Empty::new().map_err(|never| match never {}).boxed(),
        ))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        policy: &EgressPolicy,
        target: &Target,
        way: Way,
    ) -> Result<Answer, DialError> {
        to_origin(&mut request, target);
        let mut kept = self.kept.lock().await;
        // The policy may be another one by now: a kept connection is for what is still allowed.
        let usable = kept.as_ref().is_some_and(|kept| kept.target == *target)
            && (way == Way::Base || policy.check(target).is_ok());
        let mut connection = kept.take().filter(|_| usable);
        if let Some(open) = &mut connection
            && open.sender.ready().await.is_err()
        {
            connection = None;
        }
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.connect(policy, target, way).await?,
        };
        let response = connection.sender.send_request(request).await;
        let mut response = response.map_err(|error| DialError::Unreachable(std::io::Error::other(error)))?;
        *kept = Some(connection);
        strip(response.headers_mut());
        Ok(response.map(BodyExt::boxed))
    }

    async fn connect(&self, policy: &EgressPolicy, target: &Target, way: Way) -> Result<Kept, DialError> {
        let stream = self.dial(policy, target, way).await?;
        let (sender, driver) = Client::new()
            .preserve_header_case(true)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| DialError::Unreachable(std::io::Error::other(error)))?;
        // Ends with the connection, and is ended with the session.
        let driver = tokio::spawn(async move {
            let _ = driver.await;
        });
        Ok(Kept {
            target: target.clone(),
            sender,
            driver: driver.abort_handle(),
        })
    }

    fn refuse(&self, target: &Target, error: &DialError) -> Answer {
        match error {
            DialError::Denied(reason) => {
                self.egress
                    .deny(target.host.to_string(), target.port, *reason, self.entrance);
                plain(
                    StatusCode::FORBIDDEN,
                    format!("remuda: {target} is refused: {reason}\n"),
                )
            }
            DialError::Unresolved => plain(
                StatusCode::BAD_GATEWAY,
                format!("remuda: {} has no address\n", target.host),
            ),
            DialError::Unreachable(error) => {
                tracing::debug!(%target, %error, "a sandbox could not reach an allowed host");
                plain(
                    StatusCode::BAD_GATEWAY,
                    format!("remuda: {target} cannot be reached\n"),
                )
            }
            DialError::TimedOut => plain(
                StatusCode::GATEWAY_TIMEOUT,
                format!("remuda: {target} did not answer in time\n"),
            ),
        }
    }
}

/// What the request is for, and which way; or what it said instead.
fn read_target(request: &Request<Incoming>, base: Option<&Base>) -> Result<(Target, Way), String> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let target = Target::parse(authority, None).map_err(|_| uri.to_string())?;
        return Ok((target, Way::World));
    }
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => {
            let target =
                Target::parse(authority.as_str(), Some(80)).map_err(|_| uri_without_path(request))?;
            Ok((target, Way::World))
        }
        (None, None) if uri.path().starts_with('/') => base
            .map(|base| (base.target.clone(), Way::Base))
            .ok_or_else(String::new),
        _ => Err(uri_without_path(request)),
    }
}

/// Paths and queries may carry secrets; where something was to go does not.
fn uri_without_path(request: &Request<Incoming>) -> String {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    uri.scheme_str()
        .map_or_else(|| host.to_owned(), |scheme| format!("{scheme}://{host}"))
}

fn shorten(text: &str) -> String {
    let mut end = text.len().min(REPORTED_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn plain(status: StatusCode, text: String) -> Answer {
    let body = Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Says so and closes, without reading anything.
async fn turn_away<S: AsyncWrite + Unpin>(mut connection: S, limits: &Limits) -> Result<(), ServeError> {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\nContent-Length: 46\r\n\r\nremuda: the sandbox has too many connections.\n";
    let answer = async {
        connection.write_all(ANSWER).await?;
        connection.shutdown().await
    };
    // It is told what it can be told.
    let _ = timeout(limits.head_timeout, answer).await;
    Err(ServeError::TooManyConnections)
}
