use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn request(name: &str) -> Request {
    Request {
        name: name.to_owned(),
        alt_names: vec!["127.0.0.1".to_owned(), "box.example".to_owned()],
        from: SystemTime::now(),
        days: 30,
        force: false,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_ca_and_its_certificates() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path().join("certs");
    let ca = init(&directory, 3650, false).unwrap();
    let node = issue(&directory, &request("node-1.rack.example")).unwrap();
    assert_eq!(node.cert, directory.join("node-1.rack.example.pem"));
    assert_eq!(
        [mode(&ca.key), mode(&node.key), mode(&directory)],
        [0o600, 0o600, 0o700]
    );

    let about = about(&node.cert).unwrap();
    assert_eq!(about.subject, "CN=node-1.rack.example");
    assert!(
        about.issuer.starts_with("CN=Remuda private CA "),
        "{}",
        about.issuer
    );
    let left = about.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(left > DAY * 29 && left <= DAY * 30, "{left:?}");
    assert!(about.not_before < SystemTime::now());
    assert_eq!(expiry(&node.cert).unwrap(), about.not_after);
    assert!(node.not_after.duration_since(about.not_after).unwrap() < Duration::from_secs(1));
}

#[test]
fn nothing_is_overwritten_without_being_told() {
    let directory = TempDir::new().unwrap();
    let first = init(directory.path(), 30, false).unwrap();
    let before = fs::read(&first.key).unwrap();
    assert!(matches!(
        init(directory.path(), 30, false),
        Err(CertsError::Exists { .. })
    ));
    assert_eq!(fs::read(&first.key).unwrap(), before);
    init(directory.path(), 30, true).unwrap();
    assert_ne!(fs::read(&first.key).unwrap(), before);

    issue(directory.path(), &request("node")).unwrap();
    assert!(matches!(
        issue(directory.path(), &request("node")),
        Err(CertsError::Exists { .. })
    ));
    issue(
        directory.path(),
        &Request {
            force: true,
            ..request("node")
        },
    )
    .unwrap();
}

#[test]
fn names_and_places_that_cannot_be() {
    let directory = TempDir::new().unwrap();
    assert!(matches!(
        issue(directory.path(), &request("node")),
        Err(CertsError::NoCa { .. })
    ));
    init(directory.path(), 30, false).unwrap();
    for name in ["", "ca", "../etc/passwd", "a b", ".hidden", "ü", &"x".repeat(65)] {
        assert!(
            matches!(
                issue(directory.path(), &request(name)),
                Err(CertsError::Name { .. })
            ),
            "{name}"
        );
    }
    let text = directory.path().join("text");
    fs::write(&text, "not a certificate").unwrap();
    assert!(matches!(about(&text), Err(CertsError::NotACertificate { .. })));
    assert!(matches!(
        about(&directory.path().join("nothing")),
        Err(CertsError::File { .. })
    ));
}
