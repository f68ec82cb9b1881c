//! The tokens by which commands use the API over the network (contract, section 1): one looks, the other also changes. Each control plane
//! makes its own at the first start; whoever removes a file and starts again has a new one.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;
use zeroize::Zeroizing;

/// File of the token that looks, in the data folder (0600).
pub const READ_FILE: &str = "api-read.token";
/// File of the token that also changes.
pub const WRITE_FILE: &str = "api-write.token";
/// What the latter was called when there was one token for everything.
const FORMER_FILE: &str = "api-token";
/// Chance in a token: nobody guesses it.
const SECRET_BYTES: usize = 32;
/// Shortest token taken from a file that somebody wrote himself.
const CHARS_MIN: usize = 32;
/// Longest.
const CHARS_MAX: usize = 1024;

/// What a call of the API does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It only looks.
    Look,
    /// It changes the mesh, or lets somebody into it.
    Change,
}

/// Every call of the API. One that is not named here is taken for a change.
const CALLS: [(&str, Deed); 13] = [
    ("Apply", Deed::Change),
    ("Wait", Deed::Look),
    ("Get", Deed::Look),
    ("Explain", Deed::Look),
    ("RotateRoot", Deed::Change),
    ("Roots", Deed::Look),
    ("CreateToken", Deed::Change),
    ("Health", Deed::Look),
    ("Canaries", Deed::Look),
    ("SteerCanary", Deed::Change),
    ("Tap", Deed::Look),
    ("Stat", Deed::Look),
    ("Find", Deed::Look),
];

fn deed(path: &str) -> Deed {
    let name = path.rsplit('/').next().unwrap_or_default();
    CALLS.iter().find(|(call, _)| *call == name).map_or(Deed::Change, |(_, deed)| *deed)
}

/// See the module. A call shows one of them as `authorization: Bearer TOKEN`.
#[derive(Clone)]
pub struct ApiTokens {
    look: Secret,
    change: Secret,
}

/// The text of one token; wiped when its last holder goes.
#[derive(Clone)]
struct Secret(Arc<Zeroizing<String>>);

impl ApiTokens {
    /// Reads the tokens of a data folder, or makes those that are missing. The one token of earlier versions becomes the one that changes.
    ///
    /// # Errors
    /// A file cannot be read or made, others may read it, or it holds no token; or both files hold the same.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        adopt_former(data_dir)?;
        let (look, change) = (Secret::open(&data_dir.join(READ_FILE))?, Secret::open(&data_dir.join(WRITE_FILE))?);
        if look.fits(change.0.as_bytes()) {
            bail!("{READ_FILE} and {WRITE_FILE} in {} hold the same token; remove one of them to get a new one", data_dir.display());
        }
        Ok(Self { look, change })
    }

    /// Whether a call with these headers may do that.
    fn judge(&self, headers: &HeaderMap, deed: Deed) -> Result<(), Status> {
        let needed = match deed {
            Deed::Look => READ_FILE,
            Deed::Change => WRITE_FILE,
        };
        let shown = headers.get(http::header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let Some(shown) = shown else {
            let told = format!("the API needs a token here: the text of `{needed}` in the control plane's data folder");
            return Err(Status::unauthenticated(told));
        };
        // Both are looked at, whatever the first says: time tells nothing.
        match (self.change.fits(shown), self.look.fits(shown), deed) {
            (true, ..) | (_, true, Deed::Look) => Ok(()),
            (_, true, Deed::Change) => {
                let told = format!("this token only looks, and the call changes something: give the text of `{WRITE_FILE}` instead");
                Err(Status::permission_denied(told))
            }
            (false, false, _) => {
                Err(Status::unauthenticated(format!("the API token is not this control plane's; `{needed}` in its data folder is")))
            }
        }
    }
}

/// Renames the one token of earlier versions.
fn adopt_former(data_dir: &Path) -> anyhow::Result<()> {
    let (former, path) = (data_dir.join(FORMER_FILE), data_dir.join(WRITE_FILE));
    if !former.exists() {
        return Ok(());
    }
    let (shown, now) = (former.display(), path.display());
    if path.exists() {
        tracing::warn!("{shown} opens nothing any more, since there is {now}; it is removed");
        return fs::remove_file(&former).with_context(|| format!("cannot remove {shown}"));
    }
    tracing::warn!("{shown} is {now} from now on: it opens what it opened; who only looks may have {READ_FILE} instead");
    fs::rename(&former, &path).with_context(|| format!("cannot rename {shown} to {now}"))
}

impl Secret {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if !path.try_exists().with_context(|| format!("cannot look for the API's token {shown}"))? {
            make(path).with_context(|| format!("cannot make the API's token {shown}"))?;
        }
        Self::read(path)
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot read the API's token {shown}"))?;
        let mode = file.metadata().with_context(|| format!("cannot read the API's token {shown}"))?.permissions().mode();
        proto::private::judged("the API's token", path, mode).map_err(|told| anyhow!(told))?;
        let mut text = Zeroizing::new(String::with_capacity(CHARS_MAX + 2));
        file.take(CHARS_MAX as u64 + 2).read_to_string(&mut text).with_context(|| format!("{shown} is not text"))?;
        let token = text.trim();
        if !(CHARS_MIN..=CHARS_MAX).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("{shown} holds no token ({CHARS_MIN} to {CHARS_MAX} visible characters); remove it to get a new one");
        }
        Ok(Self(Arc::new(Zeroizing::new(token.to_owned()))))
    }

    /// Whether `shown` is it. Takes as long wherever the two differ.
    fn fits(&self, shown: &[u8]) -> bool {
        let differ = shown.iter().zip(self.0.as_bytes()).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
        shown.len() == self.0.len() && differ == 0
    }
}

