//! What a sandbox is for.

use std::time::{Duration, Instant};

use init_protocol::{Decoder, Frame, Hello, Message, NO_CHANNEL, Proof, VERSION, encode};
use sandbox::{ArchiveLimits, ExecRequest, HOME, Rendezvous, SandboxError, SandboxId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::place::{Place, START_TIMEOUT, run, sh, until};

const ARCHIVE_LIMITS: ArchiveLimits = ArchiveLimits {
    bytes_max: 8 * 1024 * 1024,
    entries_max: 1000,
};

#[tokio::test]
async fn a_process_has_its_streams_its_environment_and_its_end() {
    let Some(place) = Place::bubblewrap("a_process_has_its_streams_its_environment_and_its_end") else {
        return;
    };
    let sandbox = place
        .sandbox_with(|request| request.environment = vec![("BASE".to_owned(), "base".to_owned())])
        .await;
    let mut request = ExecRequest::new([
        "sh",
        "-c",
        "read line; echo out:$line:$BASE:$OWN; echo err >&2; pwd; exit 3",
    ]);
    request.environment = vec![("OWN".to_owned(), "own".to_owned())];
    request.directory = "/tmp".to_owned();
    let mut process = sandbox.exec(request).await.unwrap();
    process.stdin.write_all(b"hello\n").await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    process.stdout.read_to_string(&mut out).await.unwrap();
    process.stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("out:hello:base:own\n/tmp\n", "err\n")
    );
    assert_eq!(process.waiter.wait().await.unwrap().code, Some(3));
    assert_eq!(process.waiter.wait().await.unwrap().code, Some(3));

    let no_program = run(&sandbox, ["no-such-program"]).await;
    assert!(
        matches!(no_program, Err(SandboxError::Failed(failure)) if failure.message.contains("no-such-program"))
    );
    let mut request = ExecRequest::new(["true"]);
    request.directory = "/nowhere".to_owned();
    assert!(matches!(
        sandbox.exec(request).await,
        Err(SandboxError::Failed(_))
    ));
    let long = "x".repeat(70_000);
    assert!(matches!(
        run(&sandbox, ["echo", &long]).await,
        Err(SandboxError::TooMuch(_))
    ));

    let mut sleeper = sandbox.exec(ExecRequest::new(["sleep", "1000"])).await.unwrap();
    sleeper.waiter.signal(15).unwrap();
    assert_eq!(sleeper.waiter.wait().await.unwrap().signal, Some(15));
    place.end(sandbox).await;
}

#[tokio::test]
async fn megabytes_go_through_whole_and_a_slow_reader_stops_only_its_own_stream() {
    let Some(place) =
        Place::bubblewrap("megabytes_go_through_whole_and_a_slow_reader_stops_only_its_own_stream")
    else {
        return;
    };
    let sandbox = place.sandbox().await;
    // Nobody reads this one: it must stop, and take no memory here or there.
    let endless = sandbox
        .exec(ExecRequest::new(["cat", "/dev/zero"]))
        .await
        .unwrap();
    let mut echo = sandbox.exec(ExecRequest::new(["cat"])).await.unwrap();
    let bytes: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sent = bytes.clone();
    let mut stdin = echo.stdin;
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await });
    let mut back = Vec::new();
    echo.stdout.read_to_end(&mut back).await.unwrap();
    writer.await.unwrap().unwrap();
    assert!(back == bytes, "what came back is not what was sent");
    assert_eq!(echo.waiter.wait().await.unwrap().code, Some(0));
    let health = sandbox.health().await.unwrap();
    assert_eq!(health.processes, 1);
    assert!(health.memory_bytes < 20_000_000, "{health:?}");
    // A reader that goes away ends the writer, as with any pipe.
    let mut waiter = endless.waiter;
    drop(endless.stdout);
    assert_eq!(waiter.wait().await.unwrap().signal, Some(13));
    place.end(sandbox).await;
}

