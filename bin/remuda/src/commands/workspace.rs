//! Workspaces of agents' tasks: a directory that is uploaded, and what has become of it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use daemon::config::{self, Sources};
use ignore::WalkBuilder;
use orchestratord::Settings;
use pool_registry_types::{WorkspaceChanges, WorkspaceMade, WorkspaceView};
use reqwest::Method;
use tar::{Builder, EntryType, Header};
use task_api::{CloneRequest, WorkspaceId, WorkspaceRequest};

use crate::client::{Client, ControlPlane, segment};
use crate::failure::{Exit, Failure};
use crate::output::{dim, name_of, print_json, print_table, size, table};

/// The owner of what is done at this machine without a key.
const LOCAL_OWNER: &str = "local";
/// No sandbox has room for more.
const PACKED_BYTES_MAX: u64 = 1 << 30;

/// What an agent is to work in.
#[derive(Debug)]
pub(crate) enum Workspace {
    /// A directory to upload.
    Directory(PathBuf),
    /// A repository to clone, or a workspace that is there.
    Named(WorkspaceRequest),
}

/// What was packed.
#[derive(Debug, Default)]
struct Packed {
    files: u64,
    bytes: u64,
    /// Sockets, pipes, devices.
    left_out: u64,
}

impl Workspace {
    /// Understands what a person has typed.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.starts_with("https://") || text.starts_with("http://") {
            let (git, reference) = match text.split_once('#') {
                Some((git, reference)) => (git, Some(reference.to_owned())),
                None => (text, None),
            };
            let git = git.to_owned();
            return Ok(Self::Named(WorkspaceRequest::Cloned(CloneRequest {
                git,
                reference,
            })));
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let digits = text.split('.').next().unwrap_or_default();
        let is_id = text.contains('.') && digits.len() == 32 && digits.bytes().all(is_digit);
        match WorkspaceId::new(text) {
            Ok(id) if is_id => Ok(Self::Named(WorkspaceRequest::Kept(id))),
            _ => Err(Failure::new(Exit::Usage, format!("{text:?} is no directory"))
                .hint("--workspace takes a directory, https://HOST/PATH of a repository, or the id of a workspace")
                .into()),
        }
    }

    /// Says it to the control plane: a directory is uploaded first.
    pub(crate) async fn give(&self, client: &Client, agent: &str, quiet: bool) -> Result<WorkspaceRequest> {
        let directory = match self {
            Self::Named(request) => return Ok(request.clone()),
            Self::Directory(directory) => directory.clone(),
        };
        let shown = directory.display().to_string();
        let packing = tokio::task::spawn_blocking(move || pack(&directory));
        let (archive, packed) = packing.await.context("packing the workspace")??;
        let path = format!("/v2/workspaces?agent={}", segment(agent));
        let request = client
            .request(Method::POST, &path)
            .header("content-type", "application/x-tar")
            .body(tokio::fs::File::from_std(archive));
        let made: WorkspaceMade = client.read(client.send(request).await?).await?;
        if !quiet {
            let mut note = format!("sent {} of {shown}: {}", files(packed.files), size(packed.bytes));
            note.push_str("; left out: .git and what .gitignore names");
            if packed.left_out > 0 {
                note.push_str(&format!(", and {} that are no files", packed.left_out));
            }
            anstream::eprintln!("{}", dim(note));
        }
        let id = WorkspaceId::new(&made.workspace_id).context("the control plane's name of the workspace")?;
        Ok(WorkspaceRequest::Kept(id))
    }
}

fn files(count: u64) -> String {
    match count {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    }
}

