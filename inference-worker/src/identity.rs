//! What a model is told apart by: whether two workers, or one before and after a restart, would answer alike.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::model_directory::is_gguf;

/// A file up to this size is read whole.
const WHOLE_BYTES_MAX: u64 = 4 << 20;
/// Of a larger one so many pieces are read, spread over it: another training changes every part of it.
const PIECES: u64 = 64;
const PIECE_BYTES: usize = 64 << 10;
/// What may lie beside a GGUF file and decides how it is used.
const BESIDE: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// A hash over the files of the model at this path, in hexadecimal: their names, sizes, times of change and contents. Of
/// large files only pieces are read, so a copy that was changed in few places is told apart by its time. The model has been
/// loaded: what cannot be read is none of its files.
pub(crate) fn of(path: &Path) -> String {
    let mut digest = Sha256::new();
    for file in files(path) {
        if let Err(error) = add(&mut digest, &file) {
            tracing::debug!(%error, file = %file.display(), "a file beside a model cannot be read");
        }
    }
    hex::encode(digest.finalize())
}

fn files(path: &Path) -> Vec<PathBuf> {
    if is_gguf(path) {
        let beside = BESIDE.map(|name| path.with_file_name(name));
        return std::iter::once(path.to_owned()).chain(beside).filter(|file| file.is_file()).collect();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn add(digest: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let bytes = metadata.len();
    digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
    for number in [bytes as i64, metadata.mtime(), metadata.mtime_nsec()] {
        digest.update(number.to_le_bytes());
    }
    if bytes <= WHOLE_BYTES_MAX {
        digest.update(std::fs::read(path)?);
        return Ok(());
    }
    let mut piece = vec![0; PIECE_BYTES];
    for index in 0..PIECES {
        file.read_exact_at(&mut piece, (bytes - PIECE_BYTES as u64) / (PIECES - 1) * index)?;
        digest.update(&piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_itself_until_one_of_its_files_changes() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        let mut weights = vec![1; WHOLE_BYTES_MAX as usize + 10];
        write("config.json", b"{}");
        write("model.safetensors", &weights);
        let before = of(directory.path());
        assert_eq!(of(directory.path()), before);

        let file = File::options().write(true).open(directory.path().join("model.safetensors")).unwrap();
        let unchanged = file.metadata().unwrap().modified().unwrap();
        weights.fill(2);
        write("model.safetensors", &weights);
        // Where all times are the same, as in some images, the content tells.
        file.set_modified(unchanged).unwrap();
        let other = of(directory.path());
        assert_ne!(other, before);

        write("config.json", b"[]");
        assert_ne!(of(directory.path()), other);
    }

    #[test]
    fn a_file_is_told_apart_with_what_lies_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model.gguf");
        std::fs::write(&model, b"weights").unwrap();
        std::fs::write(directory.path().join("other.gguf"), b"weights").unwrap();
        let alone = of(&model);
        std::fs::write(directory.path().join("other.gguf"), b"changed").unwrap();
        assert_eq!(of(&model), alone);
        std::fs::write(directory.path().join("tokenizer.json"), b"{}").unwrap();
        assert_ne!(of(&model), alone);
    }
}
