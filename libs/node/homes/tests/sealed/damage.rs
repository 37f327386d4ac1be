//! Files that were cut, changed, swapped, removed or put back.

use std::fs;

use homes::{HomeError, Homes, SealError};

use super::support::{Disk, agent, files, owner, plain, text};

/// A disk on which ann has a home, and the bytes of its file.
fn with_home() -> (Disk, Vec<u8>) {
    let disk = Disk::new();
    put(&disk.node(), "ann", "claude", "ann's login");
    let bytes = fs::read(disk.file("home")).unwrap();
    (disk, bytes)
}

fn put(homes: &Homes, name: &str, of: &str, content: &str) {
    let ticket = homes.open(&owner(name), &agent(of)).unwrap().ticket;
    homes
        .put(&owner(name), &agent(of), ticket, &plain(content))
        .unwrap();
}

fn open(disk: &Disk) -> Result<Option<String>, HomeError> {
    disk.node()
        .open(&owner("ann"), &agent("claude"))
        .map(|opened| text(opened.home, "ann"))
}

#[test]
fn every_cut_is_noticed() {
    let (disk, bytes) = with_home();
    let file = disk.file("home");
    for length in 0..bytes.len() {
        fs::write(&file, &bytes[..length]).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(
            matches!(error, HomeError::Seal(SealError::NotSealed | SealError::Length)),
            "{length}: {error:?}"
        );
    }
    fs::write(&file, [&bytes[..], b"x"].concat()).unwrap();
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::Seal(SealError::Length)
    ));
    fs::write(&file, &bytes).unwrap();
    assert_eq!(open(&disk).unwrap().unwrap(), "ann's login");
}

#[test]
fn every_changed_bit_is_noticed() {
    let (disk, bytes) = with_home();
    for (kind, bytes) in [("home", bytes), ("mark", fs::read(disk.file("mark")).unwrap())] {
        let file = disk.file(kind);
        for at in 0..bytes.len() {
            for bit in [0, 7] {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                fs::write(&file, &changed).unwrap();
                let error = open(&disk).expect_err("it was changed");
                let told = matches!(
                    error,
                    HomeError::Seal(_) | HomeError::Mark(_) | HomeError::RolledBack { .. }
                );
                assert!(told, "{kind} at {at}: {error:?}");
            }
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert!(open(&disk).unwrap().is_some());
}

#[test]
fn another_key_opens_nothing() {
    let (disk, _) = with_home();
    fs::remove_file(disk.path("key")).unwrap();
    disk.make_key("key");
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::Mark(SealError::UnknownKey(_))
    ));
    fs::remove_file(disk.file("mark")).unwrap();
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::Seal(SealError::UnknownKey(_))
    ));
}

#[test]
fn swapped_files_are_noticed() {
    let disk = Disk::new();
    let homes = disk.node();
    put(&homes, "ann", "claude", "ann's claude");
    let anns = disk.file("home");
    let anns_mark = disk.file("mark");
    put(&homes, "bob", "claude", "bob's claude");
    put(&homes, "ann", "codex", "ann's codex");
    let all = files(&disk.path("homes"), "home");
    let mut errors = Vec::new();
    let original = fs::read(&anns).unwrap();
    for other in all.iter().filter(|file| **file != anns) {
        fs::copy(other, &anns).unwrap();
        errors.push(open(&disk).unwrap_err());
    }
    assert!(
        errors
            .iter()
            .any(|error| matches!(error, HomeError::Seal(SealError::OtherOwner))),
        "{errors:?}"
    );
    assert!(
        errors
            .iter()
            .any(|error| matches!(error, HomeError::Seal(SealError::OtherAgent))),
        "{errors:?}"
    );
    fs::write(&anns, original).unwrap();
    for other in files(&disk.path("marks"), "mark")
        .iter()
        .filter(|file| **file != anns_mark)
    {
        fs::copy(other, &anns_mark).unwrap();
        assert!(matches!(
            open(&disk).unwrap_err(),
            HomeError::Mark(SealError::Tampered)
        ));
    }
}

#[test]
fn an_old_version_that_is_put_back_is_noticed() {
    let (disk, old) = with_home();
    let old_mark = fs::read(disk.file("mark")).unwrap();
    let homes = disk.node();
    put(&homes, "ann", "claude", "newer");
    fs::write(disk.file("home"), &old).unwrap();
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::RolledBack { found: 1, seen: 2 }
    ));
    // Both of them: who saw the newer one knows, and who starts anew cannot.
    fs::write(disk.file("mark"), &old_mark).unwrap();
    let known = homes.open(&owner("ann"), &agent("claude"));
    assert!(matches!(known, Err(HomeError::RolledBack { .. })), "it was seen");
    assert_eq!(open(&disk).unwrap().unwrap(), "ann's login");
}

#[test]
fn an_old_record_that_is_put_back_is_noticed() {
    let (disk, _) = with_home();
    let old_mark = fs::read(disk.file("mark")).unwrap();
    for content in ["two", "three"] {
        put(&disk.node(), "ann", "claude", content);
    }
    fs::write(disk.file("mark"), &old_mark).unwrap();
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::MarkRolledBack { found: 3, seen: 1 }
    ));
    fs::remove_file(disk.file("mark")).unwrap();
    assert!(matches!(
        open(&disk).unwrap_err(),
        HomeError::MarkRolledBack { found: 3, seen: 0 }
    ));
}

#[test]
fn an_old_fence_that_is_put_back_is_noticed_by_who_gave_a_newer_one() {
    let (disk, _) = with_home();
    let homes = disk.node();
    homes.open(&owner("ann"), &agent("claude")).unwrap();
    let old_mark = fs::read(disk.file("mark")).unwrap();
    homes.open(&owner("ann"), &agent("claude")).unwrap();
    fs::write(disk.file("mark"), &old_mark).unwrap();
    let opened = homes.open(&owner("ann"), &agent("claude"));
    assert!(matches!(opened, Err(HomeError::RolledBack { .. })));
}

#[test]
fn a_home_that_is_gone_is_missed() {
    let (disk, _) = with_home();
    fs::remove_file(disk.file("home")).unwrap();
    assert!(matches!(open(&disk).unwrap_err(), HomeError::Missing { seen: 1 }));
}

#[test]
fn an_owner_whose_home_was_damaged_can_log_in_again() {
    for damage in ["home gone", "home cut", "mark cut", "put back"] {
        let (disk, old) = with_home();
        put(&disk.node(), "ann", "claude", "newer");
        match damage {
            "home gone" => fs::remove_file(disk.file("home")).unwrap(),
            "home cut" => fs::write(disk.file("home"), &old[..9]).unwrap(),
            "mark cut" => fs::write(disk.file("mark"), b"RMHM").unwrap(),
            _ => fs::write(disk.file("home"), &old).unwrap(),
        }
        open(&disk).unwrap_err();
        disk.node().remove(&owner("ann"), &agent("claude")).unwrap();
        assert_eq!(open(&disk).unwrap(), None, "{damage}");
        put(&disk.node(), "ann", "claude", "logged in again");
        assert_eq!(open(&disk).unwrap().unwrap(), "logged in again", "{damage}");
    }
}

#[test]
fn errors_say_nothing_of_what_is_inside() {
    let (disk, mut bytes) = with_home();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(disk.file("home"), &bytes).unwrap();
    let error = open(&disk).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error.to_string(), "the home does not open");
    assert_eq!(cause, "the sealed home was changed after it was sealed");
}
