//! `meshwright key`: API keys of consumers, made, listed, replaced and revoked. A key is printed once; what is kept of it is its hash.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use proto::mesh::{ApplyRequest, Document, GetRequest};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::apply::{epoch, failure, last};
use super::token::workload as path;
use crate::client::{self, Control, WhichMesh};
use crate::duration;
use crate::output::{self, Columns, ProgressLine, TextOrJson};

/// Bytes of a key's secret part.
const SECRET_BYTES: usize = 32;
/// Letters of its public part.
const PUBLIC_LETTERS: usize = 6;
/// How long a change is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `meshwright key`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright key create partners/acme --expires 2160h --scopes read\n  Prints the key once; the mesh keeps its SHA-256."
)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    action: KeyAction,
}

#[derive(Debug, Subcommand)]
enum KeyAction {
    /// Makes a key for a Consumer, which is made if it is not there, and prints it once.
    #[command(after_help = "Example: meshwright key create partners/acme --expires 2160h --scopes read,write --wait")]
    Create {
        /// The Consumer
        #[arg(value_name = "NS/CONSUMER", value_parser = path)]
        consumer: String,
        /// The credential's name; default: one that is free
        #[arg(long)]
        name: Option<String>,
        /// It holds so long
        #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
        expires: Option<Duration>,
        /// What it is good for
        #[arg(long, value_delimiter = ',')]
        scopes: Vec<String>,
        #[command(flatten)]
        change: KeyChangeArgs,
    },
    /// Lists keys: names, public parts, times and scopes.
    #[command(after_help = "Example: meshwright key list partners/acme")]
    List {
        /// Only this Consumer
        #[arg(value_name = "NS/CONSUMER", value_parser = path)]
        consumer: Option<String>,
        #[command(flatten)]
        place: WhichMesh,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: TextOrJson,
    },
    /// Makes a key in place of another one, which goes on for a while.
    #[command(after_help = "Example: meshwright key rotate partners/acme --overlap 168h")]
    Rotate {
        /// The Consumer
        #[arg(value_name = "NS/CONSUMER", value_parser = path)]
        consumer: String,
        /// The credential that is replaced; default: the only key
        #[arg(long)]
        name: Option<String>,
        /// So long the former key holds as well
        #[arg(long, value_name = "DURATION", value_parser = duration::positive, default_value = "168h")]
        overlap: Duration,
        /// The new key holds so long
        #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
        expires: Option<Duration>,
        #[command(flatten)]
        change: KeyChangeArgs,
    },
    /// Takes a key away: connected gateways refuse it within a second.
    #[command(after_help = "Example: meshwright key revoke partners/acme k1 --wait")]
    Revoke {
        /// The Consumer
        #[arg(value_name = "NS/CONSUMER", value_parser = path)]
        consumer: String,
        /// The credential's name, or the public part of the key
        key: String,
        #[command(flatten)]
        change: KeyChangeArgs,
    },
}

/// What every change has in common.
#[derive(Debug, Args)]
struct KeyChangeArgs {
    /// Wait until every gateway concerned knows it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

/// A key just made.
struct FreshKey {
    key: String,
    prefix: String,
    sha256: String,
}

impl FreshKey {
    /// `mw_<6 public>_<43 secret>`: scanners find leaked ones by that form.
    fn make() -> anyhow::Result<Self> {
        const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let (mut secret, mut public) = ([0; SECRET_BYTES], [0; PUBLIC_LETTERS]);
        fill(&mut secret).and_then(|()| fill(&mut public)).map_err(|_| anyhow!("the system gives no random bytes"))?;
        let public: String = public.iter().map(|byte| LETTERS[usize::from(*byte) % LETTERS.len()] as char).collect();
        let prefix = format!("mw_{public}");
        let key = format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(secret));
        let sha256 = digest(&SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { key, prefix, sha256 })
    }
}

/// A Consumer's document, as it is declared now.
struct Declared {
    namespace: String,
    name: String,
    document: Value,
}

