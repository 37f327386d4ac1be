//! What tests with real processes share: a place of their own, a spec, and bounded waiting.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use engine_provisioner::{EngineSpec, Settings};
use pool_registry_types::{Handoff, PoolId, ReplicaId};
use process::{Child, Identity, Lifetime, Output, Request};

/// Longer than anything here takes, also on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A test's own directory and settings.
pub(crate) struct Setup {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) settings: Settings,
}

impl Setup {
    /// With the user's cache directory, in which the engine is.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            handoff_dir: directory.path().join("engines"),
            ..Settings::default()
        };
        Self { directory, settings }
    }

    /// A spec with the demo model and the real engine. None: they are not here, and the test is skipped.
    pub(crate) fn real_spec(&self) -> Option<EngineSpec> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/remuda-demo.gguf");
        let missing = if !model.is_file() {
            "the demo model is not there (cargo xtask demo-model)"
        } else if !self.has_engine() {
            "llama-server is not there (engine-provisioner fetch)"
        } else {
            let mut spec = spec(model.display().to_string());
            spec.slots = 2;
            spec.context_length = 512;
            return Some(spec);
        };
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI nothing is skipped: {missing}"
        );
        eprintln!("skipped: {missing}");
        None
    }

    fn has_engine(&self) -> bool {
        let cached = self.settings.cache_dir().join("engines/llamacpp");
        let cached = std::fs::read_dir(cached).into_iter().flatten().flatten();
        let mut places: Vec<PathBuf> = cached.map(|entry| entry.path()).collect();
        places.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        places.iter().any(|place| place.join("llama-server").is_file())
    }

    /// A spec with an engine that is a shell script. `--version` is answered for it.
    pub(crate) fn script_spec(&self, script: &str) -> EngineSpec {
        use std::os::unix::fs::PermissionsExt;
        let program = self.directory.path().join("engine.sh");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'version: script'; exit 0; fi\n{script}\n"
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let model = self.directory.path().join("m.gguf");
        std::fs::write(&model, "no model").unwrap();
        let mut spec = spec(model.display().to_string());
        spec.program = Some(program);
        spec
    }

    pub(crate) fn handoff(&self) -> Option<Handoff> {
        let path = self.settings.handoff_dir.join("pool-0_r0.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Waits for a handoff of another process than `before`.
    pub(crate) fn next_handoff(&self, before: Option<u32>) -> Handoff {
        wait_for("a handoff", || {
            self.handoff().filter(|handoff| handoff.pid != before)
        })
    }

    /// Starts the program with `args` and this test's settings. It dies with the test.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-provisioner"));
        command
            .args(args)
            .arg("--handoff-dir")
            .arg(&self.settings.handoff_dir);
        let output = Output::File {
            path: self.directory.path().join("provisioner.log"),
            bytes_max: 1024 * 1024,
        };
        process::spawn(
            Request {
                command,
                lifetime: Lifetime::Tied,
                output,
            },
            |_| (),
        )
        .unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("provisioner.log")).unwrap_or_default()
    }

    /// Writes the spec for `--spec` and answers where.
    pub(crate) fn write_spec(&self, spec: &EngineSpec) -> String {
        let path = self.directory.path().join(format!("{}.json", spec.hash()));
        std::fs::write(&path, serde_json::to_vec(spec).unwrap()).unwrap();
        path.display().to_string()
    }
}

fn spec(model: String) -> EngineSpec {
    EngineSpec::new(
        PoolId::new("pool-0").unwrap(),
        ReplicaId::new("r0").unwrap(),
        model,
    )
}

/// The engine's process of a handoff.
pub(crate) fn identity(handoff: &Handoff) -> Identity {
    Identity {
        pid: handoff.pid.unwrap(),
        start_time_ticks: handoff.start_time_ticks.unwrap(),
        boot_id: handoff.boot_id.clone().unwrap(),
    }
}

/// Kills a process as nobody expects it.
pub(crate) fn kill_9(identity: &Identity) {
    assert!(identity.is_alive());
    assert!(
        Command::new("kill")
            .args(["-9", &identity.pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come within {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the engine answers to a chat message.
pub(crate) fn ask(url: &str, message: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{message}"}}],"max_tokens":8}}"#);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nOrigin: http://page.example\r\n"
    );
    write!(
        stream,
        "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let allowed = answer.lines().find(|line| {
        line.to_ascii_lowercase()
            .starts_with("access-control-allow-origin")
    });
    assert!(
        allowed.is_none_or(|line| line.ends_with("http://remuda.invalid")),
        "a page could read it: {allowed:?}"
    );
    let json = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    json["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
