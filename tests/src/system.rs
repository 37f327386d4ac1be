//! Control planes and nodes as a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Deadline, Program, binary, eventually_async};

/// The token of every test system.
pub const TOKEN: &str = "a-token-for-tests";

/// The demo model in the repository.
pub fn demo_model() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/remuda-demo.gguf");
    path.canonicalize().expect("the demo model is in the repository")
}

/// The real engine's program, got first if it is not there.
pub fn engine_program() -> PathBuf {
    let fetched = Command::new(binary("engine-provisioner"))
        .args(["fetch", "--recipe", "llamacpp"])
        .output()
        .expect("it is built");
    let errors = String::from_utf8_lossy(&fetched.stderr);
    assert!(fetched.status.success(), "{errors}");
    // PATH (VERSION)
    let told = String::from_utf8_lossy(&fetched.stdout);
    PathBuf::from(told.split(" (").next().unwrap_or_default().trim())
}

/// A pool with the demo model on the real engine, as `remuda.toml` has it.
pub fn pool_toml(id: &str, replicas: u32, slots: u32) -> String {
    format!(
        "[[pools]]\nid = {id:?}\nengine = \"llamacpp\"\nmodel = {:?}\nmodel_name = \"remuda-demo\"\nreplicas = {replicas}\nslots = {slots}\n",
        demo_model()
    )
}

/// Some control planes and nodes on loopback, with directories of their own.
pub struct System {
    directory: TempDir,
    count: std::cell::Cell<u32>,
    /// For requests.
    pub http: reqwest::Client,
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl System {
    /// Nothing yet.
    pub fn new() -> Self {
        // A second test of the same process finds it installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(120))
            .no_proxy()
            // A server that was killed and started anew must not be met by a connection to the old one.
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client without TLS needs nothing");
        Self {
            directory: TempDir::new().expect("a temporary directory"),
            count: std::cell::Cell::new(0),
            http,
        }
    }

    /// A directory for `name`.
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(name);
        std::fs::create_dir_all(&directory).expect("a directory in the temporary one");
        directory
    }

    fn next(&self, name: &str) -> String {
        self.count.set(self.count.get() + 1);
        format!("{name}-{}", self.count.get())
    }

    /// A control plane of profile cloud.
    pub fn control_plane(&self, environment: &[(&str, &str)]) -> ControlPlane {
        self.start_control_plane(
            "127.0.0.1:0",
            &[("ORCHESTRATORD_CLOUD_PROFILE", "true")],
            environment,
            None,
        )
    }

    /// A control plane of profile home, which keeps the pools of `settings` itself.
    pub fn home(&self, settings: &str, environment: &[(&str, &str)]) -> ControlPlane {
        self.start_control_plane("127.0.0.1:0", &[], environment, Some(settings))
    }

    /// The same at a given address: one that others reach.
    pub fn home_at(&self, addr: &str, settings: &str, environment: &[(&str, &str)]) -> ControlPlane {
        self.start_control_plane(addr, &[], environment, Some(settings))
    }

    /// A control plane at a given address: one that comes back after its death.
    pub fn control_plane_at(&self, addr: &str, environment: &[(&str, &str)]) -> ControlPlane {
        self.start_control_plane(
            addr,
            &[("ORCHESTRATORD_CLOUD_PROFILE", "true")],
            environment,
            None,
        )
    }

    fn start_control_plane(
        &self,
        addr: &str,
        profile: &[(&str, &str)],
        environment: &[(&str, &str)],
        settings: Option<&str>,
    ) -> ControlPlane {
        let name = self.next("orchestratord");
        let directory = self.directory(&name);
        let mut command = Command::new(binary("orchestratord"));
        command
            .current_dir(&directory)
            .env("ORCHESTRATORD_ADDR", addr)
            .env("ORCHD_DATA_DIR", directory.join("data"))
            .env("LLORCH_API_TOKEN", TOKEN)
            .env("REMUDA_LOG", "info")
            .envs(profile.iter().copied())
            .envs(environment.iter().copied());
        if let Some(settings) = settings {
            std::fs::write(directory.join("remuda.toml"), settings).expect("a settings file");
        }
        let mut program = Program::start(&name, command, directory.join("log"));
        let url = listening(&mut program);
        ControlPlane {
            program,
            url,
            http: self.http.clone(),
            directory,
        }
    }

