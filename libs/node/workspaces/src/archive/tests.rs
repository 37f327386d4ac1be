use super::*;

const LIMITS: Limits = Limits {
    bytes_max: 1 << 20,
    entries_max: 100,
};

fn tar_of(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

/// A header with a path that the builder itself would not take.
fn raw(kind: EntryType, path: &str, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = header(kind, 0o644, content.len() as u64, 0);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn ended(mut entries: Vec<u8>) -> Vec<u8> {
    entries.resize(entries.len() + 1024, 0);
    entries
}

fn take(bytes: &[u8]) -> Result<Archive, ArchiveError> {
    canonical(bytes, tempfile::tempfile().unwrap(), LIMITS)
}

#[test]
fn what_was_written_is_what_is_read_again() {
    let long = format!("deep/{}/{}", "x".repeat(200), "y".repeat(200));
    let bytes = tar_of(|builder| {
        let mut add = |path: &str, mode, content: &[u8]| {
            let mut header = header(EntryType::Regular, mode, content.len() as u64, 7);
            builder.append_data(&mut header, path, content).unwrap();
        };
        add("a/b.txt", 0o644, b"text");
        add("run.sh", 0o755, &[1; 513]);
        add("empty", 0o600, b"");
        add(&long, 0o644, b"far down");
        let mut link = header(EntryType::Symlink, 0o777, 0, 0);
        builder.append_link(&mut link, "out", "/etc/passwd").unwrap();
    });
    let mut with_hard_link = bytes[..bytes.len() - 1024].to_vec();
    with_hard_link.extend(raw(EntryType::Link, "again", "run.sh", b""));
    let archive = take(&ended(with_hard_link)).unwrap();
    let content = |path: &str| archive.content(&archive.nodes()[path.as_bytes()]).unwrap();
    assert_eq!(content("a/b.txt"), b"text");
    assert_eq!(content("run.sh"), [1; 513]);
    assert_eq!(content("again"), [1; 513]);
    assert_eq!(content(&long), b"far down");
    assert_eq!(content("out"), b"/etc/passwd");
    assert_eq!(archive.nodes()[&b"a"[..]], Node::Directory);
    assert!(matches!(
        archive.nodes()[&b"again"[..]],
        Node::File { executable: true, .. }
    ));
    let nodes = archive.nodes().clone();
    let reopened = Archive::open(archive.file.try_clone().unwrap()).unwrap();
    assert_eq!(*reopened.nodes(), nodes);
    assert_eq!((reopened.files(), reopened.bytes()), (6, 4 + 513 * 2 + 8));
}

#[test]
fn what_leaves_the_directory_or_is_no_file_is_refused() {
    let check = |entries: Vec<u8>, expect: &str| {
        let error = take(&ended(entries)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    let file = |path| raw(EntryType::Regular, path, "", b"x");
    check(file("/etc/passwd"), "leads out");
    check(file("../up"), "leads out");
    check(file("a/../../up"), "leads out");
    check(raw(EntryType::Block, "disk", "", b""), "neither file");
    check(raw(EntryType::Char, "null", "", b""), "neither file");
    check(raw(EntryType::Fifo, "pipe", "", b""), "neither file");
    check([file("a"), file("a")].concat(), "twice");
    check([file("a"), file("a/b")].concat(), "is no directory");
    check([file("a/b"), file("a")].concat(), "twice");
    let through_link = [raw(EntryType::Symlink, "a", "/tmp", b""), file("a/b")].concat();
    check(through_link, "is no directory");
    check(raw(EntryType::Link, "a", "../b", b""), "leads out");
    check(raw(EntryType::Link, "a", "b", b""), "not in the archive");
    check(raw(EntryType::Symlink, "a", "", b""), "leads nowhere");
}

#[test]
fn what_is_too_much_or_cut_off_is_refused() {
    let file = |path: &str, len: usize| raw(EntryType::Regular, path, "", &vec![1; len]);
    let too_large = |bytes: &[u8]| matches!(take(bytes), Err(ArchiveError::TooLarge(_)));
    assert!(!too_large(&ended(file("a", 1 << 20))));
    assert!(too_large(&ended(file("a", (1 << 20) + 1))));
    // A hard link costs as much as what it names.
    let linked = [file("a", 600_000), raw(EntryType::Link, "b", "a", b"")].concat();
    assert!(too_large(&ended(linked)));
    let many: Vec<u8> = (0..101).flat_map(|at| file(&format!("f{at}"), 0)).collect();
    assert!(too_large(&ended(many)));
    let whole = ended(file("a", 2000));
    assert!(take(&whole).is_ok());
    for cut in [0, 100, 512, 1500, 2560, whole.len() - 1024] {
        assert!(
            matches!(take(&whole[..cut]), Err(ArchiveError::Broken(_))),
            "{cut}"
        );
    }
    assert!(matches!(take(&[7; 4096]), Err(ArchiveError::Broken(_))));
    let mut more = whole;
    more.extend_from_slice(&[1; 512]);
    assert!(matches!(take(&more), Err(ArchiveError::Broken(_))));
}
