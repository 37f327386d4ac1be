use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::certs::{self, Request};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A private CA in a directory of its own.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        certs::init(directory.path(), 3650, false).unwrap();
        Self(directory)
    }

    fn ca(&self) -> PathBuf {
        self.0.path().join("ca.pem")
    }

    fn issue(&self, name: &str) -> Identity {
        self.issue_for(name, SystemTime::now(), 30)
    }

    fn issue_for(&self, name: &str, from: SystemTime, days: u32) -> Identity {
        let alt_names = vec!["127.0.0.1".to_owned()];
        let request = Request {
            name: name.to_owned(),
            alt_names,
            from,
            days,
            force: true,
        };
        let written = certs::issue(self.0.path(), &request).unwrap();
        Identity {
            cert: written.cert,
            key: written.key,
        }
    }
}

/// Shakes hands, sends a byte each way, and gives what the control plane (client) and the node (server) say to it.
async fn meet(server: ServerConfig, client: ClientConfig, name: &'static str) -> [Result<(), String>; 2] {
    let (near, far) = duplex(64 * 1024);
    let node = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        stream.read_u8().await?;
        stream.write_u8(1).await?;
        stream.flush().await
    };
    let control_plane = async {
        let name = ServerName::try_from(name).unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await.map(drop)
    };
    let both = async { tokio::join!(control_plane, node) };
    let (client, server) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("nobody waits for ever");
    let say = |result: io::Result<()>, us, them| {
        result.map_err(|error| {
            explain(&error, Sides { us, them }).unwrap_or_else(|| format!("unexplained: {error:?}"))
        })
    };
    [
        say(client, "control plane", "node"),
        say(server, "node", "control plane"),
    ]
}

#[track_caller]
fn check(met: &[Result<(), String>; 2], control_plane: &str, node: &str) {
    for (said, expect) in met.iter().zip([control_plane, node]) {
        match said {
            Ok(()) => assert_eq!(expect, "fine"),
            Err(text) => assert!(text.contains(expect), "{text:?} does not say {expect:?}"),
        }
    }
}

fn server(identity: &Identity, clients: &ClientAuth) -> ServerConfig {
    server_config(identity, clients, ALPN_HTTP).unwrap()
}

fn client(ca: &Path, identity: Option<&Identity>) -> ClientConfig {
    client_config(ca, identity, ALPN_HTTP).unwrap()
}

#[tokio::test]
async fn both_sides_of_one_ca_get_together() {
    let ours = Authority::new();
    let (node, plane) = (ours.issue("node"), ours.issue("control-plane"));
    for name in ["127.0.0.1", "node"] {
        let met = meet(
            server(&node, &ClientAuth::Required(ours.ca())),
            client(&ours.ca(), Some(&plane)),
            name,
        )
        .await;
        check(&met, "fine", "fine");
    }
    let met = meet(
        server(&node, &ClientAuth::Optional(ours.ca())),
        client(&ours.ca(), None),
        "node",
    )
    .await;
    check(&met, "fine", "fine");
    let met = meet(
        server(&node, &ClientAuth::Off),
        client(&ours.ca(), Some(&plane)),
        "node",
    )
    .await;
    check(&met, "fine", "fine");
}

#[tokio::test]
async fn a_server_that_cannot_be_believed_is_refused_and_both_know_why() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let now = SystemTime::now();

    let expired = ours.issue_for("node", now - DAY * 10, 5);
    check(
        &meet(
            server(&expired, &ClientAuth::Off),
            client(&ours.ca(), None),
            "node",
        )
        .await,
        "this control plane refused the node's certificate: it expired on 20",
        "the control plane refused this node's certificate: it has expired",
    );
    let early = ours.issue_for("node", now + DAY * 10, 5);
    check(
        &meet(server(&early, &ClientAuth::Off), client(&ours.ca(), None), "node").await,
        "this control plane refused the node's certificate: it is not valid before 20",
        "the control plane refused this node's certificate: it has expired or is not valid yet",
    );
    let foreign = theirs.issue("node");
    check(
        &meet(
            server(&foreign, &ClientAuth::Off),
            client(&ours.ca(), None),
            "node",
        )
        .await,
        "this control plane refused the node's certificate: it was issued by a CA that is not ours",
        "the control plane refused this node's certificate: it was issued by a CA that the other side does not know",
    );
    let other = ours.issue("other");
    check(
        &meet(server(&other, &ClientAuth::Off), client(&ours.ca(), None), "node").await,
        "and not for node",
        "it is for another host name",
    );
}

#[tokio::test]
async fn a_client_that_cannot_be_believed_is_refused_and_both_know_why() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let node = ours.issue("node");
    let required = || server(&node, &ClientAuth::Required(ours.ca()));

    check(
        &meet(required(), client(&ours.ca(), None), "node").await,
        "the node refused this control plane: it showed no certificate",
        "this node refused the control plane: it showed no certificate",
    );
    let expired = ours.issue_for("control-plane", SystemTime::now() - DAY * 10, 5);
    check(
        &meet(required(), client(&ours.ca(), Some(&expired)), "node").await,
        "the node refused this control plane's certificate: it has expired",
        "this node refused the control plane's certificate: it expired on 20",
    );
    let foreign = theirs.issue("control-plane");
    for clients in [ClientAuth::Required(ours.ca()), ClientAuth::Optional(ours.ca())] {
        check(
            &meet(
                server(&node, &clients),
                client(&ours.ca(), Some(&foreign)),
                "node",
            )
            .await,
            "the node refused this control plane's certificate: it was issued by a CA that the other side does not know",
            "this node refused the control plane's certificate: it was issued by a CA that is not ours",
        );
    }
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_as_that() {
    let ours = Authority::new();
    let (mut near, far) = duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server(&ours.issue("node"), &ClientAuth::Off)));
    let error = acceptor.accept(far).await.unwrap_err();
    let text = explain(
        &error,
        Sides {
            us: "node",
            them: "control plane",
        },
    )
    .unwrap();
    assert!(text.contains("does not speak TLS"), "{text}");
    assert_eq!(
        explain(&io::Error::other("no TLS at all"), Sides { us: "a", them: "b" }),
        None
    );
}

