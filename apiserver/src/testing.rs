//! An API server of a few lines, for tests: objects by path, versions, conflicts, status subresources, and ways to be away. What a real
//! one does beside is tested against a real one (`tests/kube-api`).

#![allow(clippy::unwrap_used, reason = "for tests: a bad call is to fail the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// What happens to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It is answered.
    #[default]
    Well,
    /// It does not arrive.
    Away,
    /// A write is carried out and not answered.
    Mute,
    /// It gets this status.
    Says(u16),
}

/// What the server has, and what was done to it.
#[derive(Default)]
pub struct State {
    /// Objects by path: `/api/v1/namespaces/shop/pods/catalog-0`.
    pub objects: BTreeMap<String, Value>,
    /// What happens to calls.
    pub mood: Mood,
    /// What happens to some of them, by method and path: `PUT /api/v1/namespaces/mesh/configmaps/book`.
    pub moods: BTreeMap<String, Mood>,
    /// Calls that arrived, answered or not.
    pub calls: usize,
    /// Objects written.
    pub writes: usize,
    /// What a POST to that path is answered with, instead of being kept.
    pub answers: BTreeMap<String, Value>,
    /// The body of the last POST.
    pub posted: Value,
    version: u64,
}

/// Clones are one.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// What it has. No call is answered meanwhile.
    ///
    /// # Panics
    /// A test has panicked before.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        Client::new(service, "mesh")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(answer) = self.state().met(&head.method, head.uri.path(), body) else { return std::future::pending().await };
        let (code, body) = match answer {
            Ok(object) => (200, object),
            Err(code) => {
                let reason = StatusCode::from_u16(code).unwrap().canonical_reason().unwrap_or_default().replace(' ', "");
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
                )
            }
        };
        Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap()
    }
}

impl State {
    fn met(&mut self, method: &Method, path: &str, body: Value) -> Option<Result<Value, u16>> {
        self.calls += 1;
        match self.moods.get(&format!("{method} {path}")).copied().unwrap_or(self.mood) {
            Mood::Away => None,
            Mood::Says(code) => Some(Err(code)),
            Mood::Mute if *method != Method::GET => {
                let _ = self.serve(method, path, body);
                None
            }
            Mood::Well | Mood::Mute => Some(self.serve(method, path, body)),
        }
    }

    fn serve(&mut self, method: &Method, path: &str, body: Value) -> Result<Value, u16> {
        if *method == Method::GET {
            return self.objects.get(path).cloned().or_else(|| self.list(path)).ok_or(404);
        }
        if *method == Method::POST {
            self.posted = body.clone();
            if let Some(answer) = self.answers.get(path) {
                return Ok(answer.clone());
            }
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
            return if self.objects.contains_key(&path) { Err(409) } else { Ok(self.put(&path, body)) };
        }
        let (path, body) = match path.strip_suffix("/status") {
            Some(path) => (path, json!({"metadata": body["metadata"], "status": body["status"]})),
            None => (path, body),
        };
        let before = self.objects.get(path).ok_or(404_u16)?;
        let named = &body["metadata"]["resourceVersion"];
        if named.is_string() && *named != before["metadata"]["resourceVersion"] {
            return Err(409);
        }
        let after = if *method == Method::PATCH { merge(before.clone(), body) } else { body };
        Ok(self.put(path, after))
    }

    /// All of one kind, where there is one: of a namespace, or of all.
    fn list(&self, path: &str) -> Option<Value> {
        let (group, kind) = path.rsplit_once('/')?;
        let of_kind = |(place, _): &(&String, &Value)| {
            let collection = place.rsplit_once('/').map(|(collection, _)| collection);
            collection.is_some_and(|found| found == path || (found.starts_with(group) && found.ends_with(&format!("/{kind}"))))
        };
        let items: Vec<Value> = self.objects.iter().filter(of_kind).map(|(_, object)| object.clone()).collect();
        (!items.is_empty()).then(|| json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
    }

    /// Writes an object as somebody else would; returns it with its new version.
    pub fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        self.writes += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

/// RFC 7386.
fn merge(mut before: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    if !before.is_object() {
        before = json!({});
    }
    for (name, value) in patch {
        match value {
            Value::Null => drop(before.as_object_mut().and_then(|map| map.remove(&name))),
            value => before[&name] = merge(before[&name].take(), value),
        }
    }
    before
}