/// Packs a directory into a file without a name, but for `.git` and what `.gitignore` names.
fn pack(directory: &Path) -> Result<(File, Packed)> {
    let file = tempfile::tempfile().context("making a file for the archive")?;
    let mut builder = Builder::new(io::BufWriter::new(file));
    let mut packed = Packed::default();
    let walk = WalkBuilder::new(directory)
        .hidden(false)
        .ignore(false)
        .require_git(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .sort_by_file_name(Ord::cmp)
        .build();
    for entry in walk {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        let path = entry.path();
        let Some(kind) = entry.file_type().filter(|_| entry.depth() > 0) else {
            continue;
        };
        let name = path.strip_prefix(directory).expect("it lies in the directory");
        let reading = || format!("reading {}", path.display());
        if kind.is_dir() {
            let mut header = header(EntryType::Directory, 0o755, 0);
            builder.append_data(&mut header, name, io::empty())?;
        } else if kind.is_symlink() {
            let target = fs::read_link(path).with_context(reading)?;
            let mut header = header(EntryType::Symlink, 0o777, 0);
            builder.append_link(&mut header, name, target)?;
            packed.files += 1;
        } else if kind.is_file() {
            let mode = fs::metadata(path).with_context(reading)?.permissions().mode();
            let content = fs::read(path).with_context(reading)?;
            let mut header = header(EntryType::Regular, mode & 0o777, content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice())?;
            packed.files += 1;
            packed.bytes += content.len() as u64;
        } else {
            packed.left_out += 1;
        }
        if packed.bytes > PACKED_BYTES_MAX {
            let message = format!(
                "{} holds more than {}",
                directory.display(),
                size(PACKED_BYTES_MAX)
            );
            return Err(Failure::new(Exit::Failed, message)
                .hint("name what the agent does not need in .gitignore")
                .into());
        }
    }
    let mut file = builder
        .into_inner()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, packed))
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header
}

/// Prints the patch.
pub(crate) async fn diff(plane: &ControlPlane, task: &str) -> Result<()> {
    let mut patch = fetch(plane, task, WorkspaceView::Diff).await?;
    let written = io::copy(&mut patch, &mut io::stdout().lock());
    if written.context("writing the patch")? == 0 {
        anstream::eprintln!("{}", dim("no file has changed"));
    }
    Ok(())
}

/// Lists the files that have changed.
pub(crate) async fn files_changed(plane: &ControlPlane, task: &str, json: bool) -> Result<()> {
    let file = fetch(plane, task, WorkspaceView::Files).await?;
    let changes: WorkspaceChanges =
        serde_json::from_reader(io::BufReader::new(file)).context("the list of files cannot be read")?;
    if json {
        return print_json(&changes);
    }
    let mut rows = table(&["PATH", "CHANGE", "SIZE"]);
    for file in &changes.files {
        // A name may hold anything, and a terminal obeys some of it.
        let path: String = file
            .path
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        rows.add_row([path, name_of(&file.change), size(file.bytes)]);
    }
    print_table(&rows, "no file has changed")
}

/// Puts the files into a directory.
pub(crate) async fn download(plane: &ControlPlane, task: &str, into: &Path, force: bool) -> Result<()> {
    let mut archive = fetch(plane, task, WorkspaceView::Archive).await?;
    let (into, shown) = (into.to_owned(), into.display().to_string());
    let unpacking = tokio::task::spawn_blocking(move || {
        // All is looked at before anything is written.
        let wanted = entries(&mut archive, |_, _| Ok(()))?;
        check(&into, &wanted, force)?;
        archive.seek(SeekFrom::Start(0))?;
        fs::create_dir_all(&into).with_context(|| format!("making {}", into.display()))?;
        let place = into.clone();
        let written = entries(&mut archive, move |path, content| write(&place, path, content))?;
        Ok::<_, anyhow::Error>(written)
    });
    let written = unpacking.await.context("unpacking")??;
    let left_out = written.links_left_out;
    let written = written.paths.len() as u64;
    anstream::eprintln!("{}", dim(format!("{} in {shown}", files(written))));
    if left_out > 0 {
        let note = format!("left out: {left_out} links that lead out of the directory");
        anstream::eprintln!("{}", dim(note));
    }
    Ok(())
}

