//! Workspaces: uploaded, worked in, looked at, kept and removed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fake_provider::Step;
use futures_util::StreamExt as _;
use pool_managerd::DoorError;
use pool_registry_types::{
    AgentEvent, AgentOutcome, AgentRun, FileChange, RunWorkspace, WorkspaceChanges, WorkspaceMade,
    WorkspaceView,
};
use task_api::ErrorCode;

use super::place::{Place, Told};
use crate::bench::until;

/// A directory's files: what they say and whether they can be run; links as `-> TARGET`.
pub(crate) type Tree = BTreeMap<String, (Vec<u8>, bool)>;

pub(crate) fn tree<const N: usize>(files: [(&str, &str); N]) -> Tree {
    let file = |(path, text): (&str, &str)| (path.to_owned(), (text.as_bytes().to_vec(), false));
    files.map(file).into()
}

/// A tar archive of the files, as the system's own tar makes it.
pub(crate) fn packed(files: &Tree) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), files);
    let made = Command::new("tar")
        .args(["-c", "-C"])
        .arg(directory.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(made.status.success());
    made.stdout
}

pub(crate) fn write(directory: &Path, files: &Tree) {
    for (path, (content, executable)) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(target) = content.strip_prefix(b"-> ") {
            std::os::unix::fs::symlink(std::str::from_utf8(target).unwrap(), &path).unwrap();
            continue;
        }
        std::fs::write(&path, content).unwrap();
        let mode = if *executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// The files of an archive.
pub(crate) fn unpacked(archive: &[u8]) -> Tree {
    let mut found = Tree::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        match entry.header().entry_type() {
            tar::EntryType::Directory => {}
            tar::EntryType::Symlink => {
                let target = entry.link_name().unwrap().unwrap().display().to_string();
                found.insert(path, (format!("-> {target}").into_bytes(), false));
            }
            _ => {
                let executable = entry.header().mode().unwrap() & 0o100 != 0;
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                found.insert(path, (content, executable));
            }
        }
    }
    found
}

/// What git makes of the files with a patch.
pub(crate) fn patched(files: &Tree, patch: &[u8]) -> Tree {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), files);
    let mut git = Command::new("git")
        .arg("apply")
        .current_dir(directory.path())
        .env("GIT_CEILING_DIRECTORIES", directory.path().parent().unwrap())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(patch).unwrap();
    assert!(
        git.wait().unwrap().success(),
        "{}",
        String::from_utf8_lossy(patch)
    );
    let tar = Command::new("tar")
        .args(["-c", "-C"])
        .arg(directory.path())
        .arg(".")
        .output();
    let strip = |(path, file): (String, _)| (path.trim_start_matches("./").to_owned(), file);
    unpacked(&tar.unwrap().stdout).into_iter().map(strip).collect()
}

impl Place {
    pub(crate) async fn upload(&self, owner: &str, archive: Vec<u8>) -> Result<WorkspaceMade, DoorError> {
        let pieces: Vec<_> = archive
            .chunks(10_000)
            .map(|piece| Ok(piece.to_vec().into()))
            .collect();
        let pieces = futures_util::stream::iter(pieces);
        let pool = self.agent.parse().unwrap();
        self.door().upload_workspace(&pool, owner, pieces).await
    }

    /// What a task has made of its workspace.
    pub(crate) async fn look(
        &self,
        owner: &str,
        task: &str,
        view: WorkspaceView,
    ) -> Result<Vec<u8>, DoorError> {
        let pool = self.agent.parse().unwrap();
        let content = self.door().task_workspace(&pool, owner, task, view).await?;
        let mut bytes = Vec::new();
        let mut pieces = std::pin::pin!(content.into_pieces());
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        Ok(bytes)
    }

    async fn files(&self, owner: &str, task: &str) -> Vec<(String, FileChange)> {
        let said = self.look(owner, task, WorkspaceView::Files).await.unwrap();
        let changes: WorkspaceChanges = serde_json::from_slice(&said).unwrap();
        let file = |file: pool_registry_types::ChangedFile| (file.path, file.change);
        changes.files.into_iter().map(file).collect()
    }
}

fn kept(mut asked: AgentRun, task: &str, id: &str) -> AgentRun {
    asked.workspace = Some(RunWorkspace::Kept { id: id.to_owned() });
    named(asked, task)
}

