//! Engines that do what engines should not: a client gets the whole answer of another one, or is told.
//!
//! The engines are fakes, because a real one does none of this at the moment a test wants it.

use std::time::{Duration, Instant};

use fake_engine::{Behaviour, Failure, FakeEngine, Settings};
use remuda_tests::{ControlPlane, Deadline, System, eventually_async, sse_events};
use serde_json::{Value, json};

fn engine(slots: u32) -> FakeEngine {
    FakeEngine::start(Settings {
        slots,
        ..Settings::default()
    })
    .unwrap()
}

fn pool(engines: &[&FakeEngine], slots: u32) -> String {
    let urls: Vec<String> = engines.iter().map(|engine| engine.url()).collect();
    format!("[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurls = {urls:?}\nslots = {slots}\n")
}

async fn start(system: &System, engines: &[&FakeEngine], slots: u32) -> ControlPlane {
    let settings = pool(engines, slots);
    let plane = system.home(
        &settings,
        &[
            ("ORCHD_ENGINE_SILENCE_MS", "2000"),
            ("ORCHD_POOL_UNREADY_WAIT_MS", "3000"),
        ],
    );
    plane.wait_for_replicas("fakes", engines.len()).await;
    plane
}

async fn ask(plane: &ControlPlane, prompt: &str, stream: bool) -> (u16, String) {
    let body = json!({"model": "fake", "stream": stream, "messages": [{"role": "user", "content": prompt}]});
    let response = plane.post("/v1/chat/completions", &body).send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.text().await.unwrap())
}

/// The failure is of one engine only: the other one answers, and the client sees nothing of it.
async fn another_one_answers(failure: Failure) {
    let (bad, good) = (engine(4), engine(4));
    let system = System::new();
    let plane = start(&system, &[&bad, &good], 4).await;
    bad.set_behaviour(Behaviour {
        failure: Some(failure),
        ..Behaviour::default()
    });
    for stream in [false, true] {
        for round in 0..4 {
            let (status, text) = ask(&plane, "hello", stream).await;
            assert_eq!(status, 200, "{failure:?} stream={stream} round {round}: {text}");
            assert_eq!(
                text.trim_end().ends_with("[DONE]"),
                stream,
                "{failure:?} round {round}: {text}"
            );
        }
    }
    plane.wait_for_free_slots("fakes").await;
}

#[tokio::test]
async fn garbage_is_answered_by_another_engine() {
    another_one_answers(Failure::Garbage).await;
}

#[tokio::test]
async fn an_engine_that_fails_is_passed_over() {
    another_one_answers(Failure::Error).await;
}

#[tokio::test]
async fn an_engine_that_loads_is_passed_over() {
    another_one_answers(Failure::Loading).await;
}

/// The first data has been sent: the client is told, in the stream, and at once.
async fn the_client_is_told(words: &str, code: &str) {
    let only = engine(4);
    let system = System::new();
    let plane = start(&system, &[&only], 4).await;
    let (status, text) = ask(&plane, &format!("chunks=20 after=3 {words}"), true).await;
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    let events = sse_events(&text);
    assert_eq!(events.last().unwrap().json()["error"]["code"], code, "{text}");
    plane.wait_for_free_slots("fakes").await;
}

#[tokio::test]
async fn a_cut_chunk_is_told() {
    the_client_is_told("fail=cut", "WORKER_RESET").await;
}

#[tokio::test]
async fn a_dead_connection_is_told() {
    the_client_is_told("fail=die", "WORKER_RESET").await;
}

#[tokio::test]
async fn an_end_that_is_not_the_dialects_end_is_told() {
    the_client_is_told("fail=no_done", "WORKER_RESET").await;
}

#[tokio::test]
async fn silence_in_mid_stream_is_told() {
    the_client_is_told("fail=stall", "DECODE_TIMEOUT").await;
}

