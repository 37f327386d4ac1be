//! A cancel, and a client that goes away, free the engine's slot: streamed or not.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use remuda_tests::{ControlPlane, Deadline, System, busy_slots, eventually_async, pool_toml};
use serde_json::{Value, json};

/// An engine at work, and its address.
async fn counting() -> (System, ControlPlane, String) {
    let system = System::new();
    let plane = system.home(&pool_toml("demo", 1, 2), &[]);
    plane.wait_for_replicas("demo", 1).await;
    let url = plane.handoffs()[0]["url"].as_str().unwrap().to_owned();
    (system, plane, url)
}

async fn wait_for_busy(system: &System, url: &str, count: usize) -> Duration {
    let began = Instant::now();
    eventually_async(&format!("{count} busy slots"), Deadline::default(), || async {
        (busy_slots(&system.http, url).await? == count).then_some(())
    })
    .await;
    began.elapsed()
}

#[tokio::test]
async fn a_client_that_leaves_its_stream_frees_the_slot() {
    let (system, plane, url) = counting().await;
    let response = plane.chat("count", true).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    wait_for_busy(&system, &url, 1).await;
    drop(stream);
    let took = wait_for_busy(&system, &url, 0).await;
    println!(
        "slot free {} ms after the client of a stream left",
        took.as_millis()
    );
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn a_client_that_leaves_without_a_stream_frees_the_slot() {
    let (system, plane, url) = counting().await;
    let request = tokio::spawn(plane.chat("count", false).send());
    wait_for_busy(&system, &url, 1).await;
    request.abort();
    let took = wait_for_busy(&system, &url, 0).await;
    println!(
        "slot free {} ms after a client that wanted no stream left",
        took.as_millis()
    );
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn a_cancelled_task_frees_the_slot_and_sends_no_more() {
    let (system, plane, url) = counting().await;
    let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "count"});
    let accepted: Value = plane
        .post("/v2/tasks", &task)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let path = accepted["links"]["self"].as_str().unwrap().to_owned();
    wait_for_busy(&system, &url, 1).await;
    let cancelled = plane
        .post(&format!("{path}/cancel"), &json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(cancelled.status(), 204);
    let took = wait_for_busy(&system, &url, 0).await;
    println!("slot free {} ms after a cancel", took.as_millis());
    let text = plane
        .get(&format!("{path}/events"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let events = remuda_tests::sse_events(&text);
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.json()["code"]),
        ("error", &json!("CANCELLED"))
    );
    assert_eq!(plane.json(&path).await["state"], "cancelled");
    // Asking again for what holds succeeds.
    let again = plane
        .post(&format!("{path}/cancel"), &json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), 204);
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn a_reader_goes_on_where_it_left_off() {
    let (_system, plane, _url) = counting().await;
    let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "3*67"});
    let accepted: Value = plane
        .post("/v2/tasks", &task)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let events = format!("{}/events", accepted["links"]["self"].as_str().unwrap());
    let whole = plane.get(&events).send().await.unwrap().text().await.unwrap();
    let all = remuda_tests::sse_events(&whole);
    assert_eq!(all.last().unwrap().name, "end", "{whole}");
    for (at, event) in all.iter().enumerate() {
        let rest = plane
            .get(&events)
            .header("last-event-id", &event.id)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert_eq!(
            remuda_tests::sse_events(&rest),
            all[at + 1..],
            "after {}",
            event.id
        );
    }
}
