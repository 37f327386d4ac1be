//! TLS between control plane and node: those of one CA get together, all others are told which side refused, and why.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use daemon::certs::{self, Request};
use fake_engine::{FakeEngine, Settings};
use remuda_tests::{ControlPlane, Deadline, Node, Program, System, binary, eventually_async};
use serde_json::{Value, json};

const TOKEN: &str = "a-token-for-tests";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A private CA.
struct Authority(PathBuf);

/// Settings of a daemon: names without their prefix.
type Files = [(&'static str, PathBuf); 3];

impl Authority {
    fn new(directory: &Path) -> Self {
        certs::init(directory, 30, false).unwrap();
        Self(directory.to_owned())
    }

    fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// A certificate by the command line.
    fn typed(&self, name: &str) -> Files {
        remuda_certs(&self.0, &["issue", name, "--host", "127.0.0.1"]);
        [
            ("TLS_CERT", self.0.join(format!("{name}.pem"))),
            ("TLS_KEY", self.0.join(format!("{name}.key"))),
            ("TLS_CA", self.ca()),
        ]
    }

    /// A certificate that is valid for five days from then on, beside the CA that its holder believes.
    fn files(&self, name: &str, from: SystemTime, believes: &Authority) -> Files {
        let alt_names = vec!["127.0.0.1".to_owned()];
        let request = Request {
            name: name.to_owned(),
            alt_names,
            from,
            days: 5,
            force: true,
        };
        let written = certs::issue(&self.0, &request).unwrap();
        [
            ("TLS_CERT", written.cert),
            ("TLS_KEY", written.key),
            ("TLS_CA", believes.ca()),
        ]
    }
}

fn remuda_certs(directory: &Path, arguments: &[&str]) {
    let mut command = Command::new(binary("remuda"));
    command
        .arg("certs")
        .args(arguments)
        .arg("--directory")
        .arg(directory);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn environment(prefix: &str, files: &Files, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let files = files
        .iter()
        .map(|(name, path)| (format!("{prefix}_{name}"), path.to_str().unwrap().to_owned()));
    files
        .chain(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
        .collect()
}

fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

fn control_plane(system: &System, files: &Files, more: &[(&str, &str)]) -> ControlPlane {
    system.control_plane(&borrowed(&environment("ORCHD", files, more)))
}

fn node(system: &System, name: &str, files: &Files, plane: &str, engine: &FakeEngine) -> (Node, String) {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let address = format!("https://{free}");
    let environment = environment("POOL_MANAGERD", files, &[("POOL_MANAGERD_ADDRESS", &address)]);
    let pools = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 4\n",
        engine.url()
    );
    let directory = system.directory(name);
    (
        system.node_in(&directory, name, &free, plane, &pools, &borrowed(&environment)),
        address,
    )
}

fn https(plane: &ControlPlane) -> String {
    plane.url.replace("http://", "https://")
}

fn says(program: &mut Program, text: &str) {
    program.wait_for(text, |line| line.contains(text).then_some(()));
}

#[tokio::test]
async fn those_of_one_ca_get_together() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let directory = system.directory("ours");
    // As a person makes them.
    remuda_certs(&directory, &["init"]);
    let ours = Authority(directory);
    let plane = control_plane(&system, &ours.typed("control-plane"), &[]);
    let (_node, _) = node(&system, "node-a", &ours.typed("node-a"), &https(&plane), &engine);

    let ca = reqwest::Certificate::from_pem(&std::fs::read(ours.ca()).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let body = json!({"model": "fake", "messages": [{"role": "user", "content": "hello"}]});
    eventually_async("an answer by way of TLS twice", Deadline::default(), || async {
        let request = http
            .post(format!("{}/v1/chat/completions", https(&plane)))
            .bearer_auth(TOKEN)
            .json(&body);
        let answer: Value = request.send().await.ok()?.json().await.ok()?;
        answer["choices"][0]["message"]["content"].as_str().map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_node_that_cannot_be_believed_is_told_why() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let (ours, theirs) = (
        Authority::new(&system.directory("ours")),
        Authority::new(&system.directory("theirs")),
    );
    let now = SystemTime::now();
    let mut plane = control_plane(&system, &ours.files("control-plane", now, &ours), &[]);

    let expired = ours.files("expired", now - DAY * 10, &ours);
    let (mut node_a, _) = node(&system, "node-a", &expired, &https(&plane), &engine);
    says(
        &mut node_a.program,
        "the control plane refused this node's certificate: it has expired",
    );
    says(
        &mut plane.program,
        "refused the client's certificate: it expired on 20",
    );

    let foreign = theirs.files("foreign", now, &ours);
    let (mut node_b, _) = node(&system, "node-b", &foreign, &https(&plane), &engine);
    says(
        &mut node_b.program,
        "the control plane refused this node's certificate: it was issued by a CA that the other",
    );
    says(
        &mut plane.program,
        "refused the client's certificate: it was issued by a CA that is not ours",
    );
}

#[tokio::test]
async fn a_control_plane_that_cannot_be_believed_is_told_why() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let (ours, theirs) = (
        Authority::new(&system.directory("ours")),
        Authority::new(&system.directory("theirs")),
    );
    let now = SystemTime::now();
    let mut plane = control_plane(&system, &theirs.files("control-plane", now, &ours), &[]);
    let (mut node_a, address) = node(
        &system,
        "node-a",
        &ours.files("node-a", now, &ours),
        &https(&plane),
        &engine,
    );
    says(
        &mut node_a.program,
        "this node refused the control plane's certificate: it was issued by a CA that is not ours",
    );
    says(
        &mut plane.program,
        "it was issued by a CA that the other side does not know",
    );

    let mut polls = control_plane(
        &system,
        &theirs.files("polls", now, &ours),
        &[
            ("ORCHD_POOL_MANAGERS", &address),
            ("ORCHD_POOL_POLL_INTERVAL_MS", "200"),
        ],
    );
    says(
        &mut polls.program,
        "the node refused this control plane's certificate: it was issued by a CA that the other side does not know",
    );
    says(
        &mut node_a.program,
        "this node refused the control plane's certificate: it was issued by a CA that is not ours",
    );
}

#[tokio::test]
async fn a_polled_node_that_has_expired_is_refused_with_the_day() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let ours = Authority::new(&system.directory("ours"));
    let now = SystemTime::now();
    let expired = ours.files("node-a", now - DAY * 10, &ours);
    let (_node, address) = node(&system, "node-a", &expired, "https://127.0.0.1:9", &engine);
    let mut plane = control_plane(
        &system,
        &ours.files("control-plane", now, &ours),
        &[
            ("ORCHD_POOL_MANAGERS", &address),
            ("ORCHD_POOL_POLL_INTERVAL_MS", "200"),
        ],
    );
    says(
        &mut plane.program,
        "this side refused the other side's certificate: it expired on 20",
    );
}
