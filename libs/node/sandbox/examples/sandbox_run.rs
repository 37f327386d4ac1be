//! Runs one command in a bubblewrap sandbox, to see what it finds there.
//!
//! `cargo run -p sandbox --example sandbox_run -- PATH_OF_REMUDA_INIT AGENT_DIRECTORY COMMAND...`

#![expect(clippy::unwrap_used, reason = "a trial that fails is to stop")]

use std::path::PathBuf;
use std::time::Duration;

use sandbox::{
    Bubblewrap, BubblewrapSettings, CreateRequest, Driver as _, ExecRequest, InitProgram, Limits, Rendezvous,
    SandboxId,
};
use tokio::io::AsyncReadExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let init = PathBuf::from(arguments.next().expect("the path of remuda-init"));
    let agent = PathBuf::from(arguments.next().expect("an agent's install directory"));
    let directory = tempfile::tempdir().unwrap();
    let driver = Bubblewrap::new(BubblewrapSettings::new(&directory.path().join("bubblewrap"))).unwrap();
    let (rendezvous, _returned) = Rendezvous::open(directory.path()).unwrap();
    let id = SandboxId::random();
    let expected = rendezvous.expect(&id).unwrap();
    let request = CreateRequest {
        id: id.clone(),
        connect: expected.connect(),
        agent_directory: Some(agent),
        image: None,
        limits: Limits::default(),
        environment: Vec::new(),
        init: InitProgram {
            path: init,
            arguments: Vec::new(),
        },
    };
    driver.create(request).await.unwrap();
    let sandbox = expected.arrived(Duration::from_secs(10)).await.unwrap();
    let mut process = sandbox.exec(ExecRequest::new(arguments)).await.unwrap();
    drop(process.stdin);
    let (mut out, mut errors) = (String::new(), String::new());
    let (read, read_errors) = tokio::join!(
        process.stdout.read_to_string(&mut out),
        process.stderr.read_to_string(&mut errors)
    );
    read.unwrap();
    read_errors.unwrap();
    print!("{out}");
    eprint!("{errors}");
    println!(
        "{:?}; {:?}",
        process.waiter.wait().await.unwrap(),
        sandbox.health().await.unwrap()
    );
    driver.destroy(&id).await.unwrap();
    rendezvous.forget(&id);
}