#[tokio::test]
async fn an_engine_that_never_answers_is_given_up() {
    let only = engine(4);
    let system = System::new();
    let plane = start(&system, &[&only], 4).await;
    for stream in [false, true] {
        let (status, text) = ask(&plane, "fail=never", stream).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (504, Some("DECODE_TIMEOUT")),
            "{text}"
        );
        plane.wait_for_replicas("fakes", 1).await;
    }
    plane.wait_for_free_slots("fakes").await;
    assert_eq!(only.stats().active, 0, "the engine's request was cancelled");
}

#[tokio::test]
async fn when_every_engine_is_dead_the_client_is_told_and_nothing_panics() {
    let only = engine(4);
    let system = System::new();
    let mut plane = start(&system, &[&only], 4).await;
    only.kill();
    let (status, text) = ask(&plane, "hello", false).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (503, Some("POOL_UNAVAILABLE")),
        "{text}"
    );
    assert!(plane.program.is_running());
}

#[tokio::test]
async fn an_engine_that_comes_back_is_used_again() {
    let system = System::new();
    let first = engine(4);
    let port = first.address().port();
    let plane = start(&system, &[&first], 4).await;
    first.kill();
    let waiting = tokio::spawn({
        let body = json!({"model": "fake", "messages": [{"role": "user", "content": "hello"}]});
        plane.post("/v1/chat/completions", &body).send()
    });
    eventually_async("the replica is out", Deadline::default(), || async {
        let view = plane.json("/v2/pools/fakes").await;
        let replica = &view["replicas"][0];
        (replica["taken_out"] == true || replica["state"] != "ready").then_some(())
    })
    .await;
    let _second = FakeEngine::start(Settings {
        port,
        ..Settings::default()
    })
    .unwrap();
    // Who came while nothing was there has waited, and sees only time.
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

/// Everything has come and the body is not ended: who waits for its end would wait until the silence is too long.
async fn ends_at_once(recipe: &str, words: &str, stream: bool) {
    let only = engine(4);
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = {recipe:?}\nurl = {:?}\nslots = 4\n",
        only.url()
    );
    let plane = system.home(&settings, &[("ORCHD_ENGINE_SILENCE_MS", "20000")]);
    plane.wait_for_replicas("fakes", 1).await;
    let asked = Instant::now();
    let (status, text) = ask(&plane, words, stream).await;
    let took = asked.elapsed();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("w2 "), "{text}");
    assert_eq!(text.trim_end().ends_with("[DONE]"), stream, "{text}");
    assert!(
        took < Duration::from_secs(5),
        "{recipe} stream={stream}: {took:?}"
    );
    plane.wait_for_free_slots("fakes").await;
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "its slot was free late"
    );
    eventually_async("the engine let go", Deadline::default(), || async {
        (only.stats().active == 0).then_some(())
    })
    .await;
    // The connection on which the end is missing serves nobody else.
    let (status, text) = ask(&plane, "chunks=3", stream).await;
    assert_eq!(status, 200, "{text}");
}

#[tokio::test]
async fn an_answer_put_together_does_not_wait_for_the_end_of_the_body() {
    ends_at_once("llamacpp", "chunks=3 fail=open", false).await;
}

#[tokio::test]
async fn a_task_ends_with_the_last_event_of_an_engine_that_keeps_the_body_open() {
    let only = engine(4);
    let system = System::new();
    let plane = system.home(&pool(&[&only], 4), &[("ORCHD_ENGINE_SILENCE_MS", "20000")]);
    plane.wait_for_replicas("fakes", 1).await;
    let asked = Instant::now();
    let task = json!({"workload": "chat", "model": "fake", "prompt": "chunks=3 fail=open"});
    let request = plane
        .post("/v2/tasks", &task)
        .header("accept", "text/event-stream");
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(sse_events(&text).last().unwrap().name, "end", "{text}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    plane.wait_for_free_slots("fakes").await;
}

#[tokio::test]
async fn a_stream_whose_body_stays_open_ends_with_its_last_event() {
    ends_at_once("openai", "chunks=3 fail=open", true).await;
}

#[tokio::test]
async fn a_whole_answer_whose_body_stays_open_is_given_at_once() {
    ends_at_once("openai", "chunks=3 fail=open", false).await;
}
