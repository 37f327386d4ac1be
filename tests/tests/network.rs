//! Nodes behind a network of their own: partitions, half-open connections, a slow and lossy line.
//!
//! Each test makes a network namespace with one pair of virtual interfaces, runs a node in it, and takes both away.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use remuda_tests::{
    ControlPlane, Deadline, Program, System, binary, busy_slots, eventually_async, pool_toml, skipped,
    sse_events,
};

const TOKEN: &str = "a-token-for-tests";

static NETWORKS: AtomicU8 = AtomicU8::new(0);

/// A namespace with one line to this one.
struct Network {
    name: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Network {
    fn new() -> Self {
        // Addresses that only these two interfaces have; one small network for each test of the process.
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let name = format!("rmd{process}n{number}");
        let third = u8::try_from(process % 200).expect("below 200");
        let (here, there) = (
            Ipv4Addr::new(10, 231, third, number * 4 + 1),
            Ipv4Addr::new(10, 231, third, number * 4 + 2),
        );
        let network = Self { name, here, there };
        let (ours, theirs) = (network.ours(), network.theirs());
        ip(&["netns", "add", &network.name]);
        ip(&[
            "link",
            "add",
            &ours,
            "type",
            "veth",
            "peer",
            "name",
            &theirs,
            "netns",
            &network.name,
        ]);
        ip(&["addr", "add", &format!("{here}/30"), "dev", &ours]);
        ip(&["link", "set", &ours, "up"]);
        ip(&[
            "-n",
            &network.name,
            "addr",
            "add",
            &format!("{there}/30"),
            "dev",
            &theirs,
        ]);
        ip(&["-n", &network.name, "link", "set", &theirs, "up"]);
        ip(&["-n", &network.name, "link", "set", "lo", "up"]);
        // Whatever becomes of the interfaces: packets for this network never leave by another way.
        ip(&["route", "add", "blackhole", &network.guard(), "metric", "4000"]);
        network
    }

    fn guard(&self) -> String {
        format!("{}/30", Ipv4Addr::from_bits(self.here.to_bits() - 1))
    }

    fn ours(&self) -> String {
        format!("{}a", self.name)
    }

    fn theirs(&self) -> String {
        format!("{}b", self.name)
    }

    /// From now on every packet is lost, and nobody is told.
    fn cut(&self) {
        ip(&["-n", &self.name, "link", "set", &self.theirs(), "down"]);
    }

    fn mend(&self) {
        ip(&["-n", &self.name, "link", "set", &self.theirs(), "up"]);
    }

    /// A slow line with a short queue: packets wait, and those that find the queue full are lost.
    fn slow_down(&self) {
        let ours = self.ours();
        let limits = ["rate", "400kbit", "burst", "4kb", "limit", "8kb"];
        let output = Command::new("tc")
            .args(["qdisc", "add", "dev", &ours, "root", "tbf"])
            .args(limits)
            .output();
        let output = output.expect("iproute2");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A client in the namespace that asks for an endless answer and prints what comes.
    fn asks(&self, url: &str, stream: bool) -> Command {
        let script = "import json, sys, urllib.request\n\
            url, stream, token = sys.argv[1:]\n\
            body = {'model': 'remuda-demo', 'stream': stream == 'true',\n\
            'messages': [{'role': 'user', 'content': 'count'}]}\n\
            headers = {'authorization': 'Bearer ' + token, 'content-type': 'application/json'}\n\
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)\n\
            for line in urllib.request.urlopen(request): print(line.decode(), end='', flush=True)\n";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "python3", "-c", script]);
        command
            .args([url, &stream.to_string(), TOKEN])
            .env("no_proxy", "*");
        command
    }

