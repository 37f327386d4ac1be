use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use init_protocol::{ArchiveLimits, Done, Pack, Unpack};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

const LIMITS: ArchiveLimits = ArchiveLimits {
    bytes_max: 1_000_000,
    entries_max: 100,
};

fn unpack_bytes(directory: &Path, limits: ArchiveLimits, bytes: &[u8]) -> Result<Done, Failure> {
    let (reader, mut writer) = io::pipe().unwrap();
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = writer.write_all(&bytes);
    });
    let request = Unpack {
        path: directory.to_str().unwrap().to_owned(),
        limits,
        any_links: false,
    };
    let done = unpack(&request, reader);
    feeder.join().unwrap();
    done
}

fn pack_bytes(directory: &Path, limits: ArchiveLimits, exclude: &[&str]) -> Result<(Done, Vec<u8>), Failure> {
    pack_some(directory, limits, exclude, &[])
}

fn pack_some(
    directory: &Path,
    limits: ArchiveLimits,
    exclude: &[&str],
    only: &[&str],
) -> Result<(Done, Vec<u8>), Failure> {
    let (mut reader, writer) = io::pipe().unwrap();
    let collector = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let request = Pack {
        path: directory.to_str().unwrap().to_owned(),
        limits,
        exclude: exclude.iter().map(|&path| path.to_owned()).collect(),
        only: only.iter().map(|&path| path.to_owned()).collect(),
        any_links: false,
    };
    let done = pack(&request, writer);
    let bytes = collector.join().unwrap();
    Ok((done?, bytes))
}

/// One entry with exactly this name, which `Builder` itself would refuse to write.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap()
}

fn without_end(archive: &[u8]) -> &[u8] {
    &archive[..archive.len() - 1024]
}

#[test]
fn a_tree_goes_out_and_comes_back_for_its_owner_only() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir_all(from.path().join("a/b")).unwrap();
    fs::write(from.path().join("a/login.json"), "{}").unwrap();
    fs::write(from.path().join("a/b/tool"), "#!").unwrap();
    fs::set_permissions(from.path().join("a/b/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("b/tool", from.path().join("a/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", from.path().join("a/leaves")).unwrap();
    fs::create_dir(from.path().join("cache")).unwrap();
    fs::write(from.path().join("cache/big"), "x").unwrap();
    let long = "n".repeat(180);
    fs::write(from.path().join(&long), "long").unwrap();
    let (packed, bytes) = pack_bytes(from.path(), LIMITS, &["cache"]).unwrap();
    assert_eq!((packed.entries, packed.bytes, packed.skipped), (6, 8, 2));

    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("made/here");
    assert_eq!(unpack_bytes(&to, LIMITS, &bytes).unwrap().entries, 6);
    let mode = |path: &str| fs::metadata(to.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("a"), 0o700);
    assert_eq!(mode("a/login.json"), 0o600);
    assert_eq!(mode("a/b/tool"), 0o700);
    assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("b/tool"));
    assert_eq!(fs::read_to_string(to.join(long)).unwrap(), "long");
    assert!(!to.join("cache").exists());
    // The same again goes over what is there.
    assert!(unpack_bytes(&to, LIMITS, &bytes).is_ok());
}

#[test]
fn what_leaves_the_directory_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "whole").unwrap();
    let directory = outside.path().join("in");
    let check = |archives: &[Vec<u8>], why: &str| {
        let mut bytes: Vec<u8> = Vec::new();
        for archive in archives {
            bytes.extend(without_end(archive));
        }
        bytes.extend([0; 1024]);
        let failure = unpack_bytes(&directory, LIMITS, &bytes).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "whole");
        assert!(!outside.path().join("new").exists());
        let _ = fs::remove_dir_all(&directory);
    };
    let file = |name: &str| entry(EntryType::Regular, name, "", b"bad");
    let link = |name: &str, target: &str| entry(EntryType::Symlink, name, target, b"");
    check(&[file("../victim")], "leaves");
    check(&[file("a/../../victim")], "leaves");
    check(&[file("/tmp/victim")], "leaves");
    check(&[link("l", "../victim")], "leaves");
    check(&[link("l", "/etc")], "leaves");
    check(&[link("a/l", "../../new")], "leaves");
    check(&[link("a/l", ".."), link("m", "a/l/../new")], "leaves");
    check(&[entry(EntryType::Link, "l", "../victim", b"")], "leaves");
    check(&[entry(EntryType::Char, "null", "", b"")], "neither");
    check(&[entry(EntryType::Fifo, "pipe", "", b"")], "neither");
}

