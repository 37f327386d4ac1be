use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::sample::select;
use tar::{Builder, EntryType};

use super::*;
use crate::archive::{Limits, as_path, canonical, header};
use crate::changes::changes;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    File(Vec<u8>, bool),
    Link(String),
}

type Tree = BTreeMap<String, Item>;

fn archive(tree: &Tree) -> Archive {
    let mut builder = Builder::new(Vec::new());
    for (path, item) in tree {
        match item {
            Item::File(content, executable) => {
                let mode = if *executable { 0o755 } else { 0o644 };
                let mut header = header(EntryType::Regular, mode, content.len() as u64, 0);
                builder
                    .append_data(&mut header, path, content.as_slice())
                    .unwrap();
            }
            Item::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0, 0);
                builder.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    let bytes = builder.into_inner().unwrap();
    let limits = Limits {
        bytes_max: 64 << 20,
        entries_max: 10_000,
    };
    canonical(bytes.as_slice(), tempfile::tempfile().unwrap(), limits).unwrap()
}

fn write_tree(directory: &Path, tree: &Tree) {
    for (path, item) in tree {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match item {
            Item::File(content, executable) => {
                std::fs::write(&path, content).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            Item::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
        }
    }
}

fn read_tree(root: &Path, directory: &Path, tree: &mut Tree) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let status = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if status.is_dir() {
            read_tree(root, &path, tree);
        } else if status.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            tree.insert(name, Item::Link(target.to_str().unwrap().to_owned()));
        } else {
            let executable = status.permissions().mode() & 0o111 != 0;
            tree.insert(name, Item::File(std::fs::read(&path).unwrap(), executable));
        }
    }
}

fn patch(before: &Tree, after: &Tree) -> Vec<u8> {
    let (base, now) = (archive(before), archive(after));
    let found = changes(&base, &now).unwrap();
    let mut patch = Vec::new();
    write_patch(&base, &now, &found, &mut patch).unwrap();
    patch
}

/// Applies the patch with git to what was before, and takes it back again.
fn check(before: &Tree, after: &Tree) {
    let patch = patch(before, after);
    if before == after {
        assert!(patch.is_empty());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    write_tree(directory.path(), before);
    for (arguments, expect) in [(&["apply"][..], after), (&["apply", "-R"], before)] {
        let mut git = Command::new("git")
            .args(arguments)
            .current_dir(directory.path())
            .env("GIT_CEILING_DIRECTORIES", directory.path().parent().unwrap())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("git is installed");
        let mut stdin = git.stdin.take().unwrap();
        let bytes = patch.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = git.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&patch)
        );
        let mut found = Tree::new();
        read_tree(directory.path(), directory.path(), &mut found);
        assert_eq!(found, *expect, "{}", String::from_utf8_lossy(&patch));
    }
}

fn tree<const N: usize>(items: [(&str, Item); N]) -> Tree {
    items.map(|(path, item)| (path.to_owned(), item)).into()
}

fn text(content: &str) -> Item {
    Item::File(content.as_bytes().to_vec(), false)
}

#[test]
fn git_applies_every_kind_of_change() {
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let changed = lines.replace("line 10\n", "line ten\n").replace("line 90\n", "");
    let binary: Vec<u8> = (0..3000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let before = tree([
        ("changed", text(&lines)),
        ("deleted", text("gone\n")),
        ("deleted-empty", text("")),
        ("no newline", text("a\nb")),
        ("old mac", text("a\rb\rc")),
        ("windows", text("a\r\nb\r\n")),
        ("mode", text("#!/bin/sh\n")),
        ("binary", Item::File(binary.clone(), false)),
        ("binary-gone", Item::File(vec![0; 10], true)),
        ("link", Item::Link("changed".to_owned())),
        ("becomes-link", text("x\n")),
        ("was-link", Item::Link("/nowhere".to_owned())),
        ("directory", text("a file that becomes a directory\n")),
        ("quo\"te\\d and \u{e4}\ttab", text("1\n")),
        ("sub/emptied", text("1\n")),
    ]);
    let after = tree([
        ("changed", text(&changed)),
        ("no newline", text("a\nb\n")),
        ("old mac", text("a\rB\rc\r")),
        ("windows", text("a\r\nb\nc\r\n")),
        ("mode", Item::File(b"#!/bin/sh\n".to_vec(), true)),
        ("binary", Item::File(binary.iter().rev().copied().collect(), true)),
        ("link", Item::Link("elsewhere".to_owned())),
        ("becomes-link", Item::Link("../outside".to_owned())),
        ("was-link", text("a file\n")),
        ("directory/below", text("new\n")),
        ("quo\"te\\d and \u{e4}\ttab", text("2\n")),
        ("sub/emptied", text("")),
        ("new-empty", text("")),
        ("new-binary", Item::File(vec![0, 255, 1], false)),
        ("new/deep/er", Item::File(b"x".to_vec(), true)),
    ]);
    check(&before, &after);
    check(&after, &before);
    check(&before, &before);
    check(&Tree::new(), &before);
    check(&before, &Tree::new());
}

#[test]
fn git_itself_would_say_the_same_of_a_text() {
    let before = tree([("a.txt", text("1\n2\n3\n4\n5\n6\n7\n8\n9\n"))]);
    let after = tree([("a.txt", text("1\n2\n3\n4\nfive\n6\n7\n8\n9\n"))]);
    let patch = String::from_utf8(patch(&before, &after)).unwrap();
    let expect = "diff --git a/a.txt b/a.txt\nindex 07193989308c972f8a2d0f1b3a15c29ea4ac565b..";
    assert!(patch.starts_with(expect), "{patch}");
    assert!(
        patch.ends_with(
            " 100644\n--- a/a.txt\n+++ b/a.txt\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        ),
        "{patch}"
    );
}

#[test]
fn what_is_gits_own_is_never_told() {
    let secret = |path| tree([(path, text("[core]\nfsmonitor = evil\n"))]);
    for path in [".git/config", "sub/.git/hooks/post-checkout", ".GIT/config"] {
        assert!(patch(&Tree::new(), &secret(path)).is_empty(), "{path}");
        let mut out = Vec::new();
        crate::changes::export(&archive(&secret(path)), &mut out).unwrap();
        assert!(!String::from_utf8_lossy(&out).contains("fsmonitor"), "{path}");
    }
    assert!(!patch(&Tree::new(), &secret(".gitignore")).is_empty());
    assert_eq!(as_path(b"a"), Path::new("a"));
}

const PIECES: &[&str] = &["a\n", "b\n", "c", "\r", "\r\n", "\n", "- \n", "+++ x\n"];

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(select(PIECES), 0..12).prop_map(|pieces| pieces.concat().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..200),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => (content(), any::<bool>()).prop_map(|(content, executable)| Item::File(content, executable)),
        1 => select(&["a", "../b", "/etc/passwd"]).prop_map(|target| Item::Link(target.to_owned())),
    ]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    // Names of directories and of files differ, so that every tree can exist.
    let directory = select(&["", "d1/", "d2/", "d1/d3/"]);
    let name = select(&["f", "f 1", "f\"", "f\\", "f\u{e4}"]);
    let path = (directory, name).prop_map(|(directory, name)| format!("{directory}{name}"));
    proptest::collection::btree_map(path, item(), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn git_applies_whatever_has_changed(before in any_tree(), after in any_tree()) {
        check(&before, &after);
    }
}