#[test]
fn files_that_do_not_fit_are_named() {
    let ours = Authority::new();
    let (one, two) = (ours.issue("one"), ours.issue("two"));
    let text = |identity: &Identity, clients| {
        crate::exit::chain(
            &server_config(identity, &clients, ALPN_HTTP)
                .map(drop)
                .unwrap_err(),
        )
    };
    let crossed = Identity {
        cert: one.cert.clone(),
        key: two.key.clone(),
    };
    assert!(
        text(&crossed, ClientAuth::Off).contains("cannot be used"),
        "{}",
        text(&crossed, ClientAuth::Off)
    );
    let missing = Identity {
        cert: PathBuf::from("/nonexistent.pem"),
        key: two.key,
    };
    assert!(text(&missing, ClientAuth::Off).starts_with("cannot read the certificate in /nonexistent.pem"));
    let swapped = Identity {
        cert: one.key.clone(),
        key: one.cert.clone(),
    };
    assert!(text(&swapped, ClientAuth::Off).contains("holds no certificate in PEM form"));
    assert!(
        text(&one, ClientAuth::Required(one.key.clone())).contains("holds no CA certificate in PEM form")
    );

    let names = ["ORCHD_TLS_CERT", "ORCHD_TLS_KEY"];
    assert_eq!(Identity::of_settings(None, None, names).unwrap(), None);
    assert_eq!(
        Identity::of_settings(Some(&one.cert), Some(&one.key), names).unwrap(),
        Some(one.clone())
    );
    let half = Identity::of_settings(None, Some(&one.key), names).unwrap_err();
    assert!(
        half.to_string()
            .starts_with("ORCHD_TLS_KEY is set and ORCHD_TLS_CERT is not")
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let ours = Authority::new();
    let node = ours.issue_for("node", SystemTime::now() - DAY * 10, 5);
    let made_from = node.clone();
    let watched = Watched::new(vec![node.cert.clone(), node.key.clone()], move || {
        server_config(&made_from, &ClientAuth::Off, ALPN_HTTP)
    })
    .unwrap();
    let meet_now = || meet((*watched.current()).clone(), client(&ours.ca(), None), "node");
    check(&meet_now().await, "expired on", "has expired");
    assert!(!watched.refresh().unwrap(), "nothing has changed");

    ours.issue("node");
    touch_later(&node.cert);
    assert!(watched.refresh().unwrap());
    check(&meet_now().await, "fine", "fine");

    std::fs::write(&node.cert, "half of a file").unwrap();
    assert!(watched.refresh().is_err());
    assert!(watched.refresh().is_err(), "it is tried again until it is right");
    check(&meet_now().await, "fine", "fine");
}

/// A file written within one tick of the file system's clock could look unchanged.
fn touch_later(path: &Path) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5))
        .unwrap();
}

/// Over a real socket, with a client that sends its preface at once and its request a little later, as HTTP/2 clients
/// do. A reset in between would fail the second write, and the client would never read why.
#[tokio::test]
async fn a_refusal_arrives_at_a_client_that_talks_first() {
    let ours = Authority::new();
    let config = Arc::new(server(&ours.issue("node"), &ClientAuth::Required(ours.ca())));
    for _ in 0..5 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let node = async {
            let (stream, _) = listener.accept().await.unwrap();
            let sides = Sides {
                us: "node",
                them: "control plane",
            };
            accept(Arc::clone(&config), stream, sides, Duration::from_secs(5))
                .await
                .map(drop)
        };
        let control_plane = async {
            let stream = TcpStream::connect(addr).await?;
            let connector = TlsConnector::from(Arc::new(client(&ours.ca(), None)));
            let mut stream = connector
                .connect(ServerName::try_from("node").unwrap(), stream)
                .await?;
            for _ in 0..2 {
                stream.write_all(&[b'x'; 1024]).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stream.read_u8().await
        };
        let (refused, told) = tokio::join!(node, control_plane);
        let text = refused.unwrap_err().to_string();
        assert!(
            text.contains("this node refused the control plane: it showed no certificate"),
            "{text}"
        );
        let error = told.unwrap_err();
        let sides = Sides {
            us: "control plane",
            them: "node",
        };
        let text = explain(&error, sides).unwrap_or_else(|| panic!("not told: {error:?}"));
        assert!(
            text.contains("the node refused this control plane: it showed no certificate"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let ours = Authority::new();
    let config = Arc::new(server(&ours.issue("node"), &ClientAuth::Off));
    let (_near, far) = duplex(1024);
    let error = accept(
        config,
        far,
        Sides {
            us: "node",
            them: "client",
        },
        Duration::from_secs(10),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, AcceptError::Unfinished { .. }), "{error:?}");
    assert_eq!(
        crate::exit::chain(&error),
        "the client did not finish the TLS handshake: timed out"
    );
}
