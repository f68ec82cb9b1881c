//! Who we are at the API server, and where it is: by a kubeconfig, else as the pod that this process runs in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
pub use kube::Client;
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::pace::paced;

/// How long a connection may take to open.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a request may take to be written.
pub const WRITE_MAX: Duration = Duration::from_secs(30);
/// How long one call may take, its answer included. The client itself has no such bound, because a watch is a call, too: who makes a
/// call that ends by itself holds it to this ([`within`]).
pub const CALL_MAX: Duration = Duration::from_secs(10);
/// Errors of libraries name their cause below them, and that one its own: so deep at most.
const CAUSES_MAX: usize = 8;

/// Which API server, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A kubeconfig; without one it is the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts; without one the current one.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Neither a kubeconfig nor a pod.
    #[error(
        "no API server is known: this process does not run in a pod of a cluster ({0}); name a kubeconfig with --kubeconfig FILE or KUBECONFIG"
    )]
    Nowhere(String),
    /// In a pod whose service account cannot be used.
    #[error(
        "the pod's own service account cannot be used: {0}; set automountServiceAccountToken: true for the pod, or name a kubeconfig with --kubeconfig FILE"
    )]
    Pod(String),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}: {cause}; check it with `kubectl --kubeconfig {path} config view`")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// What it says makes no client: keys that do not read, a proxy of a kind that is not spoken.
    #[error("cannot make a client for the API server at {server}: {cause}")]
    Client {
        /// Its address.
        server: String,
        /// What is wrong.
        cause: String,
    },
}

/// Makes a client ([`paced`]). Nothing is sent yet: an API server that is away is met by the first call. Tokens and roots that rotate in
/// their files are read again by the client itself.
///
/// `part` goes into the user agent (`meshwright/VERSION (PART)`), by which audit logs and flow control of the API server know us.
///
/// # Errors
/// [`AccessError`].
pub async fn connect(access: &Access, part: &str) -> Result<Client, AccessError> {
    let config = config(access, part).await?;
    let server = config.cluster_url.to_string();
    Client::try_from(config).map(paced).map_err(|error| AccessError::Client { server, cause: causes(&error) })
}

async fn config(access: &Access, part: &str) -> Result<Config, AccessError> {
    let mut config = match &access.kubeconfig {
        Some(path) => by_file(path, access.context.clone()).await?,
        None => Config::incluster().map_err(nowhere)?,
    };
    config.connect_timeout = Some(CONNECT_MAX);
    config.write_timeout = Some(WRITE_MAX);
    // The library would ask a busy API server up to fifteen times before it says so; who calls has a time and a backoff of its own.
    config.default_retry = false;
    let agent = format!("meshwright/{} ({part})", env!("CARGO_PKG_VERSION"));
    config.headers.extend(HeaderValue::from_str(&agent).map(|agent| (USER_AGENT, agent)));
    Ok(config)
}

async fn by_file(path: &Path, context: Option<String>) -> Result<Config, AccessError> {
    let refused = |error: KubeconfigError| AccessError::Kubeconfig { path: path.to_owned(), cause: causes(&error) };
    let file = Kubeconfig::read_from(path).map_err(refused)?;
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.map_err(refused)
}

fn nowhere(error: InClusterError) -> AccessError {
    match error {
        InClusterError::ReadEnvironmentVariable(_) => AccessError::Nowhere(causes(&error)),
        _ => AccessError::Pod(causes(&error)),
    }
}

/// What became of a call, as far as the caller goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing of that name, or no such kind.
    Missing,
    /// Somebody else has changed it meanwhile, or made it first.
    Conflict,
    /// What was asked for is too old; ask for all of it.
    Gone,
    /// It is busy, away, or out of order: the same call may do later.
    Later,
    /// We may not.
    Forbidden,
    /// It does not take it as it is: the same call never does.
    Refused,
}

/// A call that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// For whom goes on from it.
    pub fault: Fault,
    /// For people: what the API server said or why it said nothing, and the remedy where there is one.
    pub text: String,
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else {
            return Self { fault: Fault::Later, text: format!("the API server does not answer: {}", causes(&error)) };
        };
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        let (fault, text) = match status.code {
            401 => (
                Fault::Forbidden,
                format!("the API server does not know us: {said}; renew the credentials of the kubeconfig or service account"),
            ),
            403 => (Fault::Forbidden, format!("the API server forbids it: {said}; `meshwright install` prints the rights that are needed")),
            404 => (Fault::Missing, format!("the API server does not have it: {said}")),
            409 => (Fault::Conflict, format!("somebody else was first: {said}")),
            410 => (Fault::Gone, format!("the API server remembers no more of it: {said}")),
            429 => (Fault::Later, format!("the API server has too much to do: {said}")),
            408 | 500.. => (Fault::Later, format!("the API server is out of order ({}): {said}", status.code)),
            code => (Fault::Refused, format!("the API server refuses it ({code}): {said}")),
        };
        Self { fault, text }
    }
}