fn named(mut asked: AgentRun, task: &str) -> AgentRun {
    task.clone_into(&mut asked.task_id);
    asked
}

/// Of the workspace: its name, how many files have changed, what is wrong.
fn end(told: &Told) -> (String, u64, Option<String>) {
    let end = told.events.iter().find_map(|event| match event {
        AgentEvent::Workspace { id, changed, problem } => Some((id.clone(), *changed, problem.clone())),
        _ => None,
    });
    end.unwrap_or_else(|| panic!("nothing of a workspace: {:?}", told.events))
}

fn code<T: std::fmt::Debug>(refused: Result<T, DoorError>) -> ErrorCode {
    match refused {
        Err(DoorError::Agent { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

fn outcome_code(told: &Told) -> (&str, &str) {
    match told.outcome() {
        AgentOutcome::Failed { code, message, .. } => (code, message),
        other => panic!("{other:?}: {:?}", told.events),
    }
}

/// The files with which most tests begin.
fn project() -> Tree {
    let mut files = tree([
        ("a.txt", "one\ntwo\nthree\n"),
        ("gone", "x\n"),
        ("sub/deep.txt", "y\n"),
        ("out", "-> /etc/hostname"),
        ("tool.sh", "#!/bin/sh\necho ran\n"),
    ]);
    files.get_mut("tool.sh").unwrap().1 = true;
    files
}

const CHANGE: &str = "sh sed -i s/two/2/ a.txt && rm gone && printf '\\000\\001' > new.bin && chmod +x new.bin && ln -s a.txt in && ./tool.sh";

#[tokio::test]
async fn a_run_works_in_what_was_uploaded_and_a_patch_says_what_it_did() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let made = place.upload("ann", packed(&project())).await.unwrap();
    assert_eq!((made.files, made.bytes), (5, 14 + 2 + 2 + 19));
    let id = made.workspace_id;
    let run = place.run(kept(place.plain("ann", CHANGE), "t1", &id)).await;
    assert_eq!(run.text(), "ran\n", "{:?}", run.events);
    assert_eq!(end(&run), (id.clone(), 4, None));
    let position = |wanted: fn(&AgentEvent) -> bool| run.events.iter().position(wanted).unwrap();
    assert!(
        position(|event| matches!(event, AgentEvent::Workspace { .. }))
            < position(|event| matches!(event, AgentEvent::Ended { .. }))
    );
    let expect = [
        ("a.txt", FileChange::Modified),
        ("gone", FileChange::Deleted),
        ("in", FileChange::Added),
        ("new.bin", FileChange::Added),
    ];
    assert_eq!(
        place.files("ann", "t1").await,
        expect.map(|(path, change)| (path.to_owned(), change))
    );
    let patch = place.look("ann", "t1", WorkspaceView::Diff).await.unwrap();
    let archive = place.look("ann", "t1", WorkspaceView::Archive).await.unwrap();
    let after = unpacked(&archive);
    assert_eq!(patched(&project(), &patch), after);
    assert_eq!(after["new.bin"], (vec![0, 1], true));
    assert_eq!(after["out"].0, b"-> /etc/hostname");

    // The agent is where it was, and so are the files.
    let again = place
        .run(kept(place.plain("ann", "sh cat a.txt; pwd"), "t2", &id))
        .await;
    assert_eq!(again.text(), format!("one\n2\nthree\n/workspace/{id}\n"));
    assert_eq!(again.level(), pool_registry_types::WarmLevel::Hot);

    // Bob gets at nothing of it, by no name.
    assert_eq!(
        code(place.look("bob", "t1", WorkspaceView::Diff).await),
        ErrorCode::NotFound
    );
    let bobs = place
        .run(kept(place.plain("bob", "sh ls /workspace"), "t1", &id))
        .await;
    assert_eq!(outcome_code(&bobs).0, "NOT_FOUND");
    assert_eq!(place.ask("bob", "sh ls -A /workspace").await, "");
    let pool = place.agent.parse().unwrap();
    assert_eq!(
        code(place.door().remove_workspace(&pool, "bob", &id).await),
        ErrorCode::NotFound
    );

    place.door().remove_workspace(&pool, "ann", &id).await.unwrap();
    assert_eq!(
        code(place.look("ann", "t1", WorkspaceView::Diff).await),
        ErrorCode::NotFound
    );
    // What is no more does not stay in a sandbox either, once something else is opened there.
    let other = place.upload("ann", packed(&tree([("f", "1\n")]))).await.unwrap();
    let listed = place
        .run(kept(
            place.plain("ann", "sh ls /workspace"),
            "t3",
            &other.workspace_id,
        ))
        .await;
    assert_eq!(listed.text(), format!("{}\n", other.workspace_id));
}

#[tokio::test]
async fn a_workspace_outlives_its_sandbox_and_goes_on_with_its_session() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let id = place
        .upload("ann", packed(&project()))
        .await
        .unwrap()
        .workspace_id;
    let mut asked = kept(place.plain("ann", "sh echo more >> a.txt"), "t1", &id);
    asked.session_id = Some("s".to_owned());
    assert_eq!(end(&place.run(asked).await).1, 1);
    let place = place.restarted().await;
    assert_eq!(place.files("ann", "t1").await.len(), 1);
    let mut asked = named(place.plain("ann", "sh tail -n 1 a.txt; rm a.txt"), "t2");
    asked.session_id = Some("s".to_owned());
    let told = place.run(asked.clone()).await;
    assert_eq!(told.text(), "more\n", "{:?}", told.events);
    assert_eq!(end(&told), (id.clone(), 1, None));
    // Another one's session of the same name is another one.
    "bob".clone_into(&mut asked.owner);
    let bobs = place.run(asked).await;
    assert!(!bobs.text().contains("more"), "{:?}", bobs.events);
    assert!(
        !bobs
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::Workspace { .. }))
    );
    // A turn that was cut off has changed something, too.
    let slow = place
        .begin(kept(place.plain("ann", "slow"), "t3", &id))
        .await
        .unwrap();
    drop(slow);
    place.bench.free("fake", 8).await;
    assert_eq!(place.files("ann", "t3").await.len(), 1);
}

