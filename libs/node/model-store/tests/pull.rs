//! Pulling models from a hub, an address and a file: against servers that cut, lie and refuse.

#![expect(clippy::unwrap_used, reason = "a test may end by panicking")]

#[path = "support/server.rs"]
mod server;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model_store::{Digest, Model, Progress, RetryPolicy, Source, Store, StoreError, StoreOptions};
use server::{Reply, Server};

const TOKEN: &str = "hf_a_token_that_nobody_else_may_see";

/// Content that is different everywhere, so that a piece in the wrong place is noticed.
fn content() -> Vec<u8> {
    let numbers = (0..99_999_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes());
    b"GGUF".iter().copied().chain(numbers).collect()
}

fn options(directory: &Path, endpoint: &str) -> StoreOptions {
    let retry = RetryPolicy {
        fruitless_max: 3,
        attempts_max: 50,
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
    };
    StoreOptions {
        hub_endpoint: endpoint.to_owned(),
        retry,
        ..StoreOptions::new(directory)
    }
}

async fn pull(store: &Store, source: &str) -> Result<Model, StoreError> {
    let source: Source = source.parse().unwrap();
    store.pull(&source, None, &Progress::none()).await
}

/// The whole chain of causes, as a person sees it.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A hub whose large files lie on a server of their own, which answers with `blob`.
fn hub(blob: impl Fn(&server::Request) -> Reply + Send + Sync + 'static) -> (Server, Server) {
    let blobs = Server::start(blob);
    let location = blobs.url("/blob?signature=secret");
    let hub = Server::start(move |request| match request.path.as_str() {
        "/org/repo/resolve/main/sub/m.gguf" => Reply::new(302, "")
            .header("Location", &location)
            .header("X-Linked-Etag", format!("\"{}\"", Digest::of(&content())))
            .header("X-Linked-Size", content().len()),
        "/org/private/resolve/main/m.gguf" => Reply::new(401, ""),
        _ => Reply::new(404, ""),
    });
    (hub, blobs)
}

/// How often something was asked for by GET.
fn gets(server: &Server) -> usize {
    server
        .asked()
        .iter()
        .filter(|request| request.method == "GET")
        .count()
}

const MODEL: &str = "hf:org/repo/sub/m.gguf";

#[tokio::test]
async fn a_model_comes_from_the_hub_and_the_token_goes_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let (hub, blobs) = hub(|request| Reply::range(request, &content()));
    let mut options = options(directory.path(), &hub.url("/"));
    options.hub_token = Some(TOKEN.to_owned());
    let store = Store::new(options);
    let model = pull(&store, MODEL).await.unwrap();
    assert_eq!((model.name.as_str(), model.source.as_str()), ("m", MODEL));
    assert_eq!(std::fs::read(&model.path).unwrap(), content());
    assert!(
        model
            .path
            .ends_with(format!("blobs/sha256-{}", Digest::of(&content())))
    );
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&model));
    let bearer = format!("Bearer {TOKEN}");
    assert!(
        hub.asked()
            .iter()
            .all(|request| request.headers.get("authorization") == Some(&bearer))
    );
    assert!(!blobs.asked().is_empty());
    assert!(
        blobs
            .asked()
            .iter()
            .all(|request| !request.headers.contains_key("authorization"))
    );
    let partial = std::fs::read_dir(directory.path().join("models/partial"))
        .unwrap()
        .count();
    assert_eq!(partial, 0, "nothing is left behind");

    let asked = hub.asked().len() + blobs.asked().len();
    let source: Source = MODEL.parse().unwrap();
    assert_eq!(store.ensure(&source, &Progress::none()).await.unwrap(), model);
    assert_eq!(
        hub.asked().len() + blobs.asked().len(),
        asked,
        "what is here is not asked for"
    );
    assert_eq!(pull(&store, MODEL).await.unwrap().sha256, model.sha256);
    assert_eq!(gets(&blobs), 1, "the hub says that nothing has changed");
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_it_was_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (hub, blobs) = hub(|request| Reply::range(request, &content()).cut_after(70_000));
    let store = Store::new(options(directory.path(), &hub.url("")));
    let model = pull(&store, MODEL).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content());
    let starts: Vec<_> = blobs
        .asked()
        .iter()
        .filter(|request| request.method == "GET")
        .map(|request| request.range_start().unwrap_or(0))
        .collect();
    assert_eq!(starts, [0, 70_000, 140_000, 210_000, 280_000, 350_000]);
}