/// What a task has made of its workspace, as a file. This machine's own are read where they lie: nothing has to run.
async fn fetch(plane: &ControlPlane, task: &str, view: WorkspaceView) -> Result<File> {
    if plane.url.is_none() {
        let task = task.to_owned();
        let local = tokio::task::spawn_blocking(move || local(&task, view));
        if let Some(file) = local.await.context("reading this machine's workspaces")?? {
            return Ok(file);
        }
    }
    let client = plane.client()?;
    let path = format!("/v2/tasks/{}/{}", segment(task), view.as_str());
    let mut response = client.send(client.request(Method::GET, &path)).await?;
    let mut file = tempfile::tempfile().context("making a file for the answer")?;
    let broke_off = || format!("{} broke off in mid-answer", client.address());
    while let Some(piece) = response.chunk().await.with_context(broke_off)? {
        file.write_all(&piece)?;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn local(task: &str, view: WorkspaceView) -> Result<Option<File>> {
    let no_flags: [&str; 0] = [];
    let settings = config::load::<Settings>(&Sources::with_arguments(no_flags))?.settings;
    let store = settings.agents.config(&[]).workspace_store();
    Ok(pool_managerd::local_workspace(store, LOCAL_OWNER, task, view)?)
}

/// What stands in an archive.
enum Content<'a> {
    Directory,
    File {
        executable: bool,
        bytes: &'a mut dyn Read,
    },
    Link(PathBuf),
}

/// What an archive holds, or what was written of it.
#[derive(Default)]
struct Entries {
    /// Files and links.
    paths: Vec<PathBuf>,
    links_left_out: u64,
}

/// Reads an archive, believing nothing of it: what leaves the directory is refused, and so is what is git's own.
fn entries(archive: &mut File, mut each: impl FnMut(&Path, Content<'_>) -> Result<()>) -> Result<Entries> {
    let mut found = Entries::default();
    let mut links = Vec::new();
    let mut tar = tar::Archive::new(io::BufReader::new(archive));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let is_plain = |component: Component<'_>| match component {
            Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
            _ => false,
        };
        ensure!(
            path.components().next().is_some() && path.components().all(is_plain),
            "{path:?} in the answer leads somewhere else, or is git's own"
        );
        match entry.header().entry_type() {
            EntryType::Directory => each(&path, Content::Directory)?,
            EntryType::Symlink => {
                let target = entry
                    .link_name()?
                    .context("a link without a target")?
                    .into_owned();
                if stays_inside(&path, &target) {
                    links.push((path, target));
                } else {
                    found.links_left_out += 1;
                }
            }
            EntryType::Regular => {
                let executable = entry.header().mode()? & 0o111 != 0;
                let bytes = &mut entry;
                each(&path, Content::File { executable, bytes })?;
                found.paths.push(path);
            }
            _ => {
                return Err(anyhow::anyhow!(
                    "{path:?} in the answer is neither file, directory nor link"
                ));
            }
        }
    }
    // Links come last, so that nothing is written through one.
    for (path, target) in links {
        each(&path, Content::Link(target))?;
        found.paths.push(path);
    }
    Ok(found)
}

/// Whether a link stays in the directory: only leading `..`, and not too many.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let depth = path.components().count() - 1;
    let up = target
        .components()
        .take_while(|one| *one == Component::ParentDir)
        .count();
    let is_plain = |one: Component<'_>| matches!(one, Component::Normal(_) | Component::CurDir);
    up <= depth && target.components().skip(up).all(is_plain)
}

/// Nothing that is there is written over, unless that is wanted; and never anything through a link.
fn check(into: &Path, wanted: &Entries, force: bool) -> Result<()> {
    for path in &wanted.paths {
        for above in path.ancestors().skip(1) {
            if above.as_os_str().is_empty() {
                break;
            }
            let above = into.join(above);
            if fs::symlink_metadata(&above).is_ok_and(|status| !status.is_dir()) {
                let message = format!("{} is there and is no directory", above.display());
                return Err(Failure::new(Exit::Failed, message)
                    .hint("choose another place with --into")
                    .into());
            }
        }
        let place = into.join(path);
        let Ok(status) = fs::symlink_metadata(&place) else {
            continue;
        };
        if status.is_dir() || !force {
            return Err(
                Failure::new(Exit::Failed, format!("{} is there already", place.display()))
                    .hint("--force writes over files, --into DIR chooses another place")
                    .into(),
            );
        }
    }
    Ok(())
}