impl Declared {
    async fn read(control: &mut Control, path: &str) -> anyhow::Result<Option<Self>> {
        let (namespace, name) = path.split_once('/').context("the consumer is NAMESPACE/NAME")?;
        let request =
            GetRequest { kind: "objects".to_owned(), namespace: namespace.to_owned(), name: name.to_owned(), ..GetRequest::default() };
        let answer = control.get(request).await.map_err(|status| client::refused(&status))?.into_inner();
        let rows = output::parse(&answer.json)?;
        let found = rows.as_array().into_iter().flatten().find(|row| row["kind"] == "Consumer" && row["live"] == true);
        Ok(found.map(|row| Self { namespace: namespace.to_owned(), name: name.to_owned(), document: row.clone() }))
    }

    fn new(path: &str) -> Self {
        let (namespace, name) = path.split_once('/').unwrap_or(("default", path));
        Self { namespace: namespace.to_owned(), name: name.to_owned(), document: json!({"spec": {}}) }
    }

    fn credentials(&mut self) -> &mut Vec<Value> {
        let spec = &mut self.document["spec"];
        if !spec["credentials"].is_array() {
            spec["credentials"] = json!([]);
        }
        let Value::Array(credentials) = &mut spec["credentials"] else { unreachable!("it was made a list") };
        credentials
    }

    /// A name that no credential has.
    fn free_name(&mut self) -> String {
        let taken: Vec<String> = self.credentials().iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect();
        (1..).map(|number| format!("k{number}")).find(|name| !taken.contains(name)).unwrap_or_default()
    }

    /// The manifest of it.
    fn manifest(&self) -> String {
        let metadata = &self.document["metadata"];
        let mut kept = json!({"name": self.name, "namespace": self.namespace});
        for field in ["labels", "annotations"] {
            if metadata[field].is_object() {
                kept[field] = metadata[field].clone();
            }
        }
        json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "Consumer", "metadata": kept, "spec": self.document["spec"]}).to_string()
    }

    /// Applies it; the result, where it was taken.
    async fn apply(&self, control: &mut Control, wait: bool) -> anyhow::Result<Value> {
        let documents = vec![Document { path: format!("Consumer {}/{}", self.namespace, self.name), text: self.manifest() }];
        let request = ApplyRequest { documents, delete: false, wait, timeout: Some(duration::to_message(PATIENCE)) };
        let stream = control.apply(request).await.map_err(|status| client::refused(&status))?.into_inner();
        let line = ProgressLine::start("applying");
        let last = last(stream, &line).await.map_err(|status| client::refused(&status))?;
        drop(line);
        let result = output::parse(&last.json)?;
        if !last.ok {
            bail!("{}", failure(&result));
        }
        Ok(result)
    }
}

fn in_future(life: Duration) -> anyhow::Result<String> {
    Ok((OffsetDateTime::now_utc() + life).replace_nanosecond(0)?.format(&Rfc3339)?)
}

/// Whether it is a key that is kept by its hash.
fn is_key(credential: &Value) -> bool {
    credential["apiKey"].is_object()
}

pub(crate) fn run(args: KeyArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        match args.action {
            KeyAction::Create { consumer, name, expires, scopes, change } => create(&consumer, (name, expires, scopes), &change).await,
            KeyAction::List { consumer, place, output } => list(consumer.as_deref(), &place, output).await,
            KeyAction::Rotate { consumer, name, overlap, expires, change } => rotate(&consumer, (name, overlap, expires), &change).await,
            KeyAction::Revoke { consumer, key, change } => revoke(&consumer, &key, &change).await,
        }
    })
}

async fn create(
    consumer: &str,
    (name, expires, scopes): (Option<String>, Option<Duration>, Vec<String>),
    change: &KeyChangeArgs,
) -> anyhow::Result<ExitCode> {
    let mut control = change.place.connect().await?;
    let known = Declared::read(&mut control, consumer).await?;
    let made = known.is_none();
    let mut declared = known.unwrap_or_else(|| Declared::new(consumer));
    let name = name.unwrap_or_else(|| declared.free_name());
    let fresh = add(&mut declared, &name, expires, &scopes)?;
    let result = declared.apply(&mut control, change.wait).await?;
    tell(change, &fresh, (consumer, &name, made), &result)
}

