//! Bytes to text as they come: never half a character, and in the end exactly the lossy decoding of all bytes.

/// Holds back the bytes of an unfinished character.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    held: Vec<u8>,
}

impl Utf8Stream {
    /// The text that is certain after these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.held.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.held = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held = rest[bad..].to_vec();
                }
            }
        }
    }

    /// The bytes of an unfinished character.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// The end: an unfinished character becomes a replacement character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_decodes_like_the_whole() {
        let inputs: [&[u8]; 4] =
            ["a é € 🦋 end".as_bytes(), b"\xff\xfe ok \xe2\x82", b"\xf0\x9f\xa6\x8b\xf0\x9f", b"\xc3\x28\xed\xa0\x80"];
        for input in inputs {
            for first in 0..=input.len() {
                for second in first..=input.len() {
                    let mut stream = Utf8Stream::default();
                    let mut text = stream.push(&input[..first]);
                    text += &stream.push(&input[first..second]);
                    text += &stream.push(&input[second..]);
                    text += &stream.finish();
                    assert_eq!(text, String::from_utf8_lossy(input), "split at {first} and {second}");
                }
            }
        }
    }
}
