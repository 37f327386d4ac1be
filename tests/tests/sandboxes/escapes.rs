//! Ways out of a sandbox: each is tried, and each must fail. The same tries in every driver's sandboxes.
//!
//! Everything that is tried is bounded, so that a hole costs a failed test and not the machine.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use remuda_tests::Dockerd;
use sandbox::{DOOR_DIRECTORY, ExecRequest, HOME, WORKSPACE};

use crate::place::{Place, host_processes_with, limits, run, sh, until};

/// Each way out, in sandboxes of each driver.
macro_rules! escapes {
    ($($name:ident),* $(,)?) => {
        mod by_bubblewrap {
            $(
                #[tokio::test]
                async fn $name() {
                    let test = concat!("bubblewrap: ", stringify!($name));
                    if let Some(place) = crate::place::Place::bubblewrap(test) {
                        super::$name(place).await;
                    }
                }
            )*
        }

        /// One test, because a daemon of its own takes longer to start than all of them take.
        #[tokio::test]
        async fn by_docker() {
            let Some(daemon) = Dockerd::start("docker: escapes") else { return };
            let daemon = Arc::new(daemon);
            $(
                println!("docker: {}", stringify!($name));
                $name(Place::docker(&daemon)).await;
            )*
        }
    };
}

escapes!(
    the_hosts_files_are_not_there,
    only_bounded_memory_can_be_written,
    other_sandboxes_are_not_there,
    no_network_is_there,
    container_sockets_are_not_there,
    a_fork_bomb_stays_inside,
    memory_has_an_end,
    signals_do_not_leave,
    nothing_stays_after_the_end,
    nothing_runs_without_the_node,
    dangerous_calls_are_refused,
    inits_secrets_cannot_be_read,
    open_files_do_not_leak,
    nobody_inside_is_root,
);

async fn the_hosts_files_are_not_there(place: Place) {
    let canary = place.directory.path().join("canary");
    std::fs::write(&canary, "host's own").unwrap();
    let sandbox = place.sandbox().await;
    let canary = canary.display();
    let said = sh(
        &sandbox,
        &format!(
            "cat {canary} /proc/1/root{canary} /etc/shadow /etc/gshadow /root/.profile /proc/1/cwd{canary} \
             /proc/kcore /dev/mem /dev/sda /dev/vda /sys/kernel/notes; \
             ls -A /root /home /var/lib /boot /mnt /media /srv; find / -name canary 2>/dev/null"
        ),
    )
    .await;
    assert!(!said.all().contains("host's own"), "{said:?}");
    let seen: Vec<&str> = said
        .stdout
        .lines()
        .filter(|line| !line.ends_with(':') && !line.is_empty())
        .collect();
    for line in seen {
        // What an image of Debian brings is not the host's.
        assert!(
            matches!(
                line,
                "agent"
                    | "apt"
                    | "dpkg"
                    | "misc"
                    | "pam"
                    | "systemd"
                    | "shells.state"
                    | "python"
                    | "ucf"
                    | "git"
                    | "vim"
                    | ".bashrc"
                    | ".profile"
            ),
            "{line}: {said:?}"
        );
    }
    place.end(sandbox).await;
}