#[tokio::test]
async fn what_an_earlier_run_got_is_used_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let gets = AtomicUsize::new(0);
    let (hub, blobs) = hub(
        move |request| match (request.method.as_str(), gets.load(Ordering::Relaxed)) {
            ("HEAD", _) => Reply::new(200, ""),
            (_, 0) => {
                gets.fetch_add(1, Ordering::Relaxed);
                Reply::range(request, &content()).cut_after(123_456)
            }
            (_, 1..=3) => {
                gets.fetch_add(1, Ordering::Relaxed);
                Reply::new(503, "later")
            }
            _ => Reply::range(request, &content()),
        },
    );
    let store = Store::new(options(directory.path(), &hub.url("")));
    let error = told(&pull(&store, MODEL).await.unwrap_err());
    assert!(
        error.contains("4 attempts failed") && error.contains("answered 503"),
        "{error}"
    );
    assert!(!error.contains("signature"), "{error}");
    let model = pull(&store, MODEL).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content());
    assert_eq!(blobs.asked().last().unwrap().range_start(), Some(123_456));
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_heard_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let gets = AtomicUsize::new(0);
    let (hub, blobs) = hub(move |request| {
        let first = request.method == "GET" && gets.fetch_add(1, Ordering::Relaxed) == 0;
        let reply = Reply::new(200, content());
        if first { reply.cut_after(50_000) } else { reply }
    });
    let store = Store::new(options(directory.path(), &hub.url("")));
    let model = pull(&store, MODEL).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content());
    assert_eq!(blobs.asked().last().unwrap().range_start(), Some(50_000));
}

#[tokio::test]
async fn what_has_another_digest_is_refused_and_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (hub, _blobs) = hub(|request| {
        let mut wrong = content();
        wrong[1000] ^= 1;
        Reply::range(request, &wrong)
    });
    let store = Store::new(options(directory.path(), &hub.url("")));
    let error = told(&pull(&store, MODEL).await.unwrap_err());
    let right = Digest::of(&content());
    assert!(
        error.contains("m.gguf is not what it should be") && error.contains(&right.to_string()),
        "{error}"
    );
    assert!(store.list().unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(directory.path().join("models/partial"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_beginning_that_is_damaged_is_thrown_away_once() {
    let directory = tempfile::tempdir().unwrap();
    let fails = AtomicUsize::new(0);
    let (hub, _blobs) = hub(move |request| {
        let begun = request.method == "GET" && fails.fetch_add(1, Ordering::Relaxed) < 3;
        if begun {
            Reply::range(request, &content()).cut_after(0)
        } else {
            Reply::range(request, &content())
        }
    });
    let store = Store::new(options(directory.path(), &hub.url("")));
    pull(&store, MODEL).await.unwrap_err();
    let partials = std::fs::read_dir(directory.path().join("models/partial")).unwrap();
    let partial = partials
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_none())
        .unwrap();
    std::fs::write(&partial, vec![7_u8; 5000]).unwrap();
    let model = pull(&store, MODEL).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content());
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let (hub, _blobs) = hub(|_| Reply::new(500, ""));
    let mut options = options(directory.path(), &hub.url(""));
    let source = "hf:org/private/m.gguf";
    let error = told(&pull(&Store::new(options.clone()), source).await.unwrap_err());
    assert!(
        error.ends_with("401 Unauthorized for m.gguf: a token with access to it is needed, in HF_TOKEN"),
        "{error}"
    );
    options.hub_token = Some(TOKEN.to_owned());
    let store = Store::new(options.clone());
    let error = told(&pull(&store, source).await.unwrap_err());
    assert!(
        error.ends_with("the token in HF_TOKEN is wrong or has no access to it"),
        "{error}"
    );
    assert!(!error.contains(TOKEN));
    let error = told(&pull(&store, "hf:org/repo/other.gguf").await.unwrap_err());
    assert!(
        error.contains("has no other.gguf (404): check the spelling"),
        "{error}"
    );
    options.hub_endpoint = "not an address".to_owned();
    let error = told(&pull(&Store::new(options), source).await.unwrap_err());
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}

#[tokio::test]
async fn the_tree_knows_what_the_redirect_does_not_say() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Server::start(|request| match request.path.as_str() {
        "/org/repo/resolve/v1/sub/m.gguf" => {
            let mut wrong = content();
            wrong[0] ^= 1;
            Reply::range(request, &wrong)
        }
        "/api/models/org/repo/tree/v1/sub" => Reply::new(
            200,
            format!(
                r#"[{{"type":"file","path":"sub/m.gguf","size":9,"oid":"1","lfs":{{"oid":"{}","size":{},"pointerSize":1}}}}]"#,
                Digest::of(&content()),
                content().len()
            ),
        ),
        _ => Reply::new(404, ""),
    });
    let store = Store::new(options(directory.path(), &hub.url("")));
    let error = told(&pull(&store, "hf:org/repo@v1/sub/m.gguf").await.unwrap_err());
    assert!(error.contains("is not what it should be"), "{error}");
}

