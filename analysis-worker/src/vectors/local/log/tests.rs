use super::*;

fn frame(ids: impl IntoIterator<Item = u128>) -> Frame {
    let mut frame = Frame::new();
    ids.into_iter().for_each(|id| frame.keep(Uuid::from_u128(id), &[1.0, -0.5], br#"{"a":1}"#));
    frame
}

/// A file of one frame of two points, and one of one point.
fn written(directory: &Path) -> PathBuf {
    let path = directory.join("code.vectors");
    let mut log = Log::create(&path, [Ok(frame([1, 2]))], |_| ()).expect("made");
    log.append(frame([3])).expect("written");
    path
}

fn ids(path: &Path) -> io::Result<Vec<u128>> {
    let mut ids = Vec::new();
    let told = Log::open(path, |change| match change {
        Change::Kept { id, .. } => ids.push(id.as_u128()),
        other => panic!("{other:?}"),
    });
    told.map(|_| ids)
}

#[test]
fn what_was_written_is_read_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("code.vectors");
    let mut first = Frame::new();
    let described = Described { dimensions: 2, indexed: vec!["a".to_owned()] };
    first.describe(&described);
    let mut log = Log::create(&path, [Ok(first)], |_| ()).expect("made");
    let mut second = frame([7]);
    second.delete(Uuid::from_u128(7));
    log.append(second).expect("written");
    let mut changes = Vec::new();
    let log = Log::open(&path, |change| changes.push(change)).expect("read");
    let [Change::Described(read), Change::Kept { id, vector, payload: place }, Change::Deleted { id: deleted }] =
        &changes[..]
    else {
        panic!("{changes:?}");
    };
    assert_eq!((read, id, deleted), (&described, &Uuid::from_u128(7), &Uuid::from_u128(7)));
    assert_eq!(vector, &[1.0, -0.5]);
    assert_eq!(payload_bytes(&log.file(), *place).expect("read"), br#"{"a":1}"#);
}

#[test]
fn a_frame_that_is_there_in_parts_never_was() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path());
    let whole = fs::read(&path).expect("read");
    let first = HEAD + MAGIC.len() + u32::from_le_bytes(whole[8..12].try_into().expect("four")) as usize;
    for cut in first..whole.len() {
        fs::write(&path, &whole[..cut]).expect("written");
        assert_eq!(ids(&path).expect("it opens"), [1, 2], "cut at {cut}");
        assert_eq!(fs::metadata(&path).expect("there").len(), first as u64);
        // As many bytes as there should be, and zeros in the place of some.
        let mut zeros = whole.clone();
        zeros[cut..].fill(0);
        fs::write(&path, &zeros).expect("written");
        assert_eq!(ids(&path).expect("it opens"), [1, 2], "zeros from {cut}");
        // What comes then is written where the parts were.
        let mut log = Log::open(&path, |_| ()).expect("it opens");
        log.append(frame([4, 5])).expect("written");
        assert_eq!(ids(&path).expect("it opens"), [1, 2, 4, 5]);
    }
}

#[test]
fn damage_elsewhere_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path());
    let whole = fs::read(&path).expect("read");
    for (at, expected) in [(3, "no file of vectors"), (20, "at byte 8")] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).expect("written");
        let error = ids(&path).expect_err("it is damaged").to_string();
        assert!(error.contains(expected), "{error}");
    }
}