#[test]
fn nothing_is_written_through_a_link_that_is_already_there() {
    let outside = tempfile::tempdir().unwrap();
    let directory = outside.path().join("in");
    fs::create_dir(&directory).unwrap();
    fs::write(outside.path().join("victim"), "whole").unwrap();
    std::os::unix::fs::symlink("..", directory.join("up")).unwrap();
    std::os::unix::fs::symlink("../victim", directory.join("file")).unwrap();
    assert!(
        unpack_bytes(
            &directory,
            LIMITS,
            &entry(EntryType::Regular, "up/victim", "", b"bad")
        )
        .is_err()
    );
    unpack_bytes(
        &directory,
        LIMITS,
        &entry(EntryType::Regular, "file", "", b"mine"),
    )
    .unwrap();
    assert_eq!(
        fs::read_to_string(outside.path().join("victim")).unwrap(),
        "whole"
    );
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "mine");
}

#[test]
fn limits_and_cuts_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let whole = entry(EntryType::Regular, "f", "", &[7; 600]);
    let few = ArchiveLimits {
        bytes_max: 599,
        entries_max: 100,
    };
    assert_eq!(
        unpack_bytes(directory.path(), few, &whole).unwrap_err().code,
        FailureCode::TooLarge
    );
    let none = ArchiveLimits {
        bytes_max: 599,
        entries_max: 0,
    };
    assert_eq!(
        unpack_bytes(directory.path(), none, &whole).unwrap_err().code,
        FailureCode::TooLarge
    );
    for cut in [0, 100, 512, 700, 1100, 1536] {
        assert_eq!(
            unpack_bytes(directory.path(), LIMITS, &whole[..cut])
                .unwrap_err()
                .code,
            FailureCode::Invalid,
            "cut at {cut}"
        );
    }
    assert!(unpack_bytes(directory.path(), LIMITS, &whole).is_ok());
    fs::write(directory.path().join("g"), [1; 600]).unwrap();
    assert_eq!(
        pack_bytes(directory.path(), few, &[]).unwrap_err().code,
        FailureCode::TooLarge
    );
    assert_eq!(
        pack_bytes(directory.path(), none, &[]).unwrap_err().code,
        FailureCode::TooLarge
    );
    let absent = directory.path().join("absent");
    assert_eq!(
        pack_bytes(&absent, LIMITS, &[]).unwrap_err().code,
        FailureCode::NotFound
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_archives_stay_inside(position in any::<prop::sample::Index>(), value in any::<u8>(), target in "[./a-c]{0,12}") {
        let outside = tempfile::tempdir().unwrap();
        let directory = outside.path().join("in");
        let mut bytes = without_end(&entry(EntryType::Symlink, "a/l", &target, b"")).to_vec();
        bytes.extend(without_end(&entry(EntryType::Regular, "a/l/b", "", b"content")));
        bytes.extend(entry(EntryType::Regular, "../c", "", b"content"));
        let position = position.index(bytes.len());
        bytes[position] = value;
        let _ = unpack_bytes(&directory, LIMITS, &bytes);
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert!(names.iter().all(|name| name == "in"), "{:?}", names);
    }
}

#[test]
fn only_what_is_named_is_packed() {
    let from = tempfile::tempdir().unwrap();
    for path in [
        "login/deep/a",
        "login.json",
        "login-other",
        ".cache/big",
        "x/y/z",
        "x/w",
    ] {
        let path = from.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "1").unwrap();
    }
    let limits = ArchiveLimits {
        bytes_max: 1024,
        entries_max: 100,
    };
    let (_, bytes) = pack_some(from.path(), limits, &[], &["login", "login.json", "x/y"]).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    let expect = [
        "login",
        "login/deep",
        "login/deep/a",
        "login.json",
        "x",
        "x/y",
        "x/y/z",
    ];
    assert_eq!(names, expect);
}

#[test]
fn links_lead_anywhere_where_that_is_asked_for_and_are_never_followed() {
    let (outside, from, to) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    std::os::unix::fs::symlink(outside.path(), from.path().join("out")).unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let path = |directory: &tempfile::TempDir| directory.path().to_str().unwrap().to_owned();
    let request = Pack {
        path: path(&from),
        limits: LIMITS,
        exclude: Vec::new(),
        only: Vec::new(),
        any_links: true,
    };
    assert_eq!(pack(&request, writer).unwrap().skipped, 0);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let unpack_tree = |bytes: &[u8]| {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        drop(writer);
        let request = Unpack {
            path: path(&to),
            limits: LIMITS,
            any_links: true,
        };
        unpack(&request, reader)
    };
    unpack_tree(&bytes).unwrap();
    assert_eq!(fs::read_link(to.path().join("out")).unwrap(), outside.path());
    let below = entry(EntryType::Regular, "out/file", "", b"x");
    assert!(unpack_tree(&below).is_err());
    assert!(!outside.path().join("file").exists());
}
