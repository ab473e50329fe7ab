//! The inner half of the box: what the runner gives up before it reads a call.
//!
//! Resource limits, then landlock (read `/workspace`, nothing else), then a seccomp allow-list of what reading files
//! and writing an answer takes. There is no way to start a process or a thread, open a socket, or run another
//! program, so most of the kernel is out of reach.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

use super::WORKSPACE;

/// Memory a call may allocate. Search keeps little; the largest file read is 16 MiB, held twice.
const DATA_BYTES_MAX: u64 = 256 << 20;
/// Address space, mapped binaries included.
const ADDRESS_BYTES_MAX: u64 = 4 << 30;
/// CPU time, above the wall time of every tool: it ends what outlives its parent.
const CPU_SECONDS_MAX: u64 = 15;
/// Files open at once; the walk opens one directory a level.
const FILES_MAX: u64 = 256;

/// Why the runner does not run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Error(String);

/// Locks this process up, for good. Returns what is in force.
pub(crate) fn confine() -> Result<Vec<String>, Error> {
    only_in_a_box()?;
    let failed = |what: &str, error: &dyn std::fmt::Display| Error(format!("{what}: {error}"));
    let mut enforced = Vec::new();
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Nofile, FILES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Data, DATA_BYTES_MAX),
        (Resource::As, ADDRESS_BYTES_MAX),
    ] {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).map_err(|error| failed("set a resource limit", &error))?;
    }
    enforced.push("rlimits".to_owned());
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("set no_new_privs", &error))?;
    enforced.push("no-new-privileges".to_owned());
    enforced.extend(landlock().map_err(|error| failed("restrict with landlock", &error))?);
    seccomp().map_err(|error| failed("install the seccomp filter", &error))?;
    enforced.push("seccomp".to_owned());
    Ok(enforced)
}

/// The runner is a program like any other and somebody may start it by hand; it must not probe or read their machine.
fn only_in_a_box() -> Result<(), Error> {
    let boxed = getuid().as_raw() == super::bubblewrap::UID
        && !["/etc", "/proc", "/usr", "/home"].iter().any(|path| std::path::Path::new(path).exists());
    if boxed { Ok(()) } else { Err(Error("the tool runner only runs inside its box".to_owned())) }
}

/// Best effort downwards: on an old kernel the mount namespace alone keeps files out of reach.
fn landlock() -> Result<Option<String>, landlock::RulesetError> {
    let abi = ABI::V7;
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules([WORKSPACE], reading))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Some("landlock".to_owned()),
        RulesetStatus::PartiallyEnforced => Some("landlock-partial".to_owned()),
        RulesetStatus::NotEnforced => None,
    })
}

/// Everything not listed fails with "operation not permitted"; a foreign architecture is killed.
fn seccomp() -> Result<(), Box<dyn std::error::Error>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    // New memory may hold data, never code.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        let data_only = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![data_only])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}

/// Reading files, memory, time, and dying.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_getcwd,
    libc::SYS_fstatfs,
    libc::SYS_fadvise64,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];
