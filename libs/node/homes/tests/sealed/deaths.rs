//! Dying at every step of a take-back, full disks, and a store that cannot be reached.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use homes::{
    DirectoryStore, HomeError, HomeStore, Homes, KeyRing, LockedSlot, Part, Slot, Spool, Step, StoreError,
};

use super::support::{Disk, agent, files, owner, plain, skipped, text};

/// Lets so many steps pass; then the process is as good as dead.
fn dies_after(steps: usize, store: DirectoryStore) -> (DirectoryStore, Arc<AtomicBool>) {
    let died = Arc::<AtomicBool>::default();
    let (told, passed) = (Arc::clone(&died), AtomicUsize::new(0));
    let store = store.with_hook(move |_: Step| {
        if passed.fetch_add(1, Ordering::Relaxed) < steps {
            return Ok(());
        }
        told.store(true, Ordering::Relaxed);
        Err(io::Error::other("dead"))
    });
    (store, died)
}

#[test]
fn a_death_at_any_step_leaves_the_old_home_or_the_new_one_and_the_sandbox_can_be_salvaged() {
    let mut steps = 0;
    let (mut kept_old, mut kept_new) = (0, 0);
    loop {
        let disk = Disk::new();
        let (ann, claude) = (owner("ann"), agent("claude"));
        let node = disk.node();
        let ticket = node.open(&ann, &claude).unwrap().ticket;
        let ticket = node.put(&ann, &claude, ticket, &plain("old")).unwrap().ticket;
        let (store, died) = dies_after(steps, disk.store());
        let put = disk
            .node_over(Arc::new(store))
            .put(&ann, &claude, ticket, &plain("new"));
        // Another node looks at what is there, without a sandbox.
        let left =
            files(&disk.path("homes"), "temporary").len() + files(&disk.path("marks"), "temporary").len();
        let status = disk.node().status(&ann, &claude).unwrap().unwrap();
        assert_eq!(
            files(&disk.path("homes"), "temporary").len() + files(&disk.path("marks"), "temporary").len(),
            0,
            "{left} were left, and are cleared away"
        );
        match status.version {
            1 => {
                kept_old += 1;
                assert!(put.is_err(), "what was told to be safe is not there");
            }
            2 => kept_new += 1,
            version => panic!("version {version}"),
        }
        // Now with the sandbox, which still has the new login and its label.
        disk.node().salvage(&ann, &claude, ticket, &plain("new")).unwrap();
        assert_eq!(
            text(disk.node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
            "new"
        );
        if !died.load(Ordering::Relaxed) {
            put.unwrap();
            break;
        }
        steps += 1;
        assert!(steps < 100);
    }
    assert_eq!(steps, 12, "two files of six steps each");
    assert!(kept_old >= 4 && kept_new >= 6, "{kept_old} {kept_new}");
}

#[test]
fn dying_between_home_and_record_again_and_again_is_no_damage() {
    let disk = Disk::new();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let ticket = disk.node().open(&ann, &claude).unwrap().ticket;
    for turn in 0..5 {
        // The home is written, its record is not.
        let dying = disk.store().with_hook({
            let homes_written = AtomicUsize::new(0);
            move |step| match step {
                Step::Done(Part::Home) => {
                    homes_written.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
                Step::Create(Part::Mark) if homes_written.load(Ordering::Relaxed) > 0 => {
                    Err(io::Error::other("dead"))
                }
                _ => Ok(()),
            }
        });
        let content = format!("turn {turn}");
        let node = disk.node_over(Arc::new(dying));
        node.salvage(&ann, &claude, ticket, &plain(&content)).unwrap();
        assert_eq!(
            disk.node().status(&ann, &claude).unwrap().unwrap().version,
            turn + 1
        );
    }
    assert_eq!(
        text(disk.node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "turn 4"
    );
}

#[test]
fn a_home_is_never_written_in_place() {
    let disk = Disk::new();
    let homes = disk.node();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let mut ticket = homes.open(&ann, &claude).unwrap().ticket;
    // Kept open, so that its number is not given to the next file.
    let mut before = Vec::new();
    for _ in 0..3 {
        ticket = homes.put(&ann, &claude, ticket, &plain("x")).unwrap().ticket;
        before.push(std::fs::File::open(disk.file("home")).unwrap());
    }
    let mut numbers: Vec<u64> = before.iter().map(|file| file.metadata().unwrap().ino()).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), 3);
}

#[test]
fn a_death_while_opening_or_removing_loses_nothing() {
    for steps in 0..30 {
        let disk = Disk::new();
        let (ann, claude) = (owner("ann"), agent("claude"));
        let node = disk.node();
        let ticket = node.open(&ann, &claude).unwrap().ticket;
        node.put(&ann, &claude, ticket, &plain("old")).unwrap();
        let (store, _) = dies_after(steps, disk.store());
        let _ = disk.node_over(Arc::new(store)).open(&ann, &claude);
        assert_eq!(
            text(disk.node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
            "old"
        );
        let (store, _) = dies_after(steps, disk.store());
        let removed = disk.node_over(Arc::new(store)).remove(&ann, &claude);
        match disk.node().status(&ann, &claude).unwrap() {
            Some(_) => assert!(removed.is_err()),
            None => assert!(disk.node().open(&ann, &claude).unwrap().home.is_none()),
        }
        disk.node().remove(&ann, &claude).unwrap();
        assert!(disk.node().open(&ann, &claude).unwrap().home.is_none());
    }
}

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory)
            .status()
            .ok()?;
        mounted.success().then(|| Self(directory.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_and_keeps_what_there_is() {
    let disk = Disk::new();
    std::fs::create_dir(disk.path("homes")).unwrap();
    let Some(small) = SmallDisk::mount(&disk.path("homes")) else {
        return skipped(
            "a_full_disk_refuses_and_keeps_what_there_is",
            "needs root, to mount a small file system",
        );
    };
    let (ann, claude) = (owner("ann"), agent("claude"));
    let node = disk.node();
    let ticket = node.open(&ann, &claude).unwrap().ticket;
    let ticket = node.put(&ann, &claude, ticket, &plain("old")).unwrap().ticket;
    let large = plain(&"x".repeat(2 << 20));
    for _ in 0..3 {
        let refused = node.put(&ann, &claude, ticket, &large);
        assert!(matches!(refused, Err(HomeError::Store(StoreError::NoRoom(_)))));
    }
    assert_eq!(
        files(&disk.path("homes"), "temporary").len(),
        0,
        "the room is given back"
    );
    // A home that fits is taken, with the same ticket.
    let ticket = node.put(&ann, &claude, ticket, &plain("new")).unwrap().ticket;
    let _ = std::fs::write(small.0.join("filler"), vec![0; 2 << 20]);
    assert!(
        node.put(&ann, &claude, ticket, &plain(&"y".repeat(5000)))
            .is_err()
    );
    std::fs::remove_file(small.0.join("filler")).unwrap();
    assert_eq!(
        text(disk.node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "new"
    );
}

/// A store that can be cut off.
struct Remote {
    files: DirectoryStore,
    is_down: Arc<AtomicBool>,
}

impl HomeStore for Remote {
    fn lock(&self, slot: &Slot) -> Result<Box<dyn LockedSlot + '_>, StoreError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(StoreError::Io(io::ErrorKind::NetworkUnreachable.into()));
        }
        self.files.lock(slot)
    }

    fn slots(&self) -> Result<Vec<Slot>, StoreError> {
        self.files.slots()
    }
}

fn node_with_spool(disk: &Disk, is_down: &Arc<AtomicBool>, spool: Spool) -> Homes {
    let store = Remote {
        files: disk.store(),
        is_down: Arc::clone(is_down),
    };
    Homes::new(Arc::new(store), KeyRing::new(disk.key("key"))).with_spool(spool)
}

#[test]
fn what_the_store_cannot_take_now_it_gets_later_also_from_another_process() {
    let disk = Disk::new();
    let is_down = Arc::<AtomicBool>::default();
    let spool = || Spool::open(&disk.path("spool")).unwrap();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let node = node_with_spool(&disk, &is_down, spool());
    let ticket = node.open(&ann, &claude).unwrap().ticket;
    let ticket = node.put(&ann, &claude, ticket, &plain("one")).unwrap().ticket;
    is_down.store(true, Ordering::Relaxed);
    for content in ["two", "three"] {
        let saved = node.put(&ann, &claude, ticket, &plain(content)).unwrap();
        assert!(saved.is_spooled);
        assert_eq!(saved.ticket, ticket);
    }
    // An older login is not opened instead.
    assert!(node.open(&ann, &claude).is_err());
    drop(node);
    is_down.store(false, Ordering::Relaxed);
    let node = node_with_spool(&disk, &is_down, spool());
    assert_eq!(
        text(node.open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "three"
    );
    assert_eq!(node.drain_spool().unwrap(), (0, 0));
    assert!(files(&disk.path("spool"), "home").is_empty());
}

#[test]
fn a_spooled_home_that_was_overtaken_is_dropped() {
    let disk = Disk::new();
    let is_down = Arc::<AtomicBool>::default();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let node = node_with_spool(&disk, &is_down, Spool::open(&disk.path("spool")).unwrap());
    let ticket = node.open(&ann, &claude).unwrap().ticket;
    is_down.store(true, Ordering::Relaxed);
    assert!(
        node.put(&ann, &claude, ticket, &plain("late"))
            .unwrap()
            .is_spooled
    );
    is_down.store(false, Ordering::Relaxed);
    let elsewhere = disk.node();
    let other = elsewhere.open(&ann, &claude).unwrap().ticket;
    elsewhere.put(&ann, &claude, other, &plain("newer")).unwrap();
    assert_eq!(node.drain_spool().unwrap(), (0, 1));
    assert_eq!(
        text(node.open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "newer"
    );
}

#[test]
fn a_death_at_any_step_of_spooling_loses_nothing_that_was_told_to_be_safe() {
    for is_cut_off in [false, true] {
        for steps in 0..14 {
            let disk = Disk::new();
            let is_down = Arc::<AtomicBool>::default();
            let (ann, claude) = (owner("ann"), agent("claude"));
            let spool = || Spool::open(&disk.path("spool")).unwrap();
            let node = node_with_spool(&disk, &is_down, spool());
            let ticket = node.open(&ann, &claude).unwrap().ticket;
            let ticket = node.put(&ann, &claude, ticket, &plain("old")).unwrap().ticket;
            is_down.store(is_cut_off, Ordering::Relaxed);
            let path = disk.path("spool");
            let (dying, _) = dies_after(steps, DirectoryStore::open(&path, &path).unwrap());
            let put = node_with_spool(&disk, &is_down, Spool::over(dying, &path)).put(
                &ann,
                &claude,
                ticket,
                &plain("new"),
            );
            is_down.store(false, Ordering::Relaxed);
            let node = node_with_spool(&disk, &is_down, spool());
            let found = text(node.open(&ann, &claude).unwrap().home, "ann").unwrap();
            assert!(
                found == "new" || (put.is_err() && found == "old"),
                "{steps}: {found}"
            );
        }
    }
}

#[test]
fn what_is_salvaged_goes_before_what_was_spooled_earlier() {
    let disk = Disk::new();
    let is_down = Arc::<AtomicBool>::default();
    let (ann, claude) = (owner("ann"), agent("claude"));
    let node = || node_with_spool(&disk, &is_down, Spool::open(&disk.path("spool")).unwrap());
    let ticket = node().open(&ann, &claude).unwrap().ticket;
    is_down.store(true, Ordering::Relaxed);
    assert!(
        node()
            .put(&ann, &claude, ticket, &plain("earlier"))
            .unwrap()
            .is_spooled
    );
    // The node dies; the sandbox goes on for a while and changes its home once more.
    assert!(
        node()
            .salvage(&ann, &claude, ticket, &plain("later"))
            .unwrap()
            .is_spooled
    );
    is_down.store(false, Ordering::Relaxed);
    assert_eq!(node().drain_spool().unwrap(), (1, 0));
    assert_eq!(
        text(node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "later"
    );
    // A death between the store and the spool: both have the same, and it is written once more.
    let path = disk.path("spool");
    let ticket = node().open(&ann, &claude).unwrap().ticket;
    is_down.store(true, Ordering::Relaxed);
    node().put(&ann, &claude, ticket, &plain("earlier")).unwrap();
    let spooled = files(&path, "home").remove(0);
    node().salvage(&ann, &claude, ticket, &plain("later")).unwrap();
    let bytes = std::fs::read(&spooled).unwrap();
    is_down.store(false, Ordering::Relaxed);
    node().drain_spool().unwrap();
    std::fs::write(&spooled, bytes).unwrap();
    assert_eq!(
        text(node().open(&ann, &claude).unwrap().home, "ann").unwrap(),
        "later"
    );
}