    /// A node that registers with `control_plane` and keeps the pools of `settings`.
    pub fn node(
        &self,
        node_id: &str,
        control_plane: &ControlPlane,
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Node {
        let directory = self.directory(node_id);
        self.node_in(
            &directory,
            node_id,
            "127.0.0.1:0",
            &control_plane.url,
            settings,
            environment,
        )
    }

    /// A node in a given directory and at a given address: one that comes back after its death.
    pub fn node_in(
        &self,
        directory: &Path,
        node_id: &str,
        addr: &str,
        control_plane_url: &str,
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Node {
        std::fs::write(directory.join("remuda.toml"), settings).expect("a settings file");
        // Port 0 cannot be told to the control plane before it is bound, so a free one is taken.
        let addr = if addr.ends_with(":0") {
            format!("127.0.0.1:{}", free_port())
        } else {
            addr.to_owned()
        };
        let url = format!("http://{addr}");
        let mut command = Command::new(binary("pool-managerd"));
        command
            .current_dir(directory)
            .env("POOL_MANAGERD_CLOUD_PROFILE", "true")
            .env("POOL_MANAGERD_NODE_ID", node_id)
            .env("POOL_MANAGERD_ADDR", &addr)
            .env("POOL_MANAGERD_ADDRESS", &url)
            .env("ORCHESTRATORD_URL", control_plane_url)
            .env("LLORCH_API_TOKEN", TOKEN)
            .env("REMUDA_LOG", "info")
            .envs(environment.iter().copied());
        let mut program = Program::start(node_id, command, directory.join("log"));
        program.wait_for("the word that it is up", |line| {
            line.contains("the node is up").then_some(())
        });
        Node {
            program,
            url,
            addr,
            directory: directory.to_owned(),
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    listener.local_addr().expect("it is bound").port()
}

fn listening(program: &mut Program) -> String {
    program.wait_for("the address", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let addr = find(&line, "addr")?;
        Some(format!("http://{}", addr.as_str()?))
    })
}

fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    value.get(key).or_else(|| value.get("fields")?.get(key))
}

/// A running control plane.
pub struct ControlPlane {
    /// The process.
    pub program: Program,
    /// Where it answers.
    pub url: String,
    /// Its directory.
    pub directory: PathBuf,
    http: reqwest::Client,
}

/// A running node.
pub struct Node {
    /// The process.
    pub program: Program,
    /// Where it answers.
    pub url: String,
    /// The same without the scheme.
    pub addr: String,
    /// Its directory.
    pub directory: PathBuf,
}

impl ControlPlane {
    /// A GET with the token.
    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url)).bearer_auth(TOKEN)
    }

    /// A POST with the token.
    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.url))
            .bearer_auth(TOKEN)
            .json(body)
    }

    /// A page as JSON.
    pub async fn json(&self, path: &str) -> Value {
        let response = self.get(path).send().await.expect("the control plane answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json().await.expect("JSON")
    }

    /// Waits until a pool has this many ready replicas.
    pub async fn wait_for_replicas(&self, pool: &str, ready: usize) {
        let what = format!("{ready} ready replicas of {pool}");
        eventually_async(&what, Deadline::default(), || async {
            let response = self.get(&format!("/v2/pools/{pool}")).send().await.ok()?;
            let view: Value = response.json().await.ok()?;
            let replicas = view["replicas"].as_array()?;
            let count = replicas
                .iter()
                .filter(|r| r["state"] == "ready" && r["taken_out"] == false)
                .count();
            (count == ready).then_some(())
        })
        .await;
    }

    /// A chat request for the demo model.
    pub fn chat(&self, prompt: &str, stream: bool) -> reqwest::RequestBuilder {
        let body = serde_json::json!({
            "model": "remuda-demo", "stream": stream, "messages": [{"role": "user", "content": prompt}],
        });
        self.post("/v1/chat/completions", &body)
    }

    /// The answer to a chat request that is not streamed.
    pub async fn ask(&self, prompt: &str) -> String {
        let response = self
            .chat(prompt, false)
            .send()
            .await
            .expect("the control plane answers");
        let status = response.status();
        let body: Value = response.json().await.expect("JSON");
        assert!(status.is_success(), "{status}: {body}");
        body["choices"][0]["message"]["content"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// Slots of a pool: total, and free as far as the control plane knows.
    pub async fn slots(&self, pool: &str) -> (u64, u64) {
        let view = self.json(&format!("/v2/pools/{pool}")).await;
        (
            view["slots_total"].as_u64().unwrap_or(0),
            view["slots_free"].as_u64().unwrap_or(0),
        )
    }

    /// Waits until every slot of the pool is free, at the control plane.
    pub async fn wait_for_free_slots(&self, pool: &str) {
        eventually_async("every slot free", Deadline::default(), || async {
            let (total, free) = self.slots(pool).await;
            (total > 0 && total == free).then_some(())
        })
        .await;
    }
}

impl Node {
    /// The handoffs of its engines, as they stand.
    pub fn handoffs(&self) -> Vec<Value> {
        handoffs(&self.directory)
    }
}

impl ControlPlane {
    /// The handoffs of the engines that it keeps itself, in profile home.
    pub fn handoffs(&self) -> Vec<Value> {
        handoffs(&self.directory)
    }
}

fn handoffs(directory: &Path) -> Vec<Value> {
    let Ok(entries) = std::fs::read_dir(directory.join(".runtime/engines")) else {
        return Vec::new();
    };
    let files = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json"));
    files
        .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
        .collect()
}

/// The engine's process of a handoff.
pub fn engine_pid(handoff: &Value) -> u32 {
    let pid = handoff["pid"]
        .as_u64()
        .expect("a handoff of ours names its process");
    u32::try_from(pid).expect("a process id")
}

/// How many of an engine's slots are at work, as the engine itself says.
pub async fn busy_slots(http: &reqwest::Client, engine_url: &str) -> Option<usize> {
    let slots: Value = http
        .get(format!("{engine_url}/slots"))
        .send()
        .await
        .ok()?
        .json()
        .await
        .ok()?;
    Some(
        slots
            .as_array()?
            .iter()
            .filter(|slot| slot["is_processing"] == true)
            .count(),
    )
}
