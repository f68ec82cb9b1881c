//! An API server in memory below a real `kube::Client`: lists in pages, watches from a revision on, and answers wrongly where it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use apiserver::pace::paced;
use control::clock::Clock;
use control::source::cluster::{Cluster, Pulses};
use control::world::{Allocations, Applied, Kind, ObjectKey, World, WorldSettings};
use futures::stream::{self, BoxStream, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Longest wait of a test for anything, by the clock of the test.
const PATIENCE: Duration = Duration::from_secs(900);

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub(crate) enum Wrong {
    /// This status; seconds after which to come again.
    Status(u16, u32),
    /// No head ever comes.
    Stuck,
    /// The head comes, and nothing behind it.
    Silent,
    /// A watch says this line first.
    Line(String),
    /// This status, and no word.
    Empty(u16),
    /// 429 as a busy API server says it: in plain text, and in a header when to come again.
    Busy(u32),
}

/// Which calls go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    List,
    Watch,
}

struct Event {
    revision: u64,
    plural: String,
    kind: &'static str,
    object: Value,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// By (plural, namespace, name).
    objects: BTreeMap<(String, String, String), Value>,
    events: Vec<Event>,
    /// `GROUP/VERSION/PLURAL` that are not served.
    missing: BTreeSet<String>,
    wrong: BTreeMap<(Call, String), VecDeque<Wrong>>,
    away: bool,
    /// Something in front of it says 404 to everything, in text.
    hidden: bool,
    /// Nobody may ask what it serves.
    secretive: bool,
    asked: Vec<String>,
}

/// See the module. A clone is the same server.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

type Content = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

