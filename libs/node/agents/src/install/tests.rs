use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A stand-in for npm, for its failures and for the times when it is killed.
fn fake_npm(directory: &Path, script: &str) -> String {
    let path = directory.join("npm");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn profile() -> Profile {
    Profile::builtin("gemini").expect("it is built in").unwrap()
}

/// Does what npm does, as far as anybody looks.
const WORKS: &str = "test -f package.json && test -f package-lock.json || exit 9
echo 'npm http fetch GET 200 some.tgz 5ms' >&2
mkdir -p node_modules/@google/gemini-cli/bundle
echo x > node_modules/@google/gemini-cli/bundle/gemini.js";

fn check_failure(script: &str, expect: &str) {
    let directory = tempfile::tempdir().unwrap();
    let npm = fake_npm(directory.path(), script);
    let error = install_with(&npm, &profile(), directory.path(), &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), expect);
    // Nothing is left, and the next attempt is a new one.
    assert_eq!(installed(&profile(), directory.path()), None);
    let npm = fake_npm(directory.path(), WORKS);
    install_with(&npm, &profile(), directory.path(), &mut |_| {}).unwrap();
}

#[test]
fn failures_are_told_apart_and_leave_nothing() {
    check_failure(
        "echo 'npm error code EINTEGRITY' >&2; mkdir node_modules; exit 1",
        "npm refuses a package whose digest is not the one in the lock file: npm error code EINTEGRITY",
    );
    check_failure(
        "echo 'npm error code ENOTFOUND' >&2; exit 1",
        "npm cannot reach its registry: npm error code ENOTFOUND",
    );
    check_failure(
        "echo 'npm error code EUSAGE' >&2; echo 'npm error' >&2; echo 'npm error A complete log ...' >&2; exit 3",
        "npm failed (exit status: 3): npm error code EUSAGE",
    );
    let here = platform();
    check_failure(
        "mkdir node_modules",
        &format!("gemini 0.61.0 has no program for {here}"),
    );
    let directory = tempfile::tempdir().unwrap();
    let error = install_with("/nowhere/npm", &profile(), directory.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, InstallError::NoNpm), "{error}");
}

#[test]
fn what_somebody_left_who_died_is_not_taken_for_an_installation() {
    let directory = tempfile::tempdir().unwrap();
    let left = directory.path().join("gemini/.installing/node_modules/half");
    fs::create_dir_all(&left).unwrap();
    let npm = fake_npm(directory.path(), WORKS);
    let mut seen = Vec::new();
    let place = install_with(&npm, &profile(), directory.path(), &mut |progress| {
        seen.push(progress);
    })
    .unwrap();
    assert!(!place.join("node_modules/half").exists() && !left.exists());
    assert!(
        matches!(seen[0], Progress::Started { packages } if packages > 2),
        "{seen:?}"
    );
    assert_eq!(seen[1], Progress::Fetched { packages: 1 });
    // There already: npm is not asked again.
    let again = install_with("/nowhere/npm", &profile(), directory.path(), &mut |_| {}).unwrap();
    assert_eq!(again, place);
}

#[test]
fn many_at_once_install_once() {
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "echo . >> {}/runs\nsleep 0.2\n{WORKS}",
        directory.path().display()
    );
    let npm = fake_npm(directory.path(), &script);
    let places: Vec<PathBuf> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| install_with(&npm, &profile(), directory.path(), &mut |_| {}).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_to_string(directory.path().join("runs")).unwrap(), ".\n");
}
