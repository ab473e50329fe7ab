//! Which system calls a box may make, said once and used twice.
//!
//! [`INSIDE`] is what the runner leaves itself before it reads a call; [`COMMANDS`] is what it leaves a program that it
//! becomes in a box for commands; [`STARTING`] is what it takes to get that far in a container: the engine's own last
//! steps, the init process, and giving things up. The container is started under a profile of what it may do and
//! [`STARTING`], so what neither names is out of reach from the first instruction on.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// A system call by its name and number.
type Named = (&'static str, i64);

macro_rules! named {
    ($($(#[$condition:meta])* $call:ident,)*) => {
        &[$($(#[$condition])* (stringify!($call), libc::$call),)*]
    };
}

/// Reading files, memory, time, and dying.
pub(crate) const INSIDE: &[Named] = named![
    SYS_read,
    SYS_pread64,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_lseek,
    SYS_openat,
    SYS_openat2,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_getdents64,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fcntl,
    SYS_dup,
    SYS_getcwd,
    SYS_fstatfs,
    SYS_fadvise64,
    SYS_munmap,
    SYS_mremap,
    SYS_brk,
    SYS_madvise,
    SYS_futex,
    SYS_sigaltstack,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getrandom,
    SYS_sched_yield,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_tgkill,
    SYS_restart_syscall,
    SYS_exit,
    SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
];

/// What programs of all kinds need: files, memory, processes of their own, signals, time, and pipes among themselves.
/// Not among it: sockets, other namespaces, mounts, other processes' memory, keys, io_uring, bpf, performance events,
/// userfaultfd, files without a name (which landlock does not see), extended attributes to be written, clocks to be set.
/// A call that is allowed with some arguments only stands in [`ARGUMENTS`].
pub(crate) const COMMANDS: &[Named] = named![
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_close,
    SYS_close_range,
    SYS_lseek,
    SYS_openat,
    SYS_openat2,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fstatfs,
    SYS_statfs,
    SYS_getdents64,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fcntl,
    SYS_dup,
    SYS_dup3,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_fadvise64,
    SYS_readahead,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_truncate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_flock,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_utimensat,
    SYS_umask,
    SYS_copy_file_range,
    SYS_sendfile,
    SYS_splice,
    SYS_pipe2,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_fgetxattr,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_flistxattr,
    SYS_inotify_init1,
    SYS_inotify_add_watch,
    SYS_inotify_rm_watch,
    SYS_mmap,
    SYS_mprotect,
    SYS_munmap,
    SYS_mremap,
    SYS_brk,
    SYS_madvise,
    SYS_mincore,
    SYS_msync,
    SYS_mlock,
    SYS_munlock,
    SYS_membarrier,
    SYS_execve,
    SYS_wait4,
    SYS_waitid,
    SYS_exit,
    SYS_exit_group,
    SYS_kill,
    SYS_tkill,
    SYS_tgkill,
    SYS_getpid,
    SYS_gettid,
    SYS_getppid,
    SYS_getpgid,
    SYS_getsid,
    SYS_setsid,
    SYS_setpgid,
    SYS_setpriority,
    SYS_getpriority,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getgroups,
    SYS_getresuid,
    SYS_getresgid,
    SYS_capget,
    SYS_prctl,
    SYS_set_tid_address,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_prlimit64,
    SYS_getrlimit,
    SYS_setrlimit,
    SYS_getrusage,
    SYS_times,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_setscheduler,
    SYS_sched_getattr,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo,
    SYS_restart_syscall,
    SYS_sigaltstack,
    SYS_signalfd4,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_setitimer,
    SYS_getitimer,
    SYS_timer_create,
    SYS_timer_settime,
    SYS_timer_gettime,
    SYS_timer_getoverrun,
    SYS_timer_delete,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_futex,
    SYS_futex_waitv,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_ppoll,
    SYS_pselect6,
    SYS_uname,
    SYS_sysinfo,
    SYS_getrandom,
    SYS_getcpu,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_recvmmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    #[cfg(target_arch = "x86_64")]
    SYS_creat,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    SYS_rename,
    #[cfg(target_arch = "x86_64")]
    SYS_link,
    #[cfg(target_arch = "x86_64")]
    SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    SYS_chown,
    #[cfg(target_arch = "x86_64")]
    SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    SYS_utime,
    #[cfg(target_arch = "x86_64")]
    SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    SYS_poll,
    #[cfg(target_arch = "x86_64")]
    SYS_select,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    SYS_getdents,
    #[cfg(target_arch = "x86_64")]
    SYS_inotify_init,
    #[cfg(target_arch = "x86_64")]
    SYS_eventfd,
    #[cfg(target_arch = "x86_64")]
    SYS_signalfd,
    #[cfg(target_arch = "x86_64")]
    SYS_fork,
    #[cfg(target_arch = "x86_64")]
    SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    SYS_alarm,
    #[cfg(target_arch = "x86_64")]
    SYS_pause,
    #[cfg(target_arch = "x86_64")]
    SYS_time,
];

/// What must hold of one argument.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Argument {
    pub(crate) index: u8,
    /// The bits that are looked at.
    pub(crate) mask: u32,
    /// What they must be.
    pub(crate) value: u32,
}

/// Calls that a command may make with some arguments only: all of a line's conditions must hold.
pub(crate) const ARGUMENTS: &[(Named, &[Argument])] = &[
    // Processes and threads, in the namespaces there are.
    (("SYS_clone", libc::SYS_clone), &[Argument { index: 0, mask: NEW_NAMESPACES.cast_unsigned(), value: 0 }]),
    // A pair of connected streams: what asynchronous runtimes wake themselves with. A pair of datagram sockets could be
    // pointed at another address.
    (
        ("SYS_socketpair", libc::SYS_socketpair),
        &[
            Argument { index: 0, mask: u32::MAX, value: libc::AF_UNIX.cast_unsigned() },
            Argument { index: 1, mask: 0xf, value: libc::SOCK_STREAM.cast_unsigned() },
        ],
    ),
    // Named pipes, no devices and no sockets.
    (("SYS_mknodat", libc::SYS_mknodat), &[Argument { index: 2, mask: libc::S_IFMT, value: libc::S_IFIFO }]),
    #[cfg(target_arch = "x86_64")]
    (("SYS_mknod", libc::SYS_mknod), &[Argument { index: 1, mask: libc::S_IFMT, value: libc::S_IFIFO }]),
];

/// What `ioctl` may not do: put words into a terminal's mouth.
pub(crate) const NO_IOCTL: [u32; 3] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32, libc::TIOCSETD as u32];

/// What the engine, the init process and the runner need until the runner has locked itself up.
const STARTING: &[Named] = named![
    // New memory may hold code only until then.
    SYS_mmap,
    SYS_mprotect,
    SYS_execve,
    SYS_set_tid_address,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_prlimit64,
    SYS_prctl,
    SYS_capget,
    SYS_capset,
    SYS_sched_getaffinity,
    SYS_statfs,
    SYS_uname,
    SYS_close_range,
    SYS_ppoll,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_pipe2,
    SYS_dup3,
    SYS_getppid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_kill,
    SYS_setpgid,
    SYS_getpgid,
    SYS_wait4,
    SYS_waitid,
    SYS_rt_sigtimedwait,
    SYS_seccomp,
    SYS_landlock_create_ruleset,
    SYS_landlock_add_rule,
    SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    #[cfg(target_arch = "x86_64")]
    SYS_poll,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    SYS_fork,
    #[cfg(target_arch = "x86_64")]
    SYS_vfork,
];

/// Every flag with which `clone` makes a namespace.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// The profile of a container for one of the built-in tools, as the engine's API takes it: an allow-list, everything else
/// is "operation not permitted". Other architectures of the same processor are not listed, so their calls kill.
#[must_use]
pub fn profile() -> String {
    allowing(INSIDE, &[])
}

/// The profile of a container for commands.
#[must_use]
pub fn profile_for_commands() -> String {
    let conditional = ARGUMENTS.iter().map(|((name, _), conditions)| {
        let conditions: Vec<Value> = conditions.iter().map(Argument::as_masked).collect();
        json!({"names": [plain(name)], "action": "SCMP_ACT_ALLOW", "args": conditions})
    });
    // The runner's own filter says which of them it may be.
    let terminals = json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW"});
    allowing(COMMANDS, &conditional.chain([terminals]).collect::<Vec<_>>())
}

fn allowing(inside: &[Named], conditional: &[Value]) -> String {
    let names: BTreeSet<&str> = inside.iter().chain(STARTING).map(|(name, _)| plain(name)).collect();
    let no_namespace = Argument { index: 0, mask: NEW_NAMESPACES.cast_unsigned(), value: 0 };
    let mut rules = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        // The init process starts the runner, and the engine's own program has threads.
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_namespace.as_masked()]}),
        // Its flags lie in memory, where a filter cannot look; "not implemented" makes libraries use `clone`.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        // The init process puts the runner into the foreground, or gives up.
        json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "value": libc::TIOCSPGRP, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}),
    ];
    rules.extend(conditional.iter().filter(|rule| rule["names"][0] != "clone").cloned());
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        _ => "SCMP_ARCH_X86_64",
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture],
        "syscalls": rules,
    });
    profile.to_string()
}

