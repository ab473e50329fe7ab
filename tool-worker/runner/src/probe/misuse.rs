//! Misuse of time, memory, processes, space and output. What a box makes of it is the outcome.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

/// Processes asked for, more than any box may have.
const CHILDREN: usize = 2_000;
/// Pieces in which space is filled.
const PIECE: usize = 1 << 20;
/// Space asked for, more than any box has.
const PIECES: usize = 256;
/// Files asked for, more than any box may make.
const FILES: usize = 20_000;

/// Runs one operation; none when there is no such.
pub(super) fn run(operation: &str) -> Option<String> {
    let said = match operation {
        "loop" => loop {
            std::hint::spin_loop();
        },
        "wait" => loop {
            nap();
        },
        "allocate" => {
            let hog = std::hint::black_box(vec![1_u8; 1 << 31]);
            format!("allocated {}", hog.len())
        }
        "allocate slowly" => {
            let hogs: Vec<Vec<u8>> = (0..2048).map(|_| std::hint::black_box(vec![1_u8; PIECE])).collect();
            format!("allocated {} MiB", hogs.len())
        }
        "flood" => loop {
            let _ = io::stdout().write_all(&[b'x'; 65536]);
        },
        "complain" => loop {
            let _ = io::stderr().write_all(&[b'x'; 65536]);
        },
        "odd text" => "\u{1b}[31m\0\u{202e}\u{fffd}\r\n\"\\".repeat(1_000),
        "nonsense" => {
            let _ = io::stdout().write_all(b"\xff\xfe not an answer\n");
            let _ = io::stdout().flush();
            std::process::exit(0)
        }
        "crash" => panic!("asked to"),
        "overflow the stack" => deeper(0).to_string(),
        "fork bomb" => fork_bomb(),
        "zombies" => zombies(),
        "daemonise" => daemonise(),
        "fill" => fill(),
        "many files" => many_files(),
        "many descriptors" => many_descriptors(),
        "int80" => int80(),
        _ => return None,
    };
    Some(said)
}

fn nap() {
    let hour = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "the safe sleep is kept for edges, and this one must block")]
    // SAFETY: the time lives until the call returns, and nothing is written back.
    unsafe {
        libc::nanosleep(&raw const hour, std::ptr::null_mut())
    };
}

#[expect(unconditional_recursion, reason = "the point is to run out of stack")]
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deeper(frame[0] + 1) + frame[1]
}

/// A copy of this process, or why there is none. The copy gets `None`.
fn fork() -> io::Result<Option<i32>> {
    #[expect(unsafe_code, reason = "there is no safe way to fork")]
    // SAFETY: the runner has one thread, so the copy is whole.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child)),
    }
}

/// Every child stays, as those of a bomb do; the box must end them.
fn fork_bomb() -> String {
    for made in 0..CHILDREN {
        match fork() {
            Ok(Some(_)) => {}
            Ok(None) => loop {
                nap();
            },
            Err(error) => return format!("after {made}: {}", kind(&error)),
        }
    }
    format!("made {CHILDREN}")
}

/// Children that end and are never asked for.
fn zombies() -> String {
    for made in 0..CHILDREN {
        match fork() {
            Ok(Some(_)) => {}
            Ok(None) => std::process::exit(0),
            Err(error) => return format!("after {made}: {}", kind(&error)),
        }
    }
    format!("made {CHILDREN}")
}

/// A child of a child in a session of its own, which outlives its parents where it can.
fn daemonise() -> String {
    match fork() {
        Err(error) => format!("after 0: {}", kind(&error)),
        Ok(Some(_)) => "a child is at large".to_owned(),
        Ok(None) => {
            #[expect(unsafe_code, reason = "there is no safe way to leave a session")]
            // SAFETY: it takes nothing and changes this process alone.
            unsafe {
                libc::setsid()
            };
            if !matches!(fork(), Ok(None)) {
                std::process::exit(0);
            }
            loop {
                nap();
            }
        }
    }
}

fn fill() -> String {
    let written = fs::File::create("/tmp/hog").and_then(|mut file| {
        let piece = vec![1_u8; PIECE];
        (0..PIECES).try_for_each(|_| file.write_all(&piece))
    });
    written.map_or_else(|error| kind(&error), |()| format!("wrote {PIECES} MiB"))
}

fn many_files() -> String {
    let made = (0..FILES).try_for_each(|n| fs::File::create(format!("/tmp/{n}")).map(drop));
    made.map_or_else(|error| kind(&error), |()| format!("made {FILES}"))
}

fn many_descriptors() -> String {
    let path = PathBuf::from(crate::WORKSPACE);
    let mut open = Vec::new();
    for n in 0..FILES {
        match fs::File::open(&path) {
            Ok(file) => open.push(file),
            Err(error) => return format!("{} after {}", kind(&error), if n < 300 { "few" } else { "many" }),
        }
    }
    format!("opened {FILES}")
}

fn kind(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "not permitted".to_owned(),
        Some(libc::EACCES) => "no access".to_owned(),
        Some(libc::EAGAIN) => "no more processes".to_owned(),
        Some(libc::ENOSPC) => "no space".to_owned(),
        Some(libc::EMFILE) => "too many files".to_owned(),
        Some(libc::EFBIG) => "too large".to_owned(),
        _ => error.to_string(),
    }
}

/// `getpid` by the door of 32-bit programs, where other numbers hold and a filter for 64 bits may not look.
fn int80() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let result: i64;
        #[expect(unsafe_code, reason = "there is no other way to knock at this door")]
        // SAFETY: the call takes nothing and changes nothing; the kernel keeps all registers but those named here.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") 20_i64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if result > 0 { format!("answered {result}") } else { format!("refused {result}") }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        "refused: there is no such door".to_owned()
    }
}
