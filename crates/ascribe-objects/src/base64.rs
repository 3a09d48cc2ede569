//! Base 64 (RFC 4648, §4), for the keys and signatures of one service.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as text, padded.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// Text as bytes; none for what is no padded base 64.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let (chunks, rest) = text.as_bytes().as_chunks::<4>();
    let mut bytes = Vec::with_capacity(chunks.len() * 3);
    for (n, chunk) in chunks.iter().enumerate() {
        let n_pad = chunk.iter().rev().take_while(|&&letter| letter == b'=').count();
        if n_pad > 2 || (n_pad > 0 && n + 1 < chunks.len()) {
            return None;
        }
        let mut word = 0u32;
        for &letter in &chunk[..4 - n_pad] {
            word = word << 6 | LETTERS.iter().position(|&l| l == letter)? as u32;
        }
        word <<= 6 * n_pad;
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - n_pad]);
    }
    rest.is_empty().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 4648, §10, and every byte.
    #[test]
    fn there_and_back() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!((encode(bytes.as_bytes()).as_str(), decode(text).as_deref()), (text, Some(bytes.as_bytes())));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        for bad in ["Zg", "Zg=", "Z===", "Zg==Zg==", "Zm9*", "====", "Zm 9"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