#[tokio::test]
async fn directories_go_in_and_out_and_are_watched() {
    let Some(place) = Place::bubblewrap("directories_go_in_and_out_and_are_watched") else {
        return;
    };
    let sandbox = place.sandbox().await;
    let login = format!("{HOME}/.agent");
    let watch = sandbox.watch(&login).await.unwrap();
    sh(
        &sandbox,
        "mkdir -p ~/.agent/d; echo one > ~/.agent/d/login; chmod 666 ~/.agent/d/login",
    )
    .await;
    tokio::time::timeout(START_TIMEOUT, watch.changed())
        .await
        .unwrap()
        .unwrap();
    let mut archive = Vec::new();
    let mut packed = sandbox.pack(&login, ARCHIVE_LIMITS, &["left-out"]).await.unwrap();
    packed.read_to_end(&mut archive).await.unwrap();

    let other = place.sandbox().await;
    let done = other
        .unpack(&login, ARCHIVE_LIMITS, archive.as_slice())
        .await
        .unwrap();
    assert_eq!((done.entries, done.bytes), (2, 4));
    let said = sh(
        &other,
        "cat ~/.agent/d/login; stat -c %a ~/.agent ~/.agent/d ~/.agent/d/login",
    )
    .await;
    assert_eq!(said.stdout, "one\n700\n700\n600\n");

    // A refresh the way CLIs do it: a temporary file and a rename.
    let watch = other.watch(&login).await.unwrap();
    sh(
        &other,
        "cd ~/.agent/d && echo two > login.tmp && mv login.tmp login",
    )
    .await;
    tokio::time::timeout(START_TIMEOUT, watch.changed())
        .await
        .unwrap()
        .unwrap();
    drop(watch);

    let tiny = ArchiveLimits {
        bytes_max: 1,
        entries_max: 10,
    };
    let mut packed = other.pack(&login, tiny, &[]).await.unwrap();
    assert!(
        packed.read_to_end(&mut Vec::new()).await.is_err(),
        "an archive that is not whole looks whole"
    );
    let refused = other.unpack(&login, tiny, archive.as_slice()).await;
    assert!(matches!(refused, Err(SandboxError::Failed(_))), "{refused:?}");
    let cut = other
        .unpack(&login, ARCHIVE_LIMITS, &archive[..archive.len() / 3])
        .await;
    assert!(matches!(cut, Err(SandboxError::Failed(_))), "{cut:?}");
    assert!(
        other
            .pack("/nowhere", tiny, &[])
            .await
            .unwrap()
            .read_u8()
            .await
            .is_err()
    );
    let first = sandbox.id().clone();
    drop(sandbox);
    place.driver.destroy(&first).await.unwrap();
    place.rendezvous.forget(&first);
    place.end(other).await;
}

#[tokio::test]
async fn programs_reach_the_node_through_the_proxy_and_nothing_else() {
    let Some(place) = Place::bubblewrap("programs_reach_the_node_through_the_proxy_and_nothing_else") else {
        return;
    };
    let sandbox = place.sandbox().await;
    let script =
        "exec 3<>/dev/tcp/127.0.0.1/3128; echo question >&3; read -r answer <&3; echo $answer; cat <&3";
    let (said, ()) = tokio::join!(run(&sandbox, ["bash", "-c", script]), async {
        let mut connection = sandbox.next_connection().await.unwrap();
        let mut question = [0; 9];
        connection.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"question\n");
        connection.write_all(b"answer\n").await.unwrap();
        connection.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        connection.shutdown().await.unwrap();
        // Its own end comes with the program's.
        assert_eq!(connection.read(&mut question).await.unwrap(), 0);
    });
    let said = said.unwrap();
    assert_eq!(said.stdout.len(), "answer\n".len() + 1_000_000, "{}", said.stderr);
    assert_eq!(sandbox.health().await.unwrap().channels, 0);
    place.end(sandbox).await;
}

#[tokio::test]
async fn orphans_are_reaped_and_all_can_be_ended_at_once() {
    let Some(place) = Place::bubblewrap("orphans_are_reaped_and_all_can_be_ended_at_once") else {
        return;
    };
    let sandbox = place.sandbox().await;
    sh(
        &sandbox,
        "for i in 1 2 3 4 5 6 7 8; do (sh -c 'sleep 0.05' &) ; done",
    )
    .await;
    until("orphans stay", async || {
        sandbox.health().await.unwrap().processes == 0
    })
    .await;
    let mut stubborn = sandbox
        .exec(ExecRequest::new([
            "sh",
            "-c",
            "trap '' TERM; (setsid sleep 1000 &); sleep 1000",
        ]))
        .await
        .unwrap();
    until("nothing runs", async || {
        sandbox.health().await.unwrap().processes >= 3
    })
    .await;
    stubborn.waiter.signal(15).unwrap();
    sandbox.kill_all().await.unwrap();
    assert_eq!(stubborn.waiter.wait().await.unwrap().signal, Some(9));
    assert_eq!(sandbox.health().await.unwrap().processes, 0);
    assert_eq!(sh(&sandbox, "echo again").await.stdout, "again\n");
    sandbox.end().await.unwrap();
    assert!(sandbox.is_gone());
    assert!(matches!(
        sandbox.exec(ExecRequest::new(["true"])).await,
        Err(SandboxError::Gone)
    ));
    until("the sandbox stays", async || {
        place.driver.list().await.unwrap().is_empty()
    })
    .await;
    place.end(sandbox).await;
}

