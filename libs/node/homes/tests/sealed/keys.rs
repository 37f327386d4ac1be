//! Where master keys come from, and changing them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use homes::{DirectoryStore, Homes, KeyError, KeyRing, MasterKey, Step, rotate};

use super::support::{Disk, agent, owner, plain, text};

const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

#[test]
fn a_key_file_is_its_owners_only() {
    let disk = Disk::new();
    let path = disk.path("key");
    let id = MasterKey::from_file(&path).unwrap().id();
    assert_eq!(MasterKey::from_file(&path).unwrap().id(), id);
    for mode in [0o640, 0o604, 0o660, 0o610] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(
            matches!(MasterKey::from_file(&path), Err(KeyError::FileMode { .. })),
            "{mode:o}"
        );
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(MasterKey::from_file(&path).is_ok());
    assert!(matches!(
        MasterKey::from_file(&disk.path("none")),
        Err(KeyError::File { .. })
    ));
    assert!(matches!(
        MasterKey::from_file(disk.0.path()),
        Err(KeyError::NoPlainFile { .. })
    ));
    assert!(
        matches!(disk.key("key").write_new(&path), Err(KeyError::File { .. })),
        "it is never overwritten"
    );
}

#[test]
fn keys_come_from_commands() {
    let command = |script: &str| MasterKey::from_command(&["sh", "-c", script]);
    let disk = Disk::new();
    fs::write(disk.path("text"), format!("\n{}\n", DIGITS.to_uppercase())).unwrap();
    fs::set_permissions(disk.path("text"), fs::Permissions::from_mode(0o600)).unwrap();
    let id = MasterKey::from_file(&disk.path("text")).unwrap().id();
    assert_eq!(command(&format!("echo {DIGITS}")).unwrap().id(), id);
    assert!(matches!(command("echo 123; exit 0"), Err(KeyError::Text)));
    assert!(matches!(
        command(&format!("echo {DIGITS}; exit 3")),
        Err(KeyError::CommandStatus { .. })
    ));
    assert!(matches!(
        command(&format!("echo {DIGITS}{DIGITS}")),
        Err(KeyError::Text)
    ));
    assert!(matches!(
        command("head -c 100000 /dev/zero"),
        Err(KeyError::Text | KeyError::CommandStatus { .. })
    ));
    assert!(matches!(
        MasterKey::from_command(&["/no/such/program"]),
        Err(KeyError::Command { .. })
    ));
    assert!(matches!(
        MasterKey::from_command(&[""; 0]),
        Err(KeyError::CommandEmpty)
    ));
    assert!(matches!(
        MasterKey::from_environment("REMUDA_NO_SUCH_KEY"),
        Err(KeyError::Environment(_))
    ));
}

fn put_all(homes: &Homes) {
    for name in ["ann", "bob", "eve"] {
        let ticket = homes.open(&owner(name), &agent("claude")).unwrap().ticket;
        homes
            .put(&owner(name), &agent("claude"), ticket, &plain(name))
            .unwrap();
    }
}

fn open_all(homes: &Homes) {
    for name in ["ann", "bob", "eve"] {
        assert_eq!(
            text(homes.open(&owner(name), &agent("claude")).unwrap().home, name).unwrap(),
            name
        );
    }
}

#[test]
fn rotation_is_killed_at_every_step_and_goes_on() {
    let disk = Disk::new();
    put_all(&disk.node());
    disk.make_key("new");
    let ring = || KeyRing::new(disk.key("new")).with_former(disk.key("key"));
    let mut dead_at = 0;
    loop {
        let left = std::sync::atomic::AtomicUsize::new(dead_at);
        let die = move |_: Step| {
            let alive = left.try_update(
                std::sync::atomic::Ordering::Relaxed,
                std::sync::atomic::Ordering::Relaxed,
                |left| left.checked_sub(1),
            );
            alive.map(|_| ()).map_err(|_| std::io::Error::other("killed"))
        };
        let dying = disk.store().with_hook(die);
        let rotated = rotate(&dying, &ring()).unwrap();
        // A node with both keys opens everything at any moment.
        open_all(&Homes::new(Arc::new(disk.store()), ring()));
        if rotated.failed.is_empty() {
            break;
        }
        dead_at += 1;
        assert!(dead_at < 1000);
    }
    assert!(dead_at >= 5, "it was killed {dead_at} times");
    let again = rotate(&disk.store(), &ring()).unwrap();
    assert_eq!((again.rewrapped, again.already), (0, 3));
    // The old key is not needed, and does not help.
    let only_new = Homes::new(Arc::new(disk.store()), KeyRing::new(disk.key("new")));
    open_all(&only_new);
    assert!(disk.node().open(&owner("ann"), &agent("claude")).is_err());
}

#[test]
fn a_damaged_home_does_not_stop_a_rotation() {
    let disk = Disk::new();
    put_all(&disk.node());
    disk.make_key("new");
    let file = super::support::files(&disk.path("homes"), "home").remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let ring = KeyRing::new(disk.key("new")).with_former(disk.key("key"));
    let store: DirectoryStore = disk.store();
    let rotated = rotate(&store, &ring).unwrap();
    assert_eq!((rotated.rewrapped, rotated.failed.len()), (2, 1));
    assert_eq!(fs::read(&file).unwrap(), bytes, "it stays as it was");
}
