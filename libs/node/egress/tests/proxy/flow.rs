//! Bounds in size, time and number, and what is counted.

use std::sync::atomic::Ordering;
use std::time::Duration;

use egress::{Limits, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::support::{Sandbox, echo, local, mirror, one_name, read_head, soon};

#[tokio::test]
async fn heads_are_bounded_in_size_and_time() {
    let limits = Limits {
        head_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let sandbox = Sandbox::with(local("api.test:*"), one_name(), limits, None);
    let (mut inside, served) = sandbox.open();
    let slow = async {
        for byte in b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX: "
            .iter()
            .cycle()
        {
            if inside.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(slow).await;
    soon(served).await.unwrap().unwrap_err();

    let (mut inside, served) = sandbox.open();
    let huge = format!("GET http://api.test/ HTTP/1.1\r\nX: {}\r\n", "x".repeat(200_000));
    let _ = inside.write_all(huge.as_bytes()).await;
    soon(served).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_tunnel_on_which_nothing_moves_is_closed() {
    let (port, _) = echo().await;
    let limits = Limits {
        idle_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let sandbox = Sandbox::with(local("api.test:*"), one_name(), limits, None);
    let mut tunnel = sandbox.connect(&format!("api.test:{port}")).await.unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..9 {
        tunnel.write_all(b"x").await.unwrap();
        soon(tunnel.read_u8()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "it lives as long as it moves"
    );
    assert_eq!(soon(tunnel.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_has_a_total_time() {
    let (port, _) = echo().await;
    let limits = Limits {
        total_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let sandbox = Sandbox::with(local("api.test:*"), one_name(), limits, None);
    let mut tunnel = sandbox.connect(&format!("api.test:{port}")).await.unwrap();
    let talk = async {
        while tunnel.write_all(b"x").await.is_ok() && matches!(tunnel.read(&mut [0; 8]).await, Ok(1..)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(talk).await;
}

#[tokio::test]
async fn half_closed_is_not_closed() {
    let (port, _) = echo().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let mut tunnel = sandbox.connect(&format!("api.test:{port}")).await.unwrap();
    tunnel.write_all(b"the last words").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(tunnel.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "the last words");
}

#[tokio::test]
async fn a_hundred_connections_at_once_and_not_one_more() {
    let (port, count) = echo().await;
    let limits = Limits {
        connections_max: 100,
        ..Limits::default()
    };
    let sandbox = Sandbox::with(local("api.test:*"), one_name(), limits, None);
    let mut tunnels = Vec::new();
    for _ in 0..100 {
        tunnels.push(sandbox.connect(&format!("api.test:{port}")).await.unwrap());
    }
    let refused = sandbox.connect(&format!("api.test:{port}")).await.unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert_eq!(sandbox.reasons(), [Reason::TooManyConnections]);
    let talks = tunnels.into_iter().enumerate().map(|(at, mut tunnel)| {
        tokio::spawn(async move {
            let sent = vec![u8::try_from(at).unwrap(); 50_000];
            let (mut reader, mut writer) = tokio::io::split(&mut tunnel);
            let expected = sent.clone();
            let send = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(send, reader.read_to_end(&mut got));
            read.unwrap();
            assert!(got == expected, "connection {at}");
        })
    });
    for talk in talks.collect::<Vec<_>>() {
        soon(talk).await.unwrap();
    }
    assert_eq!(count.load(Ordering::Relaxed), 100);
    assert_eq!(sandbox.egress.traffic().sent_bytes, 5_000_000);
    // Places come back.
    let again = async {
        while sandbox.connect(&format!("api.test:{port}")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(again).await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_the_sender_and_not_memory() {
    let (port, _) = echo().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let mut tunnel = sandbox.connect(&format!("api.test:{port}")).await.unwrap();
    // Nothing is read: what can be sent is what lies in buffers, the kernel's among them.
    let chunk = vec![0; 64 * 1024];
    let mut sent = 0;
    while let Ok(Ok(())) = timeout(Duration::from_millis(500), tunnel.write_all(&chunk)).await {
        sent += chunk.len();
        assert!(sent < 64 << 20, "it goes on for ever");
    }
    assert!(sandbox.egress.traffic().sent_bytes <= sent as u64 + chunk.len() as u64);
}

#[tokio::test]
async fn bytes_are_counted_where_they_pass() {
    let (port, _) = mirror().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let one = sandbox.egress.entrance().unwrap();
    let other = sandbox.egress.entrance().unwrap();
    assert!(one.entrance() != other.entrance() && one.entrance() != 0);
    let request = format!("GET http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    sandbox.ask_at(one.entrance(), &request).await;
    let first = one.traffic();
    assert!(first.sent_bytes > 0 && first.received_bytes > first.sent_bytes);
    assert_eq!(sandbox.egress.traffic(), first);
    // Elsewhere, or nowhere in particular, is not there.
    sandbox.ask_at(other.entrance(), &request).await;
    sandbox.ask(&request).await;
    assert_eq!((one.traffic(), other.traffic()), (first, first));
    assert_eq!(sandbox.egress.traffic().sent_bytes, 3 * first.sent_bytes);
    // A tunnel counts what it carries and not what opened it.
    let (mut inside, _served) = sandbox.open_at(one.entrance());
    let (echo, _) = echo().await;
    let open = format!("CONNECT api.test:{echo} HTTP/1.1\r\nHost: a\r\n\r\n");
    inside.write_all(open.as_bytes()).await.unwrap();
    assert!(read_head(&mut inside).await.starts_with("HTTP/1.1 200"));
    inside.write_all(&[7; 1000]).await.unwrap();
    soon(inside.read_exact(&mut [0; 1000])).await.unwrap();
    let carried = one.traffic();
    assert_eq!(carried.sent_bytes - first.sent_bytes, 1000);
    assert_eq!(carried.received_bytes - first.received_bytes, 1000);
    // A denied attempt says where it was.
    sandbox
        .ask_at(
            other.entrance(),
            "GET http://evil.example/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(sandbox.denied.lock().unwrap()[0].entrance, other.entrance());
}

#[tokio::test]
async fn an_entrance_is_nobody_elses_and_used_again_late() {
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let first = sandbox.egress.entrance().unwrap();
    let number = first.entrance();
    drop(first);
    let second = sandbox.egress.entrance().unwrap();
    assert_ne!(second.entrance(), number);
    let mut all = vec![second];
    while let Some(next) = sandbox.egress.entrance() {
        all.push(next);
    }
    let numbers: std::collections::BTreeSet<u16> = all.iter().map(egress::EntranceMeter::entrance).collect();
    assert_eq!((numbers.len(), all.len()), (65_535, 65_535));
    drop(all.pop());
    assert!(sandbox.egress.entrance().is_some());
}