    /// What the node in the namespace says about its pool, asked from within.
    fn node_status(&self) -> Option<serde_json::Value> {
        let script = "import sys, urllib.request\n\
            url, token = sys.argv[1:]\n\
            request = urllib.request.Request(url, headers={'authorization': 'Bearer ' + token})\n\
            print(urllib.request.urlopen(request, timeout=5).read().decode())\n";
        let url = format!("http://{}:9200/v2/pools/demo/status", self.there);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "python3", "-c", script, &url, TOKEN]);
        let output = command.env("no_proxy", "*").output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// A node in the namespace.
    fn node(&self, directory: &Path, node_id: &str, plane_port: u16) -> Program {
        std::fs::write(directory.join("remuda.toml"), pool_toml("demo", 1, 2)).unwrap();
        let addr = format!("{}:9200", self.there);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(binary("pool-managerd"));
        command
            .current_dir(directory)
            .env("POOL_MANAGERD_CLOUD_PROFILE", "true")
            .env("POOL_MANAGERD_NODE_ID", node_id)
            .env("POOL_MANAGERD_ADDR", &addr)
            .env("POOL_MANAGERD_ADDRESS", format!("http://{addr}"))
            .env("ORCHESTRATORD_URL", format!("http://{}:{plane_port}", self.here))
            .env("LLORCH_API_TOKEN", TOKEN);
        let mut program = Program::start(node_id, command, directory.join("log"));
        program.wait_for("the word that it is up", |line| {
            line.contains("the node is up").then_some(())
        });
        program
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.ours()]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        let _ = Command::new("ip")
            .args(["route", "del", "blackhole", &self.guard()])
            .output();
    }
}

fn can_make_networks(test: &str) -> bool {
    let able = rustix::process::getuid().is_root() && Command::new("ip").arg("-V").output().is_ok();
    if !able {
        skipped(test, "needs root and iproute2");
    }
    able
}

