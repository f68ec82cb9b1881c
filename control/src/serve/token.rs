//! The token by which commands use the API over the network (contract, section 1). Each control plane makes its own at the first start;
//! whoever removes the file and starts again has a new one.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Its file in the data folder (0600).
pub const FILE: &str = "api-token";
/// Chance in a token: nobody guesses it.
const SECRET_BYTES: usize = 32;
/// Shortest token taken from a file that somebody wrote himself.
const CHARS_MIN: usize = 32;
/// Longest.
const CHARS_MAX: usize = 1024;

/// See the module. Lets in calls that show it as `authorization: Bearer TOKEN`.
#[derive(Clone)]
pub struct ApiToken(Arc<str>);

impl ApiToken {
    /// Reads the token of a data folder, or makes one.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds no token.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE);
        let shown = path.display();
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                let token = fresh()?;
                file.write_all(token.as_bytes())
                    .and_then(|()| file.write_all(b"\n"))
                    .and_then(|()| file.sync_all())
                    .with_context(|| format!("cannot write the API's token to {shown}; remove the file when there is room again"))?;
                Ok(Self(token.into()))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let mut text = String::new();
                let file = std::fs::File::open(&path).with_context(|| format!("cannot read the API's token {shown}"))?;
                file.take(CHARS_MAX as u64 + 2).read_to_string(&mut text).with_context(|| format!("{shown} is not text"))?;
                let token = text.trim();
                if !(CHARS_MIN..=CHARS_MAX).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    bail!("{shown} holds no token ({CHARS_MIN} to {CHARS_MAX} visible characters); remove it to get a new one");
                }
                Ok(Self(token.into()))
            }
            Err(error) => Err(error).with_context(|| format!("cannot make the API's token {shown}")),
        }
    }

    /// Whether `shown` is it. Takes as long wherever the two differ.
    fn fits(&self, shown: &[u8]) -> bool {
        let differ = shown.iter().zip(self.0.as_bytes()).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
        shown.len() == self.0.len() && differ == 0
    }
}

fn fresh() -> anyhow::Result<String> {
    let mut secret = [0; SECRET_BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.secure_random.fill(&mut secret).is_err() {
        bail!("the system gives no random bytes for the API's token");
    }
    Ok(format!("mwa1.{}", BASE64_URL_SAFE_NO_PAD.encode(secret)))
}

impl Interceptor for ApiToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let shown = request.metadata().get("authorization").and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match shown {
            Some(shown) if self.fits(shown) => Ok(request),
            Some(_) => Err(Status::unauthenticated(format!("the API token is not this control plane's; `{FILE}` in its data folder is"))),
            None => {
                Err(Status::unauthenticated(format!("the API needs a token here: the text of `{FILE}` in the control plane's data folder")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_token_opens_and_no_other() {
        // Aim: it is made once, private, stays over a restart; anything else, a part of it and nothing are refused.
        let folder = tempfile::tempdir().unwrap();
        let mut token = ApiToken::open(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        assert!(ApiToken::open(folder.path()).unwrap().fits(text.as_bytes()));
        let mut code = |header: Option<String>| {
            let mut request = Request::new(());
            if let Some(header) = header {
                request.metadata_mut().insert("authorization", header.parse().unwrap());
            }
            token.call(request).err().map(|status| status.code())
        };
        assert_eq!(code(Some(format!("Bearer {text}"))), None);
        let refused = Some(tonic::Code::Unauthenticated);
        for header in [format!("Bearer {text}x"), format!("Bearer {}", &text[1..]), "Bearer ".into(), text.clone(), format!("Basic {text}")]
        {
            assert_eq!(code(Some(header)), refused);
        }
        assert_eq!(code(None), refused);
        std::fs::write(&path, "short").unwrap();
        assert!(ApiToken::open(folder.path()).is_err());
    }
}