#[tokio::test]
async fn what_is_too_much_or_leads_out_is_refused() {
    let place = Place::fake_with(|_, agents| {
        agents.workspaces.bytes_max = 100_000;
        agents.workspaces.per_owner_max = 2;
    });
    let Some(place) = place.await else { return };
    let large = |bytes: usize| Tree::from([("f".to_owned(), (vec![7; bytes], false))]);
    let refused = place.upload("ann", packed(&large(100_001))).await;
    assert_eq!(code(refused), ErrorCode::RequestTooLarge);
    assert_eq!(
        code(place.upload("ann", b"no tar".to_vec()).await),
        ErrorCode::InvalidParams
    );
    let whole = packed(&large(50_000));
    assert_eq!(
        code(place.upload("ann", whole[..20_000].to_vec()).await),
        ErrorCode::InvalidParams
    );
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(1);
    header.as_mut_bytes()[..5].copy_from_slice(b"../up");
    header.set_cksum();
    builder.append(&header, &b"x"[..]).unwrap();
    let leading_out = builder.into_inner().unwrap();
    assert_eq!(
        code(place.upload("ann", leading_out).await),
        ErrorCode::InvalidParams
    );
    assert_eq!(
        std::fs::read_dir(place.workspaces()).unwrap().flatten().count(),
        1
    );

    // What a run makes too large of its workspace is told, and the former stays.
    let id = place
        .upload("ann", packed(&large(10)))
        .await
        .unwrap()
        .workspace_id;
    let grown = place
        .run(kept(
            place.plain("ann", "sh head -c 200000 /dev/zero > f"),
            "t1",
            &id,
        ))
        .await;
    assert_eq!(grown.outcome(), &AgentOutcome::Completed);
    let (_, changed, problem) = end(&grown);
    assert!(
        changed == 0 && problem.as_deref().is_some_and(|why| why.contains("not kept")),
        "{problem:?}"
    );
    assert_eq!(place.files("ann", "t1").await, []);
    let shrunk = place
        .run(kept(place.plain("ann", "sh echo small > f"), "t2", &id))
        .await;
    assert_eq!(end(&shrunk), (id.clone(), 1, None));

    // The third one of an owner takes the place of the one that was not used for the longest time.
    let second = place
        .upload("ann", packed(&large(10)))
        .await
        .unwrap()
        .workspace_id;
    place.upload("ann", packed(&large(10))).await.unwrap();
    let gone = place.run(kept(place.plain("ann", "sh ls"), "t3", &id)).await;
    assert_eq!(outcome_code(&gone).0, "NOT_FOUND");
    let there = place.run(kept(place.plain("ann", "sh ls"), "t4", &second)).await;
    assert_eq!(there.outcome(), &AgentOutcome::Completed, "{:?}", there.events);
}

