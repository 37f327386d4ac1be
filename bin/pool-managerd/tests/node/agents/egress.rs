//! Real CLIs that reach their provider by its name, through the one way out and nowhere else.
//!
//! ```text
//! CLI in a sandbox without a network ─▶ proxy ─▶ node: the name is allowed, and is 127.0.0.1 ─▶ Front ─▶ fake provider
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use egress::{Resolve, Resolving};
use fake_provider::Step;
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, LoginKind, WarmLevel};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::place::{Place, Told};

const NAME: &str = "api.provider.test";
/// What a login leaves here besides the agent's own.
const CERTIFICATE: &str = "own-ca.pem";

/// Knows one name, and remembers what it was asked for.
#[derive(Debug, Default)]
struct OneName(Mutex<BTreeSet<String>>);

impl Resolve for OneName {
    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        self.0.lock().unwrap().insert(name.to_owned());
        let known = (name == NAME).then(|| vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        Box::pin(async move { known.ok_or_else(|| std::io::ErrorKind::NotFound.into()) })
    }
}

/// What stands in front of the provider: TLS where it is wanted, and a count of all bytes.
#[derive(Clone)]
struct Front {
    address: SocketAddr,
    to: Arc<OnceLock<SocketAddr>>,
    /// From the sandboxes, and to them.
    bytes: Arc<[AtomicU64; 2]>,
}

impl Front {
    async fn new(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self {
            address: listener.local_addr().unwrap(),
            to: Arc::default(),
            bytes: Arc::default(),
        };
        let serving = front.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (front, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    let counted = front.count(stream);
                    let Some(tls) = tls else {
                        front.pass(counted).await;
                        return;
                    };
                    if let Ok(plain) = tls.accept(counted).await {
                        front.pass(plain).await;
                    }
                });
            }
        });
        front
    }

    /// The same bytes, counted on their way.
    fn count(&self, stream: TcpStream) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (read, write) = stream.into_split();
        let (far_read, far_write) = tokio::io::split(far);
        tokio::spawn(copy(read, far_write, self.bytes.clone(), 0));
        tokio::spawn(copy(far_read, write, self.bytes.clone(), 1));
        near
    }

    async fn pass(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let provider = TcpStream::connect(self.to.get().unwrap()).await;
        if let Ok(mut provider) = provider {
            // It ends when either does.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut provider).await;
        }
    }

    fn counted(&self) -> (u64, u64) {
        let [from, to] = &*self.bytes;
        (from.load(Ordering::SeqCst), to.load(Ordering::SeqCst))
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: Arc<[AtomicU64; 2]>,
    direction: usize,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        bytes[direction].fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&piece[..read]).await.is_err() {
            break;
        }
    }
    // It may be closed already.
    let _ = to.shutdown().await;
}

/// A server with a certificate of an own CA, and that CA.
fn tls(directory: &Path) -> (TlsAcceptor, String) {
    daemon::certs::init(directory, 1, false).unwrap();
    let request = daemon::certs::Request {
        name: NAME.to_owned(),
        alt_names: Vec::new(),
        from: SystemTime::now(),
        days: 1,
        force: false,
    };
    let issued = daemon::certs::issue(directory, &request).unwrap();
    let chain = CertificateDer::pem_file_iter(&issued.cert).unwrap();
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let ca = std::fs::read_to_string(directory.join("ca.pem")).unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca)
}

/// Variables that lead an agent to a provider at `base`.
fn environment(agent: &str, base: &str) -> String {
    match agent {
        "claude" => format!("ANTHROPIC_BASE_URL = {base:?}\nANTHROPIC_AUTH_TOKEN = \"a-key\"\n"),
        "codex" => "OWN_KEY = \"a-key\"\n".to_owned(),
        "gemini" => format!("GOOGLE_GEMINI_BASE_URL = {base:?}\n"),
        "opencode" => {
            let config = serde_json::json!({
                "provider": {"own": {
                    "npm": "@ai-sdk/openai-compatible",
                    "options": {"baseURL": format!("{base}/v1"), "apiKey": "a-key"},
                    "models": {"a-model": {}},
                }},
                "model": "own/a-model", "small_model": "own/a-model", "share": "disabled", "autoupdate": false,
            });
            format!("OPENCODE_CONFIG_CONTENT = '{config}'\n")
        }
        other => panic!("{other}"),
    }
}

