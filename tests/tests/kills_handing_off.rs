//! `kill -9` of the node daemon, of the provisioner and of the engine at each stage of handing an engine over: the handoff
//! half-written, written and not read, read and the engine not yet asked.
//!
//! A library before the C library keeps the writer in the middle of its writing (tests/hold); SIGSTOP keeps the daemon
//! from reading and the engine from answering. Whatever dies, nothing half is believed, the pool comes back to its
//! target, and nothing is left that nobody keeps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use remuda_tests::{
    ControlPlane, Deadline, Node, System, engine_pid, eventually, eventually_async, is_alive, kill_9,
    pool_toml, processes_with, signal,
};
use rustix::process::Signal;
use serde_json::Value;

const TOKEN: &str = "a-token-for-tests";
const SLOTS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Daemon,
    Provisioner,
    Engine,
}

const VICTIMS: [Victim; 3] = [Victim::Daemon, Victim::Provisioner, Victim::Engine];

/// A node whose provisioner is kept in the middle of writing its first handoff.
struct Stage {
    system: System,
    plane: ControlPlane,
    node: Node,
    environment: Vec<(String, String)>,
    hold: PathBuf,
}

/// The library in tests/hold, built into `directory`.
fn library(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("hold/hold.c");
    let library = directory.join("hold.so");
    let mut command = Command::new("cc");
    command
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source);
    let output = command.output().expect("a C compiler, which Rust needs to link");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    library
}

