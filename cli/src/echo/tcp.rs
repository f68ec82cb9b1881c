//! Raw TCP: an optional greeting, then every byte back.

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, copy, split};
use tokio::net::TcpStream;

/// Greets and echoes until the client is done; a connection that breaks is its client's business.
pub(super) async fn echo(stream: TcpStream, greeting: Bytes) {
    let (mut reader, mut writer) = split(stream);
    if !greeting.is_empty() && writer.write_all(&greeting).await.is_err() {
        return;
    }
    let _ = copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// A text with `\r`, `\n`, `\t`, `\0` and `\\` as bytes.
///
/// # Errors
/// A backslash before anything else.
pub(crate) fn unescape(text: &str) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match characters.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            _ => return Err(format!("`{text}` has a backslash before something else than r, n, t, 0 or \\")),
        });
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: greetings may hold line ends, and a stray backslash is an error.
    #[test]
    fn escapes_are_understood() {
        assert_eq!(unescape(r"220 é\r\n\\").unwrap(), "220 é\r\n\\".as_bytes());
        assert!(unescape(r"a\x").is_err() && unescape("a\\").is_err());
    }
}
