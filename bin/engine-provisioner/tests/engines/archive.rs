//! Engines from release archives: a local server that cuts and lies, and an engine that is a script.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_provisioner::recipe::{Recipe, Variant, platform};
use engine_provisioner::{EngineError, EngineProgram, Origin, Progress, Settings, get_engine};
use flate2::Compression;
use flate2::write::GzEncoder;
use model_store::Digest;

use crate::server::{Reply, Request, Server};

/// A release: the program lies beside what it needs, below a first directory.
fn release(script: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::none()));
    let mut add = |name: &str, content: &[u8], mode| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
    };
    // Enough that the connection is cut in the middle.
    let filler: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    add("engine-1/lib/libengine.so", &filler, 0o644);
    add("engine-1/bin/engine", script.as_bytes(), 0o755);
    builder.into_inner().unwrap().finish().unwrap()
}

const SCRIPT: &str =
    "#!/bin/sh\ntest -f \"$(dirname \"$(readlink -f \"$0\")\")/../lib/libengine.so\" && echo version: 7\n";

struct Setup {
    directory: tempfile::TempDir,
    settings: Settings,
    recipe: Recipe,
}

impl Setup {
    fn new(server: &Server, sha256: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
                name = "fake"
                about = "a script"
                dialects = []
                [probe]
                health = "/"
                models = "/"
                [start]
                args = []
                ready_timeout_s = 1
                stop_timeout_s = 1
                [source]
                program = "an-engine-that-is-on-no-path"
                version = "7"
                version_args = ["--version"]
                version_prefix = "version:"
                [[source.archives]]
                platform = "{}"
                variant = "cpu"
                url = "{}"
                sha256 = "{sha256}"
                program = "engine-1/bin/engine"
            "#,
            platform(),
            server.url("/engine.tar.gz"),
        );
        let recipe = Recipe::parse("fake.toml", &text).unwrap();
        let settings = Settings {
            cache_dir: Some(directory.path().join("cache")),
            ..Settings::default()
        };
        Self {
            directory,
            settings,
            recipe,
        }
    }

    async fn get(&self) -> Result<EngineProgram, EngineError> {
        get_engine(
            &self.recipe,
            &self.settings,
            None,
            Some(Variant::Cpu),
            &Progress::none(),
        )
        .await
    }
}

/// Serves `content`, cutting the first connection in the middle.
fn cutting_server(content: Vec<u8>) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |request: &Request| {
        let reply = Reply::range(request, &content);
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            reply.cut_after(100_000)
        } else {
            reply
        }
    })
}

#[tokio::test]
async fn an_archive_is_resumed_checked_and_unpacked_once() {
    let content = release(SCRIPT);
    let sha256 = Digest::of(&content).to_string();
    let server = cutting_server(content);
    let setup = Setup::new(&server, &sha256);
    let engine = setup.get().await.unwrap();
    assert_eq!((engine.origin, engine.version.as_str()), (Origin::Archive, "7"));
    let place = "cache/engines/fake/7-cpu/an-engine-that-is-on-no-path";
    assert_eq!(engine.program, setup.directory.path().join(place));
    assert_eq!(server.asked().len(), 2);
    assert_eq!(server.asked()[1].range_start(), Some(100_000));
    assert_eq!(server.asked()[1].path, "/engine.tar.gz");

    let again = setup.get().await.unwrap();
    assert_eq!(
        (again.origin, again.program),
        (Origin::Cache, engine.program.clone())
    );
    assert_eq!(server.asked().len(), 2, "what is in the cache is not asked for");

    // One that does not run here is got again: the cache may have come from another machine.
    let real = std::fs::canonicalize(&engine.program).unwrap();
    std::fs::File::create(&real)
        .unwrap()
        .write_all(b"#!/bin/sh\nkill -ILL $$\n")
        .unwrap();
    assert_eq!(setup.get().await.unwrap().origin, Origin::Archive);
}

#[tokio::test]
async fn an_archive_with_another_digest_is_refused() {
    let server = cutting_server(release(SCRIPT));
    let setup = Setup::new(&server, &Digest::of(b"another").to_string());
    let error = setup.get().await.unwrap_err().to_string();
    assert!(
        error.starts_with("engine.tar.gz is not what it should be: its SHA-256 is"),
        "{error}"
    );
    let engines = setup.directory.path().join("cache/engines/fake");
    let left: Vec<_> = std::fs::read_dir(engines)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["7-cpu.lock"], "nothing of it was unpacked");
}

#[tokio::test]
async fn an_archive_whose_engine_does_not_run_is_not_kept() {
    let content = release("#!/bin/sh\necho 'illegal instruction' >&2\nexit 132\n");
    let sha256 = Digest::of(&content).to_string();
    let setup = Setup::new(&cutting_server(content), &sha256);
    let error = setup.get().await.unwrap_err().to_string();
    assert!(
        error.contains("exit code 132") && error.contains("illegal instruction"),
        "{error}"
    );
    assert!(!setup.directory.path().join("cache/engines/fake/7-cpu").exists());
}

#[tokio::test]
async fn two_at_once_get_it_once() {
    let content = release(SCRIPT);
    let sha256 = Digest::of(&content).to_string();
    let server = cutting_server(content);
    let setup = Setup::new(&server, &sha256);
    let (first, second) = tokio::join!(setup.get(), setup.get());
    assert_eq!(first.unwrap().program, second.unwrap().program);
    assert_eq!(server.asked().len(), 2);
}
