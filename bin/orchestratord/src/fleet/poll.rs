//! Nodes that do not register by themselves: of a static list, or behind a DNS SRV name (RFC 2782).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use http_body_util::{BodyExt as _, Limited};
use pool_registry_types::RegisterRequest;

use crate::plane::{NodeLink, SharedPlane};

/// How long one node may take to answer.
const POLL_TIMEOUT: Duration = Duration::from_secs(4);

/// The most nodes that a list or a name may have.
const NODES_MAX: usize = 1000;

/// The longest answer of a node.
const ANSWER_LEN_MAX: usize = 8 * 1024 * 1024;

/// Polls what the settings name, for as long as the control plane runs.
pub(crate) async fn poll_nodes(plane: SharedPlane) {
    let settings = &plane.settings;
    let resolver = settings
        .pool_managers_dns
        .as_ref()
        .and_then(|_| match resolver(settings.dns_server) {
            Ok(resolver) => Some(resolver),
            Err(error) => {
                tracing::error!(%error, "no DNS: nodes behind a name are not found");
                None
            }
        });
    let mut interval = tokio::time::interval(settings.pool_poll_interval_ms);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut resolved: BTreeSet<String> = BTreeSet::new();
    let mut silent: BTreeSet<String> = BTreeSet::new();
    loop {
        interval.tick().await;
        if let (Some(name), Some(resolver)) = (&settings.pool_managers_dns, &resolver) {
            match look_up(resolver, name, settings.tls_ca.is_some()).await {
                Ok(found) => resolved = found,
                // What was found before is asked on: a DNS server may be away while the nodes are not.
                Err(error) => tracing::warn!(name, %error, "a name of nodes could not be looked up"),
            }
        }
        let addresses = settings.pool_managers.iter().chain(&resolved).take(NODES_MAX);
        let polls = addresses.map(|address| poll_one(&plane, address));
        let polled = futures_util::future::join_all(polls).await;
        tell_changes(&mut silent, polled);
    }
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, Box<dyn std::error::Error>> {
    let builder = match server {
        Some(server) => {
            let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut name_server.connections {
                connection.port = server.port();
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio()?,
    };
    Ok(builder.build()?)
}

/// The targets of a service. Their addresses come from the same DNS, but with TLS the name stays: it is what the
/// certificate was issued for.
async fn look_up(
    resolver: &TokioResolver,
    name: &str,
    tls: bool,
) -> Result<BTreeSet<String>, hickory_resolver::net::NetError> {
    let records = resolver.srv_lookup(name).await?;
    let mut found = BTreeSet::new();
    for record in records.answers() {
        let RData::SRV(srv) = &record.data else { continue };
        let target = srv.target.to_utf8();
        if tls {
            found.insert(format!("https://{}:{}", target.trim_end_matches('.'), srv.port));
            continue;
        }
        let addresses = resolver.lookup_ip(target.as_str()).await?;
        found.extend(
            addresses
                .iter()
                .map(|address| format!("http://{}", SocketAddr::new(address, srv.port))),
        );
    }
    Ok(found)
}

async fn poll_one<'a>(plane: &SharedPlane, address: &'a str) -> (&'a str, Result<(), String>) {
    let began = Instant::now();
    let polled = match tokio::time::timeout(POLL_TIMEOUT, ask(plane, address)).await {
        Ok(polled) => polled,
        Err(_) => Err("it did not answer in time".to_owned()),
    };
    plane.metrics.health_check(polled.is_ok(), began.elapsed());
    (address, polled)
}

/// A node that is polled every few seconds is worth a line when it stops answering, and one when it answers again.
fn tell_changes(silent: &mut BTreeSet<String>, polled: Vec<(&str, Result<(), String>)>) {
    for (address, polled) in polled {
        match polled {
            Ok(()) if silent.remove(address) => tracing::info!(address, "a node of the list answers again"),
            Ok(()) => {}
            Err(error) if silent.insert(address.to_owned()) => {
                tracing::warn!(address, error, "a node of the list cannot be read");
            }
            Err(_) => {}
        }
    }
}

async fn ask(plane: &SharedPlane, address: &str) -> Result<(), String> {
    let NodeLink::Remote(remote) = plane
        .link_to(address)
        .map_err(|error| daemon::exit::chain(&error))?
    else {
        return Err("the address is this process".to_owned());
    };
    let answer = remote
        .get("/v2/pools")
        .await
        .map_err(|error| daemon::exit::chain(&error))?;
    let request = RegisterRequest {
        // Where it was found is where it is reached, whatever it calls itself.
        address: address.to_owned(),
        // A report that was read off a node has no order of its own.
        incarnation: String::new(),
        sequence: 0,
        ..read(answer).await?
    };
    match plane.take_report(|registry, now, changes| registry.register(now, request, changes)) {
        // A node that also registers by itself is heard from that way.
        Ok(_) | Err(service_registry::Refusal::ReportsItself) => Ok(()),
        Err(refusal) => Err(refusal.to_string()),
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    response: http::Response<upstream::NodeBody>,
) -> Result<T, String> {
    if !response.status().is_success() {
        return Err(format!("the node answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| format!("the node's answer cannot be read: {error}"))
}