/// A control plane that nodes of every network reach, with short times.
fn control_plane(system: &System) -> (ControlPlane, u16) {
    let plane = system.control_plane_at(
        "0.0.0.0:0",
        &[
            ("ORCHESTRATORD_NODE_TIMEOUT_MS", "4000"),
            ("ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", "1"),
            ("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "500"),
        ],
    );
    let port = plane.url.rsplit_once(':').unwrap().1.parse().unwrap();
    (plane, port)
}

async fn wait_for_state(plane: &ControlPlane, node_id: &str, state: &str) {
    eventually_async(&format!("{node_id} {state}"), Deadline::default(), || async {
        let nodes = plane.json("/v2/nodes").await;
        let node = nodes.as_array()?.iter().find(|node| node["node_id"] == node_id)?;
        (node["state"] == state).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_partition_is_told_survived_and_mended() {
    if !can_make_networks("a_partition_is_told_survived_and_mended") {
        return;
    }
    let (system, network) = (System::new(), Network::new());
    let (plane, port) = control_plane(&system);
    let _far = network.node(&system.directory("far"), "far", port);
    plane.wait_for_replicas("demo", 1).await;

    // In mid-stream when the line is cut: the client is told, although no packet says so.
    let response = plane.chat("count", true).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    network.cut();
    let cut = Instant::now();
    let mut rest = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        rest.extend(chunk);
    }
    println!(
        "the client knew {} ms after the line was cut",
        cut.elapsed().as_millis()
    );
    let rest = String::from_utf8(rest).unwrap();
    assert_eq!(
        sse_events(&rest).last().unwrap().json()["error"]["code"],
        "WORKER_RESET",
        "{rest}"
    );
    wait_for_state(&plane, "far", "offline").await;

    // Another node is there meanwhile, and whoever asks is answered.
    let _near = system.node("near", &plane, &pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");

    network.mend();
    wait_for_state(&plane, "far", "online").await;
    plane.wait_for_replicas("demo", 2).await;
    // The far engine went on counting for nobody; its slot is free again.
    plane.wait_for_free_slots("demo").await;
    let (total, free) = plane.slots("demo").await;
    assert_eq!((total, free), (4, 4));
}

#[tokio::test]
async fn a_task_that_has_sent_nothing_survives_a_partition() {
    if !can_make_networks("a_task_that_has_sent_nothing_survives_a_partition") {
        return;
    }
    let (system, network) = (System::new(), Network::new());
    let (plane, port) = control_plane(&system);
    let _far = network.node(&system.directory("far"), "far", port);
    plane.wait_for_replicas("demo", 1).await;
    network.cut();
    // Nobody has noticed yet: the task is sent into the void, and placed again when that shows.
    let waiting = tokio::spawn(plane.chat("3*67", false).send());
    let _near = system.node("near", &plane, &pool_toml("demo", 1, 2), &[]);
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

#[tokio::test]
async fn a_slow_and_lossy_line_is_only_slow() {
    if !can_make_networks("a_slow_and_lossy_line_is_only_slow") {
        return;
    }
    let (system, network) = (System::new(), Network::new());
    let (plane, port) = control_plane(&system);
    let _far = network.node(&system.directory("far"), "far", port);
    plane.wait_for_replicas("demo", 1).await;
    network.slow_down();
    let answers = futures_util::future::join_all((0..10).map(|a| {
        let plane = &plane;
        async move {
            (
                a,
                tokio::time::timeout(Duration::from_secs(60), plane.ask(&format!("{a}*12")))
                    .await
                    .unwrap(),
            )
        }
    }));
    for (a, answer) in answers.await {
        assert_eq!(answer, (a * 12).to_string());
    }
    plane.wait_for_free_slots("demo").await;
}

/// How long a client may be silent in the test below.
const CLIENT_SILENCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn clients_whose_machine_vanishes_give_their_slots_back() {
    if !can_make_networks("clients_whose_machine_vanishes_give_their_slots_back") {
        return;
    }
    let (system, network) = (System::new(), Network::new());
    let silence = CLIENT_SILENCE.as_millis().to_string();
    let plane = system.home_at(
        "0.0.0.0:0",
        &pool_toml("demo", 1, 2),
        &[("ORCHD_CLIENT_SILENCE_MS", &silence)],
    );
    plane.wait_for_replicas("demo", 1).await;
    let engine = plane.handoffs()[0]["url"].as_str().unwrap().to_owned();
    let busy = |count: usize, what: &'static str| {
        let (http, engine) = (system.http.clone(), engine.clone());
        eventually_async(what, Deadline::default(), move || {
            let (http, engine) = (http.clone(), engine.clone());
            async move { (busy_slots(&http, &engine).await? == count).then_some(()) }
        })
    };
    let port = plane.url.rsplit_once(':').unwrap().1;
    let url = format!("http://{}:{port}/v1/chat/completions", network.here);
    let directory = system.directory("clients");
    // One that reads what comes, and one to whom nothing is sent before the end: its machine is only listened to.
    let mut clients = [true, false].map(|stream| {
        let name = format!("client-{stream}");
        Program::start(&name, network.asks(&url, stream), directory.join(&name))
    });
    busy(2, "two clients at work").await;
    clients[0].wait_for("the beginning of the stream", |line| {
        line.starts_with("data: ").then_some(())
    });
    network.cut();
    let cut = Instant::now();
    busy(0, "both slots free at the engine").await;
    let took = cut.elapsed();
    println!(
        "slots free {} ms after the clients' machine vanished",
        took.as_millis()
    );
    assert!(took < CLIENT_SILENCE * 5, "{took:?}");
    plane.wait_for_free_slots("demo").await;
    assert!(
        clients.iter_mut().all(Program::is_running),
        "the far ends know nothing"
    );
}

#[tokio::test]
async fn a_node_whose_control_plane_vanishes_gives_its_slots_back() {
    if !can_make_networks("a_node_whose_control_plane_vanishes_gives_its_slots_back") {
        return;
    }
    let (system, network) = (System::new(), Network::new());
    let (plane, port) = control_plane(&system);
    let far = network.node(&system.directory("far"), "far", port);
    plane.wait_for_replicas("demo", 1).await;
    let response = plane.chat("count", true).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let free = |free: u64, what: &'static str, within: u64| {
        let network = &network;
        // The node's own word, asked from its side of the cut.
        eventually_async(what, Deadline(Duration::from_secs(within)), move || async move {
            let status = network.node_status()?;
            (status["slots_total"] == 2 && status["slots_free"] == free).then_some(())
        })
    };
    free(1, "a slot taken at the node", 20).await;
    network.cut();
    let cut = Instant::now();
    // Five seconds until a ping, five until it counts as unanswered, and what a busy machine adds.
    free(2, "every slot free at the node", 30).await;
    println!(
        "slots free at the node {} ms after the cut",
        cut.elapsed().as_millis()
    );
    drop((stream, far));
}