#[tokio::test]
async fn a_small_file_without_a_digest_is_taken_as_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Server::start(|request| match request.path.as_str() {
        "/org/repo/resolve/main/m.gguf" => Reply::range(request, b"GGUF small"),
        _ => Reply::new(404, ""),
    });
    let store = Store::new(options(directory.path(), &hub.url("")));
    assert_eq!(
        pull(&store, "hf:org/repo/m.gguf").await.unwrap().sha256,
        Digest::of(b"GGUF small")
    );
}

#[tokio::test]
async fn an_address_is_pulled_and_its_digest_checked() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/busy.gguf" => Reply::new(429, "slow down").header("Retry-After", 0),
        "/odd.gguf" => Reply::new(302, "").header("Location", "ftp://127.0.0.1/m"),
        "/round.gguf" => Reply::new(302, "").header("Location", "/round.gguf"),
        "/login.gguf" => Reply::new(200, "<html>\n<h1>Log in</h1>"),
        "/huge.gguf" => Reply::new(200, "x").header("Content-Length", 1_u64 << 60),
        _ => Reply::range(request, &content())
            .header("ETag", "\"1\"")
            .cut_after(300_000),
    });
    let store = Store::new(options(directory.path(), ""));
    let digest = Digest::of(&content());
    let model = pull(&store, &server.url(&format!("/m.gguf#sha256={digest}")))
        .await
        .unwrap();
    assert_eq!(model.sha256, digest);
    let model = pull(&store, &server.url("/without.gguf")).await.unwrap();
    assert_eq!(model.sha256, digest);
    assert_eq!(server.asked().last().unwrap().headers["if-range"], "\"1\"");
    let wrong = Digest::of(b"another");
    for (path, expect) in [
        (format!("/n.gguf#sha256={wrong}"), "its SHA-256 is"),
        (
            "/busy.gguf".to_owned(),
            "3 attempts failed, the last one brought nothing new: 127.0.0.1:",
        ),
        (
            "/login.gguf".to_owned(),
            r#"login.gguf is no GGUF file: it begins with "<html>\n<h1>Log in</h1>"; it"#,
        ),
        (
            "/m-00001-of-00002.gguf".to_owned(),
            "is one of 2 files that make a model",
        ),
        ("/odd.gguf".to_owned(), "from http to ftp"),
        ("/round.gguf".to_owned(), "more than 10 times"),
        (
            "/huge.gguf".to_owned(),
            "the disk is full: huge.gguf needs 1152921504606846976 more bytes",
        ),
    ] {
        let error = told(&pull(&store, &server.url(&path)).await.unwrap_err());
        assert!(error.contains(expect), "{path}: {error}");
    }
}

/// A small file system of its own. None: this user may not make one, and the test is skipped.
fn small_disk(directory: &Path) -> Option<SmallDisk> {
    let mut mount = std::process::Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"])
        .arg(directory);
    let mounted = mount.output().is_ok_and(|output| output.status.success());
    if !mounted {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI nothing is skipped: a small disk needs root"
        );
        eprintln!("skipped: making a small disk needs root");
        return None;
    }
    Some(SmallDisk(directory.to_owned()))
}