/// The agent's own profile, but that it finds its provider elsewhere and believes another CA, which a login brings.
fn profile(agent: &str, base: &str, ca: &str) -> String {
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agents");
    let text = std::fs::read_to_string(agents.join(format!("{agent}.toml"))).unwrap();
    let file = match agent {
        "opencode" => format!(".local/share/opencode/{CERTIFICATE}"),
        _ => format!(".{agent}/{CERTIFICATE}"),
    };
    let place = format!("{{{{ HOME }}}}/{file}");
    let variables = format!(
        "[environment]\nSSL_CERT_FILE = {place:?}\nNODE_EXTRA_CA_CERTS = {place:?}\n{}",
        environment(agent, base)
    );
    let text = if text.contains("[environment]\n") {
        text.replace("[environment]\n", &variables)
    } else {
        text.replace("\n[model]\n", &format!("\n{variables}\n[model]\n"))
    };
    let own_provider = format!(
        "    \"app-server\", \"-c\", {{ toml = 'model_provider=\"own\"' }},\n    \"-c\", {{ toml = \
         'model_providers.own={{name=\"own\",base_url=\"{base}/v1\",wire_api=\"responses\",env_key=\"OWN_KEY\"}}' }},\n"
    );
    let text = text.replace("    \"app-server\",\n", &own_provider);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with("status_args"));
    let mut files = format!("\n[[login.flows.files]]\npath = {file:?}\ncontent = '''{ca}'''\n");
    if agent == "claude" || agent == "codex" {
        // Their key is in the environment.
        for line in lines.iter_mut().filter(|line| line.starts_with("evidence")) {
            *line = format!("evidence = {file:?}");
        }
        files = format!("\n[[login.flows]]\nkind = \"api_key_files\"\n{files}");
    }
    let text = lines.join("\n");
    let stdin = "[[login.flows]]\nkind = \"api_key_stdin\"\nargs = [\"login\", \"--with-api-key\"]\n";
    text.replace(stdin, "") + &files
}

