//! Requests of `/v1` are tasks, and can be looked at like the others: while they run, and for a while after.

use fake_engine::{FakeEngine, Settings};
use remuda_tests::{ControlPlane, System};
use serde_json::{Value, json};

async fn listed(plane: &ControlPlane, query: &str) -> Vec<Value> {
    let page = plane.json(&format!("/v2/tasks{query}")).await;
    page["tasks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_request_of_v1_is_listed_while_it_runs_and_after_it() {
    let engine = FakeEngine::start(Settings {
        slots: 4,
        behaviour: "chunks=100000 interval_ms=5".parse().unwrap(),
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"p\"\nengine = \"openai\"\nurl = {:?}\n",
        engine.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("p", 1).await;
    let body = json!({"model": "fake", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let mut stream = plane.post("/v1/chat/completions", &body).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    let tasks = listed(&plane, "?state=running").await;
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    let task = &tasks[0];
    assert_eq!(
        (&task["dialect"], &task["model"], &task["owner"]),
        (&"chat_completions".into(), &"fake".into(), &"token".into())
    );
    assert_eq!(task["placements"][0]["pool_id"], "p");
    let path = format!("/v2/tasks/{}", task["task_id"].as_str().unwrap());
    assert_eq!(&plane.json(&path).await, task);
    let events = plane.get(&format!("{path}/events")).send().await.unwrap();
    assert_eq!(events.status().as_u16(), 409);
    drop(stream);
    plane.wait_for_free_slots("p").await;
    assert_eq!(plane.json(&path).await["state"], "cancelled");
    assert!(listed(&plane, "?state=running").await.is_empty());
}

/// Streaming, whole, and waiting in the queue: each ends at once when its task is cancelled, and says why.
#[tokio::test]
async fn a_request_of_v1_can_be_cancelled_by_its_task_wherever_it_stands() {
    let engine = FakeEngine::start(Settings {
        slots: 1,
        behaviour: "chunks=2 interval_ms=3000000".parse().unwrap(),
        ..Settings::default()
    })
    .unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"p\"\nengine = \"openai\"\nurl = {:?}\nslots = 1\n",
        engine.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("p", 1).await;
    let ask = |stream: bool| {
        let body = json!({"model": "fake", "stream": stream, "messages": [{"role": "user", "content": "x"}]});
        let request = plane.post("/v1/chat/completions", &body);
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        })
    };
    let streams = ask(true);
    let streaming = task_in(&plane, "running").await;
    let waits = ask(false);
    let waiting = task_in(&plane, "queued").await;
    cancel(&plane, &waiting).await;
    assert_cancelled(499, waits).await;
    cancel(&plane, &streaming).await;
    assert_cancelled(200, streams).await;

    let whole = ask(false);
    let placed = task_in(&plane, "placed").await;
    cancel(&plane, &placed).await;
    assert_cancelled(499, whole).await;
    for task in [waiting, streaming, placed] {
        assert_eq!(plane.json(&task).await["state"], "cancelled");
        cancel(&plane, &task).await;
    }
    plane.wait_for_free_slots("p").await;
}

async fn assert_cancelled(status: u16, answer: tokio::task::JoinHandle<(u16, String)>) {
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), answer)
        .await
        .unwrap();
    let (got, text) = answer.unwrap();
    assert_eq!(got, status, "{text}");
    assert!(text.contains("cancelled by its task's id"), "{text}");
}

async fn cancel(plane: &ControlPlane, task: &str) {
    let answer = plane
        .post(&format!("{task}/cancel"), &json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 204);
}

/// The way to the only task in that state, once there is one.
async fn task_in(plane: &ControlPlane, state: &str) -> String {
    let seen = async {
        loop {
            let tasks = listed(plane, &format!("?state={state}")).await;
            if let [task] = tasks.as_slice() {
                return format!("/v2/tasks/{}", task["task_id"].as_str().unwrap());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), seen)
        .await
        .unwrap_or_else(|_| panic!("no task is {state}"))
}

#[tokio::test]
async fn both_kinds_stand_in_one_list_that_can_be_paged() {
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"p\"\nengine = \"openai\"\nurl = {:?}\n",
        engine.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("p", 1).await;
    for round in 0..3 {
        let chat = json!({"model": "fake", "messages": [{"role": "user", "content": "x"}]});
        let answer = plane.post("/v1/chat/completions", &chat).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let task =
            json!({"task_id": format!("t{round}"), "workload": "chat", "model": "fake", "prompt": "x"});
        let answer = plane.post("/v2/tasks", &task).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    }
    let all = listed(&plane, "").await;
    assert_eq!(all.len(), 6, "{all:?}");
    let ids = |tasks: &[Value]| -> Vec<String> {
        let id = |task: &Value| task["task_id"].as_str().unwrap().to_owned();
        tasks.iter().map(id).collect()
    };
    let mut paged = Vec::new();
    let mut query = "?limit=1".to_owned();
    loop {
        let page = plane.json(&format!("/v2/tasks{query}")).await;
        paged.extend(ids(page["tasks"].as_array().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        assert!(paged.len() <= 6, "it goes round: {paged:?}");
        query = format!("?limit=1&cursor={cursor}");
    }
    assert_eq!(paged, ids(&all));
    assert_eq!(all.iter().filter(|task| task["dialect"].is_string()).count(), 3);
    assert_eq!(listed(&plane, "?owner=nobody").await.len(), 0);
}