/// Adds a key.
fn add(declared: &mut Declared, name: &str, expires: Option<Duration>, scopes: &[String]) -> anyhow::Result<FreshKey> {
    if declared.credentials().iter().any(|one| one["name"] == name) {
        bail!("the consumer has a credential `{name}` already; choose another --name, or use `meshwright key rotate`");
    }
    let fresh = FreshKey::make()?;
    let mut credential = json!({"name": name, "apiKey": {"sha256": fresh.sha256, "prefix": fresh.prefix}});
    if let Some(life) = expires {
        credential["expiresAt"] = in_future(life)?.into();
    }
    if !scopes.is_empty() {
        credential["scopes"] = json!(scopes);
    }
    // The newest first, as people read it.
    declared.credentials().insert(0, credential);
    Ok(fresh)
}

async fn rotate(
    consumer: &str,
    (name, overlap, expires): (Option<String>, Duration, Option<Duration>),
    change: &KeyChangeArgs,
) -> anyhow::Result<ExitCode> {
    let mut control = change.place.connect().await?;
    let mut declared = Declared::read(&mut control, consumer).await?.with_context(|| format!("there is no Consumer {consumer}"))?;
    let keys: Vec<String> =
        declared.credentials().iter().filter(|one| is_key(one)).filter_map(|one| one["name"].as_str().map(str::to_owned)).collect();
    let former = match (name, keys.as_slice()) {
        (Some(name), _) if keys.contains(&name) => name,
        (Some(name), _) => bail!("Consumer {consumer} has no key `{name}`; it has {}", keys.join(", ")),
        (None, [only]) => only.clone(),
        (None, []) => bail!("Consumer {consumer} has no key; make one with `meshwright key create {consumer}`"),
        (None, _) => bail!("Consumer {consumer} has several keys ({}): name the one to replace with --name", keys.join(", ")),
    };
    let until = in_future(overlap)?;
    let mut scopes = Vec::new();
    for credential in declared.credentials().iter_mut().filter(|one| one["name"] == former) {
        scopes = credential["scopes"].as_array().into_iter().flatten().filter_map(|scope| scope.as_str().map(str::to_owned)).collect();
        let parsed = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
        let sooner = credential["expiresAt"].as_str().and_then(parsed).is_some_and(|own| parsed(&until).is_some_and(|until| own < until));
        if !sooner {
            credential["expiresAt"] = until.clone().into();
        }
    }
    let name = declared.free_name();
    let fresh = add(&mut declared, &name, expires, &scopes)?;
    let result = declared.apply(&mut control, change.wait).await?;
    tell(change, &fresh, (consumer, &name, false), &result)
}

