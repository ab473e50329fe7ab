//! What must be refused, group by group. Each answers with the names of what is open.

use std::fs;
use std::io;

use super::ONLY_LANDLOCK;

/// One group of attempts.
pub(super) type Group = (&'static str, fn() -> Vec<String>);

/// All of them.
pub(super) const GROUPS: &[Group] = &[
    ("files", files),
    ("writes", writes),
    ("devices", devices),
    ("descriptors", descriptors),
    ("environment", environment),
    ("network", || refused(NETWORK)),
    ("namespaces", || refused(NAMESPACES)),
    ("processes", || refused(PROCESSES)),
    ("kernel", || refused(KERNEL)),
    ("privileges", || refused(PRIVILEGES)),
    ("programs", programs),
];

/// Attempts that some boxes answer by ending the runner, so that nothing could be tried after them.
pub(super) const DEADLY: &[Group] = &[("foreign calls", foreign_calls)];

fn files() -> Vec<String> {
    let mut open: Vec<String> = [
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hosts",
        "/proc/self/environ",
        "/proc/1/environ",
        "/proc/1/root/etc/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/self/cwd/../etc/passwd",
        "/proc/kcore",
        "/proc/kallsyms",
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel",
        "/sys/fs/cgroup",
        "/var/run/docker.sock",
        "/workspace/..",
        "/workspace/../etc",
    ]
    .iter()
    .filter(|path| fs::File::open(path).is_ok())
    .map(|path| format!("read {path}"))
    .collect();
    let own = ["/box/runner", "/box/lib", "/sbin/docker-init"].iter().filter(|path| fs::File::open(path).is_ok());
    open.extend(own.map(|path| format!("{ONLY_LANDLOCK}read {path}")));
    // A descriptor is a way into what it was opened for.
    for descriptor in 0..3 {
        if fs::read_dir(format!("/proc/self/fd/{descriptor}/..")).is_ok() {
            open.push(format!("leave by descriptor {descriptor}"));
        }
    }
    open
}

fn writes() -> Vec<String> {
    let paths = [
        "/workspace/probe",
        "/workspace/canary",
        "/probe",
        "/tmp/probe",
        "/dev/shm/probe",
        "/dev/mqueue/probe",
        "/proc/self/oom_score_adj",
        "/proc/self/uid_map",
        "/proc/sys/kernel/core_pattern",
        "/sys/fs/cgroup/cgroup.procs",
    ];
    let open = |path: &&&str| fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).is_ok();
    let mut open: Vec<String> = paths.iter().filter(open).map(|path| format!("write {path}")).collect();
    let link = |kind: &str, made: io::Result<()>| made.is_ok().then(|| format!("{kind} in the workspace"));
    open.extend(link("symbolic link", std::os::unix::fs::symlink("/", "/workspace/link")));
    open.extend(link("hard link", fs::hard_link("/workspace/canary", "/workspace/link")));
    open.extend(link("rename", fs::rename("/workspace/canary", "/workspace/moved")));
    open.extend(link("remove", fs::remove_file("/workspace/canary")));
    open
}

pub(super) fn devices() -> Vec<String> {
    let paths = ["/dev/mem", "/dev/kmem", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/vda", "/dev/sda", "/dev/tty"];
    let open = paths.iter().filter(|path| fs::File::open(path).is_ok());
    open.map(|path| format!("open {path}")).chain(refused(DEVICES)).collect()
}

/// Only standard input, output and error may be open; the kernel gives the lowest free number.
pub(super) fn descriptors() -> Vec<String> {
    (3..256)
        .filter(|descriptor| {
            #[expect(unsafe_code, reason = "there is no safe way to name a descriptor that nobody owns")]
            // SAFETY: F_GETFD only looks whether the number is in use.
            let found = unsafe { libc::fcntl(*descriptor, libc::F_GETFD) };
            found != -1
        })
        .map(|descriptor| format!("descriptor {descriptor} is inherited"))
        .collect()
}

/// What an engine sets by itself says nothing of the worker.
pub(super) fn environment() -> Vec<String> {
    let harmless = ["PATH", "HOME", "HOSTNAME", "PWD"];
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    names.filter(|name| !harmless.contains(&name.as_str())).map(|name| format!("variable {name}")).collect()
}

/// Running another program, also one that is there, or one made of memory.
fn programs() -> Vec<String> {
    let paths = ["/bin/sh", "/box/runner", "/proc/self/exe", "/workspace/script"];
    let open = paths.iter().filter(|path| std::process::Command::new(path).spawn().is_ok());
    open.map(|path| format!("run {path}")).chain(refused(PROGRAMS)).collect()
}

/// Calls in the numbering of another architecture of the same processor, which a filter may have forgotten.
fn foreign_calls() -> Vec<String> {
    const X32: i64 = 0x4000_0000;
    refused(&[
        ("x32 getpid", X32 + 39, [0; 5]),
        ("x32 socket", X32 + 41, [1, 1, 0, 0, 0]),
        ("x32 execve", X32 + 520, [0; 5]),
    ])
}

/// Makes each call; what is not refused as such has reached the kernel.
pub(super) fn refused(calls: &[(&str, i64, [i64; 5])]) -> Vec<String> {
    let mut open = Vec::new();
    for (name, number, arguments) in calls {
        #[expect(unsafe_code, reason = "the point is to ask the kernel for what no safe wrapper offers")]
        // SAFETY: each attempt passes integers and null pointers only, so the kernel has no memory of ours to write;
        // if a dangerous one were let through, it would fail on its null arguments or act on this box alone.
        let result =
            unsafe { libc::syscall(*number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]) };
        let refused =
            result == -1 && matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
        if !refused {
            // A success of these returns twice, and the copy must go away.
            if result == 0 && *number == libc::SYS_clone {
                std::process::exit(0);
            }
            open.push((*name).to_owned());
        }
    }
    open
}