async fn only_bounded_memory_can_be_written(place: Place) {
    let sandbox = place.sandbox().await;
    let said = sh(
        &sandbox,
        &format!(
            "for d in / /usr /usr/bin /etc /opt /opt/agent /dev /dev/pts /run {DOOR_DIRECTORY} /home /var /proc /sys /lib; do \
             touch $d/x 2>/dev/null && echo written $d; mkdir $d/y 2>/dev/null && echo made $d; done; \
             rm -f {DOOR_DIRECTORY}/node.sock /opt/remuda-init /usr/bin/true; \
             echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo core_pattern; \
             echo 1 2>/dev/null > /proc/sys/vm/drop_caches && echo drop_caches; \
             echo b 2>/dev/null > /proc/sysrq-trigger && echo sysrq; \
             test -S {DOOR_DIRECTORY}/node.sock || echo the door is gone; test -x /usr/bin/true || echo true is gone"
        ),
    )
    .await;
    assert_eq!(said.stdout, "", "{said:?}");
    let mib = 1024 * 1024;
    for (directory, bytes_max) in [
        (HOME, limits().home_bytes_max),
        ("/tmp", limits().tmp_bytes_max),
        ("/dev/shm", limits().tmp_bytes_max),
        (WORKSPACE, limits().workspace_bytes_max),
    ] {
        let script = format!(
            "head -c {} /dev/zero > {directory}/fill 2>/dev/null && echo all of it; stat -c %s {directory}/fill; rm {directory}/fill",
            bytes_max + 4 * mib
        );
        let said = sh(&sandbox, &script).await;
        let written: u64 = said
            .stdout
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("{directory}: {said:?}"));
        assert!((mib..=bytes_max).contains(&written), "{directory}: {said:?}");
    }
    place.end(sandbox).await;
}

async fn other_sandboxes_are_not_there(place: Place) {
    let (one, other) = (place.sandbox().await, place.sandbox().await);
    let mark = format!("remuda-neighbour-{}", one.id());
    let mut neighbour = one
        .exec(ExecRequest::new([
            "sh".to_owned(),
            "-c".to_owned(),
            format!("echo secret-of-one | tee ~/mine /tmp/mine /dev/shm/mine /workspace/mine; : {mark}; while :; do sleep 1; done"),
        ]))
        .await
        .unwrap();
    until("the neighbour does not run", async || {
        !host_processes_with(&mark).is_empty()
    })
    .await;
    let host_pid = host_processes_with(&mark)[0];
    let said = sh(
        &other,
        &format!(
            "cat ~/mine /tmp/mine /dev/shm/mine /workspace/mine /proc/{host_pid}/root/tmp/mine /proc/{host_pid}/environ; \
             cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 {host_pid}; \
             for p in $(seq 2 200); do test $p = $$ || kill -9 $p 2>/dev/null; done"
        ),
    )
    .await;
    assert!(!said.all().contains("secret-of-one"), "{said:?}");
    assert_eq!(
        host_processes_with(&mark),
        [host_pid],
        "a signal has reached the neighbour"
    );
    let ran_on = tokio::time::timeout(Duration::from_millis(20), neighbour.waiter.wait()).await;
    assert!(ran_on.is_err(), "{ran_on:?}");
    let first = one.id().clone();
    drop(one);
    place.driver.destroy(&first).await.unwrap();
    place.rendezvous.forget(&first);
    place.end(other).await;
}

/// The address of this machine that others would see, if it has one. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

