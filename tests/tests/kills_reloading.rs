//! `kill -9` of the control plane and of the node while a pool is reloaded: while the new engine comes up, and while the
//! old one finishes what it has. The old one serves until the new one answers, or what is there after the restart is
//! whole: one engine with one keeper, its slots, and nothing that nobody keeps.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use remuda_tests::{
    ControlPlane, Deadline, Node, System, engine_pid, engine_program, eventually, eventually_async, is_alive,
    pool_toml, processes_with,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const SLOTS: u32 = 2;
const TIMES: [(&str, &str); 1] = [("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "300")];

/// The real engine behind a script that waits, before it becomes the engine, for as long as a file is there.
struct SlowEngine {
    program: PathBuf,
    hold: PathBuf,
}

impl SlowEngine {
    fn new(directory: &Path) -> Self {
        let (program, hold) = (directory.join("engine"), directory.join("hold"));
        let script = format!(
            "#!/bin/sh\n\
             case \" $* \" in *' --port '*)\n\
             if [ -e {hold} ]; then : > {hold}.held; fi\n\
             while [ -e {hold} ]; do sleep 0.02; done;;\n\
             esac\n\
             exec {engine} \"$@\"\n",
            hold = hold.display(),
            engine = engine_program().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Self { program, hold }
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [
            ("ENGINE_PROVISIONER_PROGRAM", self.program.to_str().unwrap()),
            ("REMUDA_TEST_MARK", self.hold.to_str().unwrap()),
        ]
    }

    fn hold(&self) {
        std::fs::write(&self.hold, "").unwrap();
    }

    fn wait_until_held(&self) {
        let held = self.hold.with_extension("held");
        eventually("a new engine on its way", Deadline::default(), || {
            held.exists().then_some(())
        });
    }

    fn let_go(&self) {
        std::fs::remove_file(&self.hold).unwrap();
    }

    fn processes(&self, name: &str) -> Vec<u32> {
        processes_with(&self.hold, name)
    }
}

async fn reload(plane: &ControlPlane) {
    let told = plane
        .post("/v2/pools/demo/reload", &json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(told.status(), 202);
    let told: Value = told.json().await.unwrap();
    assert_eq!(told["failed"], json!([]), "{told}");
}

/// At target, with an engine that is not `old` if one is given; whoever asks meanwhile is answered.
async fn is_whole(
    plane: &ControlPlane,
    handoffs: impl Fn() -> Vec<Value>,
    slow: &SlowEngine,
    old: Option<u32>,
) {
    let engine = eventually_async("the pool at its target", Deadline::default(), || async {
        assert_eq!(plane.ask("3*67").await, "201");
        let handoffs = handoffs();
        let [handoff] = &handoffs[..] else { return None };
        let engine = engine_pid(handoff);
        let one = slow.processes("llama-server") == [engine] && slow.processes("engine").is_empty();
        let view = plane.json("/v2/pools/demo").await;
        let replicas = view["replicas"].as_array()?;
        let ready = replicas.len() == 1 && replicas[0]["state"] == "ready";
        let free = view["slots_total"] == SLOTS && view["slots_free"] == SLOTS;
        (one && ready && free && old != Some(engine)).then_some(engine)
    })
    .await;
    assert!(is_alive(engine));
    assert!(slow.processes("engine-provisioner").len() <= 1, "one keeper");
    assert_eq!(plane.ask("7*12").await, "84");
    plane.wait_for_free_slots("demo").await;
}

struct Cloud {
    system: System,
    slow: SlowEngine,
    plane: ControlPlane,
    node: Node,
    old: u32,
}

impl Cloud {
    async fn new() -> Self {
        let system = System::new();
        let slow = SlowEngine::new(&system.directory("engine"));
        let plane = system.control_plane(&TIMES);
        let node = system.node(
            "node-a",
            &plane,
            &pool_toml("demo", 1, SLOTS),
            &slow.environment(),
        );
        plane.wait_for_replicas("demo", 1).await;
        let old = engine_pid(&node.handoffs()[0]);
        Self {
            system,
            slow,
            plane,
            node,
            old,
        }
    }

    /// A reload has begun, and its new engine does not come up until it is let.
    async fn new_one_starts() -> Self {
        let cloud = Self::new().await;
        cloud.slow.hold();
        reload(&cloud.plane).await;
        cloud.slow.wait_until_held();
        assert_eq!(cloud.plane.ask("3*67").await, "201", "the old one serves");
        assert!(is_alive(cloud.old));
        cloud
    }

    /// The new one serves, and the old one has a stream that does not end by itself.
    async fn old_one_drains() -> (Self, impl futures_util::Stream<Item = Vec<u8>> + Unpin) {
        let cloud = Self::new().await;
        let response = cloud.plane.chat("count", true).send().await.unwrap();
        let chunks = response.bytes_stream();
        let mut stream = Box::pin(chunks.map(|chunk| chunk.unwrap_or_default().to_vec()));
        stream.next().await.unwrap();
        reload(&cloud.plane).await;
        eventually_async(
            "the new one ready and the old one draining",
            Deadline::default(),
            || async {
                let view = cloud.plane.json("/v2/pools/demo").await;
                let replicas = view["replicas"].as_array()?;
                let has = |state: &str| replicas.iter().any(|replica| replica["state"] == state);
                (has("ready") && has("draining")).then_some(())
            },
        )
        .await;
        assert!(is_alive(cloud.old), "it has a stream");
        (cloud, stream)
    }

    async fn kill_control_plane(&mut self) {
        let addr = self.plane.url.trim_start_matches("http://").to_owned();
        self.plane.program.kill();
        self.plane = self.system.control_plane_at(&addr, &TIMES);
        // The new one has no model before the node has registered with it.
        self.plane.wait_for_replicas("demo", 1).await;
    }

    fn kill_node(&mut self) {
        self.node.program.kill();
        let (directory, addr) = (self.node.directory.clone(), self.node.addr.clone());
        let pools = pool_toml("demo", 1, SLOTS);
        let environment = self.slow.environment();
        self.node = self
            .system
            .node_in(&directory, "node-a", &addr, &self.plane.url, &pools, &environment);
    }

    async fn is_whole(&self, old: Option<u32>) {
        is_whole(&self.plane, || self.node.handoffs(), &self.slow, old).await;
    }

    fn ends(mut self) {
        self.node.program.signal(Signal::TERM);
        assert!(self.node.program.wait().success());
        for name in ["llama-server", "engine", "engine-provisioner"] {
            eventually("the end of every process", Deadline::default(), || {
                self.slow.processes(name).is_empty().then_some(())
            });
        }
    }
}

#[tokio::test]
async fn a_control_plane_killed_while_the_new_engine_comes_up_changes_nothing() {
    let mut cloud = Cloud::new_one_starts().await;
    cloud.kill_control_plane().await;
    assert_eq!(cloud.plane.ask("3*67").await, "201");
    assert!(is_alive(cloud.old), "it serves until the new one answers");
    // The order lives on in the node.
    cloud.slow.let_go();
    cloud.is_whole(Some(cloud.old)).await;
    cloud.ends();
}

#[tokio::test]
async fn a_node_killed_while_the_new_engine_comes_up_is_whole_after_its_restart() {
    let mut cloud = Cloud::new_one_starts().await;
    cloud.kill_node();
    // The new engine is held all the time: it is the old one that serves, and the half-started one goes.
    cloud.is_whole(None).await;
    assert!(is_alive(cloud.old));
    // Asked again, it is done.
    cloud.slow.let_go();
    reload(&cloud.plane).await;
    cloud.is_whole(Some(cloud.old)).await;
    cloud.ends();
}

#[tokio::test]
async fn a_control_plane_killed_while_the_old_engine_drains_leaves_the_new_one() {
    let (mut cloud, stream) = Cloud::old_one_drains().await;
    cloud.kill_control_plane().await;
    drop(stream);
    cloud.is_whole(Some(cloud.old)).await;
    cloud.ends();
}

#[tokio::test]
async fn a_node_killed_while_the_old_engine_drains_is_whole_after_its_restart() {
    let (mut cloud, mut stream) = Cloud::old_one_drains().await;
    cloud.kill_node();
    let mut rest = Vec::new();
    while let Some(chunk) = stream.next().await {
        rest.extend(chunk);
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(
        rest.contains("WORKER_RESET") && !rest.contains("[DONE]"),
        "{rest}"
    );
    cloud.is_whole(None).await;
    cloud.ends();
}

#[tokio::test]
async fn one_process_killed_while_it_reloads_leaves_no_engine_and_starts_whole() {
    let system = System::new();
    let slow = SlowEngine::new(&system.directory("engine"));
    let mut plane = system.home(&pool_toml("demo", 1, SLOTS), &slow.environment());
    plane.wait_for_replicas("demo", 1).await;
    slow.hold();
    reload(&plane).await;
    slow.wait_until_held();
    assert_eq!(plane.ask("3*67").await, "201");
    plane.program.kill();
    for name in ["llama-server", "engine"] {
        eventually("the end of its engines", Deadline::default(), || {
            slow.processes(name).is_empty().then_some(())
        });
    }
    slow.let_go();
    let plane = system.home(&pool_toml("demo", 1, SLOTS), &slow.environment());
    plane.wait_for_replicas("demo", 1).await;
    is_whole(&plane, || plane.handoffs(), &slow, None).await;
}