const NEW_USER: i64 = libc::CLONE_NEWUSER as i64;
const CHILD: i64 = libc::SIGCHLD as i64;

pub(super) type Calls = &'static [(&'static str, i64, [i64; 5])];

pub(super) const NETWORK: Calls = &[
    ("socket inet", libc::SYS_socket, [libc::AF_INET as i64, 1, 0, 0, 0]),
    ("socket inet6", libc::SYS_socket, [libc::AF_INET6 as i64, 2, 0, 0, 0]),
    ("socket inet datagram, as for names", libc::SYS_socket, [libc::AF_INET as i64, 2, 17, 0, 0]),
    ("socket raw", libc::SYS_socket, [libc::AF_INET as i64, 3, 1, 0, 0]),
    ("socket packet", libc::SYS_socket, [libc::AF_PACKET as i64, 3, 0, 0, 0]),
    ("socket unix, also abstract", libc::SYS_socket, [libc::AF_UNIX as i64, 1, 0, 0, 0]),
    ("socket netlink", libc::SYS_socket, [libc::AF_NETLINK as i64, 3, 0, 0, 0]),
    ("socket vsock", libc::SYS_socket, [libc::AF_VSOCK as i64, 1, 0, 0, 0]),
    ("socket of the kernel's ciphers", libc::SYS_socket, [libc::AF_ALG as i64, 5, 0, 0, 0]),
    ("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as i64, 1, 0, 0, 0]),
    ("connect", libc::SYS_connect, [0; 5]),
    ("sendto", libc::SYS_sendto, [0; 5]),
];

pub(super) const NAMESPACES: Calls = &[
    ("unshare user namespace", libc::SYS_unshare, [NEW_USER, 0, 0, 0, 0]),
    ("unshare mount namespace", libc::SYS_unshare, [libc::CLONE_NEWNS as i64, 0, 0, 0, 0]),
    ("clone user namespace", libc::SYS_clone, [NEW_USER | CHILD, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 5]),
    ("setns", libc::SYS_setns, [0; 5]),
    ("mount", libc::SYS_mount, [0; 5]),
    ("umount", libc::SYS_umount2, [0; 5]),
    ("fsopen", libc::SYS_fsopen, [0; 5]),
    ("open_tree", libc::SYS_open_tree, [0; 5]),
    ("move_mount", libc::SYS_move_mount, [0; 5]),
    ("pivot_root", libc::SYS_pivot_root, [0; 5]),
    ("chroot", libc::SYS_chroot, [0; 5]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]),
    ("name_to_handle_at", libc::SYS_name_to_handle_at, [-1, 0, 0, 0, 0]),
];

pub(super) const PROCESSES: Calls = &[
    ("clone", libc::SYS_clone, [CHILD, 0, 0, 0, 0]),
    ("setsid", libc::SYS_setsid, [0; 5]),
    ("kill", libc::SYS_kill, [1, 0, 0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as i64, 1, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0]),
    ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [0; 5]),
    ("prlimit64", libc::SYS_prlimit64, [0; 5]),
    ("ioctl TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0, 0, 0]),
    ("ioctl TIOCLINUX", libc::SYS_ioctl, [0, libc::TIOCLINUX as i64, 0, 0, 0]),
];

pub(super) const KERNEL: Calls = &[
    ("bpf", libc::SYS_bpf, [0; 5]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [-1, 0, 0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0; 5]),
    ("keyctl", libc::SYS_keyctl, [0; 5]),
    ("request_key", libc::SYS_request_key, [0; 5]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 5]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 5]),
    ("fanotify_init", libc::SYS_fanotify_init, [0; 5]),
    ("kexec_load", libc::SYS_kexec_load, [0; 5]),
    ("init_module", libc::SYS_init_module, [0; 5]),
    ("finit_module", libc::SYS_finit_module, [-1, 0, 0, 0, 0]),
    ("syslog", libc::SYS_syslog, [10, 0, 0, 0, 0]),
    ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
    ("quotactl", libc::SYS_quotactl, [0; 5]),
    ("swapon", libc::SYS_swapon, [0; 5]),
    ("settimeofday", libc::SYS_settimeofday, [0; 5]),
    (
        "executable memory",
        libc::SYS_mmap,
        [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as i64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64, -1],
    ),
];

pub(super) const PRIVILEGES: Calls = &[
    ("setuid", libc::SYS_setuid, [65534, 0, 0, 0, 0]),
    ("setuid root", libc::SYS_setuid, [0; 5]),
    ("setgid", libc::SYS_setgid, [0; 5]),
    ("setresuid", libc::SYS_setresuid, [0; 5]),
    ("setgroups", libc::SYS_setgroups, [0; 5]),
    ("capset", libc::SYS_capset, [0; 5]),
    ("prctl dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as i64, 1, 0, 0, 0]),
    ("seccomp", libc::SYS_seccomp, [0; 5]),
];

const DEVICES: Calls = &[
    ("mknod", libc::SYS_mknodat, [libc::AT_FDCWD as i64, 0, 0, 0, 0]),
    ("chmod", libc::SYS_fchmodat, [libc::AT_FDCWD as i64, 0, 0, 0, 0]),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm, [0, 1, 1, 0, 0]),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl, [3, 0, 0, 0, 0]),
];

pub(super) const PROGRAMS: Calls = &[
    ("execve", libc::SYS_execve, [0; 5]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 5]),
    ("memfd_secret", libc::SYS_memfd_secret, [0; 5]),
];
