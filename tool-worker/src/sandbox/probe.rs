//! Escape attempts, run inside a box by the self-test and the tests, never outside: the runner has locked itself up
//! before it takes any call. Each attempt must be refused by the box itself; an attempt that fails for another
//! reason (no such protocol, bad argument) counts as open, because it got through to the kernel.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::WORKSPACE;
use crate::failure::Failure;

/// The file a self-test's workspace holds: reading it shows that a box works, not only that it is closed.
pub(crate) const CANARY: &str = "canary";

/// Marks what only landlock closes. Without it the runner can read itself and its libraries, which tells nothing.
pub(crate) const ONLY_LANDLOCK: &str = "landlock: ";

/// Runs one operation: `escape`, or a way to misuse time, memory or output.
pub(crate) fn run(arguments: &Map<String, Value>) -> Result<String, Failure> {
    match arguments.get("op").and_then(Value::as_str) {
        Some("escape") => Ok(escape().join("\n")),
        Some("loop") => loop {
            std::hint::spin_loop();
        },
        Some("allocate") => {
            let hog = vec![1_u8; 1 << 31];
            Ok(format!("allocated {}", hog.len()))
        }
        Some("flood") => loop {
            let _ = io::stdout().write_all(&[b'x'; 65536]);
        },
        Some("complain") => loop {
            let _ = io::stderr().write_all(&[b'x'; 65536]);
        },
        Some("crash") => panic!("asked to"),
        _ => Err(Failure::bad_request("no such probe")),
    }
}

/// Tries every escape; the names of those that are open.
fn escape() -> Vec<String> {
    let mut open = Vec::new();
    if !fs::read(Path::new(WORKSPACE).join(CANARY)).is_ok_and(|content| content == CANARY.as_bytes()) {
        open.push("the workspace cannot be read".to_owned());
    }
    for path in
        ["/etc/shadow", "/etc/passwd", "/proc/self/environ", "/proc/1/root/etc/passwd", "/sys/kernel", "/dev/mem"]
    {
        if fs::File::open(path).is_ok() {
            open.push(format!("read {path}"));
        }
    }
    for path in ["/runner", "/lib"] {
        if fs::File::open(path).is_ok() {
            open.push(format!("{ONLY_LANDLOCK}read {path}"));
        }
    }
    for path in ["/workspace/probe", "/probe", "/tmp/probe", "/dev/shm/probe"] {
        if fs::File::create(path).is_ok() {
            open.push(format!("write {path}"));
        }
    }
    for (name, number, arguments) in SYSCALLS {
        #[expect(unsafe_code, reason = "the point is to ask the kernel for what no safe wrapper offers")]
        // SAFETY: each attempt passes integers and null pointers only, so the kernel has no memory of ours to write;
        // if a dangerous one were let through, it would fail on its null arguments or act on this box alone.
        let result =
            unsafe { libc::syscall(*number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]) };
        let refused =
            result == -1 && matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
        if !refused {
            if result == 0 && FORKS.contains(number) {
                std::process::exit(0);
            }
            open.push((*name).to_owned());
        }
    }
    if std::process::Command::new("/bin/sh").spawn().is_ok_and(|_| true) {
        open.push("run a program".to_owned());
    }
    open
}

/// A success of these returns twice, and the copy must go away.
const FORKS: &[i64] = &[libc::SYS_clone];

const NEW_USER: i64 = libc::CLONE_NEWUSER as i64;
const CHILD: i64 = libc::SIGCHLD as i64;

const SYSCALLS: &[(&str, i64, [i64; 5])] = &[
    ("socket inet", libc::SYS_socket, [libc::AF_INET as i64, 1, 0, 0, 0]),
    ("socket inet6", libc::SYS_socket, [libc::AF_INET6 as i64, 2, 0, 0, 0]),
    ("socket unix", libc::SYS_socket, [libc::AF_UNIX as i64, 1, 0, 0, 0]),
    ("socket netlink", libc::SYS_socket, [libc::AF_NETLINK as i64, 3, 0, 0, 0]),
    ("socket vsock", libc::SYS_socket, [libc::AF_VSOCK as i64, 1, 0, 0, 0]),
    ("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as i64, 1, 0, 0, 0]),
    ("unshare user namespace", libc::SYS_unshare, [NEW_USER, 0, 0, 0, 0]),
    ("clone", libc::SYS_clone, [CHILD, 0, 0, 0, 0]),
    ("clone user namespace", libc::SYS_clone, [NEW_USER | CHILD, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 5]),
    ("setns", libc::SYS_setns, [0; 5]),
    ("mount", libc::SYS_mount, [0; 5]),
    ("umount", libc::SYS_umount2, [0; 5]),
    ("pivot_root", libc::SYS_pivot_root, [0; 5]),
    ("chroot", libc::SYS_chroot, [0; 5]),
    ("execve", libc::SYS_execve, [0; 5]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as i64, 1, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [0; 5]),
    ("bpf", libc::SYS_bpf, [0; 5]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [-1, 0, 0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0; 5]),
    ("keyctl", libc::SYS_keyctl, [0; 5]),
    ("request_key", libc::SYS_request_key, [0; 5]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 5]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 5]),
    ("kexec_load", libc::SYS_kexec_load, [0; 5]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]),
    ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
    ("ioctl TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 5]),
    ("setuid", libc::SYS_setuid, [65534, 0, 0, 0, 0]),
    ("init_module", libc::SYS_init_module, [0; 5]),
    (
        "executable memory",
        libc::SYS_mmap,
        [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as i64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64, -1],
    ),
];
