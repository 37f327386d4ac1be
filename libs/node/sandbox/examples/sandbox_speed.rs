//! How fast sandboxes are made and used, and what an idle one takes.
//!
//! `cargo run --release -p sandbox --example sandbox_speed -- PATH_OF_REMUDA_INIT [DOCKER_SOCKET IMAGE]`

#![expect(clippy::unwrap_used, reason = "a measurement that fails is to stop")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandbox::{
    Bubblewrap, BubblewrapSettings, CreateRequest, Docker, DockerSettings, Driver, ExecRequest, InitProgram,
    Limits, Rendezvous, Sandbox, SandboxId, enforcements,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SANDBOXES: usize = 50;
const EXECS: usize = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let init = PathBuf::from(arguments.next().expect("the path of remuda-init"));
    let directory = tempfile::tempdir().unwrap();
    let driver: Box<dyn Driver> = match (arguments.next(), arguments.next()) {
        (Some(socket), Some(image)) => {
            let settings = DockerSettings {
                socket: socket.into(),
                node: "measurement".to_owned(),
                image: Some(image),
            };
            Box::new(Docker::new(settings))
        }
        _ => {
            Box::new(Bubblewrap::new(BubblewrapSettings::new(&directory.path().join("bubblewrap"))).unwrap())
        }
    };
    let (rendezvous, _returned) = Rendezvous::open(directory.path()).unwrap();
    println!("limits are kept by {:?}", enforcements());

    let mut created = Vec::new();
    let mut sandboxes: Vec<Sandbox> = Vec::new();
    for _ in 0..SANDBOXES {
        let id = SandboxId::random();
        let start = Instant::now();
        let expected = rendezvous.expect(&id).unwrap();
        let request = CreateRequest {
            id,
            connect: expected.connect(),
            agent_directory: None,
            image: None,
            limits: Limits::default(),
            environment: Vec::new(),
            init: InitProgram {
                path: init.clone(),
                arguments: Vec::new(),
            },
        };
        driver.create(request).await.unwrap();
        sandboxes.push(expected.arrived(Duration::from_secs(10)).await.unwrap());
        created.push(start.elapsed());
    }
    show("create to running init", &mut created);
    memory(directory.path());

    let sandbox = &sandboxes[0];
    let mut first_byte = Vec::new();
    let mut write = Vec::new();
    for _ in 0..EXECS {
        let start = Instant::now();
        sandbox.set_label("owner").unwrap();
        let mut process = sandbox.exec(ExecRequest::new(["cat"])).await.unwrap();
        process.stdin.write_all(b"x").await.unwrap();
        write.push(start.elapsed());
        process.stdout.read_u8().await.unwrap();
        first_byte.push(start.elapsed());
        drop(process.stdin);
        process.waiter.wait().await.unwrap();
    }
    show("claim to byte written to a new process's stdin", &mut write);
    show("claim to the same byte come back from it", &mut first_byte);

    let mut hot = Vec::new();
    let mut process = sandbox.exec(ExecRequest::new(["cat"])).await.unwrap();
    for _ in 0..EXECS {
        let start = Instant::now();
        process.stdin.write_all(b"x").await.unwrap();
        process.stdout.read_u8().await.unwrap();
        hot.push(start.elapsed());
    }
    show("a byte there and back, process running", &mut hot);

    let mut ended = Vec::new();
    for sandbox in sandboxes {
        let start = Instant::now();
        driver.destroy(sandbox.id()).await.unwrap();
        rendezvous.forget(sandbox.id());
        ended.push(start.elapsed());
    }
    show("destroy", &mut ended);
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a few thousand"
        )]
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * 1e3
    };
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms ({} times)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}

/// What the first sandbox's processes take: proportional and private memory.
fn memory(directory: &std::path::Path) {
    // Another driver keeps none of these.
    for entry in fs::read_dir(directory.join("bubblewrap"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for who in ["outer", "inner"] {
            let pid = record[who]["pid"].as_u64().unwrap();
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let lines: Vec<&str> = rollup
                .lines()
                .filter(|line| {
                    ["Rss:", "Pss:", "Pss_Anon:", "Private_Dirty:"]
                        .iter()
                        .any(|name| line.starts_with(name))
                })
                .collect();
            println!("{who}: {}", lines.join(", ").replace("  ", ""));
        }
        for cgroup in record["cgroups"].as_array().unwrap() {
            let usage = PathBuf::from(cgroup.as_str().unwrap()).join("memory.usage_in_bytes");
            if let Ok(usage) = fs::read_to_string(usage) {
                println!("cgroup: {} bytes", usage.trim());
            }
        }
        return;
    }
}
