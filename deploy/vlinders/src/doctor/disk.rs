//! Whether the data directory can be written, and how long its disk takes to have something safe: every fact waits for
//! that before it is acknowledged.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::clock;
use rustix::fs::{FsWord, statfs};

use super::Finding;

/// Writes that are measured: enough for a median, and over before anybody waits.
const WRITES: usize = 32;
/// Bytes of one, as many as a fact of some size has.
const BYTES: usize = 4_096;
/// No disk is so fast: what acknowledges sooner has not stored anything yet.
const FAST: Duration = Duration::from_micros(30);
/// Slower than this, sixteen streams side by side store less than a thousand facts a second.
const SLOW: Duration = Duration::from_millis(16);
/// Less than this is soon used up.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// What `statfs` calls a file system in memory.
const TMPFS: FsWord = 0x0102_1994;
const RAMFS: FsWord = 0x8584_58f6;

/// What a disk was seen to do.
struct Measured {
    /// Of one write with all that makes it safe, sorted.
    times: Vec<Duration>,
    free_bytes: u64,
    in_memory: bool,
}

/// Writes a little into the directory, or, where it is not there yet, into the one in which it would be made.
pub(super) fn look(data: &Path) -> Finding {
    let Some(place) = data.ancestors().find(|path| path.exists()) else {
        return unwritable(data, data, &io::ErrorKind::NotFound.into());
    };
    // A relative path may end in nothing, which is the directory we are in.
    let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
    match measure(place) {
        Ok(measured) => judge(place, &measured),
        Err(error) => unwritable(data, place, &error),
    }
}

fn unwritable(data: &Path, place: &Path, error: &io::Error) -> Finding {
    let found = format!("{} cannot be written: {error}", place.display());
    let next = format!("let this user write there, or choose another directory with --data (now {})", data.display());
    Finding::missing("disk", found).next(next)
}

fn measure(place: &Path) -> io::Result<Measured> {
    let probe = Probe::create(place)?;
    let mut times = Vec::with_capacity(WRITES);
    for n in 0..WRITES {
        let since = clock::instant();
        probe.file.write_all_at(&[0x5a; BYTES], (n * BYTES) as u64)?;
        probe.file.sync_data()?;
        times.push(since.elapsed());
    }
    times.sort();
    let about = statfs(place)?;
    let free_bytes = about.f_bavail.saturating_mul(u64::try_from(about.f_bsize).unwrap_or(0));
    Ok(Measured { times, free_bytes, in_memory: [TMPFS, RAMFS].contains(&about.f_type) })
}

fn judge(place: &Path, measured: &Measured) -> Finding {
    let (median, slowest) = (measured.times[measured.times.len() / 2], measured.times[measured.times.len() - 1]);
    let a_second = (1.0 / median.as_secs_f64().max(1e-9)) as u64;
    let (free, place) = (measured.free_bytes >> 20, place.display());
    let found = format!(
        "{place}: {BYTES} bytes are safe after {median:.1?} (median of {WRITES} by fdatasync, {slowest:.1?} at most), so one stream of the log takes some {a_second} facts a second; {free} MiB are free"
    );
    if measured.in_memory {
        let next = "choose a directory on a disk with --data, unless the log may go with the machine";
        return Finding::odd("disk", "odd", format!("{found}; it is in memory")).next(next);
    }
    if measured.free_bytes < FREE_BYTES_MIN {
        return Finding::odd("disk", "full", found).next("make room: a log that finds none refuses requests");
    }
    if median < FAST {
        let next = "make sure that it keeps what it has acknowledged when the power goes: write caches without a battery, some virtual disks and `libeatmydata` do not";
        return Finding::odd("disk", "odd", format!("{found}; no disk is so fast")).next(next);
    }
    if median > SLOW {
        let next = "use a local SSD for --data; or, where a second's loss of power may cost a second's facts, a NATS server of your own with a longer `sync_interval`";
        return Finding::odd("disk", "slow", found).next(next);
    }
    Finding::fine("disk", found)
}

/// A file of our own, gone when it is dropped.
struct Probe {
    file: File,
    path: PathBuf,
}

impl Probe {
    fn create(place: &Path) -> io::Result<Self> {
        let path = place.join(format!(".vlinders-doctor-{}", clock::random_hex()));
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        // Space is found once: what is measured is storing, not growing.
        file.write_all(&[0; WRITES * BYTES])?;
        file.sync_all()?;
        Ok(Self { file, path })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn judged(micros: u64, free_bytes: u64, in_memory: bool) -> Finding {
        let times = vec![Duration::from_micros(micros); WRITES];
        judge(Path::new("/data"), &Measured { times, free_bytes, in_memory })
    }

    #[test]
    fn a_disk_is_judged_by_how_long_it_takes() {
        let usual = judged(1_000, 1 << 40, false);
        assert_eq!((usual.state, usual.next.is_none()), (State::Fine, true));
        assert!(usual.found.contains("some 1000 facts a second"), "{}", usual.found);
        for (odd, state) in [
            (judged(5, 1 << 40, false), State::Odd("odd")),
            (judged(30_000, 1 << 40, false), State::Odd("slow")),
            (judged(1_000, 1 << 20, false), State::Odd("full")),
            (judged(1_000, 1 << 40, true), State::Odd("odd")),
        ] {
            assert_eq!(odd.state, state, "{}", odd.found);
            assert!(odd.next.is_some(), "{}", odd.found);
        }
    }

    #[test]
    fn nothing_is_left_behind_and_a_directory_need_not_be_there_yet() {
        let directory = tempfile::tempdir().expect("a directory");
        let finding = look(&directory.path().join("not/there/yet"));
        assert!(!matches!(finding.state, State::Wrong(_)), "{}", finding.found);
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_said_with_the_reason() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let finding = look(&file.path().join("data"));
        assert!(matches!(finding.state, State::Wrong(_)), "{}", finding.found);
        assert!(finding.found.contains("cannot be written") && finding.next.is_some(), "{}", finding.found);
    }
}
