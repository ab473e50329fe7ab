//! What a server says it sent, and what it is when unpacked.

use std::io::{self, Write};

use encoding_rs::Encoding;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

use super::{Accept, Fault};

/// Where a page may name its encoding, as standards for HTML have it.
const DECLARED_WITHIN: usize = 1_024;
/// Media types beside `text/*` that are text.
const TEXTS: [&str; 6] = [
    "application/json",
    "application/ld+json",
    "application/xml",
    "application/xhtml+xml",
    "application/rss+xml",
    "application/atom+xml",
];

/// A kind of content that is of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    /// The media type without parameters, lower case.
    pub(super) media: String,
    pub(super) html: bool,
    charset: Option<String>,
}

impl Kind {
    /// What the headers announce; refused unless it is text.
    pub(super) fn of(headers: &HeaderMap, accept: Accept) -> Result<Self, Fault> {
        let announced = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut parts = announced.split(';');
        let media = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let charset = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let is_charset = name.trim().eq_ignore_ascii_case("charset");
            is_charset.then(|| value.trim().trim_matches('"').to_owned())
        });
        let html = matches!(media.as_str(), "text/html" | "application/xhtml+xml");
        let is_text = media.starts_with("text/") || TEXTS.contains(&media.as_str());
        if !is_text && accept == Accept::Text {
            let shown: String = media.chars().take(100).collect();
            let what = if shown.is_empty() { "something of no stated type".to_owned() } else { shown };
            return Err(Fault::Kind(format!("it is {what}; only text can be read (HTML, plain text, JSON, XML)")));
        }
        Ok(Self { media, html, charset })
    }

    /// The text of a body: by its mark, else by the header, else by what a page says of itself, else as UTF-8. What is no
    /// text in that encoding is replaced.
    pub(super) fn text(&self, body: &[u8]) -> String {
        let declared = || {
            let beginning = &body[..body.len().min(DECLARED_WITHIN)];
            let beginning = String::from_utf8_lossy(beginning).to_ascii_lowercase();
            let (_, behind) = beginning.split_once("charset=")?;
            let name = behind.trim_start_matches(['"', '\'']);
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(name.len());
            Encoding::for_label(&name.as_bytes()[..end])
        };
        let named = self.charset.as_deref().and_then(|name| Encoding::for_label(name.as_bytes()));
        let named = named.or_else(|| self.html.then(declared).flatten());
        named.unwrap_or(encoding_rs::UTF_8).decode(body).0.into_owned()
    }
}

/// The body as it was before it was packed, of at most `bytes_max` bytes.
pub(super) fn unpacked(headers: &HeaderMap, body: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, Fault> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoding =
        encodings.next().and_then(|value| value.to_str().ok()).unwrap_or_default().trim().to_ascii_lowercase();
    if encodings.next().is_some() {
        return Err(Fault::Kind("it is packed more than once".to_owned()));
    }
    let bounded = Bounded { bytes: Vec::new(), bytes_max, full: false };
    match encoding.as_str() {
        "" | "identity" => Ok(body),
        "gzip" | "x-gzip" => {
            let mut decoder = MultiGzDecoder::new(bounded);
            let written = decoder.write_all(&body).and_then(|()| decoder.try_finish());
            unpacked_into(decoder.get_ref(), written)
        }
        // The standard means zlib's form; some servers send the bare one.
        "deflate" if body.first().is_some_and(|byte| byte & 0x0f == 8) => {
            let mut decoder = ZlibDecoder::new(bounded);
            let written = decoder.write_all(&body).and_then(|()| decoder.try_finish());
            unpacked_into(decoder.get_ref(), written)
        }
        "deflate" => {
            let mut decoder = DeflateDecoder::new(bounded);
            let written = decoder.write_all(&body).and_then(|()| decoder.try_finish());
            unpacked_into(decoder.get_ref(), written)
        }
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(Fault::Kind(format!("it is packed with {shown}, which was not asked for")))
        }
    }
}

fn unpacked_into(bounded: &Bounded, written: io::Result<()>) -> Result<Vec<u8>, Fault> {
    match written {
        _ if bounded.full => Err(Fault::TooLarge { bytes_max: bounded.bytes_max }),
        Ok(()) => Ok(bounded.bytes.clone()),
        Err(error) => Err(Fault::Broken(format!("the body cannot be unpacked: {error}"))),
    }
}

/// Takes bytes up to a bound; what is beyond it is never held.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            self.full = true;
            return Err(io::Error::other("more than may be held"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: &str) -> HeaderMap {
        [(header::CONTENT_TYPE, content_type.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn only_text_is_of_use_to_people() {
        for media in
            ["text/html; charset=utf-8", "TEXT/Plain", "application/json", "application/xhtml+xml", "text/x-rust"]
        {
            assert!(Kind::of(&headers(media), Accept::Text).is_ok(), "{media}");
        }
        for media in
            ["image/png", "application/octet-stream", "application/pdf", "", "textual/html", "multipart/form-data"]
        {
            let fault = Kind::of(&headers(media), Accept::Text).unwrap_err().to_string();
            assert!(fault.contains("only text can be read"), "{fault}");
        }
        assert!(Kind::of(&headers("image/png"), Accept::Json).is_ok(), "the caller says what it was");
    }

    #[test]
    fn text_is_read_in_the_encoding_that_is_stated() {
        let text = |media: &str, body: &[u8]| Kind::of(&headers(media), Accept::Text).unwrap().text(body);
        assert_eq!(text("text/html; charset=ISO-8859-1", b"caf\xe9"), "café");
        assert_eq!(text("text/html", b"<meta charset=\"windows-1252\">\x80"), "<meta charset=\"windows-1252\">€");
        assert_eq!(text("text/plain", b"caf\xe9"), "caf\u{fffd}");
        assert_eq!(text("text/plain; charset=\"shift_jis\"", b"\x83\x65"), "テ");
        assert_eq!(text("text/plain", b"\xff\xfea\0"), "a", "a mark at its beginning says UTF-16");
        assert_eq!(text("text/plain; charset=nonsense", "é".as_bytes()), "é");
    }
}
