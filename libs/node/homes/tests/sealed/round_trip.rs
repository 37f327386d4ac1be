//! Opening, putting, fencing, removing, and who gets nothing.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use homes::{HOME_BYTES_MAX, HomeError, PlainHome, Ticket, TooLarge};

use super::support::{Disk, Sandbox, agent, files, owner, plain, text};

#[test]
fn what_is_put_is_what_is_opened() {
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let opened = homes.open(&ann, &claude).unwrap();
    assert!(opened.home.is_none());
    assert_eq!(homes.status(&ann, &claude).unwrap(), None);
    let saved = homes.put(&ann, &claude, opened.ticket, &plain("one")).unwrap();
    let saved = homes.put(&ann, &claude, saved.ticket, &plain("two")).unwrap();
    assert_eq!(saved.ticket.version, 2);
    assert_eq!(
        text(disk.node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "two"
    );
    assert_eq!(homes.status(&ann, &claude).unwrap().unwrap().version, 2);
    assert!(homes.open(&ann, &agent("codex")).unwrap().home.is_none());
    assert!(homes.open(&owner("bob"), &claude).unwrap().home.is_none());
}

#[test]
fn a_removed_login_is_gone_and_another_can_come() {
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let first = homes.open(&ann, &claude).unwrap().ticket;
    let first = homes.put(&ann, &claude, first, &plain("one")).unwrap().ticket;
    homes.remove(&ann, &claude).unwrap();
    assert_eq!(homes.status(&ann, &claude).unwrap(), None);
    assert!(matches!(
        homes.put(&ann, &claude, first, &plain("again")),
        Err(HomeError::Fenced { .. })
    ));
    let opened = homes.open(&ann, &claude).unwrap();
    assert!(opened.home.is_none());
    homes.put(&ann, &claude, opened.ticket, &plain("three")).unwrap();
    assert_eq!(
        text(homes.open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "three"
    );
}

#[test]
fn an_older_sandbox_loses() {
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let first = homes.open(&ann, &claude).unwrap().ticket;
    let second = homes.open(&ann, &claude).unwrap().ticket;
    homes.put(&ann, &claude, second, &plain("second")).unwrap();
    for result in [
        homes.put(&ann, &claude, first, &plain("x")),
        homes.salvage(&ann, &claude, first, &plain("x")),
    ] {
        assert!(matches!(result, Err(HomeError::Fenced { fence: 1, current: 2 })));
    }
    let stale = homes.put(&ann, &claude, second, &plain("x"));
    assert!(matches!(
        stale,
        Err(HomeError::Conflict {
            current: Ticket { version: 1, fence: 2 }
        })
    ));
    assert_eq!(
        homes
            .salvage(&ann, &claude, second, &plain("third"))
            .unwrap()
            .ticket
            .version,
        2
    );
    let invented = Ticket { version: 2, fence: 9 };
    assert!(matches!(
        homes.put(&ann, &claude, invented, &plain("x")),
        Err(HomeError::UnknownFence { .. })
    ));
    assert_eq!(
        text(homes.open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "third"
    );
}

#[test]
fn of_two_runs_that_race_one_wins_each_version() {
    let disk = Disk::new();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let ticket = disk.node().open(&ann, &claude).unwrap().ticket;
    let disk = Arc::new(disk);
    let racers: Vec<_> = (0..2)
        .map(|racer| {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                // Two nodes, as far as they know.
                let (homes, ann, claude) = (disk.node(), owner("ann"), agent("claude"));
                let (mut ticket, mut won) = (ticket, Vec::new());
                for _ in 0..50 {
                    let home = plain(&format!("{racer} after {}", ticket.version));
                    match homes.put(&ann, &claude, ticket, &home) {
                        Ok(saved) => {
                            won.push(saved.ticket.version);
                            ticket = saved.ticket;
                        }
                        Err(HomeError::Conflict { current }) => ticket = current,
                        Err(error) => panic!("{error:?}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won: Vec<u64> = racers
        .into_iter()
        .flat_map(|racer| racer.join().unwrap())
        .collect();
    won.sort_unstable();
    assert_eq!(
        won,
        (1..=won.len() as u64).collect::<Vec<_>>(),
        "every version was won once"
    );
    assert_eq!(
        disk.node().status(&ann, &claude).unwrap().unwrap().version,
        won.len() as u64
    );
}

#[test]
fn nobody_elses_sandbox_gets_it() {
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let ticket = homes.open(&ann, &claude).unwrap().ticket;
    homes.put(&ann, &claude, ticket, &plain("ann's")).unwrap();
    let home = homes.open(&ann, &claude).unwrap().home.unwrap();
    assert!(home.archive_for(&Sandbox(owner("bob"))).is_err());
    assert!(home.archive_for(&Sandbox(owner("ann"))).is_ok());
}

#[test]
fn nothing_of_it_lies_about_in_the_clear() {
    let disk = Disk::new();
    let homes = disk.node();
    // Names that would be paths are names.
    let (ann, claude) = (owner("../../ann@example.com\n"), agent("claude"));
    let ticket = homes.open(&ann, &claude).unwrap().ticket;
    homes
        .put(&ann, &claude, ticket, &plain("the-canary-token"))
        .unwrap();
    for directory in ["homes", "marks"] {
        let mode = std::fs::metadata(disk.path(directory))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        for extension in ["home", "mark", "lock", "temporary"] {
            for file in files(&disk.path(directory), extension) {
                assert_eq!(
                    std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                    0o600
                );
                let bytes = std::fs::read(&file).unwrap();
                assert!(!bytes.windows(6).any(|window| window == b"canary"), "{file:?}");
            }
        }
    }
    assert_eq!(files(&disk.path("homes"), "home").len(), 1);
}

#[test]
fn a_home_has_a_size_limit() {
    let mut home = PlainHome::new();
    let chunk = vec![1; 1 << 20];
    for _ in 0..HOME_BYTES_MAX >> 20 {
        home.extend(&chunk).unwrap();
    }
    assert_eq!(home.extend(&[1]), Err(TooLarge));
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let ticket = homes.open(&ann, &claude).unwrap().ticket;
    homes.put(&ann, &claude, ticket, &home).unwrap();
    assert_eq!(
        homes.open(&ann, &claude).unwrap().home.unwrap().len(),
        HOME_BYTES_MAX
    );
}

#[test]
fn a_ticket_survives_being_a_label() {
    let ticket = Ticket {
        version: 12,
        fence: 3,
    };
    assert_eq!(ticket.to_string().parse(), Ok(ticket));
    for text in ["", "1", "1.", "1.2.3", "a.b", "-1.2"] {
        assert_eq!(text.parse::<Ticket>(), Err(()), "{text}");
    }
}