impl Server {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, asked) = (server.clone(), request.uri().to_string());
            let metadata = request.headers().get("accept").is_some_and(|accept| accept.to_str().unwrap().contains("PartialObjectMeta"));
            async move { server.answer(asked, metadata).await }
        });
        Client::new(service, "default")
    }

    /// Stores an object as an API server would, with all that it adds by itself.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.state();
        state.revision += 1;
        let revision = state.revision;
        let text = |object: &Value, name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text(&object, "namespace"), text(&object, "name"));
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = revision.to_string().into();
        metadata["managedFields"] = json!([{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]);
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{revision}").into();
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = "2026-06-01T00:00:00Z".into();
        }
        let before = state.objects.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.events.push(Event { revision, plural: plural.to_owned(), kind, object });
        drop(state);
        self.changed.send_replace(());
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        state.revision += 1;
        let revision = state.revision;
        let mut object = state.objects.remove(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        state.events.push(Event { revision, plural: plural.to_owned(), kind: "DELETED", object });
        drop(state);
        self.changed.send_replace(());
    }

    /// Forgets what happened: a watch from before is told so.
    pub(crate) fn compact(&self) {
        self.state().events.clear();
    }

    /// The next calls of that sort for that kind go wrong, one after the other.
    pub(crate) fn wrong(&self, call: Call, plural: &str, wrong: impl IntoIterator<Item = Wrong>) {
        self.state().wrong.entry((call, plural.to_owned())).or_default().extend(wrong);
    }

    pub(crate) fn right(&self) {
        self.state().wrong.clear();
    }

    /// Refuses every connection, or none any more; what is open breaks off.
    pub(crate) fn set_away(&self, away: bool) {
        self.state().away = away;
        self.changed.send_replace(());
    }

    /// Says 404 to everything, as what is in front of it would, or answers again; what is open breaks off.
    pub(crate) fn set_hidden(&self, hidden: bool) {
        self.state().hidden = hidden;
        self.changed.send_replace(());
    }

    /// Says 403 to whoever asks what it serves, or does not.
    pub(crate) fn set_secretive(&self, secretive: bool) {
        self.state().secretive = secretive;
    }

    /// Serves a kind at a version (`GROUP/VERSION/PLURAL`), or does not.
    pub(crate) fn serve(&self, place: &str, served: bool) {
        let mut state = self.state();
        if served {
            state.missing.remove(place)
        } else {
            state.missing.insert(place.to_owned())
        };
    }

    /// Paths and queries of all calls so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// How many calls so far were of that sort.
    pub(crate) fn count(&self, call: Call, plural: &str) -> usize {
        let watch = |asked: &&String| asked.contains("watch=true") == (call == Call::Watch);
        self.asked().iter().filter(watch).filter(|asked| path(asked).2 == plural).count()
    }

    async fn answer(&self, asked: String, metadata: bool) -> Result<Response<Content>, std::io::Error> {
        if self.state().hidden {
            return Ok(answered(404, stream::iter(["404 page not found\n".to_owned()]).boxed()));
        }
        if let Some((_, rest)) = asked.split_once("/apis").filter(|(_, rest)| rest.split('/').count() <= 3) {
            let away = self.state().away;
            return if away { Err(std::io::Error::other("connection refused")) } else { Ok(self.discovery(rest.trim_start_matches('/'))) };
        }
        let (place, namespace, plural) = path(&asked);
        let query: BTreeMap<String, String> = query(&asked);
        let call = if query.contains_key("watch") { Call::Watch } else { Call::List };
        let (away, missing, wrong) = {
            let mut state = self.state();
            state.asked.push(asked.clone());
            let wrong = state.wrong.get_mut(&(call, plural.clone())).and_then(VecDeque::pop_front);
            (state.away, state.missing.contains(&place), wrong)
        };
        let name = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name=")).map(str::to_owned);
        let wanted = Wanted { plural, namespace, name, metadata };
        match wrong {
            _ if away => Err(std::io::Error::other("connection refused")),
            Some(Wrong::Stuck) => std::future::pending().await,
            Some(Wrong::Status(code, after)) => Ok(status(code, after)),
            Some(Wrong::Silent) => Ok(answered(200, stream::pending().boxed())),
            Some(Wrong::Empty(code)) => Ok(answered(code, stream::empty().boxed())),
            Some(Wrong::Busy(after)) => Ok(busy(after)),
            _ if missing => Ok(status(404, 0)),
            Some(Wrong::Line(line)) => Ok(answered(200, stream::iter([line + "\n"]).boxed())),
            None if call == Call::Watch => Ok(self.watch(wanted, &query)),
            None => Ok(self.list(&wanted, &query)),
        }
    }

    /// What is served: all groups, or the kinds of one (`GROUP/VERSION`).
    fn discovery(&self, of: &str) -> Response<Content> {
        if self.state().secretive {
            return status(403, 0);
        }
        let missing = self.state().missing.clone();
        let at = |kind: Kind| kind.versions().iter().map(move |version| (kind, format!("{}/{version}", kind.group())));
        let all = Kind::ALL.into_iter().flat_map(at);
        let name = |kind: Kind| plural(&json!({"kind": kind.text()}));
        let served: Vec<_> = all.filter(|(kind, place)| !missing.contains(&format!("{place}/{}", name(*kind)))).collect();
        let body = if of.is_empty() {
            let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for (kind, place) in served.iter().filter(|(kind, _)| !kind.group().is_empty()) {
                groups.entry(kind.group()).or_default().insert(place);
            }
            let version = |place: &&str| json!({"groupVersion": place, "version": place.split_once('/').unwrap().1});
            let group = |(name, places): (&&str, &BTreeSet<&str>)| json!({"name": name, "versions": places.iter().map(version).collect::<Vec<_>>()});
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.iter().map(group).collect::<Vec<_>>()})
        } else {
            let resource =
                |kind: Kind| json!({"name": name(kind), "singularName": "", "namespaced": true, "kind": kind.text(), "verbs": ["list"]});
            let resources: Vec<_> = served.iter().filter(|(_, place)| place == of).map(|(kind, _)| resource(*kind)).collect();
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": of, "resources": resources})
        };
        answered(200, stream::iter([body.to_string()]).boxed())
    }

    fn list(&self, wanted: &Wanted, query: &BTreeMap<String, String>) -> Response<Content> {
        let state = self.state();
        let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let from: usize = query.get("continue").map_or(0, |from| from.parse().unwrap());
        let all = state.objects.iter().filter(|((plural, namespace, name), _)| wanted.fits(plural, namespace, name));
        let items: Vec<Value> = all.clone().skip(from).take(limit).map(|(_, object)| wanted.shown(object)).collect();
        let left = all.count().saturating_sub(from + items.len());
        let next = if left > 0 { (from + items.len()).to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": state.revision.to_string(), "continue": next});
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
        answered(200, stream::iter([list.to_string()]).boxed())
    }

    fn watch(&self, wanted: Wanted, query: &BTreeMap<String, String>) -> Response<Content> {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let oldest = {
            let state = self.state();
            state.events.first().map_or(state.revision, |event| event.revision - 1)
        };
        if from < oldest {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version", "status": "Failure"}});
            return answered(200, stream::iter([format!("{gone}\n")]).boxed());
        }
        let end = tokio::time::Instant::now() + Duration::from_secs(query["timeoutSeconds"].parse().unwrap());
        let (server, changed) = (self.clone(), self.changed.subscribe());
        let lines = stream::unfold((server, changed, from, wanted), move |(server, mut changed, from, wanted)| async move {
            loop {
                if server.state().away || server.state().hidden {
                    return None;
                }
                let found = server
                    .state()
                    .events
                    .iter()
                    .find(|event| event.revision > from && wanted.event(event))
                    .map(|event| (event.revision, json!({"type": event.kind, "object": wanted.shown(&event.object)})));
                if let Some((revision, line)) = found {
                    return Some((format!("{line}\n"), (server, changed, revision, wanted)));
                }
                if !matches!(tokio::time::timeout_at(end, changed.changed()).await, Ok(Ok(()))) {
                    return None;
                }
            }
        });
        answered(200, lines.boxed())
    }
}

/// What a call is about.
struct Wanted {
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    metadata: bool,
}