fn moved(told: &Told) -> (u64, u64) {
    let found = told.events.iter().find_map(|event| match event {
        AgentEvent::Egress {
            sent_bytes,
            received_bytes,
        } => Some((*sent_bytes, *received_bytes)),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no count: {:?}", told.events))
}

fn was_denied(told: &Told, wanted: &str) -> bool {
    told.events
        .iter()
        .any(|event| matches!(event, AgentEvent::EgressDenied { host, port: 80, .. } if host == wanted))
}

/// In the sandbox, a program that the CLI has started asks the CLI's own proxy for a host.
fn ask_for(host: &str) -> String {
    format!(
        "node -e 'const u = new URL(process.env.HTTP_PROXY); require(\"http\").get({{host: u.hostname, port: u.port, \
         path: \"http://{host}/\"}}, r => r.pipe(process.stdout))'"
    )
}

fn completed(told: &Told) {
    assert_eq!(told.outcome(), &AgentOutcome::Completed, "{:?}", told.events);
}

async fn reaches_its_provider(agent: &str, scheme: &str) {
    let certificates = tempfile::tempdir().unwrap();
    let (acceptor, ca) = tls(certificates.path());
    let front = Front::new((scheme == "https").then_some(acceptor)).await;
    let base = format!("{scheme}://{NAME}:{}", front.address.port());
    let names = Arc::new(OneName::default());
    let place = Place::real_with(agent, |directory, pool, config| {
        let profiles = directory.join("profiles");
        std::fs::create_dir_all(profiles.join(agent)).unwrap();
        let lock = format!("{agent}/package-lock.json");
        let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agents");
        std::fs::copy(agents.join(&lock), profiles.join(&lock)).unwrap();
        std::fs::write(profiles.join(format!("{agent}.toml")), profile(agent, &base, &ca)).unwrap();
        config.profiles = Some(profiles);
        config.resolver = names.clone();
        pool.allowed_hosts = vec![format!("{NAME}:*")];
        pool.allowed_networks = vec!["127.0.0.0/8".to_owned()];
    });
    let Some(place) = place.await else { return };
    front.to.set(place.provider.address()).unwrap();
    let (said, failure) = place.log_in("ann", Some(LoginKind::ApiKey), "a-key").await;
    assert_eq!(failure, None, "{said:?}");
    let asked = |prompt: &str| AgentRun {
        // Where it can be told; Codex offers no tools to a model that it knows to take none.
        model: (agent == "codex" || agent == "gemini").then(|| "a-model".to_owned()),
        ..place.plain("ann", prompt)
    };

    // By its name, through the proxy, there and back.
    let prompt = "walnut ".repeat(3000);
    // Gemini CLI asks again when an answer repeats itself.
    let answer: String = (0..2000).map(|number| format!("{number} ")).collect();
    place.provider.script([Step::text(&*answer)]);
    let first = place.run(asked(&prompt)).await;
    completed(&first);
    assert!(first.text().trim() == answer.trim(), "{:?}", first.events);
    assert!(format!("{:?}", place.provider.take_seen()).contains("walnut"));
    assert!(names.0.lock().unwrap().contains(NAME));
    let (sent, received) = moved(&first);
    assert!(
        sent >= prompt.len() as u64 && received >= answer.len() as u64,
        "{sent} and {received}"
    );

    // What is not allowed is told of the run that tried, in the sandbox and outside.
    place
        .provider
        .script([Step::shell(ask_for("evil.test")), Step::text("done")]);
    let second = place.run(asked("look there")).await;
    completed(&second);
    assert_eq!(second.level(), WarmLevel::Hot);
    assert!(was_denied(&second, "evil.test"), "{:?}", second.events);
    let heard = format!("{:?}", place.provider.take_seen());
    assert!(heard.contains("evil.test:80 is refused"), "{heard}");
    assert!(
        !names.0.lock().unwrap().contains("evil.test"),
        "it is not even looked up"
    );

    // A run's count is its own, also where a CLI ran before.
    place.provider.script([Step::text("short")]);
    let third = place.run(asked("briefly")).await;
    completed(&third);
    assert!(!was_denied(&third, "evil.test"), "{:?}", third.events);
    let parts = [&first, &second, &third].map(moved);
    assert!(parts[2].0 > 0 && parts[2].1 > 0, "{parts:?}");
    assert!(parts[2].1 < received, "{parts:?}");
    let (sent, received) = parts
        .iter()
        .fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let all = front.counted();
    assert!(sent <= all.0 && received <= all.1, "{parts:?} of {all:?}");
}

#[tokio::test]
async fn claude_code_goes_through_the_proxy() {
    reaches_its_provider("claude", "http").await;
}

#[tokio::test]
async fn claude_code_goes_through_a_tunnel() {
    reaches_its_provider("claude", "https").await;
}

#[tokio::test]
async fn codex_goes_through_the_proxy() {
    reaches_its_provider("codex", "http").await;
}

#[tokio::test]
async fn codex_goes_through_a_tunnel() {
    reaches_its_provider("codex", "https").await;
}

#[tokio::test]
async fn gemini_goes_through_the_proxy() {
    reaches_its_provider("gemini", "http").await;
}

#[tokio::test]
async fn gemini_goes_through_a_tunnel() {
    reaches_its_provider("gemini", "https").await;
}

#[tokio::test]
async fn opencode_goes_through_the_proxy() {
    reaches_its_provider("opencode", "http").await;
}

#[tokio::test]
async fn opencode_goes_through_a_tunnel() {
    reaches_its_provider("opencode", "https").await;
}
