//! Looks for an alignment of zero in the metadata of a GGUF file, which the reader of the rest would divide by.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Arrays in arrays; the reader of the rest refuses more.
const DEPTH_MAX: usize = 64;

/// Longer keys are nonsense, and what follows is read as such.
const KEY_BYTES_MAX: u64 = 1 << 16;

/// Whether the file says that tensors are aligned to zero bytes. A file that cannot be read says nothing: the reader of
/// the rest says what is wrong with it.
pub(super) fn is_zero(file: &mut impl BufRead) -> bool {
    alignment(file).is_ok_and(|alignment| alignment == Some(0))
}

fn alignment(file: &mut impl BufRead) -> Result<Option<u64>> {
    let _magic = number::<4>(file)?;
    // Lengths were shorter in the first version.
    let wide = number::<4>(file)? > 1;
    let mut found = None;
    let _tensors = length(file, wide)?;
    for _ in 0..length(file, wide)? {
        let size = length(file, wide)?.min(KEY_BYTES_MAX);
        let mut key = Vec::new();
        file.by_ref().take(size).read_to_end(&mut key)?;
        let kind = number::<4>(file)?;
        if key == b"general.alignment" {
            found = match kind {
                0 | 1 => Some(number::<1>(file)?),
                2 | 3 => Some(number::<2>(file)?),
                4 | 5 => Some(number::<4>(file)?),
                _ => {
                    skip_value(file, kind, wide, 0)?;
                    None
                }
            };
        } else {
            skip_value(file, kind, wide, 0)?;
        }
    }
    Ok(found)
}

fn skip_value(file: &mut impl BufRead, kind: u64, wide: bool, depth: usize) -> Result<()> {
    match kind {
        8 => {
            let size = length(file, wide)?;
            skip(file, size)
        }
        9 if depth < DEPTH_MAX => {
            let kind = number::<4>(file)?;
            let count = length(file, wide)?;
            match size_of_kind(kind) {
                Some(size) => skip(file, count.saturating_mul(size)),
                None => (0..count).try_for_each(|_| skip_value(file, kind, wide, depth + 1)),
            }
        }
        _ => skip(file, size_of_kind(kind).ok_or(ErrorKind::InvalidData)?),
    }
}

/// Bytes of a number or a truth value.
fn size_of_kind(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Passes over bytes that must be there.
fn skip(file: &mut impl BufRead, bytes: u64) -> Result<()> {
    let passed = std::io::copy(&mut file.by_ref().take(bytes), &mut std::io::sink())?;
    if passed == bytes { Ok(()) } else { Err(Error::from(ErrorKind::UnexpectedEof)) }
}

fn length(file: &mut impl BufRead, wide: bool) -> Result<u64> {
    if wide { number::<8>(file) } else { number::<4>(file) }
}

/// A number of so many bytes, the lowest first.
fn number<const BYTES: usize>(file: &mut impl BufRead) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes[..BYTES])?;
    Ok(u64::from_le_bytes(bytes))
}
