//! What kind of data a file is, by its first bytes.

/// Beginnings by which people would name a file.
const KINDS: &[(&[u8], &str)] = &[
    (b"\x7fELF", "ELF program or library"),
    (b"MZ", "Windows program or library"),
    (b"\xfe\xed\xfa\xce", "macOS program or library"),
    (b"\xfe\xed\xfa\xcf", "macOS program or library"),
    (b"\xcf\xfa\xed\xfe", "macOS program or library"),
    (b"\xca\xfe\xba\xbe", "Java class or macOS program"),
    (b"\0asm", "WebAssembly"),
    (b"!<arch>\n", "static library or package"),
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF87a", "GIF image"),
    (b"GIF89a", "GIF image"),
    (b"RIFF", "RIFF image, sound or film"),
    (b"\0\0\x01\0", "icon"),
    (b"%PDF-", "PDF document"),
    (b"PK\x03\x04", "ZIP archive or office document"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\0", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"GGUF", "GGUF model"),
    (b"OggS", "Ogg sound or film"),
    (b"ID3", "MP3 sound"),
    (b"fLaC", "FLAC sound"),
    (b"wOFF", "font"),
    (b"wOF2", "font"),
    (b"OTTO", "font"),
    (b"\0\x01\0\0\0", "font"),
];

/// Kinds whose beginning is also that of a word: these count only with a byte that no text has.
const TELLING_BYTES: usize = 4;

/// The kind of data that begins this way; none for text. UTF-16 is text, though half of it is zero bytes.
pub(super) fn kind(head: &[u8]) -> Option<&'static str> {
    let is_data = head.contains(&0);
    let named = KINDS.iter().find(|(beginning, _)| head.starts_with(beginning));
    let sure = |beginning: &[u8]| is_data || beginning.len() > TELLING_BYTES || !beginning.is_ascii();
    if let Some((_, kind)) = named.filter(|(beginning, _)| sure(beginning)) {
        return Some(kind);
    }
    if head.get(4..8) == Some(b"ftyp") && is_data {
        return Some("film or image");
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some("tar archive");
    }
    let is_utf16 = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    (is_data && !is_utf16).then_some("it holds zero bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_named_and_text_is_none() {
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n\0"), Some("PNG image"));
        assert_eq!(kind(b"%PDF-1.7\n"), Some("PDF document"));
        assert_eq!(kind(b"GGUF\x03\0\0\0"), Some("GGUF model"));
        assert_eq!(kind(b"\0\0\0\x18ftypmp42"), Some("film or image"));
        assert_eq!(kind(b"anything\0"), Some("it holds zero bytes"));
        for text in [&b"MZ is how a name begins"[..], b"ID3 = 1", b"RIFF raff", b"", b"\xff\xfea\0", b"caf\xe9"] {
            assert_eq!(kind(text), None, "{text:?}");
        }
    }
}