#[tokio::test]
async fn a_restarted_node_takes_a_sandbox_back_with_its_files_and_without_its_processes() {
    let Some(mut place) =
        Place::bubblewrap("a_restarted_node_takes_a_sandbox_back_with_its_files_and_without_its_processes")
    else {
        return;
    };
    let sandbox = place.sandbox().await;
    let id = sandbox.id().clone();
    sandbox.set_label("owner ann, version 7").unwrap();
    let process = sandbox
        .exec(ExecRequest::new([
            "sh",
            "-c",
            "echo refreshed > ~/login; echo; sleep 1000",
        ]))
        .await
        .unwrap();
    let mut stdout = process.stdout;
    stdout.read_u8().await.unwrap();

    drop(sandbox);
    let directory = place.directory.path().to_owned();
    (place.rendezvous, place.returned) = Rendezvous::open(&directory).unwrap();
    let back = tokio::time::timeout(START_TIMEOUT, place.returned.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back.id(), &id);
    assert_eq!(back.label().as_deref(), Some("owner ann, version 7"));
    assert_eq!(back.health().await.unwrap().processes, 0);
    assert_eq!(sh(&back, "cat ~/login").await.stdout, "refreshed\n");
    assert_eq!(place.driver.list().await.unwrap()[0].id, id);
    place.end(back).await;
}

/// Writes its login when it is asked to end, and says so first.
const LATE_WRITER: &str = "trap 'echo ending; echo ending >&2; echo refreshed > ~/login; exit 0' TERM; echo; while :; do sleep 0.01; done";

#[tokio::test]
async fn a_program_may_write_its_login_when_the_node_is_lost() {
    let Some(mut place) = Place::bubblewrap("a_program_may_write_its_login_when_the_node_is_lost") else {
        return;
    };
    let sandbox = place.sandbox().await;
    let mut running = Vec::new();
    // The second one hears nothing, and neither does what it has started in a session of its own.
    for script in [
        LATE_WRITER,
        "trap '' TERM; (setsid sleep 1000 &); echo; sleep 1000",
    ] {
        let mut process = sandbox
            .exec(ExecRequest::new(["sh", "-c", script]))
            .await
            .unwrap();
        process.stdout.read_u8().await.unwrap();
        running.push(process);
    }
    drop(sandbox);
    let directory = place.directory.path().to_owned();
    (place.rendezvous, place.returned) = Rendezvous::open(&directory).unwrap();
    let back = tokio::time::timeout(START_TIMEOUT, place.returned.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back.health().await.unwrap().processes, 0);
    assert_eq!(sh(&back, "cat ~/login").await.stdout, "refreshed\n");
    drop(running);
    place.end(back).await;
}

#[tokio::test]
async fn a_sandbox_without_a_node_ends_within_a_minute() {
    let Some(place) = Place::bubblewrap("a_sandbox_without_a_node_ends_within_a_minute") else {
        return;
    };
    let sandbox = place.sandbox().await;
    let id = sandbox.id().clone();
    let lost = Instant::now();
    // Its door goes with the node; the driver stays, and is only asked.
    place.rendezvous.forget(&id);
    drop(sandbox);
    until("the sandbox outlives its node", async || {
        place.driver.list().await.unwrap().is_empty()
    })
    .await;
    let took = lost.elapsed();
    assert!(
        (Duration::from_secs(40)..Duration::from_secs(60)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn only_who_was_made_here_gets_in_and_only_once() {
    let Some(place) = Place::bubblewrap("only_who_was_made_here_gets_in_and_only_once") else {
        return;
    };
    let id = SandboxId::random();
    let expected = place.rendezvous.expect(&id).unwrap();
    assert!(place.rendezvous.expect(&id).is_err());
    let request = place.request(&id, expected.connect());
    let start: init_protocol::Start = serde_json::from_str(
        &expected
            .connect()
            .start_variable(&id, init_protocol::ProcessLimits::default()),
    )
    .unwrap();
    place.driver.create(request.clone()).await.unwrap();
    let sandbox = expected.arrived(START_TIMEOUT).await.unwrap();
    assert!(
        place.driver.create(request).await.is_err(),
        "two sandboxes of one name"
    );

    let door = place.directory.path().join(format!("doors/{id}/node.sock"));
    for (name, proof) in [
        (id.as_str(), Proof::Token(start.token)),
        (id.as_str(), Proof::Token("wrong".to_owned())),
        (id.as_str(), Proof::ReturnKey("0".repeat(64))),
        ("another", Proof::ReturnKey("0".repeat(64))),
    ] {
        let mut socket = UnixStream::connect(&door).await.unwrap();
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            sandbox: name.to_owned(),
            proof,
            label: None,
        };
        let mut bytes = Vec::new();
        let message = Message::Hello(hello);
        encode(
            &Frame {
                channel: NO_CHANNEL,
                message,
            },
            &mut bytes,
        )
        .unwrap();
        socket.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&answer);
        let answer = decoder.next_frame().unwrap().unwrap().message;
        assert!(matches!(answer, Message::Refuse(_)), "{answer:?}");
    }
    let mut socket = UnixStream::connect(&door).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // Closed, in whatever way.
    let _ = socket.read_to_end(&mut Vec::new()).await;
    assert_eq!(sh(&sandbox, "echo fine").await.stdout, "fine\n");
    place.end(sandbox).await;
}
