//! A driver whose sandboxes are elsewhere: its inits connect over TCP and TLS, with a token that is good once.
//!
//! Elsewhere is this machine, by `bwrap` with the machine's own network; what the node sees is the same.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use remuda_tests::skipped;
use sandbox::{
    ArchiveLimits, CreateRequest, Created, Driver, DriverError, ExecRequest, Found, Rendezvous, SandboxId,
    TlsDoor,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::place::{Place, START_TIMEOUT, sh, until};

#[derive(Default)]
struct Remote {
    running: Mutex<HashMap<SandboxId, Child>>,
}

impl Driver for Remote {
    fn name(&self) -> &'static str {
        "remote"
    }

    fn check<'a>(&'a self, _image: Option<&'a str>) -> BoxFuture<'a, Result<(), DriverError>> {
        async { Ok(()) }.boxed()
    }

    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<Created, DriverError>> {
        async move {
            let child = launch(&request, Stdio::inherit())
                .map_err(|error| DriverError::Unusable(error.to_string()))?;
            self.running.lock().unwrap().insert(request.id, child);
            Ok(Created { took: Duration::ZERO })
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), DriverError>> {
        async move {
            if let Some(mut child) = self.running.lock().unwrap().remove(id) {
                let _ = child.kill();
                let _ = child.wait();
            }
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        async move {
            let mut running = self.running.lock().unwrap();
            running.retain(|_, child| matches!(child.try_wait(), Ok(None)));
            Ok(running
                .keys()
                .map(|id| Found {
                    id: id.clone(),
                    created: SystemTime::now(),
                })
                .collect())
        }
        .boxed()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        for child in self.running.get_mut().unwrap().values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts the init of a sandbox.
fn launch(request: &CreateRequest, errors: Stdio) -> std::io::Result<Child> {
    let start = request
        .connect
        .start_variable(&request.id, init_protocol::ProcessLimits::default());
    let mut start: init_protocol::Start = serde_json::from_str(&start).unwrap();
    // These sandboxes share one network.
    start.proxy_address = "127.0.0.1:0".to_owned();
    Command::new("bwrap")
        .args([
            "--unshare-user",
            "--unshare-pid",
            "--as-pid-1",
            "--die-with-parent",
            "--new-session",
        ])
        .args([
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "--tmpfs",
            "/home",
        ])
        .args(["--dir", sandbox::HOME, "--setenv", "HOME", sandbox::HOME])
        .arg("--ro-bind")
        .arg(&request.init.path)
        .args(["/tmp/init", "/tmp/init"])
        .env(
            init_protocol::START_VARIABLE,
            serde_json::to_string(&start).unwrap(),
        )
        .stdin(Stdio::null())
        .stderr(errors)
        .spawn()
}

struct Certificates {
    config: Arc<rustls::ServerConfig>,
    ca_pem: String,
}

fn certificates() -> Certificates {
    let made = rcgen::generate_simple_self_signed(["node.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    Certificates {
        config: Arc::new(config),
        ca_pem: made.cert.pem(),
    }
}

async fn listen(rendezvous: &Rendezvous, certificates: &Certificates, port: u16) -> u16 {
    // The port of before may take a moment to be free.
    let end = Instant::now() + START_TIMEOUT;
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => break listener,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let port = listener.local_addr().unwrap().port();
    let door = TlsDoor {
        address: format!("127.0.0.1:{port}"),
        server_name: "node.test".to_owned(),
        ca_pem: certificates.ca_pem.clone(),
    };
    rendezvous.listen_tls(listener, Arc::clone(&certificates.config), door);
    port
}

#[tokio::test]
async fn a_sandbox_elsewhere_is_used_lost_and_taken_back_over_tls() {
    let test = "a_sandbox_elsewhere_is_used_lost_and_taken_back_over_tls";
    if Command::new("bwrap").arg("--version").output().is_err() {
        return skipped(test, "there is no bwrap");
    }
    let mut place = Place::new(tempfile::tempdir().unwrap(), Arc::new(Remote::default()), None);
    let id = SandboxId::random();
    assert!(
        place.rendezvous.expect_remote(&id).is_err(),
        "expected where nobody listens"
    );
    let certificates = certificates();
    let port = listen(&place.rendezvous, &certificates, 0).await;

    let expected = place.rendezvous.expect_remote(&id).unwrap();
    let request = place.request(&id, expected.connect());
    place.driver.create(request.clone()).await.unwrap();
    let sandbox = expected.arrived(START_TIMEOUT).await.unwrap();
    sandbox.set_label("ann").unwrap();
    let mut echo = sandbox.exec(ExecRequest::new(["cat"])).await.unwrap();
    let bytes = vec![b'r'; 3_000_000];
    let (written, read) = tokio::join!(
        async {
            let written = echo.stdin.write_all(&bytes).await;
            drop(echo.stdin);
            written
        },
        async {
            let mut back = Vec::new();
            echo.stdout.read_to_end(&mut back).await.map(|_| back)
        }
    );
    written.unwrap();
    assert!(read.unwrap() == bytes);
    sh(&sandbox, "echo kept > ~/kept").await;

    // The token is spent: whoever has read it comes too late.
    let thief = launch(&request, Stdio::piped()).unwrap();
    let end = tokio::task::spawn_blocking(|| thief.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let errors = String::from_utf8_lossy(&end.stderr);
    assert!(!end.status.success() && errors.contains("refuses"), "{errors}");

    drop(sandbox);
    let directory = place.directory.path().to_owned();
    (place.rendezvous, place.returned) = Rendezvous::open(&directory).unwrap();
    listen(&place.rendezvous, &certificates, port).await;
    let back = tokio::time::timeout(START_TIMEOUT, place.returned.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((back.id(), back.label().as_deref()), (&id, Some("ann")));
    assert_eq!(sh(&back, "cat ~/kept").await.stdout, "kept\n");
    let limits = ArchiveLimits {
        bytes_max: 1_000_000,
        entries_max: 100,
    };
    let mut archive = Vec::new();
    let mut packed = back.pack(sandbox::HOME, limits, &[]).await.unwrap();
    packed.read_to_end(&mut archive).await.unwrap();
    assert!(archive.windows(5).any(|window| window == b"kept\n"));
    back.end().await.unwrap();
    until("the sandbox stays", async || {
        place.driver.list().await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_init_trusts_only_its_nodes_certificate() {
    let test = "an_init_trusts_only_its_nodes_certificate";
    if Command::new("bwrap").arg("--version").output().is_err() {
        return skipped(test, "there is no bwrap");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (real, false_one) = (certificates(), certificates());
    let address = listener.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let (rendezvous, _returned) = Rendezvous::open(directory.path()).unwrap();
    let door = TlsDoor {
        address,
        server_name: "node.test".to_owned(),
        ca_pem: real.ca_pem,
    };
    rendezvous.listen_tls(listener, false_one.config, door);
    let driver = Remote::default();
    let id = SandboxId::random();
    let expected = rendezvous.expect_remote(&id).unwrap();
    let place = Place::new(directory, Arc::new(Remote::default()), None);
    driver
        .create(place.request(&id, expected.connect()))
        .await
        .unwrap();
    // Long enough for many attempts.
    let arrived = expected.arrived(Duration::from_secs(2)).await;
    assert!(arrived.is_err(), "an init talks to whoever answers");
}