impl Wanted {
    fn fits(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        self.plural == plural && same(&self.namespace, namespace) && same(&self.name, name)
    }

    fn event(&self, event: &Event) -> bool {
        let text = |name: &str| event.object["metadata"][name].as_str().unwrap_or_default();
        self.fits(&event.plural, text("namespace"), text("name"))
    }

    fn shown(&self, object: &Value) -> Value {
        if !self.metadata {
            return object.clone();
        }
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
    }
}

fn answered(code: u16, lines: BoxStream<'static, String>) -> Response<Content> {
    let body = StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line)))).boxed());
    Response::builder().status(StatusCode::from_u16(code).unwrap()).header("content-type", "application/json").body(body).unwrap()
}

fn busy(after: u32) -> Response<Content> {
    let mut answer = answered(429, stream::iter(["Too many requests, please try again later.\n".to_owned()]).boxed());
    answer.headers_mut().insert("content-type", "text/plain; charset=utf-8".parse().unwrap());
    answer.headers_mut().insert("retry-after", after.into());
    answer
}

fn status(code: u16, after: u32) -> Response<Content> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Test", "message": format!("the server says {code}"),
        "details": {"retryAfterSeconds": after},
    });
    answered(code, stream::iter([status.to_string()]).boxed())
}

/// (`GROUP/VERSION/PLURAL`, namespace, plural) of a path of the API.
fn path(asked: &str) -> (String, Option<String>, String) {
    let path = asked.split('?').next().unwrap();
    let parts: Vec<&str> =
        path.rsplit_once("//").map_or(path, |(_, rest)| rest).split('/').skip_while(|part| *part != "api" && *part != "apis").collect();
    let (group, rest) = if parts[0] == "api" { ("", &parts[1..]) } else { (parts[1], &parts[2..]) };
    let namespace = (rest[1] == "namespaces" && rest.len() > 3).then(|| rest[2].to_owned());
    let plural = if namespace.is_some() { rest[3] } else { rest[1] };
    (format!("{group}/{}/{plural}", rest[0]), namespace, plural.to_owned())
}

fn query(asked: &str) -> BTreeMap<String, String> {
    let pairs = asked.split_once('?').map_or("", |(_, query)| query).split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace("%3D", "="))).collect()
}

/// The plural of a kind as the tests' objects name it.
pub(crate) fn plural(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap();
    match kind {
        "Mesh" => "meshes".to_owned(),
        "GatewayClass" => "gatewayclasses".to_owned(),
        _ if kind.ends_with('y') && !kind.ends_with("ay") => format!("{}ies", kind[..kind.len() - 1].to_lowercase()),
        _ => format!("{}s", kind.to_lowercase()),
    }
}

/// A world that follows a cluster.
pub(crate) struct Follower {
    pub(crate) world: World,
    steps: mpsc::Receiver<Vec<control::world::Change>>,
    _watching: tokio::task::JoinSet<()>,
    pub(crate) applied: Vec<Applied>,
}

impl Follower {
    pub(crate) fn start(server: &Server, settings: WorldSettings) -> Self {
        let clock = Clock::new(|| std::time::UNIX_EPOCH + Duration::from_secs(1));
        let cluster = Cluster { client: paced(server.client()), clock, pulses: Pulses::default() };
        let (send, steps) = mpsc::channel(2);
        let mut watching = tokio::task::JoinSet::new();
        watching.spawn(async move { cluster.run(send).await.unwrap() });
        Self { world: World::new(settings, Allocations::default()), steps, _watching: watching, applied: Vec::new() }
    }

    /// Applies steps until the world fits, and says after how long; each step is looked at by `always`.
    pub(crate) async fn until_always(&mut self, fits: impl Fn(&World) -> bool, always: impl Fn(&World)) -> Duration {
        let begin = tokio::time::Instant::now();
        let wait = async {
            while !fits(&self.world) {
                let changes = self.steps.recv().await.unwrap();
                self.applied.push(self.world.apply(changes));
                always(&self.world);
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never came to that: {:?}", self.world.problems()));
        begin.elapsed()
    }

    pub(crate) async fn until(&mut self, fits: impl Fn(&World) -> bool) -> Duration {
        self.until_always(fits, |_| {}).await
    }

    /// Lets time pass, applying what comes.
    pub(crate) async fn rest(&mut self, time: Duration) {
        let wait = async {
            loop {
                let changes = self.steps.recv().await.unwrap();
                self.applied.push(self.world.apply(changes));
            }
        };
        let _: Result<(), _> = timeout(time, wait).await;
    }
}

/// Whether an object is in force.
pub(crate) fn has(world: &World, kind: Kind, namespace: &str, name: &str) -> bool {
    world.get(&ObjectKey::new(kind, namespace, name)).is_some()
}

/// A cluster's world.
pub(crate) fn settings() -> WorldSettings {
    WorldSettings { origins: [control::world::Origin::Cluster].into(), in_cluster: true, ..WorldSettings::default() }
}
