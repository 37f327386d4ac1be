//! What gets through and what does not.

use std::sync::atomic::Ordering;

use egress::{Base, EgressPolicy, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Names, Sandbox, echo, local, mirror, one_name, read_head, soon};

#[tokio::test]
async fn an_allowed_tunnel_carries_bytes_both_ways_and_counts_them() {
    let (port, _) = echo().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let mut tunnel = sandbox.connect(&format!("API.test:{port}")).await.unwrap();
    tunnel.write_all(&[7; 100_000][..10_000]).await.unwrap();
    let mut back = vec![0; 10_000];
    soon(tunnel.read_exact(&mut back)).await.unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
    let traffic = sandbox.egress.traffic();
    assert_eq!((traffic.sent_bytes, traffic.received_bytes), (10_000, 10_000));
    assert!(sandbox.reasons().is_empty());
}

#[tokio::test]
async fn what_is_allowed_at_one_entrance_ends_with_it_and_is_nobody_elses() {
    let (port, _) = echo().await;
    let sandbox = Sandbox::new(
        local("other.test:*"),
        Names::of(&[("git.test", &[&["127.0.0.1"]])]),
    );
    let target = format!("git.test:{port}");
    let entrance = sandbox.egress.entrance().unwrap();
    let number = entrance.entrance();
    assert!(sandbox.connect_at(number, &target).await.is_err());
    entrance.allow(&target).unwrap();
    assert!(sandbox.connect_at(number, &target).await.is_ok());
    assert!(sandbox.connect(&target).await.is_err(), "another entrance");
    sandbox.egress.set_policy(local("another.test:*"));
    assert!(sandbox.connect_at(number, &target).await.is_ok());
    assert!(entrance.allow("http://git.test").is_err());
    drop(entrance);
    assert!(sandbox.connect_at(number, &target).await.is_err());
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_in_plain_text_and_reported() {
    let (port, count) = echo().await;
    let sandbox = Sandbox::new(
        EgressPolicy::new()
            .allow("api.test")
            .unwrap()
            .allow("*.test:*")
            .unwrap(),
        Names::of(&[
            ("private.test", &[&["127.0.0.1", "10.0.0.1"]]),
            ("mapped.test", &[&["::ffff:127.0.0.1"]]),
            ("meta.test", &[&["169.254.169.254"]]),
        ]),
    );
    for (target, reason) in [
        (format!("evil.example:{port}"), Reason::HostNotAllowed),
        (format!("127.0.0.1:{port}"), Reason::AddressNotNamed),
        (format!("[::1]:{port}"), Reason::AddressNotNamed),
        ("169.254.169.254:80".to_owned(), Reason::AddressNotNamed),
        (
            format!("private.test:{port}"),
            Reason::AddressNotPermitted("127.0.0.1".parse().unwrap()),
        ),
        (
            format!("mapped.test:{port}"),
            Reason::AddressNotPermitted("::ffff:127.0.0.1".parse().unwrap()),
        ),
        (
            "meta.test:80".to_owned(),
            Reason::AddressNotPermitted("169.254.169.254".parse().unwrap()),
        ),
    ] {
        let head = sandbox.connect(&target).await.unwrap_err();
        assert!(head.starts_with("HTTP/1.1 403"), "{target}: {head}");
        assert!(head.contains("text/plain"), "{head}");
        assert_eq!(sandbox.reasons().pop(), Some(reason), "{target}");
    }
    let text = sandbox.ask(
        "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n",
    );
    let text = text.await;
    assert!(
        text.starts_with("HTTP/1.1 403") && text.contains("refused: addresses are refused"),
        "{text}"
    );
    // Numbers that some resolvers take for addresses are names of nothing.
    for target in [
        "2130706433:80",
        "0x7f.0.0.1:80",
        "127.1:80",
        "api.test",
        "api.test:0",
        "@api.test:80",
    ] {
        let head = sandbox.connect(target).await.unwrap_err();
        assert!(head.starts_with("HTTP/1.1 400"), "{target}: {head}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert_eq!(sandbox.egress.traffic(), egress::Traffic::default());
}

#[tokio::test]
async fn a_name_that_changes_its_mind_reaches_nothing_private() {
    let (port, count) = echo().await;
    // First a harmless address at which nothing answers, then loopback.
    let names = Names::of(&[("turn.test", &[&["127.0.0.2"], &["127.0.0.1"]])]);
    let policy = EgressPolicy::new()
        .allow("turn.test:*")
        .unwrap()
        .permit_network("127.0.0.2")
        .unwrap();
    let sandbox = Sandbox::new(policy, names);
    let head = sandbox.connect(&format!("turn.test:{port}")).await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(
        sandbox.names.asked("turn.test"),
        1,
        "it is resolved once for one connection"
    );
    let head = sandbox.connect(&format!("turn.test:{port}")).await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn of_mixed_addresses_only_the_permitted_are_dialled() {
    let (port, count) = echo().await;
    let names = Names::of(&[("mixed.test", &[&["127.0.0.1", "127.0.0.3"]])]);
    let policy = EgressPolicy::new()
        .allow("mixed.test:*")
        .unwrap()
        .permit_network("127.0.0.3")
        .unwrap();
    let sandbox = Sandbox::new(policy, names);
    assert!(
        sandbox
            .connect(&format!("mixed.test:{port}"))
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 502")
    );
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn requests_go_on_to_the_host_they_name() {
    let (port, seen) = mirror().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let request = format!(
        "POST http://api.test:{port}/v1/x?q=1 HTTP/1.1\r\nHost: evil.example\r\nX-Thing: 1\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0Og==\r\nConnection: close\r\n\
         Content-Length: 5\r\n\r\nhello"
    );
    let answer = sandbox.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let got = seen.lock().unwrap().pop().unwrap();
    assert!(
        got.starts_with("POST /v1/x?q=1 HTTP/1.1\r\n") && got.ends_with("\r\n\r\nhello"),
        "{got}"
    );
    assert!(
        got.contains(&format!("api.test:{port}")) && got.contains("X-Thing: 1"),
        "{got}"
    );
    let lower = got.to_ascii_lowercase();
    assert!(
        !lower.contains("evil.example") && !lower.contains("proxy-"),
        "{got}"
    );
}

#[tokio::test]
async fn one_connection_carries_several_requests_each_checked() {
    let (port, seen) = mirror().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let (mut inside, _served) = sandbox.open();
    for turn in 0..3 {
        let request = format!("GET http://api.test:{port}/{turn} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        inside.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut inside).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.to_ascii_lowercase();
        let length: usize = length
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap();
        let mut body = vec![0; length];
        soon(inside.read_exact(&mut body)).await.unwrap();
    }
    inside
        .write_all(b"GET http://other.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_head(&mut inside).await.starts_with("HTTP/1.1 403"));
    assert_eq!(seen.lock().unwrap().len(), 3);
    assert_eq!(
        sandbox.names.asked("api.test"),
        1,
        "the connection to the server was used again"
    );
}

#[tokio::test]
async fn requests_on_one_connection_may_be_for_different_servers() {
    let (first, first_seen) = mirror().await;
    let (second, second_seen) = mirror().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let (mut inside, _served) = sandbox.open();
    for port in [first, second, second, first] {
        let request = format!("GET http://api.test:{port}/{port} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        inside.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut inside).await.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        soon(inside.read_exact(&mut vec![0; length.unwrap()]))
            .await
            .unwrap();
    }
    for (port, seen) in [(first, first_seen), (second, second_seen)] {
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2);
        assert!(
            seen.iter()
                .all(|request| request.starts_with(&format!("GET /{port} "))),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn a_program_may_be_lent_a_base_and_its_key() {
    let (port, seen) = mirror().await;
    let sandbox = Sandbox::new(EgressPolicy::new(), Names::default());
    let (one, other) = (
        sandbox.egress.entrance().unwrap(),
        sandbox.egress.entrance().unwrap(),
    );
    let request = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.2:3128\r\nAuthorization: Bearer own\r\n\
                   X-Api-Key: own\r\nx-goog-api-key: own\r\nConnection: close\r\n\r\n";
    let base = |key: &str| Base::new(&format!("http://127.0.0.1:{port}"), key).unwrap();
    for key in ["first", "second"] {
        let lent = one.lend(base(key));
        let answer = sandbox.ask_at(one.entrance(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(lent);
        let asked = seen.lock().unwrap().pop().unwrap();
        assert!(asked.starts_with("GET /v1/models HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.contains(&format!("Bearer {key}\r\n")) && !asked.contains("own"),
            "{asked}"
        );
    }
    // Nobody else has it: not at another entrance, not when it is over, and not as a host that is asked for.
    let lent = one.lend(base("third"));
    for entrance in [other.entrance(), 0] {
        let answer = sandbox.ask_at(entrance, request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let head = sandbox.connect(&format!("127.0.0.1:{port}")).await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    drop(lent);
    let answer = sandbox.ask_at(one.entrance(), request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(seen.lock().unwrap().is_empty());
    let (denied, no_target) = (Reason::AddressNotNamed, Reason::NoTarget);
    assert_eq!(sandbox.reasons(), [no_target, no_target, denied, no_target]);
}

#[tokio::test]
async fn nothing_hides_in_a_request() {
    let (port, seen) = mirror().await;
    let sandbox = Sandbox::new(local("api.test:*"), one_name());
    let hidden = "GET /hidden HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let heads = [
        // Two lengths, a length and chunks, chunks that are not, a folded header, a bare name with a space.
        format!(
            "POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 45\r\n\r\n{hidden}"
        ),
        format!(
            "POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nX: 1\r\n Content-Length: 45\r\n\r\n{hidden}"
        ),
        format!("POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length : 45\r\n\r\n{hidden}"),
        format!("POST http://api.test:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: +45\r\n\r\n{hidden}"),
        format!("GET http://api.test:{port}/\r\nX: y HTTP/1.1\r\nHost: a\r\n\r\n{hidden}"),
        format!("GET http://api.test:{port}@evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("CONNECT evil.example:443 HTTP/1.1\r\nHost: api.test:{port}\r\n\r\n"),
        "GET ftp://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n".to_owned(),
        format!("GET https://api.test:{port}/ HTTP/1.1\r\nHost: api.test\r\n\r\n"),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c".to_owned(),
    ];
    for head in heads {
        let (mut inside, _served) = sandbox.open();
        inside.write_all(head.as_bytes()).await.unwrap();
        inside.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(inside.read_to_end(&mut answer)).await;
    }
    for request in seen.lock().unwrap().iter() {
        assert!(!request.starts_with("GET /hidden"), "it went through: {request}");
        assert!(!request.to_ascii_lowercase().contains("host: evil"), "{request}");
    }
    let denied = sandbox.denied.lock().unwrap();
    assert!(
        denied
            .iter()
            .any(|one| one.host == "evil.example" && one.port == 443),
        "{denied:?}"
    );
}
