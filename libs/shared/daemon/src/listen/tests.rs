use std::io::Read;
use std::net::TcpStream as StdStream;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::shutdown::Kind;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[test]
fn a_taken_port_is_told_with_what_to_do() {
    let first = listen(LOOPBACK, false).unwrap();
    let addr = first.local_addr().unwrap();
    for error in [
        listen(addr, false).unwrap_err(),
        listen_shared(addr, 2).unwrap_err(),
    ] {
        let text = crate::exit::chain(&error);
        assert!(
            text.contains(&format!("another program has port {}", addr.port())),
            "{text}"
        );
        assert!(text.contains("choose another port"), "{text}");
        assert_eq!(crate::exit::code_of(&error), 69);
    }
    let elsewhere = listen("192.0.2.1:0".parse().unwrap(), false).unwrap_err();
    assert!(
        elsewhere.to_string().contains("has no address 192.0.2.1"),
        "{elsewhere}"
    );
}

#[test]
fn a_shared_port_is_ours_alone() {
    let ours = listen_shared(LOOPBACK, 3).unwrap();
    let addr = ours[0].local_addr().unwrap();
    assert!(ours.iter().all(|listener| listener.local_addr().unwrap() == addr));
    assert!(
        listen_shared(addr, 1).is_err(),
        "a second process must not quietly take half of the connections"
    );
}

#[test]
fn open_addresses_need_authentication_or_a_word() {
    let check = |addr: &str, authenticated, insecure, allowed| {
        let result = refuse_open_bind(addr.parse().unwrap(), authenticated, insecure, "LLORCH_API_TOKEN");
        assert_eq!(result.is_ok(), allowed, "{addr} {authenticated} {insecure}");
        result
    };
    for local in [
        "127.0.0.1:80",
        "127.8.8.8:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        let _ = check(local, false, false, true);
    }
    for open in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let refused = check(open, false, false, false).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("LLORCH_API_TOKEN") && text.contains("--insecure"),
            "{text}"
        );
        assert_eq!(crate::exit::code_of(&refused), 64);
        let _ = check(open, true, false, true);
        let _ = check(open, false, true, true);
    }
}

/// Reads the byte that an accepted connection gets; nothing within the time when it was not accepted.
fn greeted(stream: &mut StdStream, wait: Duration) -> bool {
    stream.set_read_timeout(Some(wait)).unwrap();
    matches!(stream.read(&mut [0; 1]), Ok(1))
}

#[test]
fn connections_are_bounded_and_the_shutdown_ends_accepting() {
    let listener = listen(LOOPBACK, false).unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let remote = shutdown.clone();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let room = Arc::new(Semaphore::new(2));
            accept_loop(listener, room, &remote, |mut stream, _peer, permit| {
                remote.spawn("connection", Kind::Work, async move {
                    assert!(stream.nodelay().unwrap());
                    stream.write_all(b"x").await.unwrap();
                    // Until the client goes.
                    let _ = stream.read(&mut [0; 1]).await;
                    drop(permit);
                });
            })
            .await
            .unwrap();
        });
    });
    let long = Duration::from_secs(5);
    let connect = || StdStream::connect(addr).unwrap();
    let (mut one, mut two, mut three) = (connect(), connect(), connect());
    assert!(greeted(&mut one, long) && greeted(&mut two, long));
    assert!(
        !greeted(&mut three, Duration::from_millis(100)),
        "there is room for two"
    );
    drop(one);
    assert!(
        greeted(&mut three, long),
        "the room of one that left is taken by the next"
    );

    shutdown.stop();
    let started = Instant::now();
    server.join().unwrap();
    assert!(started.elapsed() < long);
    assert!(StdStream::connect(addr).is_err(), "nobody listens any more");
}
