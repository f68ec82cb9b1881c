//! What an API server asks at admission and is answered (`admission.k8s.io/v1` AdmissionReview), as plain values.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::annotations;
use proto::pods::{Owner, TEMPLATE_HASH, workload};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::decide::{Injection, Label, Namespace, decide};
use crate::pod;
use crate::settings::SidecarSettings;

/// The one version that is spoken; every cluster since 1.16 does.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Longest warning; API servers cut at 256 bytes.
const WARNING_BYTES_MAX: usize = 250;
/// Warnings at most; API servers drop what is beyond 4 KiB together.
const WARNINGS_MAX: usize = 12;
/// Longest message of a denial.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Names the question; the answer repeats it.
    pub uid: String,
    /// What kind of object.
    #[serde(default)]
    pub kind: AskedKind,
    /// `status`, `ephemeralcontainers`; empty: the object itself.
    #[serde(default)]
    pub sub_resource: String,
    /// Empty where the API server is to make it up.
    #[serde(default)]
    pub name: String,
    /// Empty where the object has none.
    #[serde(default)]
    pub namespace: String,
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    #[serde(default)]
    pub operation: String,
    /// The object as it shall be; null when it is deleted.
    #[serde(default)]
    pub object: Value,
    /// The object as it was; null when it is new.
    #[serde(default)]
    pub old_object: Value,
}

/// See [`Asked::kind`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AskedKind {
    /// Empty: core.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `Pod`.
    pub kind: String,
}

/// Why a question cannot even be read; there is no uid to answer to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReview {
    /// Not JSON, or not of that shape.
    #[error("the body is no AdmissionReview: {0}")]
    Malformed(String),
    /// Another kind or version.
    #[error("the body is `{kind}` of `{version}`, this webhook answers `AdmissionReview` of `admission.k8s.io/v1` only")]
    Unknown {
        /// Its kind.
        kind: String,
        /// Its version.
        version: String,
    },
    /// An answer, or nothing.
    #[error("the AdmissionReview asks nothing: `request` with a `uid` is missing")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Asked>,
}

/// Reads a question.
///
/// # Errors
/// There is none.
pub fn read(body: &[u8]) -> Result<Asked, BadReview> {
    let review: Review = serde_json::from_slice(body).map_err(|error| BadReview::Malformed(error.to_string()))?;
    if review.kind != KIND || review.api_version != API_VERSION {
        return Err(BadReview::Unknown { kind: review.kind, version: review.api_version });
    }
    review.request.filter(|asked| !asked.uid.is_empty()).ok_or(BadReview::Empty)
}

/// What is answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Why not; `None`: it may be.
    pub denial: Option<Denial>,
    /// What becomes of the object.
    pub patch: Option<json_patch::Patch>,
    /// For whoever asked: `kubectl` prints them.
    pub warnings: Vec<String>,
    /// For the audit log, and in one word for metrics.
    pub verdict: &'static str,
    /// The same in a sentence, where there is more to say.
    pub reason: Option<String>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The HTTP status that whoever asked gets.
    pub code: u16,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Answer {
    fn allowed(verdict: &'static str) -> Self {
        Self { verdict, ..Self::default() }
    }

    /// A refusal: 400 for what makes no sense, 422 for what cannot work.
    pub fn denied(verdict: &'static str, code: u16, message: String) -> Self {
        Self { denial: Some(Denial { code, message }), verdict, ..Self::default() }
    }

    /// The AdmissionReview that says so.
    pub fn review(&self, uid: &str) -> Value {
        let mut audit = BTreeMap::from([("verdict", self.verdict.to_owned())]);
        audit.extend(self.reason.clone().map(|reason| ("reason", reason)));
        let mut response = json!({"uid": uid, "allowed": self.denial.is_none(), "auditAnnotations": audit});
        if let Some(Denial { code, message }) = &self.denial {
            let reason = if *code == 422 { "Invalid" } else { "BadRequest" };
            response["status"] = json!({"code": code, "reason": reason, "status": "Failure", "message": cut(message, MESSAGE_BYTES_MAX)});
        }
        if let Some(patch) = self.patch.as_ref().filter(|patch| !patch.0.is_empty()) {
            response["patchType"] = "JSONPatch".into();
            // A patch that was made of JSON is JSON again.
            response["patch"] = STANDARD.encode(serde_json::to_vec(patch).unwrap_or_default()).into();
        }
        if !self.warnings.is_empty() {
            response["warnings"] = warnings(&self.warnings).into();
        }
        json!({"apiVersion": API_VERSION, "kind": KIND, "response": response})
    }
}

