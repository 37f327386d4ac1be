//! What this process and all that it starts are kept from.
//!
//! The seccomp filter is a list of what is refused: calls that reach the kernel's rarely used parts, make new
//! namespaces, or look into other processes. What an ordinary program does still works. Init sets it on itself, so it
//! is the same under every driver and on every process of the sandbox.

use std::collections::BTreeMap;

use init_protocol::ProcessLimits;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use thiserror::Error;

/// Why a sandbox could not be closed. Init does not run in an open one.
#[derive(Debug, Error)]
pub(crate) enum HardenError {
    #[error("cannot set a limit")]
    Limit(#[source] rustix::io::Errno),
    #[error("cannot make this process unreadable")]
    Dumpable(#[source] rustix::io::Errno),
    #[error("cannot make the seccomp filter")]
    Filter(#[source] seccompiler::Error),
    #[error("seccomp is not known on this architecture")]
    Architecture,
}

/// Closes everything that init itself can close.
pub(crate) fn harden(limits: &ProcessLimits) -> Result<(), HardenError> {
    // A limit of one byte, not of none: with a core pattern that pipes into a program the kernel ignores 0, but takes 1
    // as "never".
    limit(Resource::Core, Some(1))?;
    limit(Resource::Nproc, limits.processes_max)?;
    limit(Resource::Nofile, limits.open_files_max)?;
    limit(Resource::Data, limits.data_bytes_max)?;
    limit(Resource::Fsize, limits.file_bytes_max)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(HardenError::Dumpable)?;
    for program in filters()? {
        seccompiler::apply_filter(&program).map_err(HardenError::Filter)?;
    }
    Ok(())
}

fn limit(resource: Resource, value: Option<u64>) -> Result<(), HardenError> {
    let Some(value) = value else { return Ok(()) };
    let maximum = getrlimit(resource)
        .maximum
        .map_or(value, |maximum| maximum.min(value));
    let both = Rlimit {
        current: Some(maximum),
        maximum: Some(maximum),
    };
    setrlimit(resource, both).map_err(HardenError::Limit)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Three programs, because each has one answer for all that it refuses.
fn filters() -> Result<[BpfProgram; 3], HardenError> {
    let refused = compile(refused_calls()?, libc::EPERM)?;
    // Programs fall back to older calls when these are missing; clone3 hides its flags from the filter.
    let missing = compile(
        [
            libc::SYS_clone3,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ]
        .map(|call| (call, Vec::new()))
        .into(),
        libc::ENOSYS,
    )?;
    let families = compile(
        [
            (libc::SYS_socket, refused_families()?),
            (libc::SYS_socketpair, refused_families()?),
        ]
        .into(),
        libc::EAFNOSUPPORT,
    )?;
    Ok([without_x32(refused), missing, families])
}

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, HardenError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| HardenError::Architecture)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        architecture,
    )
    .map_err(|error| HardenError::Filter(error.into()))?;
    filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| HardenError::Filter(error.into()))
}

/// On x86-64 every call has a second number, for the x32 interface, where a kernel has that. A list of numbers would
/// miss it; nothing in a sandbox needs it.
#[cfg(target_arch = "x86_64")]
fn without_x32(program: BpfProgram) -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, at offset 0: the number of the call
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    const RETURN_ERRNO: u32 = 0x0005_0000;
    let instruction = |code, jump_false, k| sock_filter {
        code,
        jt: 0,
        jf: jump_false,
        k,
    };
    let mut whole = vec![
        instruction(LOAD_NUMBER, 0, 0),
        instruction(JUMP_IF_AT_LEAST, 1, X32_BIT),
        instruction(RETURN, 0, RETURN_ERRNO | libc::ENOSYS.unsigned_abs()),
    ];
    // Jumps are relative, so the rest may stand anywhere.
    whole.extend(program);
    whole
}

#[cfg(not(target_arch = "x86_64"))]
fn without_x32(program: BpfProgram) -> BpfProgram {
    program
}

fn refused_calls() -> Result<Rules, HardenError> {
    let mut rules: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, namespace_flags()?);
    rules.insert(libc::SYS_unshare, namespace_flags()?);
    Ok(rules)
}

/// Refused whatever their arguments are.
const REFUSED: &[i64] = &[
    // Other places in the file system's tree.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    // Other processes' memory and files.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Keys of the kernel are not in any namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Programs for the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    // The machine as a whole.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// One rule for each flag that makes a namespace; any of them is enough.
fn namespace_flags() -> Result<Vec<SeccompRule>, HardenError> {
    [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ]
    .into_iter()
    .map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        rule(vec![condition(0, SeccompCmpOp::MaskedEq(flag), flag)?])
    })
    .collect()
}

/// All but unix, inet, and the one question about network interfaces that standard libraries ask (`NETLINK_ROUTE`; it
/// answers about the sandbox's own).
fn refused_families() -> Result<Vec<SeccompRule>, HardenError> {
    let usual = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let others = usual
        .into_iter()
        .map(|family| condition(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs())))
        .collect::<Result<_, _>>()?;
    let other_netlink = vec![
        condition(0, SeccompCmpOp::Eq, u64::from(libc::AF_NETLINK.unsigned_abs()))?,
        condition(2, SeccompCmpOp::Ne, u64::from(libc::NETLINK_ROUTE.unsigned_abs()))?,
    ];
    Ok(vec![rule(others)?, rule(other_netlink)?])
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, HardenError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(|error| HardenError::Filter(error.into()))
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, HardenError> {
    SeccompRule::new(conditions).map_err(|error| HardenError::Filter(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_can_be_made_and_are_not_too_long_for_the_kernel() {
        for program in filters().unwrap() {
            assert!(program.len() < 4096, "{}", program.len());
        }
    }
}
