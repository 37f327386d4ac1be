//! Going out through upstream proxies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress::{Limits, UpstreamProxy, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::support::{Sandbox, echo, local, one_name, read_head, soon};

/// A proxy for tests, HTTP or SOCKS5, that wants `user` and `pa:ss`; what it was asked for.
async fn proxy(is_socks: bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let _ = if is_socks {
                    socks(stream, &log).await
                } else {
                    http(stream, &log).await
                };
            });
        }
    });
    (address, asked, task)
}

async fn http(mut stream: TcpStream, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let head = read_head(&mut stream).await;
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    // "user:pa:ss"
    if !head.contains("Proxy-Authorization: Basic dXNlcjpwYTpzcw==\r\n") {
        return stream
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            .await;
    }
    log.lock().unwrap().push(target.clone());
    let Ok(mut world) = TcpStream::connect(&target).await else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut world)
        .await
        .map(|_| ())
}

async fn socks(mut stream: TcpStream, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&2) {
        return stream.write_all(&[5, 0xff]).await;
    }
    stream.write_all(&[5, 2]).await?;
    let mut login = [0; 2 + 4 + 1 + 5];
    stream.read_exact(&mut login).await?;
    if login != *b"\x01\x04user\x05pa:ss" {
        return stream.write_all(&[1, 1]).await;
    }
    stream.write_all(&[1, 0]).await?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await?;
            IpAddr::from(address).to_string()
        }
        _ => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).unwrap()
        }
    };
    let port = stream.read_u16().await?;
    log.lock().unwrap().push(format!("{host}:{port}"));
    let reached = if host == "api.test" { "127.0.0.1" } else { &host };
    let Ok(mut world) = TcpStream::connect((reached, port)).await else {
        return stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    };
    stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut world)
        .await
        .map(|_| ())
}

fn through(urls: &[String]) -> Option<Arc<Upstreams>> {
    Upstreams::new(
        urls.iter()
            .map(|url| UpstreamProxy::parse(url).unwrap())
            .collect(),
    )
    .map(Arc::new)
}

async fn talks(sandbox: &Sandbox, port: u16) -> Result<(), String> {
    let mut tunnel = sandbox.connect(&format!("api.test:{port}")).await?;
    tunnel.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    soon(tunnel.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ping");
    Ok(())
}

#[tokio::test]
async fn upstream_proxies_are_gone_through_with_the_checked_address() {
    let (port, _) = echo().await;
    for (is_socks, scheme, expect) in [
        (false, "http", "127.0.0.1"),
        (true, "socks5", "127.0.0.1"),
        (true, "socks5h", "api.test"),
    ] {
        let (address, asked, _) = proxy(is_socks).await;
        let upstreams = through(&[format!("{scheme}://user:pa%3ass@{address}")]);
        let sandbox = Sandbox::with(local("api.test:*"), one_name(), Limits::default(), upstreams);
        talks(&sandbox, port).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), [format!("{expect}:{port}")]);
        // What is not allowed does not come to the proxy.
        assert!(
            sandbox
                .connect("evil.example:443")
                .await
                .unwrap_err()
                .starts_with("HTTP/1.1 403")
        );
        assert!(
            sandbox
                .connect("127.0.0.1:80")
                .await
                .unwrap_err()
                .starts_with("HTTP/1.1 403")
        );
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_owner_keeps_to_one_proxy_and_goes_to_another_when_it_dies() {
    let (port, _) = echo().await;
    let (first, first_asked, first_task) = proxy(false).await;
    let (second, second_asked, second_task) = proxy(true).await;
    let urls = [
        format!("http://user:pa%3ass@{first}"),
        format!("socks5://user:pa%3ass@{second}"),
    ];
    let sandbox = Sandbox::with(local("api.test:*"), one_name(), Limits::default(), through(&urls));
    for _ in 0..5 {
        talks(&sandbox, port).await.unwrap();
    }
    let counts = || {
        (
            first_asked.lock().unwrap().len(),
            second_asked.lock().unwrap().len(),
        )
    };
    let before = counts();
    assert!(before == (5, 0) || before == (0, 5), "{before:?}");
    let (own, other) = if before.0 == 5 {
        (first_task, second_task)
    } else {
        (second_task, first_task)
    };
    own.abort();
    let _ = own.await;
    for _ in 0..3 {
        talks(&sandbox, port).await.unwrap();
    }
    let after = counts();
    assert_eq!(after.0 + after.1, 8);
    assert!(after.0 == 3 || after.1 == 3, "{after:?}");
    // With none left, nothing goes out directly.
    other.abort();
    let _ = other.await;
    let head = talks(&sandbox, port).await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_refuses_the_login_is_not_well_and_a_dead_target_is_not_its_fault() {
    for (is_socks, scheme) in [(true, "socks5"), (false, "http")] {
        refuses_the_login(is_socks, scheme).await;
    }
}

async fn refuses_the_login(is_socks: bool, scheme: &str) {
    let (port, _) = echo().await;
    let (address, asked, _) = proxy(is_socks).await;
    let upstreams = through(&[format!("{scheme}://user:wrong@{address}")]).unwrap();
    let sandbox = Sandbox::with(
        local("api.test:*"),
        one_name(),
        Limits::default(),
        Some(Arc::clone(&upstreams)),
    );
    assert!(talks(&sandbox, port).await.is_err());
    assert_eq!(upstreams.well(), (0, 1));

    let upstreams = through(&[format!("{scheme}://user:pa%3ass@{address}")]).unwrap();
    let sandbox = Sandbox::with(
        local("api.test:*"),
        one_name(),
        Limits::default(),
        Some(Arc::clone(&upstreams)),
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert!(talks(&sandbox, closed).await.is_err());
    assert_eq!(upstreams.well(), (1, 1));
    talks(&sandbox, port).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_check_finds_a_dead_proxy_before_it_is_needed_and_a_revived_one_again() {
    let (address, _, task) = proxy(true).await;
    let upstreams = through(&[format!("socks5://user:pa%3ass@{address}")]).unwrap();
    let checked = Arc::clone(&upstreams);
    let checks = tokio::spawn(async move {
        checked
            .check_forever(Duration::from_millis(20), Duration::from_secs(1))
            .await;
    });
    task.abort();
    let _ = task.await;
    let becomes = |well: usize| {
        let upstreams = Arc::clone(&upstreams);
        async move {
            while upstreams.well().0 != well {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    soon(becomes(0)).await;
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        let log = Mutex::default();
        while let Ok((stream, _)) = listener.accept().await {
            let _ = socks(stream, &log).await;
        }
    });
    soon(becomes(1)).await;
    checks.abort();
}
