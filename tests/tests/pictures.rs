//! Pictures in requests: taken where the pool's replicas take them, refused with their place everywhere else.

use fake_engine::{FakeEngine, Settings};
use remuda_tests::System;
use serde_json::{Value, json};

fn messages() -> Value {
    let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    json!([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}])
}

#[tokio::test]
async fn a_picture_goes_where_pictures_are_taken() {
    let (seeing, blind) = (
        FakeEngine::start(Settings::default()).unwrap(),
        FakeEngine::start(Settings::default()).unwrap(),
    );
    let system = System::new();
    let settings = format!(
        "[[pools]]\nid = \"seeing\"\nengine = \"openai\"\nurl = {:?}\naliases = [\"seeing\"]\nmedia = true\n\
         [[pools]]\nid = \"blind\"\nengine = \"openai\"\nurl = {:?}\naliases = [\"blind\"]\n",
        seeing.url(),
        blind.url()
    );
    let plane = system.home(&settings, &[]);
    plane.wait_for_replicas("seeing", 1).await;
    plane.wait_for_replicas("blind", 1).await;
    for (pool, expect) in [("seeing", 202), ("blind", 400)] {
        let task = json!({"workload": "chat", "pool": pool, "messages": messages()});
        let answer = plane.post("/v2/tasks", &task).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, expect, "{pool}: {body}");
        if status == 400 {
            assert_eq!(body["param"], "messages[0].content[1]", "{body}");
        }
    }
    // Both engines call their model the same; by alias there is one that takes pictures.
    for (model, expect) in [("seeing", 200), ("blind", 400)] {
        let request = json!({"model": model, "messages": messages()});
        let answer = plane.post("/v1/chat/completions", &request).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, expect, "{model}: {body}");
    }
    let view = plane.json("/v2/pools/seeing").await;
    assert_eq!(view["models"][0]["media"], true, "{view}");
}