#[tokio::test]
async fn one_that_is_not_used_expires() {
    let place = Place::fake_with(|_, agents| {
        agents.workspaces.idle_max = std::time::Duration::from_millis(1500);
    });
    let Some(place) = place.await else { return };
    let id = place
        .upload("ann", packed(&project()))
        .await
        .unwrap()
        .workspace_id;
    let empty = || std::fs::read_dir(place.workspaces()).unwrap().next().is_none();
    until("the workspace is removed", empty).await;
    let gone = place.run(kept(place.plain("ann", "sh ls"), "t", &id)).await;
    let (code, message) = outcome_code(&gone);
    assert!(code == "NOT_FOUND" && message.contains("expired"), "{message}");
}

/// A real CLI whose model tells it to write and to run something.
async fn a_real_cli_changes_its_workspace(agent: &str, write: impl FnOnce(&str) -> Step) {
    let Some(place) = Place::real(agent).await else {
        return;
    };
    let id = place
        .upload("ann", packed(&project()))
        .await
        .unwrap()
        .workspace_id;
    let directory = format!("/workspace/{id}");
    place.provider.script([
        write(&directory),
        Step::shell("sed -i s/two/2/ a.txt"),
        Step::text("done"),
    ]);
    let told = place.run(kept(place.asked("ann", "do it"), "t", &id)).await;
    assert_eq!(told.outcome(), &AgentOutcome::Completed, "{:?}", told.events);
    assert_eq!(end(&told), (id, 2, None), "{:?}", told.events);
    let paths: Vec<&String> = told
        .events
        .iter()
        .filter_map(|event| match event {
            AgentEvent::FilesChanged { paths } => Some(paths),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(
        paths.is_empty() || paths.iter().any(|path| *path == "made.txt"),
        "{paths:?}"
    );
    let patch = place.look("ann", "t", WorkspaceView::Diff).await.unwrap();
    let after = patched(&project(), &patch);
    assert_eq!(after["made.txt"].0, b"by the agent\n");
    assert_eq!(after["a.txt"].0, b"one\n2\nthree\n");
    let archive = place.look("ann", "t", WorkspaceView::Archive).await.unwrap();
    assert_eq!(unpacked(&archive), after);
}

#[tokio::test]
async fn claude_code_changes_its_workspace() {
    let write = |directory: &str| Step::write(format!("{directory}/made.txt"), "by the agent\n");
    a_real_cli_changes_its_workspace("claude", write).await;
}

#[tokio::test]
async fn codex_changes_its_workspace() {
    let write = |_: &str| Step::shell("echo by the agent > made.txt");
    a_real_cli_changes_its_workspace("codex", write).await;
}

/// Every name is this machine's.
#[derive(Debug)]
struct Here;

impl egress::Resolve for Here {
    fn resolve<'a>(&'a self, _: &'a str) -> egress::Resolving<'a> {
        Box::pin(async { Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()]) })
    }
}

/// A repository with one commit, tagged `v1`, and one after it on the branch `main`.
fn repository(root: &Path) {
    let work = root.join("work");
    std::fs::create_dir_all(&work).unwrap();
    let git = |arguments: &[&str]| {
        let made = Command::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t.test",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(arguments)
            .current_dir(&work)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(made.status.success(), "{arguments:?}: {made:?}");
    };
    git(&["init", "-q"]);
    for (content, tag) in [("one\n", Some("v1")), ("two\n", None)] {
        std::fs::write(work.join("file"), content).unwrap();
        git(&["add", "file"]);
        git(&["commit", "-q", "-m", "a commit"]);
        if let Some(tag) = tag {
            git(&["tag", tag]);
        }
    }
    git(&["clone", "-q", "--bare", ".", "../project.git"]);
}

/// Serves repositories by git's own program for it. Its port.
async fn serve_git(root: std::path::PathBuf) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer_git(connection, root.clone()));
        }
    });
    port
}

