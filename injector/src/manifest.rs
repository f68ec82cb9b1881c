//! A text of many documents in, the same text with sidecars out.

use std::collections::BTreeMap;

use proto::annotations;
use serde_json::Value;

use crate::decide::{Injection, Label, Namespace, Skip, decide};
use crate::pod::{self, Refused};
use crate::pods::{self, FoundPod};
use crate::settings::SidecarSettings;

/// Namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// The result for one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The documents, in their order; those without a pod that got a sidecar are untouched, byte for byte.
    pub text: String,
    /// What became of each pod.
    pub outcomes: Vec<PodOutcome>,
}

/// What became of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOutcome {
    /// Kind of the object that holds it.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it got a sidecar.
    pub decision: Injection,
    /// What works otherwise than one may think.
    pub warnings: Vec<String>,
}

/// Why a text cannot be worked on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A document is no YAML.
    #[error("the document that starts in line {line} is not YAML: {why}")]
    NotYaml {
        /// First line of the document, from 1.
        line: usize,
        /// The parser's word.
        why: String,
    },
    /// A pod that is to have a sidecar cannot have one that works.
    #[error("{object}: {source}")]
    Pod {
        /// `KIND NAMESPACE/NAME`.
        object: String,
        /// What is wrong.
        source: Refused,
    },
}

/// Adds sidecars to the pods of a text. A Namespace in the same text decides for its pods; where it is not there, the wish of whoever calls
/// this decides, and that is yes.
///
/// # Errors
/// A document is no YAML, or a pod cannot have a sidecar that works; nothing is changed then.
pub fn inject(text: &str, settings: &SidecarSettings) -> Result<Injected, ManifestError> {
    let documents: Vec<(&str, Value)> = split(text)
        .into_iter()
        .map(|(line, part)| Ok((part, parse(part).map_err(|why| ManifestError::NotYaml { line, why })?)))
        .collect::<Result<_, _>>()?;
    let namespaces: BTreeMap<&str, Option<&str>> = documents.iter().flat_map(|(_, document)| namespaces(document)).collect();
    let mut injected = Injected { text: String::new(), outcomes: Vec::new() };
    for (part, document) in &documents {
        let mut changed: Option<Value> = None;
        for place in pods::find(document) {
            let pod = document.pointer(&place.pointer).unwrap_or(&Value::Null);
            let namespace = place.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
            let label = namespaces.get(namespace.as_str()).map_or(Label::Unknown, |label| Label::from(*label));
            let mut decision = decide(Namespace { name: &namespace, label }, &pod["metadata"], &pod["spec"]);
            let mut warnings = Vec::new();
            if decision == Injection::Inject {
                let added = pod::add(pod, &place.name, settings).map_err(|source| bad(&place, &namespace, source))?;
                warnings = added.warnings;
                if added.pod == *pod {
                    decision = Injection::Skip(Skip::AlreadyInjected);
                } else if let Some(slot) = changed.get_or_insert_with(|| document.clone()).pointer_mut(&place.pointer) {
                    *slot = added.pod;
                }
            }
            injected.outcomes.push(PodOutcome { kind: place.kind, namespace, name: place.name, decision, warnings });
        }
        match changed {
            None => injected.text += part,
            Some(document) => injected.text += &rewritten(part, &document),
        }
    }
    Ok(injected)
}

fn bad(place: &FoundPod, namespace: &str, source: Refused) -> ManifestError {
    ManifestError::Pod { object: format!("{} {namespace}/{}", place.kind, place.name), source }
}

/// Namespaces that a document declares, with their label.
fn namespaces(document: &Value) -> Vec<(&str, Option<&str>)> {
    let items = document["items"].as_array().into_iter().flatten().chain([document]);
    let declared = items.filter(|item| item["kind"] == "Namespace").filter_map(|namespace| {
        let metadata = &namespace["metadata"];
        Some((metadata["name"].as_str()?, metadata["labels"][annotations::INJECT].as_str()))
    });
    declared.collect()
}

/// Cuts a text before every `---`; each part comes with the number of its first line. A `---` at the start of a line always parts
/// documents (YAML 1.2, section 9.1.2).
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']));
        if marker && at > start {
            parts.push((start_line, &text[start..at]));
            (start, start_line) = (at, index + 1);
        }
        at += line.len();
    }
    if at > start {
        parts.push((start_line, &text[start..at]));
    }
    parts
}

