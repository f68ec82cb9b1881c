//! Certificates in PEM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::rejected::Wrong;

/// Largest root certificate, in bytes of DER.
const ROOT_BYTES_MAX: usize = 64 << 10;

/// Certificates of a PEM text (RFC 7468); text between the blocks is skipped.
pub(super) fn certificates(pem: &[u8], most: usize) -> Result<Vec<Vec<u8>>, Wrong> {
    let text = std::str::from_utf8(pem).map_err(|_| Wrong::new("", "is not PEM text"))?;
    let mut roots = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN CERTIFICATE-----") {
        let number = roots.len() + 1;
        let Some((body, tail)) = after.split_once("-----END CERTIFICATE-----") else {
            return Err(Wrong::new("", format!("certificate {number} has no end")));
        };
        if body.len() > ROOT_BYTES_MAX * 2 || number > most {
            return Err(Wrong::new("", format!("more than {most} certificates, or one beyond {ROOT_BYTES_MAX} bytes")));
        }
        let der = base64(body).ok_or_else(|| Wrong::new("", format!("certificate {number} is not base64")))?;
        // A DER SEQUENCE; what is inside is judged by the verifier.
        if der.first() != Some(&0x30) {
            return Err(Wrong::new("", format!("certificate {number} is not DER")));
        }
        roots.push(der);
        rest = tail;
    }
    if roots.is_empty() {
        return Err(Wrong::new("", "holds no certificate"));
    }
    Ok(roots)
}

/// RFC 4648, section 4; white space is skipped.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_split_into_its_roots() {
        // Aim: several roots with text between; no root, a broken one or an endless one is refused.
        let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let two = certificates(format!("# a\n{block}# b\n{block}").as_bytes(), 2).unwrap();
        assert_eq!(two, [vec![0x30, 0], vec![0x30, 0]]);
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nMAA=", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"] {
            assert!(certificates(bad.as_bytes(), 2).is_err(), "{bad}");
        }
    }
}