async fn answer_git(mut connection: tokio::net::TcpStream, root: std::path::PathBuf) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut read = Vec::new();
    let head_len = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if !matches!(connection.read_buf(&mut read).await, Ok(count) if count > 0) {
            return;
        }
    };
    let head = String::from_utf8(read[..head_len].to_vec()).unwrap();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let len: usize = header("content-length").map_or(0, |len| len.parse().unwrap());
    while read.len() < head_len + len {
        assert_ne!(connection.read_buf(&mut read).await.unwrap(), 0);
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut git = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", len.to_string())
        .env(
            "HTTP_CONTENT_ENCODING",
            header("content-encoding").unwrap_or_default(),
        )
        .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin
        .take()
        .unwrap()
        .write_all(&read[head_len..])
        .await
        .unwrap();
    let said = git.wait_with_output().await.unwrap().stdout;
    let status = match said.strip_prefix(b"Status: ") {
        Some(rest) => String::from_utf8_lossy(rest.split(|byte| *byte == b'\r').next().unwrap()).into_owned(),
        None => "200 OK".to_owned(),
    };
    let answer = [
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes(),
        &said,
    ]
    .concat();
    // A reader that has left wants no answer.
    let _ = connection.write_all(&answer).await;
}

#[tokio::test]
async fn a_repository_is_cloned_in_the_sandbox_and_its_host_allowed_for_that_alone() {
    let root = tempfile::tempdir().unwrap();
    repository(root.path());
    let port = serve_git(root.path().to_owned()).await;
    let place = Place::fake_with(|pool, agents| {
        agents.resolver = std::sync::Arc::new(Here);
        pool.allowed_networks = vec!["127.0.0.0/8".to_owned()];
    });
    let Some(place) = place.await else { return };
    let cloned = |task: &str, url: String, reference: Option<&str>, prompt: &str| {
        let mut asked = named(place.plain("ann", prompt), task);
        let reference = reference.map(str::to_owned);
        asked.workspace = Some(RunWorkspace::Cloned { url, reference });
        asked
    };
    let url = format!("http://git.test:{port}/project.git");
    let told = place
        .run(cloned(
            "t1",
            url.clone(),
            None,
            "sh cat file && echo three > file && git log --oneline | wc -l",
        ))
        .await;
    assert_eq!(told.text(), "two\n1\n", "{:?}", told.events);
    let (_, changed, problem) = end(&told);
    assert_eq!((changed, problem), (1, None));
    let patch = place.look("ann", "t1", WorkspaceView::Diff).await.unwrap();
    assert_eq!(
        patched(&tree([("file", "two\n")]), &patch),
        tree([("file", "three\n")])
    );
    let archive = place.look("ann", "t1", WorkspaceView::Archive).await.unwrap();
    assert_eq!(
        unpacked(&archive),
        tree([("file", "three\n")]),
        "and nothing of .git"
    );
    let tagged = place
        .run(cloned("t2", url.clone(), Some("v1"), "sh cat file"))
        .await;
    assert_eq!(tagged.text(), "one\n", "{:?}", tagged.events);

    // What the clone could reach, the agent cannot.
    let get = place
        .run(place.plain("ann", &format!("get {url}/info/refs")))
        .await;
    assert_eq!(get.text(), "403", "{:?}", get.events);
    assert!(
        get.events
            .iter()
            .any(|event| matches!(event, AgentEvent::EgressDenied { host, .. } if host == "git.test"))
    );

    // An address of the node's network is no repository, unless the settings say so; nor is what is not there.
    for (url, reference, expect) in [
        (
            "http://10.0.0.1/project.git".to_owned(),
            None,
            "addresses are refused",
        ),
        (url.clone(), Some("no-such-branch"), "no-such-branch"),
        (format!("http://git.test:{port}/nothing.git"), None, "not found"),
        ("file:///etc".to_owned(), None, "no address of a repository"),
        ("http://me:secret@git.test/x".to_owned(), None, "holds a login"),
    ] {
        let refused = place.run(cloned("t3", url.clone(), reference, "sh ls")).await;
        let (code, message) = outcome_code(&refused);
        assert!(
            code == "INVALID_PARAMS" && message.contains(expect),
            "{url}: {message}"
        );
    }
    // Nothing of what failed stays.
    let listed = place.ask("ann", "sh ls /workspace | wc -l").await;
    assert_eq!(listed, "2\n");
}
