//! What a child does between fork and exec, beyond what the standard library offers.
//!
//! Each function adds one step to a [`Command`]; steps run in the order in which they were added. The standard library
//! changes the user before any of them, so a command with other steps is given its user by [`become_user`].

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};
use rustix::thread::{Gid, Uid, UnshareFlags};

/// How many files and directories a stage may hold.
const STAGED_MAX: usize = 8;

/// Closes everything but the standard streams when the child becomes its program, also what this process was itself
/// given by somebody who did not care. Comes before [`keep_open`].
pub fn close_others(command: &mut Command) {
    before_exec(command, close_on_exec);
}

#[expect(unsafe_code, reason = "rustix does not have this system call")]
fn close_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes three numbers and no memory. It closes nothing now, so no file that this process still
    // uses is closed under it; it is one system call and safe between fork and exec.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the child have these open files under the same numbers. They stay open here until the command is dropped.
pub fn keep_open(command: &mut Command, files: Vec<OwnedFd>) {
    before_exec(command, move || {
        for file in &files {
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    });
}

/// Puts the child, and whatever it starts, into the cgroups whose `cgroup.procs` these files are.
pub fn join_cgroups(command: &mut Command, procs_files: Vec<File>) {
    before_exec(command, move || {
        for file in &procs_files {
            // "0" means whoever writes it.
            rustix::io::write(file, b"0")?;
        }
        Ok(())
    });
}

/// Makes the child an ordinary user, in no other group. Its capabilities go with it. Needs root.
pub fn become_user(command: &mut Command, uid: u32, gid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    before_exec(command, move || {
        // These change one thread, and after a fork there is only one.
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    });
}

/// One file or directory that [`stage`] makes reachable.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Its whole path.
    pub source: CString,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Its name in the stage.
    pub name: CString,
}

/// Gives the child a view of the file system of its own, in which the directory `stage` holds `sources` and nothing
/// else. So a child that is about to become an ordinary user reaches them, whatever the directories above them allow.
/// The view ends with the last process that has it; nothing has to be taken down. Needs root.
///
/// # Errors
/// When there are more than eight of them.
pub fn stage(command: &mut Command, stage: CString, sources: Vec<Staged>) -> io::Result<()> {
    if sources.len() > STAGED_MAX {
        return Err(io::Error::other("too many files to stage"));
    }
    before_exec(command, move || enter_stage(&stage, &sources));
    Ok(())
}

fn enter_stage(stage: &CString, sources: &[Staged]) -> io::Result<()> {
    unshare_mounts()?;
    mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    // All are taken before the stage covers a directory that they may be in.
    let mut trees = [const { None }; STAGED_MAX];
    for (source, tree) in sources.iter().zip(&mut trees) {
        *tree = Some(open_tree(
            CWD,
            source.source.as_c_str(),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?);
    }
    mount(
        c"none",
        stage.as_c_str(),
        c"tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755,size=64k"),
    )?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, stage.as_c_str(), flags, Mode::empty())?;
    for (source, tree) in sources.iter().zip(&trees) {
        let name = source.name.as_c_str();
        if source.is_directory {
            rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            drop(rustix::fs::openat(
                &directory,
                name,
                flags,
                Mode::from_raw_mode(0o644),
            )?);
        }
        if let Some(tree) = tree {
            move_mount(
                tree,
                c"",
                &directory,
                name,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )?;
        }
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "a namespace of its own is a system call that is unsafe in general"
)]
fn unshare_mounts() -> io::Result<()> {
    // SAFETY: what makes it unsafe are tables of open files that threads no longer share. This unshares mounts only.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
fn before_exec(command: &mut Command, step: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: between fork and exec only functions that are safe after a fork of a threaded process may run. The steps
    // of this file make system calls through rustix, with strings that were made before, and nothing else: they take no
    // lock, allocate nothing (io::Error from an errno is a plain value) and touch no memory but what they have captured.
    unsafe {
        command.pre_exec(step);
    }
}