async fn revoke(consumer: &str, key: &str, change: &KeyChangeArgs) -> anyhow::Result<ExitCode> {
    let mut control = change.place.connect().await?;
    let mut declared = Declared::read(&mut control, consumer).await?.with_context(|| format!("there is no Consumer {consumer}"))?;
    let before = declared.credentials().len();
    declared.credentials().retain(|one| one["name"] != key && one["apiKey"]["prefix"] != key);
    let gone = before - declared.credentials().len();
    if gone == 0 {
        bail!("Consumer {consumer} has no credential `{key}`; `meshwright key list {consumer}` names them");
    }
    let result = declared.apply(&mut control, change.wait).await?;
    match change.output {
        TextOrJson::Json => output::print(&json!({"consumer": consumer, "revoked": gone, "change": result}).to_string())?,
        TextOrJson::Text => output::print(&format!("{key} of {consumer} is revoked\n{}", epoch(&result)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is said beside a key; `made`: its consumer was not there before, which whoever mistyped a name wants to know.
fn beside((consumer, name, made): (&str, &str, bool), result: &Value) -> String {
    let made = if made { format!("made Consumer {consumer}, which was not there\n") } else { String::new() };
    format!("{made}credential {name} of {consumer}; it is not shown again\n{}", epoch(result).trim_end())
}

/// Prints a key, this once.
fn tell(change: &KeyChangeArgs, fresh: &FreshKey, about: (&str, &str, bool), result: &Value) -> anyhow::Result<ExitCode> {
    let (consumer, name, made) = about;
    match change.output {
        TextOrJson::Json => {
            let row = json!({"consumer": consumer, "name": name, "key": fresh.key, "prefix": fresh.prefix, "made_consumer": made, "change": result});
            output::print(&row.to_string())?;
        }
        TextOrJson::Text => {
            output::print(&fresh.key)?;
            eprintln!("{}", beside(about, result));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(consumer: Option<&str>, place: &WhichMesh, format: TextOrJson) -> anyhow::Result<ExitCode> {
    let mut control = place.connect().await?;
    let (namespace, name) = consumer.and_then(|path| path.split_once('/')).unwrap_or_default();
    let request =
        GetRequest { kind: "consumers".to_owned(), namespace: namespace.to_owned(), name: name.to_owned(), ..GetRequest::default() };
    let answer = control.get(request).await.map_err(|status| client::refused(&status))?.into_inner();
    let rows = output::parse(&answer.json)?;
    let mut keys = Vec::new();
    for row in rows.as_array().into_iter().flatten() {
        for credential in row["credentials"].as_array().into_iter().flatten().filter(|one| one["kind"] == "ApiKey") {
            let mut credential = credential.clone();
            credential["consumer"] =
                format!("{}/{}", row["namespace"].as_str().unwrap_or_default(), row["name"].as_str().unwrap_or_default()).into();
            credential["disabled"] = row["disabled"].clone();
            keys.push(credential);
        }
    }
    if format == TextOrJson::Json {
        output::print(&Value::from(keys).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Columns::new(&[
        ("CONSUMER", "consumer"),
        ("NAME", "name"),
        ("PREFIX", "prefix"),
        ("NOT BEFORE", "not_before"),
        ("EXPIRES AT", "expires_at"),
        ("SCOPES", "scopes"),
    ]);
    keys.iter().for_each(|key| _ = table.row(key));
    output::print(&table.render("no consumer has a key"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_form_and_is_known_by_its_hash() {
        // Aim: `mw_<6 public>_<43 secret>`, never twice the same, the prefix its beginning, the hash that of the whole.
        let (one, other) = (FreshKey::make().unwrap(), FreshKey::make().unwrap());
        assert_ne!(one.key, other.key);
        for fresh in [one, other] {
            let rest = fresh.key.strip_prefix("mw_").unwrap();
            assert_eq!((rest.len(), &rest[PUBLIC_LETTERS..=PUBLIC_LETTERS]), (PUBLIC_LETTERS + 1 + 43, "_"), "{}", fresh.key);
            assert!(fresh.key.starts_with(&fresh.prefix) && fresh.prefix.len() == 9);
            let hash: String = digest(&SHA256, fresh.key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(fresh.sha256, hash);
        }
    }

    #[test]
    fn a_consumer_that_was_made_is_told() {
        // Aim: whoever mistyped a name reads that there is a new Consumer; else nothing of that is said.
        let told = |made| beside(("partners/acm", "k1", made), &json!({"epoch": 7}));
        assert!(
            told(true).starts_with("made Consumer partners/acm, which was not there\ncredential k1 of partners/acm;"),
            "{}",
            told(true)
        );
        assert!(told(false).starts_with("credential k1 of partners/acm;"), "{}", told(false));
    }

    #[test]
    fn a_key_is_added_before_the_others_and_no_name_twice() {
        // Aim: the manifest keeps what the object says, takes the new credential with life and scopes, and leaves the server's fields out.
        let mut declared = Declared::new("partners/acme");
        declared.document = json!({"metadata": {"labels": {"plan": "gold"}, "uid": "x"}, "spec": {"groups": ["gold"], "credentials": [{"name": "k1", "apiKey": {"sha256": "a"}}]}, "status": {}});
        assert_eq!(declared.free_name(), "k2");
        add(&mut declared, "k2", Some(Duration::from_secs(60)), &["read".to_owned()]).unwrap();
        assert!(add(&mut declared, "k1", None, &[]).is_err());
        let manifest: Value = serde_json::from_str(&declared.manifest()).unwrap();
        assert_eq!(manifest["metadata"], json!({"name": "acme", "namespace": "partners", "labels": {"plan": "gold"}}));
        assert_eq!((manifest["spec"]["groups"][0].as_str(), manifest["status"].is_null()), (Some("gold"), true));
        let credentials = manifest["spec"]["credentials"].as_array().unwrap();
        assert_eq!(
            (credentials.len(), credentials[0]["name"].as_str(), credentials[0]["scopes"][0].as_str()),
            (2, Some("k2"), Some("read"))
        );
        assert!(credentials[0]["expiresAt"].as_str().unwrap().ends_with('Z'));
    }
}