async fn no_network_is_there(place: Place) {
    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut targets = vec![
        loopback.local_addr().unwrap(),
        // The cloud metadata address, and two names servers that answer everybody.
        "169.254.169.254:80".parse().unwrap(),
        "192.0.2.1:80".parse().unwrap(),
        "172.17.0.1:2375".parse().unwrap(),
    ];
    let outer = own_address().and_then(|address| TcpListener::bind((address, 0)).ok());
    targets.extend(outer.iter().map(|listener| listener.local_addr().unwrap()));
    // The node's usual ports, whoever listens there.
    targets.extend([9200, 8080, 22].map(|port| SocketAddr::from(([127, 0, 0, 1], port))));
    let abstract_name = format!("remuda-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let unix = UnixListener::bind_addr(&address).unwrap();
    for listener in [Some(&loopback), outer.as_ref()].into_iter().flatten() {
        listener.set_nonblocking(true).unwrap();
    }
    unix.set_nonblocking(true).unwrap();

    let sandbox = place.sandbox().await;
    for target in &targets {
        let script = format!(
            "use Socket; socket(S, AF_INET, SOCK_STREAM, 0) or die; alarm 10; \
             print connect(S, pack_sockaddr_in({}, inet_aton('{}'))) ? 'connected' : \"refused: $!\"; \
             socket(U, AF_INET, SOCK_DGRAM, 0) or die; \
             print send(U, 'x', 0, pack_sockaddr_in({}, inet_aton('{}'))) && {} ? ' sent' : '';",
            target.port(),
            target.ip(),
            target.port(),
            target.ip(),
            i32::from(!target.ip().is_loopback()),
        );
        let said = run(&sandbox, ["perl", "-e", &script]).await.unwrap();
        assert!(
            said.stdout.starts_with("refused: ") && !said.stdout.contains("sent"),
            "{target}: {said:?}"
        );
    }
    let script = format!(
        "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) or die; \
         print connect(S, pack_sockaddr_un(\"\\0{abstract_name}\")) ? 'connected' : 'refused';"
    );
    assert_eq!(
        run(&sandbox, ["perl", "-e", &script]).await.unwrap().stdout,
        "refused"
    );
    for listener in [Some(&loopback), outer.as_ref()].into_iter().flatten() {
        assert!(listener.accept().is_err(), "somebody has come through");
    }
    assert!(unix.accept().is_err());
    let interfaces = sh(&sandbox, "cat /proc/net/dev | tail -n +3 | cut -d: -f1").await;
    assert_eq!(interfaces.stdout.split_whitespace().collect::<Vec<_>>(), ["lo"]);
    place.end(sandbox).await;
}

async fn container_sockets_are_not_there(place: Place) {
    let sandbox = place.sandbox().await;
    let said = sh(
        &sandbox,
        "for s in /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock \
         /run/systemd/private /run/dbus/system_bus_socket /tmp/.X11-unix; do test -e $s && echo $s; done; \
         find / -type s 2>/dev/null",
    )
    .await;
    assert_eq!(said.stdout, format!("{DOOR_DIRECTORY}/node.sock\n"), "{said:?}");
    place.end(sandbox).await;
}

async fn a_fork_bomb_stays_inside(place: Place) {
    let (bombed, other) = (place.sandbox().await, place.sandbox().await);
    let bomb =
        "alarm 30; while (1) { my $p = fork(); if (!defined $p) { select(undef, undef, undef, 0.05); } }";
    let process = bombed.exec(ExecRequest::new(["perl", "-e", bomb])).await.unwrap();
    drop(process);
    let full = limits().processes_max;
    until("the bomb does not go off", async || {
        bombed
            .health()
            .await
            .is_ok_and(|health| u64::from(health.processes) >= full / 2)
    })
    .await;
    for _ in 0..5 {
        let health = bombed.health().await.unwrap();
        assert!(u64::from(health.processes) <= full, "{health:?}");
    }
    assert_eq!(sh(&other, "echo fine").await.stdout, "fine\n");
    bombed.kill_all().await.unwrap();
    assert_eq!(sh(&bombed, "echo fine").await.stdout, "fine\n");
    let first = other.id().clone();
    drop(other);
    place.driver.destroy(&first).await.unwrap();
    place.rendezvous.forget(&first);
    place.end(bombed).await;
}

async fn memory_has_an_end(place: Place) {
    let sandbox = place.sandbox().await;
    let mib = 1024 * 1024;
    let more = limits().memory_bytes_max + 100 * mib;
    let script = format!("my $x = 'x' x {more}; print length $x");
    let said = run(&sandbox, ["perl", "-e", &script]).await.unwrap();
    assert_eq!(said.stdout, "", "{said:?}");
    assert_ne!(said.exit.code, Some(0), "{said:?}");
    // Init is not the one that is ended for it.
    assert_eq!(sh(&sandbox, "echo fine").await.stdout, "fine\n");
    place.end(sandbox).await;
}

async fn signals_do_not_leave(place: Place) {
    let sandbox = place.sandbox().await;
    let own = std::process::id();
    let said = sh(
        &sandbox,
        &format!("trap '' TERM; for s in TERM INT HUP KILL STOP SEGV; do kill -$s 1; kill -$s {own}; done 2>/dev/null; echo done"),
    )
    .await;
    assert_eq!(said.stdout, "done\n", "{said:?}");
    let everybody = sh(&sandbox, "kill -KILL -1; echo still here").await;
    assert!(
        everybody.exit.signal.is_some() || everybody.stdout.contains("still"),
        "{everybody:?}"
    );
    assert_eq!(sh(&sandbox, "echo fine").await.stdout, "fine\n");
    place.end(sandbox).await;
}

/// Leaves a process that does its best to stay, and answers with its mark.
async fn leave_something(sandbox: &sandbox::Sandbox) -> String {
    let mark = format!("remuda-stays-{}", sandbox.id());
    let script = format!(
        "(setsid sh -c 'trap \"\" TERM INT HUP QUIT; : {mark}; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &) ; echo left"
    );
    assert_eq!(sh(sandbox, &script).await.stdout, "left\n");
    until("nothing was left", async || {
        !host_processes_with(&mark).is_empty()
    })
    .await;
    mark
}

async fn nothing_stays_after_the_end(place: Place) {
    let sandbox = place.sandbox().await;
    let mark = leave_something(&sandbox).await;
    sandbox.end().await.unwrap();
    until("a process stays after the end", async || {
        host_processes_with(&mark).is_empty()
    })
    .await;
    place.end(sandbox).await;

    let sandbox = place.sandbox().await;
    let mark = leave_something(&sandbox).await;
    place.driver.destroy(sandbox.id()).await.unwrap();
    assert!(
        host_processes_with(&mark).is_empty(),
        "a process stays after the driver has destroyed its sandbox"
    );
    place.end(sandbox).await;
}

async fn nothing_runs_without_the_node(place: Place) {
    let sandbox = place.sandbox().await;
    let id = sandbox.id().clone();
    let mark = leave_something(&sandbox).await;
    drop(sandbox);
    until("a process runs on without the node", async || {
        host_processes_with(&mark).is_empty()
    })
    .await;
    place.driver.destroy(&id).await.unwrap();
    place.rendezvous.forget(&id);
}

#[cfg(target_arch = "x86_64")]
const CALLS: &[(&str, &str)] = &[
    ("mount", "165, 'none', '/tmp', 'tmpfs', 0, 0"),
    ("umount2", "166, '/tmp', 2"),
    ("pivot_root", "155, '/tmp', '/tmp'"),
    ("chroot", "161, '/tmp'"),
    ("unshare user", "272, 0x10000000"),
    ("unshare mounts", "272, 0x20000"),
    ("unshare network", "272, 0x40000000"),
    ("clone user", "56, 0x10000011, 0, 0, 0, 0"),
    ("clone3", "435, $buffer, 64"),
    ("setns", "308, 0, 0"),
    ("ptrace", "101, 16, 1, 0, 0"),
    ("process_vm_readv", "310, 1, $buffer, 1, $buffer, 1, 0"),
    ("pidfd_getfd", "438, 0, 0, 0"),
    ("keyctl", "250, 0, -3, 1"),
    ("add_key", "248, 'user', 'a', 'b', 1, -3"),
    ("bpf", "321, 0, $buffer, 48"),
    ("perf_event_open", "298, $buffer, 0, -1, -1, 0"),
    ("userfaultfd", "323, 0"),
    ("io_uring_setup", "425, 8, $buffer"),
    ("init_module", "175, $buffer, 8, ''"),
    ("kexec_load", "246, 0, 0, $buffer, 0"),
    ("open_by_handle_at", "304, 3, $buffer, 0"),
    ("reboot", "169, 0, 0, 0, 0"),
    ("swapon", "167, '/tmp/x', 0"),
    ("settimeofday", "164, $buffer, 0"),
    ("sethostname", "170, 'x', 1"),
    ("syslog", "103, 3, $buffer, 8"),
    ("acct", "163, '/tmp/x'"),
    ("iopl", "172, 3"),
    ("netlink uevents", "41, 16, 3, 15"),
    ("netlink audit", "41, 16, 3, 9"),
    ("netlink netfilter", "41, 16, 3, 12"),
    ("packets", "41, 17, 3, 0"),
    ("vsock", "41, 40, 1, 0"),
    ("raw", "41, 2, 3, 1"),
    ("bluetooth", "41, 31, 3, 0"),
    ("algorithms", "41, 38, 5, 0"),
    ("x32 mount", "0x40000000 + 165, 'none', '/tmp', 'tmpfs', 0, 0"),
    ("mknod", "133, '/tmp/disk', 0x61b0, 0x0800"),
    ("setuid", "105, 0"),
];

#[cfg(target_arch = "x86_64")]
async fn dangerous_calls_are_refused(place: Place) {
    let sandbox = place.sandbox().await;
    for (name, arguments) in CALLS {
        let script = format!(
            "my $buffer = \"\\0\" x 256; my ($call, @rest) = ({arguments}); \
             my $r = syscall($call, @rest); print $r == -1 ? 'refused' : \"done $r\""
        );
        let said = run(&sandbox, ["perl", "-e", &script]).await.unwrap();
        assert_eq!(said.stdout, "refused", "{name}: {said:?}");
    }
    let said = sh(
        &sandbox,
        "unshare -U true || unshare -r true || unshare -m true || echo refused",
    )
    .await;
    assert_eq!(said.stdout, "refused\n", "{said:?}");
    // And ordinary programs still work with what they are used to.
    let script = "use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die; \
                  my $p = fork(); if (!$p) { exit 7 } waitpid($p, 0); print $? >> 8";
    assert_eq!(run(&sandbox, ["perl", "-e", script]).await.unwrap().stdout, "7");
    place.end(sandbox).await;
}

#[cfg(not(target_arch = "x86_64"))]
async fn dangerous_calls_are_refused(_place: Place) {
    remuda_tests::skipped(
        "dangerous_calls_are_refused",
        "the numbers of calls are those of x86-64",
    );
}

async fn open_files_do_not_leak(place: Place) {
    let leak = place.directory.path().join("leak");
    let file = std::fs::File::create(&leak).unwrap();
    // As a careless parent would have left it.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let sandbox = place.sandbox().await;
    let said = sh(&sandbox, "ls -l /proc/self/fd/; ls /proc/self/fd | wc -l").await;
    assert!(!said.stdout.contains("leak"), "{said:?}");
    // The standard streams, and the directory itself.
    assert!(said.stdout.ends_with("\n4\n"), "{said:?}");
    place.end(sandbox).await;
}

async fn inits_secrets_cannot_be_read(place: Place) {
    let sandbox = place.sandbox().await;
    let said = sh(
        &sandbox,
        "cat /proc/1/environ /proc/1/mem /proc/1/maps /proc/1/auxv; ls -l /proc/1/fd/; env; cat /proc/self/environ | tr '\\0' '\\n'",
    )
    .await;
    assert!(
        !said.all().contains("REMUDA_INIT") && !said.all().contains("token"),
        "{said:?}"
    );
    assert!(
        said.stderr.contains("/proc/1/environ") && said.stderr.contains("/proc/1/mem"),
        "{said:?}"
    );
    assert!(
        host_processes_with(sandbox.id().as_str()).is_empty(),
        "a command line shows what only init may know"
    );
    place.end(sandbox).await;
}

async fn nobody_inside_is_root(place: Place) {
    let sandbox = place.sandbox().await;
    let mark = leave_something(&sandbox).await;
    let host_pid = host_processes_with(&mark)[0];
    let status =
        std::fs::read_to_string(Path::new("/proc").join(host_pid.to_string()).join("status")).unwrap();
    let users = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    if rustix::process::geteuid().is_root() {
        assert!(!users.split_whitespace().any(|user| user == "0"), "{users}");
    }
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let said = sh(&sandbox, "id -u; id -g; su -c id 2>&1; sudo -n id 2>&1").await;
    assert!(
        said.stdout.starts_with("1000\n1000\n") && !said.stdout.contains("uid=0"),
        "{said:?}"
    );
    place.end(sandbox).await;
}