impl Stage {
    fn half_written(more: &[(&str, &str)]) -> Self {
        let system = System::new();
        let directory = system.directory("hold");
        let hold = directory.join("hold");
        std::fs::write(&hold, "").unwrap();
        let mut environment = vec![
            (
                "LD_PRELOAD".to_owned(),
                library(&directory).to_str().unwrap().to_owned(),
            ),
            ("REMUDA_TEST_HOLD".to_owned(), hold.to_str().unwrap().to_owned()),
            ("POOL_MANAGERD_PROBE_TIMEOUT_MS".to_owned(), "300".to_owned()),
        ];
        environment.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let plane = system.control_plane(&[("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "300")]);
        let directory = system.directory("node-a");
        let node = start(&system, &directory, "127.0.0.1:0", &plane, &environment);
        let stage = Self {
            system,
            plane,
            node,
            environment,
            hold,
        };
        let held = stage.hold.with_extension("held");
        eventually("somebody writing a handoff", Deadline::default(), || {
            held.exists().then_some(())
        });
        let half = stage.temporary_files();
        let [half] = &half[..] else {
            panic!("not one temporary file: {half:?}")
        };
        assert!(
            serde_json::from_slice::<Value>(&std::fs::read(half).unwrap()).is_err(),
            "it is written to its half"
        );
        assert_eq!(stage.node.handoffs().len(), 0);
        stage
    }

    /// From half-written on: the daemon is stopped, so it does not read what is then written.
    fn written(more: &[(&str, &str)]) -> Self {
        let stage = Self::half_written(more);
        stage.node.program.signal(Signal::STOP);
        stage.let_write();
        eventually("the handoff", Deadline::default(), || {
            (stage.node.handoffs().len() == 1).then_some(())
        });
        stage
    }

    /// From written on: the engine is stopped, so it does not answer the daemon that now reads.
    async fn read() -> Self {
        let stage = Self::written(&[]);
        signal(stage.pid(Victim::Engine), Signal::STOP);
        stage.node.program.signal(Signal::CONT);
        stage
            .node_says("no answer", |pool| {
                let error = pool["last_error"].as_str().unwrap_or_default();
                pool["ready"] == false && error.contains("no answer")
            })
            .await;
        stage
    }

    fn let_write(&self) {
        // It may have been let already.
        let _ = std::fs::remove_file(&self.hold);
    }

    fn handoff_directory(&self) -> PathBuf {
        self.node.directory.join(".runtime/engines")
    }

    fn temporary_files(&self) -> Vec<PathBuf> {
        let directories = [
            self.handoff_directory(),
            self.handoff_directory().join("provisioner"),
        ];
        let files = directories
            .iter()
            .flat_map(|d| std::fs::read_dir(d).into_iter().flatten());
        let paths = files.flatten().map(|file| file.path());
        paths
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.'))
            .collect()
    }

    fn processes(&self, name: &str) -> Vec<u32> {
        processes_with(&self.hold, name)
    }

    fn pid(&self, victim: Victim) -> u32 {
        match victim {
            Victim::Daemon => self.node.program.pid(),
            Victim::Provisioner => self.processes("engine-provisioner")[0],
            Victim::Engine => self.processes("llama-server")[0],
        }
    }

    /// Kills it; a daemon is started again.
    fn kill(&mut self, victim: Victim) {
        let pid = self.pid(victim);
        if victim != Victim::Daemon {
            kill_9(pid);
            return eventually("its end", Deadline::default(), || (!is_alive(pid)).then_some(()));
        }
        self.node.program.kill();
        let (directory, addr) = (self.node.directory.clone(), self.node.addr.clone());
        self.node = start(&self.system, &directory, &addr, &self.plane, &self.environment);
    }

    async fn node_says(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let url = format!("{}/v2/pools/demo/status", self.node.url);
        let wanted = &wanted;
        eventually_async(what, Deadline::default(), || {
            let request = self.system.http.get(&url).bearer_auth(TOKEN).send();
            async move {
                let status: Value = request.await.ok()?.json().await.ok()?;
                wanted(&status).then_some(())
            }
        })
        .await;
    }

    /// At target: one engine with one keeper, its slots, and nothing half anywhere. A pool never counts as ready whose
    /// engine is dead.
    async fn is_whole(&self) {
        let engine = eventually_async("the pool at its target", Deadline::default(), || async {
            let pool: Value = self
                .plane
                .get("/v2/pools/demo")
                .send()
                .await
                .ok()?
                .json()
                .await
                .ok()?;
            let replica = pool["replicas"].get(0)?;
            let ready = replica["state"] == "ready" && replica["taken_out"] == false;
            let engine = engine_pid(self.node.handoffs().first()?);
            (ready && pool["slots_total"] == SLOTS && pool["slots_free"] == SLOTS && is_alive(engine))
                .then_some(engine)
        })
        .await;
        assert_eq!(self.plane.ask("3*67").await, "201");
        assert_eq!(self.processes("llama-server"), [engine], "one engine");
        assert_eq!(self.processes("engine-provisioner").len(), 1, "one keeper");
        self.plane.wait_for_free_slots("demo").await;
        eventually("nothing half-written", Deadline::default(), || {
            self.temporary_files().is_empty().then_some(())
        });
    }

    /// The end of everything, as an operator ends it.
    fn ends(mut self) {
        self.node.program.signal(Signal::TERM);
        assert!(self.node.program.wait().success());
        self.nothing_is_left(Duration::from_secs(20));
        assert_eq!(self.node.handoffs().len(), 0);
    }

    fn nothing_is_left(&self, within: Duration) {
        eventually("the end of every process", Deadline(within), || {
            let left = ["llama-server", "engine-provisioner"].map(|name| self.processes(name).len());
            (left == [0, 0]).then_some(())
        });
    }
}

fn start(
    system: &System,
    directory: &Path,
    addr: &str,
    plane: &ControlPlane,
    environment: &[(String, String)],
) -> Node {
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let pools = pool_toml("demo", 1, SLOTS);
    system.node_in(directory, "node-a", addr, &plane.url, &pools, &environment)
}

#[tokio::test]
async fn a_half_written_handoff_is_never_believed_whoever_dies() {
    for victim in VICTIMS {
        let mut stage = Stage::half_written(&[]);
        let engine = stage.pid(Victim::Engine);
        stage.kill(victim);
        if victim == Victim::Provisioner {
            eventually("the engine's end with its keeper", Deadline::default(), || {
                (!is_alive(engine)).then_some(())
            });
        }
        assert_eq!(stage.node.handoffs().len(), 0, "{victim:?}");
        stage.node_says("not ready", |pool| pool["ready"] == false).await;
        // Who was kept and lives goes on writing, also about an engine that is dead.
        stage.let_write();
        stage.is_whole().await;
        assert_eq!(is_alive(engine), victim == Victim::Daemon, "{victim:?}");
        stage.ends();
    }
}

#[tokio::test]
async fn a_handoff_that_nobody_has_read_is_believed_only_of_the_living() {
    for victim in VICTIMS {
        let mut stage = Stage::written(&[]);
        let engine = stage.pid(Victim::Engine);
        let keeper = stage.pid(Victim::Provisioner);
        if victim == Victim::Engine {
            // Or it would take the handoff back before anybody has read it.
            signal(keeper, Signal::STOP);
        }
        stage.kill(victim);
        assert_eq!(stage.node.handoffs().len(), 1, "{victim:?}");
        stage.node.program.signal(Signal::CONT);
        if victim == Victim::Engine {
            // The daemon has read of an engine that is dead, and says so.
            stage.node_says("not ready", |pool| pool["ready"] == false).await;
            signal(keeper, Signal::CONT);
        }
        stage.is_whole().await;
        assert_eq!(is_alive(engine), victim == Victim::Daemon, "{victim:?}");
        stage.ends();
    }
}

#[tokio::test]
async fn a_handoff_that_was_read_counts_only_once_its_engine_answers() {
    for victim in VICTIMS {
        let mut stage = Stage::read().await;
        let engine = stage.pid(Victim::Engine);
        stage.kill(victim);
        if victim == Victim::Daemon {
            stage.node_says("not ready", |pool| pool["ready"] == false).await;
            assert!(is_alive(engine));
            signal(engine, Signal::CONT);
        }
        stage.is_whole().await;
        assert_eq!(is_alive(engine), victim == Victim::Daemon, "{victim:?}");
        stage.ends();
    }
}

/// The usual 45 s after which an engine without a daemon ends are made one here, by the setting for it.
#[tokio::test]
async fn no_stage_leaves_an_orphan_when_the_daemon_never_comes_back() {
    let short = [("POOL_MANAGERD_ENGINES_WAIT_MS", "1000")];
    for written in [false, true] {
        let mut stage = if written {
            Stage::written(&short)
        } else {
            Stage::half_written(&short)
        };
        stage.node.program.kill();
        stage.let_write();
        let killed = Instant::now();
        stage.nothing_is_left(Duration::from_secs(20));
        println!(
            "nothing left {} ms after the daemon's death",
            killed.elapsed().as_millis()
        );
        assert_eq!(stage.node.handoffs().len(), 0);
        assert_eq!(stage.temporary_files(), Vec::<PathBuf>::new());
    }
}
