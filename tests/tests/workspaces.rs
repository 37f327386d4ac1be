//! Workspaces by the command line: a directory goes up, a patch and files come down, and nobody else sees them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use remuda_tests::{ControlPlane, System, binary, skipped};
use serde_json::Value;

use crate::agents::{POOL, fake_agent, missing};

const ALICE: &str = "alices-key";
const BOB: &str = "bobs-key";

/// Types a command of `remuda` with somebody's key.
fn types(plane: &ControlPlane, key: &str, arguments: &[&str]) -> Output {
    Command::new(binary("remuda"))
        .args(arguments)
        .args(["--url", &plane.url, "--api-key", key])
        .env_remove("REMUDA_URL")
        .output()
        .unwrap()
}

/// The same, which must work. What it writes.
fn does(plane: &ControlPlane, key: &str, arguments: &[&str]) -> String {
    let output = types(plane, key, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What an agent has made of the directory: the task, and how many files have changed.
fn works(plane: &ControlPlane, key: &str, workspace: &str, prompt: &str) -> (String, Value) {
    let arguments = [
        "run",
        "--agent",
        "claude",
        "--workspace",
        workspace,
        "--json",
        prompt,
    ];
    let answer: Value = serde_json::from_str(&does(plane, key, &arguments)).unwrap();
    let task = answer["task_id"].as_str().unwrap().to_owned();
    (task, answer["workspace"].clone())
}

fn project(directory: &Path) {
    std::fs::create_dir_all(directory.join(".git")).unwrap();
    std::fs::create_dir_all(directory.join("target")).unwrap();
    for (path, text) in [
        (".git/config", "[core]\n"),
        (".gitignore", "target/\n"),
        ("target/built", "x"),
        ("a.txt", "one\ntwo\n"),
        ("gone.txt", "x\n"),
    ] {
        std::fs::write(directory.join(path), text).unwrap();
    }
}

fn read(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

#[tokio::test]
async fn a_directory_goes_up_and_a_patch_and_files_come_down() {
    let test = "a_directory_goes_up_and_a_patch_and_files_come_down";
    if let Some(program) = missing(&["bwrap", "node", "git"]) {
        return skipped(test, &format!("needs {program}"));
    }
    let system = System::new();
    let keys = format!("alice={ALICE},bob={BOB}");
    let mut environment = fake_agent(&system.directory("fake"));
    environment.push(("ORCHD_API_KEYS".into(), keys));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
    let plane = system.home(POOL, &environment);
    plane.wait_for_replicas("agents", 1).await;
    let directory = system.directory("project");
    project(&directory);
    let shown = directory.to_str().unwrap();

    let prompt = "sh ls -A && sed -i s/two/2/ a.txt && rm gone.txt && echo new > new.txt";
    let (task, workspace) = works(&plane, ALICE, shown, prompt);
    assert_eq!(workspace["changed"], 3, "{workspace}");
    assert_eq!(
        read(&directory, "a.txt"),
        "one\ntwo\n",
        "nothing is changed here by itself"
    );

    let files: Value =
        serde_json::from_str(&does(&plane, ALICE, &["tasks", "files", &task, "--json"])).unwrap();
    let changes: Vec<_> = files["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["path"].as_str().unwrap(), file["change"].as_str().unwrap()))
        .collect();
    assert_eq!(
        changes,
        [
            ("a.txt", "modified"),
            ("gone.txt", "deleted"),
            ("new.txt", "added")
        ]
    );
    let listed = does(&plane, ALICE, &["tasks", "files", &task]);
    assert!(listed.contains("PATH") && listed.contains("gone.txt"), "{listed}");

    let into = system.directory("elsewhere").join("result");
    let into = into.to_str().unwrap();
    does(&plane, ALICE, &["tasks", "download", &task, "--into", into]);
    assert_eq!(read(Path::new(into), "new.txt"), "new\n");
    assert!(!Path::new(into).join("target").exists() && !Path::new(into).join(".git").exists());
    std::fs::write(Path::new(into).join("a.txt"), "mine\n").unwrap();
    let again = types(&plane, ALICE, &["tasks", "download", &task, "--into", into]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("--force"),
        "{again:?}"
    );
    assert_eq!(read(Path::new(into), "a.txt"), "mine\n");
    does(
        &plane,
        ALICE,
        &["tasks", "download", &task, "--into", into, "--force"],
    );
    assert_eq!(read(Path::new(into), "a.txt"), "one\n2\n");

    let patch = does(&plane, ALICE, &["tasks", "diff", &task]);
    std::fs::remove_dir_all(directory.join(".git")).unwrap();
    let mut git = Command::new("git")
        .args(["apply"])
        .current_dir(&directory)
        .env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut git.stdin.take().unwrap(), patch.as_bytes()).unwrap();
    assert!(git.wait().unwrap().success(), "{patch}");
    assert_eq!(
        (read(&directory, "a.txt"), read(&directory, "new.txt")),
        ("one\n2\n".to_owned(), "new\n".to_owned())
    );
    assert!(!directory.join("gone.txt").exists());

    // The next task goes on in it, by its id.
    let id = workspace["workspace_id"].as_str().unwrap();
    let (next, workspace) = works(&plane, ALICE, id, "sh rm new.txt");
    assert_eq!(workspace["changed"], 2, "{workspace}");
    assert!(!does(&plane, ALICE, &["tasks", "diff", &next]).contains("new.txt"));

    // Bob gets at neither the task nor the workspace, and an admin at the task alone.
    for command in ["diff", "files", "download"] {
        let bobs = types(&plane, BOB, &["tasks", command, &task]);
        assert_eq!(bobs.status.code(), Some(66), "{bobs:?}");
        let admins = plane.get(&format!("/v2/tasks/{task}/diff")).send().await.unwrap();
        assert_eq!(admins.status(), 403);
    }
    let bobs = types(
        &plane,
        BOB,
        &["run", "--agent", "claude", "--workspace", id, "sh ls"],
    );
    assert_eq!(bobs.status.code(), Some(66), "{bobs:?}");
    let delete = |key: &str| {
        let url = format!("{}/v2/workspaces/{id}", plane.url);
        system.http.delete(url).bearer_auth(key).send()
    };
    assert_eq!(delete(BOB).await.unwrap().status(), 404);
    assert_eq!(delete(ALICE).await.unwrap().status(), 204);
    let gone = types(&plane, ALICE, &["tasks", "diff", &task]);
    assert_eq!(gone.status.code(), Some(66), "{gone:?}");
    assert!(
        String::from_utf8_lossy(&gone.stderr).contains("expire"),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_workspace_stays_on_its_node_which_may_die_meanwhile() {
    let test = "a_workspace_stays_on_its_node_which_may_die_meanwhile";
    if let Some(program) = missing(&["bwrap", "node"]) {
        return skipped(test, &format!("needs {program}"));
    }
    let system = System::new();
    let plane = system.control_plane(&[]);
    let mut nodes = Vec::new();
    for name in ["node-a", "node-b"] {
        let environment = fake_agent(&system.directory(&format!("fake-{name}")));
        let given: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
        nodes.push((system.node(name, &plane, POOL, &given), environment));
    }
    plane.wait_for_replicas("agents", 2).await;
    let directory = system.directory("project");
    project(&directory);
    let key = "a-token-for-tests";
    let (task, workspace) = works(&plane, key, directory.to_str().unwrap(), "sh echo new > new.txt");
    let id = workspace["workspace_id"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        let (_, again) = works(&plane, key, &id, "sh cat new.txt");
        assert_eq!(again["workspace_id"], *id, "{again}");
    }
    let name = id.split_once('.').unwrap().1.to_owned();
    let at = nodes
        .iter()
        .position(|(node, _)| node.directory.ends_with(&name))
        .unwrap();
    let (mut node, environment) = nodes.swap_remove(at);
    node.program.kill();
    let lost = types(&plane, key, &["tasks", "diff", &task]);
    assert_eq!(lost.status.code(), Some(75), "{lost:?}");

    let given: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (&**a, &**b)).collect();
    let _back = system.node_in(&node.directory, &name, &node.addr, &plane.url, POOL, &given);
    plane.wait_for_replicas("agents", 2).await;
    assert!(does(&plane, key, &["tasks", "diff", &task]).contains("+new"));
    let (_, again) = works(&plane, key, &id, "sh rm new.txt");
    assert_eq!(again["changed"], 0, "{again}");
}