impl Argument {
    fn as_masked(&self) -> Value {
        json!({"index": self.index, "value": self.mask, "valueTwo": self.value, "op": "SCMP_CMP_MASKED_EQ"})
    }
}

fn plain(name: &str) -> &str {
    name.strip_prefix("SYS_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_allows_what_is_listed_and_nothing_that_leads_out() {
        let profile: Value = serde_json::from_str(&profile()).unwrap();
        let allowed = profile["syscalls"][0]["names"].as_array().unwrap();
        let allows = |name: &str| allowed.iter().any(|allowed| allowed == name);
        for name in ["read", "openat2", "execve", "landlock_restrict_self", "seccomp"] {
            assert!(allows(name), "{name}");
        }
        for name in [
            "socket",
            "connect",
            "mount",
            "unshare",
            "setns",
            "ptrace",
            "process_vm_readv",
            "bpf",
            "io_uring_setup",
            "keyctl",
            "userfaultfd",
            "perf_event_open",
            "memfd_create",
            "execveat",
            "clone",
            "clone3",
            "ioctl",
            "chmod",
            "unlink",
            "mknod",
            "symlink",
            "link",
            "rename",
            "setuid",
            "personality",
            "open_by_handle_at",
        ] {
            assert!(!allows(name), "{name}");
        }
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(profile["architectures"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_call_stands_in_one_list_only() {
        assert!(STARTING.iter().all(|call| !INSIDE.contains(call)));
        assert!(ARGUMENTS.iter().all(|(call, _)| !COMMANDS.contains(call)));
    }

    #[test]
    fn commands_get_processes_and_pipes_but_no_way_out() {
        let profile: Value = serde_json::from_str(&profile_for_commands()).unwrap();
        let allowed = profile["syscalls"][0]["names"].as_array().unwrap();
        let allows = |name: &str| allowed.iter().any(|allowed| allowed == name);
        for name in ["execve", "wait4", "rename", "unlinkat", "kill", "setsid", "mprotect"] {
            assert!(allows(name), "{name}");
        }
        for name in "socket connect bind listen accept4 mount umount2 unshare setns ptrace process_vm_readv \
                     process_vm_writev bpf io_uring_setup keyctl add_key userfaultfd perf_event_open memfd_create \
                     memfd_secret execveat clone3 chroot pivot_root mknod mknodat socketpair setuid setgid setresuid \
                     setgroups personality open_by_handle_at init_module kexec_load reboot swapon pidfd_getfd \
                     setxattr shmget mq_open clock_settime fanotify_init syslog"
            .split_whitespace()
        {
            assert!(!allows(name), "{name}");
        }
    }
}
