//! What a proxy joins by. One-time join tokens: `mw1.` and base64url of JSON `{workload, ca, secret, identity}` (docs/architecture.md). Or a
//! Kubernetes service-account token (a JWT), which its kubelet writes anew before it ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use proto::identity::Identity;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Tokens are a few hundred bytes.
const TOKEN_BYTES_MAX: u64 = 8 << 10;
const PREFIX: &str = "mw1.";
/// How base64url of a JSON object begins.
const JWT_PREFIX: &str = "ey";

/// A token read: what it is for, and the text to present.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// `NS/NAME` it admits.
    pub workload: String,
    /// SHA-256 of the root it trusts, hex.
    pub ca: String,
    /// The identity it admits, where the token says it.
    pub identity: Option<Identity>,
    /// The whole token; a secret.
    pub text: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("workload", &self.workload).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: {0}; make one with `meshwright token create --workload NS/NAME`")]
pub struct NotAToken(&'static str);

/// What a token file holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Bearer {
    /// A join token: works once.
    Join(Token),
    /// A service-account token, as it stands in the file; a secret. Works until its end, or its pod's.
    Account(Zeroizing<String>),
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Join(token) => token.fmt(f),
            Self::Account(_) => f.write_str("Account"),
        }
    }
}

impl std::str::FromStr for Bearer {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let text = text.trim();
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let is_jwt = text.starts_with(JWT_PREFIX) && text.split('.').count() == 3 && text.split('.').all(is_part);
        if is_jwt { Ok(Self::Account(Zeroizing::new(text.to_owned()))) } else { text.parse().map(Self::Join) }
    }
}

#[derive(Deserialize)]
struct Claims {
    workload: String,
    ca: String,
    identity: Option<String>,
}

impl std::str::FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(NotAToken("it does not start with mw1."))?;
        let json = BASE64_URL_SAFE_NO_PAD.decode(body.trim_end_matches('=')).map_err(|_| NotAToken("it is not base64url"))?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|_| NotAToken("its content cannot be read"))?;
        let identity = claims.identity.and_then(|identity| identity.parse().ok());
        Ok(Self { workload: claims.workload, ca: claims.ca, identity, text: text.to_owned() })
    }
}

/// The file a token lies in, read again at each attempt: whoever started the proxy may refill it.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    kept: Option<Mutex<File>>,
}

impl TokenFile {
    /// Remembers the file, and keeps it open where it exists: after the rights are dropped it may not be openable by name.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), kept: File::open(path).ok().map(Mutex::new) }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds now.
    ///
    /// # Errors
    /// It cannot be read (kind as the kernel says), others may read a join token there (`PermissionDenied`; who may read a service-account
    /// token is its kubelet's business), or it holds no token (`InvalidData`). The message names the file.
    pub fn read(&self) -> io::Result<Bearer> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("the token file {}: {error}", self.path.display()));
        let read = match (File::open(&self.path), &self.kept) {
            (Ok(mut file), _) => content(&mut file),
            (Err(_), Some(kept)) => {
                let mut file = kept.lock();
                file.seek(SeekFrom::Start(0)).and_then(|_| content(&mut file))
            }
            (Err(error), None) => Err(error),
        };
        let (text, mode) = read.map_err(named)?;
        let bearer = text.parse().map_err(|error| named(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        if let Bearer::Join(_) = bearer {
            let judged = proto::private::judged("the token file", &self.path, mode);
            judged.map_err(|told| io::Error::new(io::ErrorKind::PermissionDenied, told))?;
        }
        Ok(bearer)
    }
}

/// What a file holds, wiped when it is dropped, and its permission bits.
fn content(file: &mut File) -> io::Result<(Zeroizing<String>, u32)> {
    let mode = file.metadata()?.permissions().mode();
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_BYTES_MAX as usize));
    file.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok((text, mode))
}

#[cfg(test)]
pub(crate) fn make(workload: &str, ca: &str) -> String {
    let identity = format!("spiffe://cluster.local/ns/{}/sa/catalog", workload.split('/').next().unwrap_or_default());
    let json = serde_json::json!({"workload": workload, "ca": ca, "secret": "s3cret", "identity": identity});
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: our tokens are read, anything else is refused with the command that makes one, and none shows in a log.
    #[test]
    fn tokens_are_read_strictly() {
        let token: Token = format!(" {}\n", make("shop/catalog", "ab")).parse().unwrap();
        assert_eq!((token.workload.as_str(), token.ca.as_str()), ("shop/catalog", "ab"));
        assert_eq!(token.identity.as_ref().unwrap().service_account(), "catalog");
        assert!(!format!("{token:?}").contains("mw1."));
        for bad in ["", "mw2.e30", "mw1.%%%", "mw1.e30", "mw1."] {
            let error = bad.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains("token create"), "{error}");
        }
    }

    /// Writes a file that only its owner may read.
    fn write(path: &Path, text: String) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Aim: a token that others may read is not used, and the remedy is named.
    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, make("shop/a", "1"));
        assert!(TokenFile::new(&path).read().is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = TokenFile::new(&path).read().unwrap_err();
        assert!(error.kind() == io::ErrorKind::PermissionDenied && error.to_string().contains("chmod 600"), "{error}");
    }

    /// Aim: a refilled file is read anew, also one that can no longer be opened by name.
    #[test]
    fn a_refilled_file_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(TokenFile::new(&path).read().unwrap_err().to_string().contains("token"));
        write(&path, make("shop/a", "1"));
        let file = TokenFile::new(&path);
        let workload = || match file.read().unwrap() {
            Bearer::Join(token) => token.workload,
            Bearer::Account(_) => String::new(),
        };
        assert_eq!(workload(), "shop/a");
        std::fs::write(&path, make("shop/b", "2")).unwrap();
        assert_eq!(workload(), "shop/b");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(workload(), "shop/b");
    }

    /// Aim: a projected service-account token is known by its form, whoever may read it; the next one, which the kubelet puts in its place by
    /// a link, is read; nothing of it shows in a log.
    #[test]
    fn a_projected_token_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let account = |text: &str| Bearer::Account(Zeroizing::new(text.to_owned()));
        for (turn, text) in ["eyJh.eyJz.c2ln-_", "eyJh.eyJz.bmV3"].into_iter().enumerate() {
            let version = folder.path().join(turn.to_string());
            std::fs::create_dir(&version).unwrap();
            std::fs::write(version.join("token"), format!("{text}\n")).unwrap();
            std::fs::set_permissions(version.join("token"), std::fs::Permissions::from_mode(0o644)).unwrap();
            let link = folder.path().join("next");
            std::os::unix::fs::symlink(version.join("token"), &link).unwrap();
            std::fs::rename(&link, &path).unwrap();
            assert_eq!(TokenFile::new(&path).read().unwrap(), account(text));
        }
        assert_eq!(format!("{:?}", account("eyJh.eyJz.bmV3")), "Account");
        for bad in ["eyJh.eyJz", "eyJh.eyJz.c2ln.x", "eyJh..c2ln", "eyJh.eyJz.c2 ln", "xyJh.eyJz.c2ln"] {
            assert!(bad.parse::<Bearer>().unwrap_err().to_string().contains("token create"), "{bad}");
        }
    }

    proptest::proptest! {
        /// Aim: no text makes it panic, whether it is base64 of bytes or JSON of another shape.
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}", body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = text.parse::<Bearer>();
            let _ = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(&body)).parse::<Token>();
            let _ = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"workload\":\"{text}\",\"ca\":1}}"))).parse::<Token>();
        }
    }
}