fn write(into: &Path, path: &Path, content: Content<'_>) -> Result<()> {
    let place = into.join(path);
    let writing = || format!("writing {}", place.display());
    if let Content::Directory = content {
        return fs::create_dir_all(&place).with_context(writing);
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).with_context(writing)?;
    }
    match fs::remove_file(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(writing),
        _ => {}
    }
    match content {
        Content::Directory => Ok(()),
        Content::File { executable, bytes } => {
            let mut file = File::create_new(&place).with_context(writing)?;
            io::copy(bytes, &mut file).with_context(writing)?;
            if executable {
                let mode = file.metadata().with_context(writing)?.permissions().mode();
                // Whoever may read it may run it.
                let mode = Permissions::from_mode(mode | (mode & 0o444) >> 2);
                file.set_permissions(mode).with_context(writing)?;
            }
            Ok(())
        }
        Content::Link(target) => std::os::unix::fs::symlink(target, &place).with_context(writing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_what_was_typed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        assert!(
            matches!(Workspace::parse(path).unwrap(), Workspace::Directory(found) if found == directory.path())
        );
        let named = |text: &str| match Workspace::parse(text).unwrap() {
            Workspace::Named(request) => serde_json::to_string(&request).unwrap(),
            Workspace::Directory(path) => panic!("{path:?}"),
        };
        assert_eq!(named("https://h/a.git"), r#"{"git":"https://h/a.git"}"#);
        assert_eq!(named("http://h/a#v1"), r#"{"git":"http://h/a","ref":"v1"}"#);
        let id = format!("{}.node-1", "0".repeat(32));
        assert_eq!(named(&id), format!("{id:?}"));
        for wrong in ["/no/such/directory", "no-such", "abc.node", ""] {
            assert!(Workspace::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// The names that are packed of a directory.
    fn packed(directory: &Path) -> Vec<String> {
        let (mut file, _) = pack(directory).unwrap();
        let mut tar = tar::Archive::new(&mut file);
        let names = tar
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        names.collect()
    }

    #[test]
    fn git_and_what_it_ignores_stay_at_home() {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".git/config", "x");
        write(".gitignore", "target/\n*.log\n");
        write(".env", "x");
        write("src/main.rs", "x");
        write("src/a.log", "x");
        write("target/out", "x");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("out")).unwrap();
        assert_eq!(
            packed(directory.path()),
            [".env", ".gitignore", "out", "src", "src/main.rs"]
        );
    }

    fn archive(build: impl FnOnce(&mut Builder<&mut File>)) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let mut builder = Builder::new(&mut file);
        build(&mut builder);
        builder.finish().unwrap();
        drop(builder);
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    /// An entry that the builder itself would not write.
    fn raw(path: &str) -> File {
        archive(|builder| {
            let mut header = header(EntryType::Regular, 0o644, 1);
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, &b"x"[..]).unwrap();
        })
    }

    #[test]
    fn nothing_is_written_beside_the_directory() {
        for path in ["../up", "/etc/up", "a/../../up", ".git/config", "a/.GIT/hooks/x"] {
            assert!(entries(&mut raw(path), |_, _| Ok(())).is_err(), "{path}");
        }
        for (path, target, expect) in [
            ("a", "b", true),
            ("a", "../b", false),
            ("d/a", "../b", true),
            ("d/a", "../../b", false),
            ("d/a", "b/../../../c", false),
            ("a", "/etc/passwd", false),
        ] {
            assert_eq!(
                stays_inside(Path::new(path), Path::new(target)),
                expect,
                "{path} {target}"
            );
        }
    }

    #[test]
    fn what_is_there_is_kept_unless_it_may_be_written_over() {
        let outside = tempfile::tempdir().unwrap();
        let into = tempfile::tempdir().unwrap();
        let wanted = |path: &str| Entries {
            paths: vec![path.into()],
            links_left_out: 0,
        };
        fs::write(into.path().join("file"), "mine").unwrap();
        std::os::unix::fs::symlink(outside.path(), into.path().join("link")).unwrap();
        assert!(check(into.path(), &wanted("new"), false).is_ok());
        assert!(check(into.path(), &wanted("file"), false).is_err());
        assert!(check(into.path(), &wanted("file"), true).is_ok());
        assert!(check(into.path(), &wanted("link/below"), true).is_err());
        assert!(check(into.path(), &wanted("file/below"), true).is_err());
        let bytes = &mut &b"theirs"[..];
        let executable = true;
        write(
            into.path(),
            Path::new("file"),
            Content::File { executable, bytes },
        )
        .unwrap();
        assert_eq!(fs::read(into.path().join("file")).unwrap(), b"theirs");
        let mode = fs::metadata(into.path().join("file"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o100, 0o100);
    }
}