fn parse(part: &str) -> Result<Value, String> {
    let content = part.lines().filter(|line| !line.trim_start().starts_with('#') && !line.starts_with("---"));
    if content.into_iter().all(|line| line.trim().is_empty()) && !part.lines().any(|line| line.starts_with("--- ")) {
        return Ok(Value::Null);
    }
    // As kubectl reads it, to whom 0400 is octal: the modes of files are written so.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(part, options).map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// The document anew, with the marker line that its text began with.
fn rewritten(part: &str, document: &Value) -> String {
    let marker = if part.starts_with("---") { "---\n" } else { "" };
    // Whatever was read as YAML can be written as YAML.
    let yaml = serde_saphyr::to_string(document).unwrap_or_default();
    let end = if yaml.ends_with('\n') { "" } else { "\n" };
    format!("{marker}{yaml}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Skip;

    const MIXED: &str = "\
# A shop's manifests
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service   # stays as it is
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  template:
    metadata:
      labels: {app: catalog, on: \"yes\"}
      annotations: {meshwright.dev/exclude-outbound-ports: \"5432\"}
    spec:
      serviceAccountName: catalog
      containers:
        - {name: app, image: catalog, env: [{name: VERSION, value: \"1.10\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop, labels: {meshwright.dev/inject: disabled}}
spec: {containers: [{name: app, image: x}]}
";

    /// Aim: golden file of a whole text: the pod of the mesh has its sidecar, all else is untouched byte for byte.
    #[test]
    fn a_mixed_text() {
        let injected =
            inject(MIXED, &SidecarSettings { version: "1.2.3".into(), image: "meshwright:1.2.3".into(), ..SidecarSettings::default() })
                .unwrap();
        insta::assert_snapshot!(injected.text);
        let decisions: Vec<_> = injected.outcomes.iter().map(|outcome| outcome.decision).collect();
        assert_eq!(decisions, [Injection::Inject, Injection::Skip(Skip::OptedOut)]);
        let before: Vec<_> = split(MIXED).into_iter().map(|(_, part)| part).collect();
        assert!(injected.text.starts_with(&format!("{}{}", before[0], before[1])) && injected.text.ends_with(before[3]));
    }

    /// Aim: a second run changes nothing.
    #[test]
    fn injecting_twice_is_injecting_once() {
        let once = inject(MIXED, &SidecarSettings::default()).unwrap();
        let twice = inject(&once.text, &SidecarSettings::default()).unwrap();
        assert_eq!(once.text, twice.text);
        assert_eq!(twice.outcomes[0].decision, Injection::Skip(Skip::AlreadyInjected));
    }

    /// Aim: texts that look like other types to a YAML 1.1 reader, such as Kubernetes', come out as text.
    #[test]
    fn values_keep_their_type() {
        let values = ["yes", "on", "0123", "1e3", "null", "~", "1.10", "true", "0x1f", "12:30", ""];
        let pod = serde_json::json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"args": values}});
        let injected = inject(&pod.to_string(), &SidecarSettings::default()).unwrap();
        let back: Value = serde_saphyr::from_str(&injected.text).unwrap();
        assert_eq!(back["spec"]["args"], serde_json::json!(values));
        for value in values {
            let bare = format!("- {value}\n");
            assert!(!injected.text.contains(&bare), "{value} is bare in {}", injected.text);
        }
    }

    /// Aim: numbers are what Kubernetes reads them as: modes of files are octal with a zero before them, and come out as the same mode.
    #[test]
    fn modes_of_files_stay() {
        let modes = ["0400", "0440", "0644", "0o644", "0755", "420", "0", "-1"];
        let volumes: String = modes.map(|mode| format!("  - {{secret: {{defaultMode: {mode}}}}}\n")).concat();
        let pod = format!("kind: Pod\nmetadata: {{name: p}}\nspec:\n  volumes:\n{volumes}");
        let injected = inject(&pod, &SidecarSettings::default()).unwrap();
        let back: Value = serde_saphyr::from_str(&injected.text).unwrap();
        let read: Vec<_> = (0..modes.len()).map(|at| back["spec"]["volumes"][at]["secret"]["defaultMode"].clone()).collect();
        assert_eq!(Value::from(read), serde_json::json!([256, 288, 420, 420, 493, 420, 0, -1]));
    }

    /// Aim: errors name the document's line, or the object and its annotation.
    #[test]
    fn errors_name_the_place() {
        let broken = inject("kind: Pod\n---\nkind: [\n", &SidecarSettings::default()).unwrap_err();
        assert!(matches!(broken, ManifestError::NotYaml { line: 2, .. }), "{broken}");
        let pod = "kind: Pod\nmetadata: {name: p, annotations: {meshwright.dev/exclude-inbound-ports: \"x\"}}\nspec: {}\n";
        let error = inject(pod, &SidecarSettings::default()).unwrap_err().to_string();
        assert!(error.starts_with("Pod default/p: annotation meshwright.dev/exclude-inbound-ports: `x` is not a port"), "{error}");
    }

    /// Aim: empty and comment-only documents, other line ends and lists are taken as they are.
    #[test]
    fn odd_texts_are_taken() {
        for text in ["", "# nothing\n", "---\n", "---\n---\r\n# x\r\n", "kind: ConfigMap\ndata:\n  x: |\n    ---\n    a\n"] {
            assert_eq!(inject(text, &SidecarSettings::default()).unwrap().text, text);
        }
        let list = r#"{"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}]}"#;
        assert_eq!(inject(list, &SidecarSettings::default()).unwrap().outcomes[0].decision, Injection::Inject);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        /// Aim: whatever a slip of the hand makes of a manifest, it is injected, left alone or refused; what comes out is YAML again.
        #[test]
        fn any_text_is_survived(
            edits in proptest::collection::vec(
                (proptest::prelude::any::<proptest::sample::Index>(), 0_usize..12, "[-\\[\\]{}:&*!|>'\"#%@, a-z0-9\n\té]{0,4}"),
                0..6,
            ),
        ) {
            let mut letters: Vec<char> = MIXED.chars().collect();
            for (from, length, word) in edits {
                let from = from.index(letters.len());
                let to = (from + length).min(letters.len());
                letters.splice(from..to, word.chars());
            }
            if let Ok(injected) = inject(&letters.into_iter().collect::<String>(), &SidecarSettings::default()) {
                proptest::prop_assert!(inject(&injected.text, &SidecarSettings::default()).is_ok(), "{}", injected.text);
            }
        }
    }
}
