//! Running out of file descriptors is waited out. In a process of its own, because the limit is the process's.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daemon::listen::{accept_loop, listen};
use daemon::shutdown::Shutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

#[test]
fn without_descriptors_it_waits_and_goes_on() {
    let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let ours = shutdown.clone();
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Kept open, so that no descriptor comes free by itself.
        let mut open = Vec::new();
        let greet = |stream: tokio::net::TcpStream, _, _| {
            let mut stream = stream.into_std().unwrap();
            // One byte into a fresh socket: it is taken at once.
            stream.write_all(b"x").unwrap();
            open.push(stream);
        };
        runtime
            .block_on(accept_loop(listener, Arc::new(Semaphore::new(8)), &ours, greet))
            .unwrap();
    });
    assert!(greeted(&mut TcpStream::connect(addr).unwrap()), "it accepts");

    // The client's socket is made first; then nothing is left for the other end.
    let limit = Rlimit {
        current: Some(64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut held: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    held.pop();
    let mut client = TcpStream::connect(addr).unwrap();
    assert!(!greeted(&mut client), "nothing is left to accept with");
    drop(held);
    assert!(
        (0..50).any(|_| greeted(&mut client)),
        "it goes on by itself, with the connection that waited"
    );

    shutdown.stop();
    server.join().unwrap();
}

fn greeted(client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    matches!(client.read(&mut [0; 1]), Ok(1))
}
