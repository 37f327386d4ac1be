//! Nodes that are found without registering: by a list, and by a DNS SRV name at a real DNS server.

use std::process::Command;

use remuda_tests::{Deadline, Node, Program, System, eventually_async, free_port, pool_toml, skipped};

/// A node that registers with nobody.
fn lonely_node(system: &System, node_id: &str) -> Node {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let directory = system.directory(node_id);
    system.node_in(
        &directory,
        node_id,
        "127.0.0.1:0",
        &nobody,
        &pool_toml("demo", 1, 2),
        &[],
    )
}

#[tokio::test]
async fn a_node_of_the_list_is_polled() {
    let system = System::new();
    let node = lonely_node(&system, "node-a");
    let plane = system.control_plane(&[
        ("ORCHD_POOL_MANAGERS", node.url.as_str()),
        ("ORCHD_POOL_POLL_INTERVAL_MS", "200"),
    ]);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");
}

#[tokio::test]
async fn a_node_behind_a_dns_name_is_found_and_forgotten() {
    if !std::path::Path::new("/usr/sbin/named").exists() {
        return skipped(
            "a_node_behind_a_dns_name",
            "needs the DNS server named (Debian package bind9)",
        );
    }
    let system = System::new();
    let node = lonely_node(&system, "node-a");
    let port: u16 = node.addr.rsplit_once(':').unwrap().1.parse().unwrap();
    let (_named, dns) = named(&system, port);
    let plane = system.control_plane(&[
        ("ORCHD_POOL_MANAGERS_DNS", "_remuda._tcp.fleet.test"),
        ("ORCHD_DNS_SERVER", &dns),
        ("ORCHD_POOL_POLL_INTERVAL_MS", "200"),
        ("ORCHESTRATORD_NODE_TIMEOUT_MS", "2000"),
        ("ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", "1"),
    ]);
    plane.wait_for_replicas("demo", 1).await;
    assert_eq!(plane.ask("3*67").await, "201");
    drop(node);
    eventually_async("the node offline", Deadline::default(), || async {
        (plane.json("/v2/nodes").await[0]["state"] == "offline").then_some(())
    })
    .await;
}

/// A real DNS server with one zone, whose service has one target: localhost at `port`.
fn named(system: &System, port: u16) -> (Program, String) {
    let directory = system.directory("named");
    let path = directory.display();
    let dns_port = free_port();
    let configuration = format!(
        "options {{ directory \"{path}\"; pid-file \"{path}/pid\"; session-keyfile \"{path}/key\";\n\
         listen-on port {dns_port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; }};\n\
         controls {{ }};\n\
         zone \"fleet.test\" {{ type primary; file \"{path}/zone\"; }};\n"
    );
    let zone = format!(
        "$TTL 1\n@ IN SOA ns.fleet.test. admin.fleet.test. 1 60 60 60 1\n@ IN NS ns.fleet.test.\n\
         ns IN A 127.0.0.1\nnode-a IN A 127.0.0.1\n_remuda._tcp IN SRV 0 0 {port} node-a.fleet.test.\n"
    );
    std::fs::write(directory.join("named.conf"), configuration).unwrap();
    std::fs::write(directory.join("zone"), zone).unwrap();
    let mut command = Command::new("/usr/sbin/named");
    command
        .arg("-g")
        .arg("-c")
        .arg(directory.join("named.conf"))
        .args(["-n", "1"]);
    let mut program = Program::start("named", command, directory.join("log"));
    program.wait_for("the word that it runs", |line| {
        line.contains("running").then_some(())
    });
    (program, format!("127.0.0.1:{dns_port}"))
}