struct SmallDisk(std::path::PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_is_said_and_the_pull_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_disk) = small_disk(directory.path()) else {
        return;
    };
    let digest = Digest::of(&content());
    // Nobody says how large it is, so that it is noticed only when the disk is full.
    let server = Server::start(|request| {
        let reply = Reply::range(request, &content());
        if request.range_start().is_none() {
            reply.header("Content-Length", "")
        } else {
            reply
        }
    });
    let store = Store::new(options(directory.path(), ""));
    let source = server.url(&format!("/m.gguf#sha256={digest}"));
    let error = told(&pull(&store, &source).await.unwrap_err());
    assert!(error.starts_with("the disk is full: m.gguf needs"), "{error}");
    let mut grow = std::process::Command::new("mount");
    grow.args(["-o", "remount,size=2m"]).arg(directory.path());
    assert!(grow.status().unwrap().success());
    assert_eq!(pull(&store, &source).await.unwrap().sha256, digest);
    assert!(
        server.asked().last().unwrap().range_start().is_some(),
        "what had come was used"
    );
}

#[tokio::test]
async fn nobody_there_is_said_after_a_few_attempts() {
    let directory = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let store = Store::new(options(directory.path(), &format!("http://{free}")));
    let error = told(&pull(&store, MODEL).await.unwrap_err());
    assert!(
        error.contains("3 attempts failed") && error.contains("onnection"),
        "{error}"
    );
}

#[tokio::test]
async fn two_pulls_at_once_download_once() {
    let directory = tempfile::tempdir().unwrap();
    let (hub, blobs) = hub(|request| Reply::range(request, &content()));
    let store = Store::new(options(directory.path(), &hub.url("")));
    let (first, second) = tokio::join!(pull(&store, MODEL), pull(&store, MODEL));
    assert_eq!(first.unwrap().sha256, second.unwrap().sha256);
    assert_eq!(gets(&blobs), 1);
}

#[tokio::test]
async fn files_are_copied_named_verified_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("My Model.gguf");
    std::fs::write(&file, content()).unwrap();
    let store = Store::new(options(directory.path(), ""));
    let source: Source = file.display().to_string().parse().unwrap();
    let model = store.pull(&source, None, &Progress::none()).await.unwrap();
    assert_eq!(model.name, "My-Model");
    let other = store
        .pull(&source, Some("other"), &Progress::none())
        .await
        .unwrap();
    assert_eq!(other.path, model.path);
    assert_eq!(store.get("other").unwrap(), Some(other));
    store.verify("other", &Progress::none()).await.unwrap();

    let elsewhere = directory.path().join("elsewhere.gguf");
    std::fs::write(&elsewhere, "GGUF x").unwrap();
    let source: Source = elsewhere.display().to_string().parse().unwrap();
    let error = told(
        &store
            .pull(&source, Some("other"), &Progress::none())
            .await
            .unwrap_err(),
    );
    assert!(error.starts_with("the name other stands for"), "{error}");
    let error = told(
        &store
            .pull(&source, Some("../x"), &Progress::none())
            .await
            .unwrap_err(),
    );
    assert!(error.contains("cannot be a model's name"), "{error}");

    let blob = |name: &str| directory.path().join("models").join(name);
    std::fs::write(blob("blobs/sha256-left-by-an-end-at-a-bad-moment"), "12345").unwrap();
    std::fs::write(blob("manifests/.tmp-likewise"), "{").unwrap();
    std::fs::write(&model.path, "damaged").unwrap();
    let error = told(&store.verify("other", &Progress::none()).await.unwrap_err());
    assert!(
        error.starts_with("the model other is damaged: its SHA-256 is"),
        "{error}"
    );
    std::fs::write(blob("manifests/newer.json"), "{}").unwrap();
    let third = store
        .pull(&source, Some("third"), &Progress::none())
        .await
        .unwrap();
    assert_eq!(store.remove("third").unwrap().freed_bytes, 0);
    assert!(
        third.path.exists(),
        "a manifest that cannot be read may stand for it"
    );
    std::fs::remove_file(blob("manifests/newer.json")).unwrap();
    std::fs::remove_file(third.path).unwrap();
    assert_eq!(store.remove("other").unwrap().freed_bytes, 5);
    assert!(!blob("manifests/.tmp-likewise").exists());
    assert!(model.path.exists(), "another name stands for it");
    assert_eq!(
        store.remove("My-Model").unwrap().freed_bytes,
        "damaged".len() as u64
    );
    assert!(!model.path.exists() && store.list().unwrap().is_empty());
    assert!(matches!(
        store.remove("My-Model"),
        Err(StoreError::NoSuchModel(_))
    ));
}