fn warnings(all: &[String]) -> Vec<String> {
    let mut told: Vec<String> = all.iter().take(WARNINGS_MAX).map(|warning| cut(warning, WARNING_BYTES_MAX)).collect();
    if let Some(more) = all.len().checked_sub(WARNINGS_MAX).filter(|more| *more > 0) {
        told.push(format!("and {more} more; `meshwright analyze` tells all"));
    }
    told
}

/// A text of so many bytes at most, which shows that it was cut.
fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max.saturating_sub('…'.len_utf8())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Answers whether a pod gets a sidecar, and how. `label` is what is known of its namespace.
pub fn inject(asked: &Asked, label: Label<'_>, settings: &SidecarSettings) -> Answer {
    let pod = &asked.object;
    if asked.kind.kind != "Pod" || !asked.kind.group.is_empty() || !asked.sub_resource.is_empty() || asked.operation != "CREATE" {
        return Answer::allowed("not_a_new_pod");
    }
    if !pod.is_object() {
        return Answer::denied("malformed", 400, "the request to create a pod has no object".to_owned());
    }
    match decide(Namespace { name: &asked.namespace, label }, &pod["metadata"], &pod["spec"]) {
        Injection::Skip(skip) => {
            let mut answer = Answer { reason: Some(skip.to_string()), ..Answer::allowed(skip.as_str()) };
            if skip.is_worth_a_note() {
                answer.patch = Some(json_patch::diff(pod, &noted(pod, &skip.to_string())));
            }
            if skip.is_a_surprise() {
                answer.warnings.push(format!("meshwright: this pod gets no sidecar: {skip}"));
            }
            answer
        }
        Injection::Inject => match pod::add(pod, &workload_of(pod), settings) {
            Ok(added) if added.pod == *pod => Answer::allowed("already_injected"),
            Ok(added) => Answer {
                patch: Some(json_patch::diff(pod, &added.pod)),
                warnings: added.warnings.into_iter().map(|warning| format!("meshwright: {warning}")).collect(),
                ..Answer::allowed("injected")
            },
            Err(refused) => {
                let out = "or take the pod out of the mesh with the label meshwright.dev/inject: disabled";
                Answer::denied("refused", 422, format!("meshwright: {refused}; {out}"))
            }
        },
    }
}

/// A pod that says itself why it has no sidecar.
fn noted(pod: &Value, why: &str) -> Value {
    let mut noted = pod.clone();
    if !noted["metadata"]["annotations"].is_object() {
        noted["metadata"]["annotations"] = json!({});
    }
    noted["metadata"]["annotations"][annotations::NOT_INJECTED] = why.into();
    noted
}

/// The name of the workload that a pod belongs to.
fn workload_of(pod: &Value) -> String {
    let metadata = &pod["metadata"];
    let owners = || metadata["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners().find(|owner| owner["controller"] == true).or_else(|| owners().next());
    let owner = owner.and_then(|owner| Some(Owner { kind: owner["kind"].as_str()?, name: owner["name"].as_str()? }));
    let own = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str().map(|name| name.trim_end_matches('-')));
    workload(own.unwrap_or_default(), owner, metadata["labels"][TEMPLATE_HASH].as_str()).to_owned()
}

/// What the control plane's translator says of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Analysis {
    /// What makes it refused.
    pub errors: Vec<String>,
    /// What works otherwise than one may think.
    pub warnings: Vec<String>,
}

/// Whether an object is to be looked at: it is new, or what it asks for changes. So one that is wrong already can still lose its finalizers.
pub fn is_for_analysis(asked: &Asked) -> bool {
    let content = |object: &Value| {
        let mut content = object.clone();
        if let Some(fields) = content.as_object_mut() {
            fields.remove("metadata");
            fields.remove("status");
        }
        content
    };
    let changes = match asked.operation.as_str() {
        "CREATE" => true,
        "UPDATE" => {
            let marks = |object: &Value| (object["metadata"]["labels"].clone(), object["metadata"]["annotations"].clone());
            content(&asked.object) != content(&asked.old_object) || marks(&asked.object) != marks(&asked.old_object)
        }
        _ => false,
    };
    changes && asked.sub_resource.is_empty() && asked.object.is_object() && asked.object["metadata"]["deletionTimestamp"].is_null()
}

/// Answers with what the translator says.
pub fn validate(analysis: Option<Analysis>) -> Answer {
    let Some(Analysis { errors, warnings }) = analysis else { return Answer::allowed("not_analyzed") };
    if errors.is_empty() {
        return Answer { warnings, ..Answer::allowed("valid") };
    }
    Answer { warnings, ..Answer::denied("invalid", 422, format!("meshwright: {}", errors.join("\n"))) }
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