/// Waits for a call for `max` at most. A write that is given up may still arrive.
///
/// # Errors
/// [`CallError`]; [`Fault::Later`] where it takes too long.
pub async fn within<T>(max: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(max, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            Err(CallError { fault: Fault::Later, text: format!("the API server has not answered within {:.1} s", max.as_secs_f32()) })
        }
    }
}

/// An error and what is below it, in one line, each thing said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let below = std::iter::successors(error.source(), |error| error.source()).take(CAUSES_MAX);
    for cause in below.map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    const FILE: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: here, context: {cluster: c, user: u, namespace: mesh}}, {name: there, context: {cluster: missing, user: u}}]
current-context: here
"#;

    fn access(path: PathBuf, context: Option<&str>) -> Access {
        Access { kubeconfig: Some(path), context: context.map(str::to_owned) }
    }

    #[tokio::test]
    async fn a_kubeconfig_says_where_and_as_whom() {
        // Aim: server, namespace and user come from the file, and the API server is told our version and part.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, FILE).unwrap();
        let config = config(&access(path.clone(), None), "control").await.unwrap();
        assert_eq!(config.cluster_url, "https://10.0.0.1:6443/");
        assert_eq!(config.default_namespace, "mesh");
        assert_eq!(config.connect_timeout, Some(CONNECT_MAX));
        let agent = format!("meshwright/{} (control)", env!("CARGO_PKG_VERSION"));
        assert_eq!(config.headers, [(USER_AGENT, HeaderValue::from_str(&agent).unwrap())]);
        assert_eq!(connect(&access(path, Some("here")), "control").await.unwrap().default_namespace(), "mesh");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_with_the_remedy() {
        // Aim: each way to have no client names the file or the server, the cause, and what to do.
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (good, broken) = (write("good", FILE), write("broken", "clusters: ["));
        let proxied = write("proxied", &FILE.replace("6443\"", "6443\", proxy-url: \"gopher://10.0.0.2\""));
        let cases = [
            (access(folder.path().join("none"), None), &["none", "No such file", "kubectl"][..]),
            (access(broken, None), &["broken", "YAML"]),
            (access(good.clone(), Some("nowhere")), &["good", "nowhere"]),
            (access(good, Some("there")), &["good", "missing"]),
            (access(proxied, None), &["https://10.0.0.1:6443/", "gopher"]),
        ];
        for (access, words) in cases {
            let error = connect(&access, "control").await.err().unwrap().to_string();
            for word in words {
                assert!(error.contains(word), "`{word}` is not in: {error}");
            }
        }
        let nowhere = InClusterError::ReadEnvironmentVariable(std::env::VarError::NotPresent);
        assert!(AccessError::to_string(&super::nowhere(nowhere)).contains("--kubeconfig FILE or KUBECONFIG"));
        let no_token = InClusterError::ReadDefaultNamespace(std::io::ErrorKind::NotFound.into());
        assert!(AccessError::to_string(&super::nowhere(no_token)).contains("automountServiceAccountToken"));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_says_what_to_do_next() {
        // Aim: callers go on by the kind of fault; people read what the API server said.
        let table = [
            (401, Fault::Forbidden),
            (403, Fault::Forbidden),
            (404, Fault::Missing),
            (408, Fault::Later),
            (409, Fault::Conflict),
            (410, Fault::Gone),
            (413, Fault::Refused),
            (422, Fault::Refused),
            (429, Fault::Later),
            (500, Fault::Later),
            (503, Fault::Later),
        ];
        for (code, fault) in table {
            let status = Status::failure("leases \"x\" is odd", "Reason").with_code(code);
            let error = CallError::from(kube::Error::Api(status.boxed()));
            assert_eq!(error.fault, fault, "{code}");
            assert!(error.text.contains("leases \"x\" is odd"), "{error}");
        }
        let refused = kube::Error::Service("connection refused".into());
        assert_eq!(CallError::from(refused).fault, Fault::Later);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_not_waited_for_for_ever() {
        // Aim: an API server that takes a call and says nothing costs what was allowed, and counts as away.
        let began = tokio::time::Instant::now();
        let error = within(CALL_MAX, std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        assert_eq!((error.fault, began.elapsed()), (Fault::Later, CALL_MAX));
        assert!(error.text.contains("10.0 s"), "{error}");
    }
}
