//! Fakes of the servers where people log in, OpenAI's and Anthropic's, behind a SOCKS5 proxy that leads to no others.
//!
//! They stand for what cannot be had in a test. What they are asked and what they answer is what Codex 0.169.0 and Claude
//! Code 2.1.329 need to log in; a code that nobody was shown is refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What the page would show after a person has logged in.
pub(crate) const CODE: &str = "the-code-of-the-page";
/// What is in every token and must be nowhere but with the CLI.
pub(crate) const CANARY: &str = "canary-that-nobody-may-see";

const HOSTS: [&str; 3] = ["auth.openai.com", "platform.claude.com", "api.anthropic.com"];

/// One request: host, path, body.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) body: String,
    pub(crate) authorization: Option<String>,
}

/// The servers, and the proxy in front of them.
#[derive(Clone)]
pub(crate) struct FakeIssuers {
    pub(crate) proxy: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl FakeIssuers {
    /// Their certificates are of the CA that this makes in `directory`: `ca.pem`.
    pub(crate) async fn start(directory: &Path) -> Self {
        let acceptor = acceptor(directory);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuers = Self {
            proxy: listener.local_addr().unwrap(),
            seen: Arc::default(),
        };
        let serving = issuers.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (issuers, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move { issuers.connection(stream, acceptor).await });
            }
        });
        issuers
    }

    /// What was asked at a path.
    pub(crate) fn asked(&self, path: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path == path).cloned().collect()
    }

    /// None: whoever came has gone again, as one that only looks whether somebody is here.
    async fn connection(&self, mut stream: TcpStream, acceptor: TlsAcceptor) -> Option<()> {
        let host = socks_target(&mut stream).await?;
        let granted = HOSTS.contains(&host.as_str());
        let reply = [5, u8::from(!granted), 0, 1, 0, 0, 0, 0, 0, 0];
        stream.write_all(&reply).await.ok()?;
        if !granted {
            return None;
        }
        let mut stream = acceptor.accept(stream).await.ok()?;
        loop {
            let (path, headers, body) = read_request(&mut stream).await?;
            let seen = Seen {
                host: host.clone(),
                path: path.clone(),
                body: body.clone(),
                authorization: headers.get("authorization").cloned(),
            };
            self.seen.lock().unwrap().push(seen);
            let polls = self.asked(&path).len();
            let (status, answer) = answer(&host, &path, &body, polls);
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + &answer).as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
        }
    }
}

fn answer(host: &str, path: &str, body: &str, polls: usize) -> (u16, Value) {
    let refused = |error: &str| (400, json!({"error": error}));
    match (host, path) {
        ("auth.openai.com", "/api/accounts/deviceauth/usercode") => (
            200,
            json!({"device_auth_id": "device-1", "user_code": "ABCD-EFGH", "interval": "1"}),
        ),
        // The person needs a moment.
        ("auth.openai.com", "/api/accounts/deviceauth/token") if polls < 2 => {
            (403, json!({"error": "pending"}))
        }
        ("auth.openai.com", "/api/accounts/deviceauth/token") => (
            200,
            json!({"authorization_code": CODE, "code_challenge": "challenge", "code_verifier": "verifier"}),
        ),
        ("auth.openai.com", "/oauth/token") if body.contains(&format!("code={CODE}&")) => {
            let token = openai_token();
            (
                200,
                json!({"id_token": token, "access_token": token, "refresh_token": format!("refresh-{CANARY}")}),
            )
        }
        ("platform.claude.com", "/v1/oauth/token") => {
            let asked: Value = serde_json::from_str(body).unwrap_or_default();
            if asked["code"] != CODE {
                return refused("invalid_grant");
            }
            (
                200,
                json!({
                    "token_type": "Bearer", "expires_in": 28800,
                    "access_token": format!("sk-ant-oat01-{CANARY}"),
                    "refresh_token": format!("sk-ant-ort01-{CANARY}"),
                    "scope": "org:create_api_key user:profile user:inference user:sessions:claude_code",
                    "account": {"uuid": "00000000-0000-4000-8000-000000000001", "email_address": "ann@people.test"},
                    "organization": {"uuid": "00000000-0000-4000-8000-000000000002", "name": "people"},
                }),
            )
        }
        ("api.anthropic.com", "/api/oauth/profile") => (
            200,
            json!({
                "account": {
                    "uuid": "00000000-0000-4000-8000-000000000001", "email": "ann@people.test",
                    "display_name": "Ann", "has_claude_max": false, "has_claude_pro": true,
                },
                "organization": {
                    "uuid": "00000000-0000-4000-8000-000000000002", "organization_type": "claude_pro",
                    "rate_limit_tier": "default_claude_ai", "has_extra_usage_enabled": false,
                },
            }),
        ),
        ("api.anthropic.com", "/api/oauth/claude_cli/roles") => (
            200,
            json!({"organization_role": "user", "workspace_role": null, "organization_name": "people"}),
        ),
        _ => refused("there is nothing here"),
    }
}

/// Names an account and is signed by nobody, which the CLI does not look at.
fn openai_token() -> String {
    // {"alg":"none"}
    const HEAD: &str = "eyJhbGciOiJub25lIn0";
    // {"email":"ann@people.test","exp":1999999999,"https://api.openai.com/auth":{"chatgpt_account_id":"account-1",
    // "chatgpt_plan_type":"plus","chatgpt_user_id":"user-1"}}
    const CLAIMS: &str = "eyJlbWFpbCI6ImFubkBwZW9wbGUudGVzdCIsImV4cCI6MTk5OTk5OTk5OSwiaHR0cHM6Ly9hcGkub3BlbmFpLmNvbS\
                          9hdXRoIjp7ImNoYXRncHRfYWNjb3VudF9pZCI6ImFjY291bnQtMSIsImNoYXRncHRfcGxhbl90eXBlIjoicGx1cyIs\
                          ImNoYXRncHRfdXNlcl9pZCI6InVzZXItMSJ9fQ";
    // The canary itself.
    format!("{HEAD}.{CLAIMS}.{}", CANARY.replace('-', "_"))
}

/// The name that a SOCKS5 client asks for (RFC 1928).
async fn socks_target(stream: &mut TcpStream) -> Option<String> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.ok()?;
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await.ok()?;
    stream.write_all(&[5, 0]).await.ok()?;
    let mut request = [0; 5];
    stream.read_exact(&mut request).await.ok()?;
    assert_eq!(request[3], 3, "the proxy resolves names");
    let mut name = vec![0; usize::from(request[4]) + 2];
    stream.read_exact(&mut name).await.ok()?;
    name.truncate(name.len() - 2);
    String::from_utf8(name).ok()
}

/// Path without a query, headers in small letters, body.
async fn read_request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Option<(String, BTreeMap<String, String>, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let target = lines.next()?.split(' ').nth(1)?;
    let path = target.split('?').next()?.to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some((path, headers, String::from_utf8(body).ok()?))
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    daemon::certs::init(directory, 1, false).unwrap();
    let request = daemon::certs::Request {
        name: HOSTS[0].to_owned(),
        alt_names: HOSTS[1..].iter().map(|host| (*host).to_owned()).collect(),
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
    TlsAcceptor::from(Arc::new(config))
}