/// Writes a fresh token, which is there whole or not at all. One that somebody else has made meanwhile stays.
fn make(path: &Path) -> anyhow::Result<()> {
    let token = fresh()?;
    let half = path.with_extension(format!("token.{}.new", std::process::id()));
    // Left over from a process of the same number.
    let _ = fs::remove_file(&half);
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(token.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&half, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let made = written();
    // Nobody looks at it: it is of no use, and holds no secret that the other does not.
    let _ = fs::remove_file(&half);
    Ok(made?)
}

fn fresh() -> anyhow::Result<Zeroizing<String>> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.secure_random.fill(&mut *secret).is_err() {
        bail!("the system gives no random bytes for the API's token");
    }
    let mut token = Zeroizing::new(String::with_capacity(CHARS_MAX));
    token.push_str("mwa1.");
    BASE64_URL_SAFE_NO_PAD.encode_string(*secret, &mut token);
    Ok(token)
}

/// The API behind its tokens.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    tokens: ApiTokens,
}

impl<S> Guarded<S> {
    /// Lets in calls of `inner` that show a token for what they do.
    pub const fn new(inner: S, tokens: ApiTokens) -> Self {
        Self { inner, tokens }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.tokens.judge(request.headers(), deed(request.uri().path())) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn text(folder: &Path, file: &str) -> String {
        fs::read_to_string(folder.join(file)).unwrap().trim().to_owned()
    }

    fn bearing(header: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::AUTHORIZATION, header.parse().unwrap())])
    }

    #[test]
    fn every_call_is_classed() {
        // Aim: a call that is added to the API has its line in the table, and no line is without a call.
        let service = include_str!("../../../proto/proto/meshwright/v1/control.proto").split_once("service Control {").unwrap().1;
        let calls = service.split_once('}').unwrap().0.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let mut declared: Vec<&str> = calls.collect();
        let mut classed = CALLS.map(|(call, _)| call);
        declared.sort_unstable();
        classed.sort_unstable();
        assert_eq!(declared, classed);
        assert_eq!(deed("/meshwright.v1.Control/Get"), Deed::Look);
        assert_eq!(deed("/meshwright.v1.Control/Apply"), Deed::Change);
        assert_eq!(deed("/meshwright.v1.Control/OfLater"), Deed::Change);
    }

    #[test]
    fn one_token_looks_and_the_other_changes() {
        // Aim: both are made once, private, and stay over a restart; the one that looks changes nothing; anything else, a part of one and
        // nothing are refused; the sentence names the file that is needed.
        let folder = tempfile::tempdir().unwrap();
        let tokens = ApiTokens::open(folder.path()).unwrap();
        let (look, change) = (text(folder.path(), READ_FILE), text(folder.path(), WRITE_FILE));
        for file in [READ_FILE, WRITE_FILE] {
            assert_eq!(fs::metadata(folder.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let code = |header: &str, deed| tokens.judge(&bearing(header), deed).err().map(|status| status.code());
        let refused = Some(Code::Unauthenticated);
        for (header, looks, changes) in [
            (format!("Bearer {look}"), None, Some(Code::PermissionDenied)),
            (format!("Bearer {change}"), None, None),
            (format!("Bearer {change}x"), refused, refused),
            (format!("Bearer {}", &look[1..]), refused, refused),
            ("Bearer ".into(), refused, refused),
            (look.clone(), refused, refused),
            (format!("Basic {change}"), refused, refused),
        ] {
            assert_eq!((code(&header, Deed::Look), code(&header, Deed::Change)), (looks, changes), "{header}");
        }
        for (deed, file) in [(Deed::Look, READ_FILE), (Deed::Change, WRITE_FILE)] {
            assert!(tokens.judge(&HeaderMap::new(), deed).unwrap_err().message().contains(file));
        }
        let again = ApiTokens::open(folder.path()).unwrap();
        assert!(again.look.fits(look.as_bytes()) && again.change.fits(change.as_bytes()));
    }

    #[test]
    fn the_token_of_earlier_versions_changes() {
        // Aim: it goes on under its new name with the same text; one that lies beside a newer one is gone.
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(folder.path().join(file)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let former = "mwa1.0123456789012345678901234567890123456789";
        write(FORMER_FILE, former);
        assert!(ApiTokens::open(folder.path()).unwrap().change.fits(former.as_bytes()));
        assert!(!folder.path().join(FORMER_FILE).exists());
        write(FORMER_FILE, "mwa1.older678901234567890123456789012345678901");
        assert!(ApiTokens::open(folder.path()).unwrap().change.fits(former.as_bytes()));
        assert!(!folder.path().join(FORMER_FILE).exists());
    }

    #[test]
    fn a_token_is_there_whole_or_not_at_all() {
        // Aim: what a process left that ended while it wrote is in nobody's way, and nothing is left beside the two; where nothing can be
        // written the sentence names the file.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(format!("api-read.token.{}.new", std::process::id())), "mwa1.").unwrap();
        ApiTokens::open(folder.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [READ_FILE, WRITE_FILE]);
        let nowhere = format!("{:#}", ApiTokens::open(&folder.path().join("none")).err().unwrap());
        assert!(nowhere.contains(READ_FILE), "{nowhere}");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        // Aim: rights of others, too short a text and one token in both files are refused, each with its remedy.
        let folder = tempfile::tempdir().unwrap();
        ApiTokens::open(folder.path()).unwrap();
        let path = folder.path().join(READ_FILE);
        let told = || ApiTokens::open(folder.path()).err().unwrap().to_string();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(told().contains("chmod 600"), "{}", told());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(told().contains("holds no token"), "{}", told());
        fs::write(&path, text(folder.path(), WRITE_FILE)).unwrap();
        assert!(told().contains("the same token"), "{}", told());
    }
}
