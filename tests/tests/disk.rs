//! A full disk under the control plane's store: `/v1` goes on, `/v2/tasks` says why not, and all is well with room again.

use std::path::{Path, PathBuf};
use std::process::Command;

use remuda_tests::{Deadline, System, eventually_async, pool_toml, skipped};
use serde_json::{Value, json};

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory)
            .status()
            .ok()?;
        mounted.success().then(|| Self(directory.to_owned()))
    }

    fn fill(&self) {
        // Writes until nothing more fits, which is what the error at the end says.
        let _ = std::fs::write(self.0.join("filler"), vec![0; 4 << 20]);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_only_what_needs_it() {
    let system = System::new();
    let directory = system.directory("small-disk");
    let Some(disk) = SmallDisk::mount(&directory) else {
        return skipped(
            "a_full_disk_stops_only_what_needs_it",
            "needs root, to mount a small file system",
        );
    };
    let plane = system.home(
        &pool_toml("demo", 1, 2),
        &[("ORCHD_DATA_DIR", directory.to_str().unwrap())],
    );
    plane.wait_for_replicas("demo", 1).await;
    let task = json!({"workload": "chat", "model": "remuda-demo", "prompt": "3*67"});
    assert_eq!(plane.post("/v2/tasks", &task).send().await.unwrap().status(), 202);

    disk.fill();
    let refused = eventually_async("a refusal", Deadline::default(), || async {
        let response = plane.post("/v2/tasks", &task).send().await.unwrap();
        (response.status() != 202).then_some(response)
    })
    .await;
    assert_eq!(refused.status(), 503);
    let body: Value = refused.json().await.unwrap();
    assert!(body["message"].as_str().unwrap().contains("stored"), "{body}");
    assert_eq!(plane.ask("3*67").await, "201");

    disk.make_room();
    eventually_async("tasks are taken again", Deadline::default(), || async {
        (plane.post("/v2/tasks", &task).send().await.unwrap().status() == 202).then_some(())
    })
    .await;
    plane.wait_for_free_slots("demo").await;
}
