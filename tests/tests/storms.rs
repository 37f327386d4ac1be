//! Many at once: clients that come and go, slow readers, more tasks than a queue holds. Afterwards every slot is free.

use std::sync::Arc;
use std::time::Duration;

use fake_engine::{FakeEngine, Settings};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use remuda_tests::{ControlPlane, Deadline, System, eventually_async};
use serde_json::{Value, json};

const SLOTS: u32 = 16;

async fn start(system: &System, engine: &FakeEngine, environment: &[(&str, &str)]) -> ControlPlane {
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = {SLOTS}\n",
        engine.url()
    );
    let plane = system.home(&settings, environment);
    plane.wait_for_replicas("fakes", 1).await;
    plane
}

fn chat(plane: &ControlPlane, prompt: &str, stream: bool) -> reqwest::RequestBuilder {
    let body = json!({"model": "fake", "stream": stream, "messages": [{"role": "user", "content": prompt}]});
    plane.post("/v1/chat/completions", &body)
}

async fn all_quiet(plane: &ControlPlane, engine: &FakeEngine) {
    plane.wait_for_free_slots("fakes").await;
    let (total, free) = plane.slots("fakes").await;
    assert_eq!((total, free), (u64::from(SLOTS), u64::from(SLOTS)));
    eventually_async("an idle engine", Deadline::default(), || async {
        (engine.stats().active == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_thousand_clients_that_come_and_go() {
    let engine = FakeEngine::start(Settings {
        slots: SLOTS,
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let mut plane = start(&system, &engine, &[("ORCHD_ADMISSION_CAPACITY", "2000")]).await;
    let clients = (0..1000u64).map(|client| {
        let request = chat(&plane, "chunks=10 interval_ms=5", client % 2 == 0);
        async move {
            // Some leave at once, some in the middle, some never: spread by the client's number.
            let patience = Duration::from_millis(client * 7919 % 400);
            let whole = async {
                let Ok(response) = request.send().await else {
                    return;
                };
                let mut stream = response.bytes_stream();
                while let Some(Ok(_)) = stream.next().await {}
            };
            let _ = tokio::time::timeout(patience, whole).await;
        }
    });
    join_all(clients).await;
    all_quiet(&plane, &engine).await;
    assert!(plane.program.is_running());
    assert_eq!(chat(&plane, "hello", false).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn two_hundred_slow_readers_slow_only_themselves() {
    let engine = FakeEngine::start(Settings {
        slots: 256,
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 256\n",
        engine.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("fakes", 1).await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let response = chat(&plane, "chunks=20000", true).send().await.unwrap();
        let mut stream = Box::pin(response.bytes_stream());
        stream.next().await.unwrap().unwrap();
        // Kept open and not read any more.
        slow.push(stream);
    }
    for _ in 0..20 {
        let quick = tokio::time::timeout(Duration::from_secs(30), chat(&plane, "chunks=20", true).send());
        let text = quick.await.unwrap().unwrap().text().await.unwrap();
        assert!(text.trim_end().ends_with("[DONE]"));
    }
    let resident_kib = resident_kib(plane.program.pid());
    println!("resident with 200 slow readers: {resident_kib} KiB");
    assert!(
        resident_kib < 300 * 1024,
        "what slow readers do not read is not kept: {resident_kib} KiB"
    );
    drop(slow);
    plane.wait_for_free_slots("fakes").await;
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_tasks_into_a_queue_of_a_hundred() {
    let engine = FakeEngine::start(Settings {
        slots: SLOTS,
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let plane = Arc::new(start(&system, &engine, &[]).await);
    let task = json!({"workload": "chat", "model": "fake", "prompt": "chunks=2 interval_ms=20"});
    let mut accepted = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let batch = join_all((0..100).map(|_| plane.post("/v2/tasks", &task).send())).await;
        for response in batch {
            let response = response.unwrap();
            match response.status().as_u16() {
                202 => {
                    let body: Value = response.json().await.unwrap();
                    assert!(body["position"].as_u64().unwrap() <= 100, "{body}");
                    accepted.push(body["links"]["self"].as_str().unwrap().to_owned());
                }
                429 => {
                    assert!(response.headers().contains_key("retry-after"));
                    let body: Value = response.json().await.unwrap();
                    assert_eq!(body["code"], "ADMISSION_REJECT", "{body}");
                    assert!(body["retry_after_ms"].as_u64().unwrap() > 0, "{body}");
                    refused += 1;
                }
                status => panic!("{status}: {}", response.text().await.unwrap()),
            }
        }
    }
    println!("{} tasks were taken, {refused} refused", accepted.len());
    assert!(refused > 0 && accepted.len() >= 100);
    all_quiet(&plane, &engine).await;
    // Each one that was taken has ended, and well.
    for path in accepted.iter().rev().take(500) {
        eventually_async("the task's end", Deadline::default(), || async {
            let view = plane.json(path).await;
            (view["state"] == "completed").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_full_queue_drops_its_oldest_batch_task_and_tells_it() {
    let engine = FakeEngine::start(Settings {
        slots: 1,
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 1\n",
        engine.url()
    );
    let plane = system.home(
        &settings,
        &[
            ("ORCHD_ADMISSION_CAPACITY", "2"),
            ("ORCHD_ADMISSION_POLICY", "drop-lru"),
        ],
    );
    plane.wait_for_replicas("fakes", 1).await;
    let submit = async |priority: &str| -> String {
        let task = json!({"workload": "chat", "model": "fake", "prompt": "chunks=100 interval_ms=20", "priority": priority});
        let response = plane.post("/v2/tasks", &task).send().await.unwrap();
        assert_eq!(response.status(), 202);
        let body: Value = response.json().await.unwrap();
        body["links"]["self"].as_str().unwrap().to_owned()
    };
    let running = submit("interactive").await;
    let oldest = submit("batch").await;
    let newer = submit("batch").await;
    let urgent = submit("interactive").await;
    let view = plane.json(&oldest).await;
    assert_eq!(
        (&view["state"], &view["error"]["code"]),
        (&json!("evicted"), &json!("QUEUE_FULL_DROP_LRU")),
        "{view}"
    );
    assert_eq!(
        plane.json(&urgent).await["position"],
        0,
        "interactive goes before batch"
    );
    assert_eq!(plane.json(&newer).await["position"], 1);
    for path in [running, urgent, newer] {
        plane
            .post(&format!("{path}/cancel"), &json!({}))
            .send()
            .await
            .unwrap();
    }
    plane.wait_for_free_slots("fakes").await;
}

#[tokio::test]
async fn a_deadline_ends_a_task_wherever_it_stands() {
    let engine = FakeEngine::start(Settings {
        slots: 1,
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 1\n",
        engine.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("fakes", 1).await;
    let task = json!({"workload": "chat", "model": "fake", "prompt": "chunks=1000 interval_ms=20", "deadline_ms": 300});
    for _ in 0..2 {
        let response = plane
            .post("/v2/tasks", &task)
            .header("accept", "text/event-stream")
            .send()
            .await
            .unwrap();
        let text = response.text().await.unwrap();
        let last = remuda_tests::sse_events(&text).pop().unwrap();
        assert_eq!(
            (last.name.as_str(), &last.json()["code"]),
            ("error", &json!("DEADLINE_UNMET")),
            "{text}"
        );
    }
    plane.wait_for_free_slots("fakes").await;
    eventually_async("an idle engine", Deadline::default(), || async {
        (engine.stats().active == 0).then_some(())
    })
    .await;
}
