//! Whether the port of `remuda up` is free, and who has it otherwise.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::Finding;
use crate::client::{Client, ControlPlane, DEFAULT_URL};

const PORT: u16 = 8080;

pub(super) async fn check(control_plane: &ControlPlane) -> Finding {
    let about = "port 8080";
    if TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))).is_ok() {
        return Finding::ok(about, "free");
    }
    let ours = async {
        let client = Client::new(DEFAULT_URL, control_plane.api_key.as_deref(), None).ok()?;
        client.get::<serde_json::Value>("/v2/meta/version").await.ok()
    };
    let holder = holder(PORT).map(|(pid, name)| format!("{name} (process {pid})"));
    if ours.await.is_some() {
        let by = holder.map(|holder| format!(": {holder}")).unwrap_or_default();
        return Finding::ok(about, format!("a control plane answers there{by}"));
    }
    Finding::warning(
        about,
        format!(
            "taken by {}",
            holder.unwrap_or_else(|| "a process that this user may not see".to_owned())
        ),
        "`remuda run` takes any free port; for `remuda up` choose another one with --addr 127.0.0.1:8081",
    )
}

/// The process that listens on a port of this machine.
fn holder(port: u16) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let wanted: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let descriptors = fs::read_dir(process.path().join("fd")).ok()?;
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| wanted.iter().any(|wanted| target.as_os_str() == wanted.as_str()))
        });
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        holds.then(|| (pid, name.trim().to_owned()))
    })
}

/// The inodes of the sockets that listen on the port, out of a table of `/proc/net`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTENING: &str = "0A";
    let rows = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[3] == LISTENING)
        .filter(|row| {
            row[1]
                .rsplit(':')
                .next()
                .and_then(|hex| u16::from_str_radix(hex, 16).ok())
                == Some(port)
        })
        .map(|row| row[9].to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_and_so_is_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (pid, name) = holder(port).unwrap();
        assert_eq!(pid, std::process::id());
        assert!(!name.is_empty());
        drop(listener);
        assert_eq!(holder(port), None);
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
               1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 222 1\n\
               2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1\n";
        assert_eq!(listening_inodes(table, 8080), ["111"]);
    }
}
