//! A sandbox, names, and servers on loopback.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress::{Denied, Egress, EgressPolicy, Limits, Reason, Resolve, Resolving, Shared, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What must come in time.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it comes in time")
}

/// Names and the answers that they get, one after the other; the last one stays.
#[derive(Debug, Default)]
pub(crate) struct Names(
    HashMap<&'static str, Vec<Vec<IpAddr>>>,
    Mutex<HashMap<String, usize>>,
);

impl Names {
    pub(crate) fn of(names: &[(&'static str, &[&[&str]])]) -> Self {
        let parse = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        let names = names
            .iter()
            .map(|(name, answers)| (*name, answers.iter().map(parse).collect()));
        Self(names.collect(), Mutex::default())
    }

    pub(crate) fn asked(&self, name: &str) -> usize {
        self.1.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let mut asked = self.1.lock().unwrap();
        let count = asked.entry(name.to_owned()).or_default();
        let answer = self
            .0
            .get(name)
            .map(|answers| answers[(*count).min(answers.len() - 1)].clone());
        *count += 1;
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
    }
}

pub(crate) struct Sandbox {
    pub(crate) egress: Egress,
    pub(crate) names: Arc<Names>,
    pub(crate) denied: Arc<Mutex<Vec<Denied>>>,
}

impl Sandbox {
    pub(crate) fn new(policy: EgressPolicy, names: Names) -> Self {
        Self::with(policy, names, Limits::default(), None)
    }

    pub(crate) fn with(
        policy: EgressPolicy,
        names: Names,
        limits: Limits,
        upstreams: Option<Arc<Upstreams>>,
    ) -> Self {
        let names = Arc::new(names);
        let shared = Arc::new(Shared {
            resolver: Arc::clone(&names) as Arc<dyn Resolve>,
            upstreams,
            limits,
        });
        let denied = Arc::<Mutex<Vec<Denied>>>::default();
        let report = {
            let denied = Arc::clone(&denied);
            move |one| denied.lock().unwrap().push(one)
        };
        Self {
            egress: Egress::new(shared, policy, "ann", report),
            names,
            denied,
        }
    }

    /// A connection that something in the sandbox opens.
    pub(crate) fn open(&self) -> (DuplexStream, JoinHandle<Result<(), egress::ServeError>>) {
        self.open_at(0)
    }

    /// A connection at an entrance.
    pub(crate) fn open_at(
        &self,
        entrance: u16,
    ) -> (DuplexStream, JoinHandle<Result<(), egress::ServeError>>) {
        let (inside, outside) = tokio::io::duplex(16 * 1024);
        let egress = self.egress.clone();
        (
            inside,
            tokio::spawn(async move { egress.serve(outside, entrance).await }),
        )
    }

    /// Sends a request and reads the whole answer, which ends with the connection.
    pub(crate) async fn ask(&self, request: &str) -> String {
        self.ask_at(0, request).await
    }

    /// The same at an entrance.
    pub(crate) async fn ask_at(&self, entrance: u16, request: &str) -> String {
        let (mut inside, _served) = self.open_at(entrance);
        inside.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(inside.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Opens a tunnel; the answer's head when it is refused.
    pub(crate) async fn connect(&self, target: &str) -> Result<DuplexStream, String> {
        self.connect_at(0, target).await
    }

    /// The same at an entrance.
    pub(crate) async fn connect_at(&self, entrance: u16, target: &str) -> Result<DuplexStream, String> {
        let (mut inside, _served) = self.open_at(entrance);
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        inside.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut inside).await;
        if head.starts_with("HTTP/1.1 200") {
            Ok(inside)
        } else {
            Err(head)
        }
    }

    pub(crate) fn reasons(&self) -> Vec<Reason> {
        self.denied
            .lock()
            .unwrap()
            .iter()
            .map(|denied| denied.reason)
            .collect()
    }
}

pub(crate) async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A server that sends back what it gets, and its port and how many came.
pub(crate) async fn echo() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    (port, count)
}

/// An HTTP server that answers each request with the whole of it: head and body as they came.
pub(crate) async fn mirror() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                loop {
                    let head = read_head(&mut stream).await;
                    if head.is_empty() {
                        return;
                    }
                    let length = head.to_ascii_lowercase();
                    let length = length
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    let mut body = vec![0; length.unwrap_or(0)];
                    stream.read_exact(&mut body).await.unwrap();
                    let text = head + &String::from_utf8(body).unwrap();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                    log.lock().unwrap().push(text);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (port, seen)
}

pub(crate) fn local(rule: &str) -> EgressPolicy {
    EgressPolicy::new()
        .allow(rule)
        .unwrap()
        .permit_network("127.0.0.0/8")
        .unwrap()
}

pub(crate) fn one_name() -> Names {
    Names::of(&[("api.test", &[&["127.0.0.1"]])])
}
