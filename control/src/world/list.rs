//! Lists, which are what `kubectl get -o yaml` writes: a document of `kind: List`, or of a typed list (`ServiceList`), is its items.

use super::key::{CORE, Kind};
use super::object::{api_version, type_of};
use super::problem::{Problem, Severity};
use super::tree::{Node, Part, Value};

/// Every object of a document: itself, or the items of a list, those of lists within it too. What a typed list says for all its items
/// (their kind and version) stands in each of them.
pub fn parts(file: &str, node: Node) -> Vec<Result<Part, Box<Problem>>> {
    let mut found = Vec::new();
    collect(file, node, String::new(), &mut found);
    found
}

/// The tree is bounded in depth and size, and so is this.
fn collect(file: &str, node: Node, place: String, found: &mut Vec<Result<Part, Box<Problem>>>) {
    let Some(kind) = listed(&node) else {
        found.push(Ok(Part { node, place }));
        return;
    };
    let line = node.line;
    let wrong = |what: String| {
        let problem = Problem::of_file(Severity::Error, file, line, what, "list the objects below `items`");
        Box::new(Problem { field: place.clone(), ..problem })
    };
    let Some(items) = field(node, "items") else {
        found.push(Err(wrong("the list has no `items`".to_owned())));
        return;
    };
    let noun = items.noun();
    // `items: null` is how an empty one may be written.
    let items = match items.value {
        Value::List(items) => items,
        Value::Null => return,
        _ => {
            found.push(Err(wrong(format!("expected a list below `items`, found {noun}"))));
            return;
        }
    };
    let dot = if place.is_empty() { "" } else { "." };
    for (number, item) in items.into_iter().enumerate() {
        collect(file, typed(item, kind), format!("{place}{dot}items[{number}]"), found);
    }
}

/// Whether it is a list; of which kind, if of one.
fn listed(node: &Node) -> Option<Option<Kind>> {
    let (group, version, name) = type_of(node)?;
    let stem = name.strip_suffix("List")?;
    if stem.is_empty() {
        return (group == CORE && version == "v1").then_some(None);
    }
    Kind::find(group, stem).map(Some)
}

fn field(node: Node, name: &str) -> Option<Node> {
    let Value::Map(entries) = node.value else { return None };
    entries.into_iter().find(|(key, _)| key == name).map(|(_, node)| node)
}

/// An item of a typed list, with its kind and version where it leaves them out.
fn typed(mut item: Node, kind: Option<Kind>) -> Node {
    let line = item.line;
    if let (Value::Map(entries), Some(kind)) = (&mut item.value, kind) {
        for (name, text) in [("kind", kind.text().to_owned()), ("apiVersion", api_version(kind))] {
            if !entries.iter().any(|(key, _)| key == name) {
                entries.insert(0, (name.to_owned(), Node { line, value: Value::Text(text) }));
            }
        }
    }
    item
}

#[cfg(test)]
mod tests {
    use crate::source::parse;

    /// Each object as `line place-of-its-first-problem key`, then each problem of the file.
    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let parsed = parse("f.yaml", text);
        let problems = parsed.candidates.iter().flat_map(|candidate| candidate.problems.clone()).chain(parsed.problems);
        let objects = parsed.candidates.iter().map(|candidate| format!("{} {}", candidate.line, candidate.key));
        (objects.collect(), problems.map(|problem| problem.to_string()).collect())
    }

    #[test]
    fn a_list_is_its_items() {
        // Aim: what kubectl writes for several objects, and for a list of one kind, is read as if each object stood alone, and what is
        // wrong is named by its place.
        let text = "\
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: a}
  spec: {ports: [{port: 80, tagetPort: 80}]}
- apiVersion: v1
  kind: Endpoints
  metadata: {name: web-0}
- apiVersion: v1
  kind: ServiceList
  items:
  - metadata: {name: inner, namespace: a}
    spec: {ports: [{port: 99999}]}
- 7
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRouteList
items:
- metadata: {name: web, namespace: a}
  spec: {rules: []}
";
        let (objects, problems) = read(text);
        assert_eq!(objects, ["5 Service a/web", "15 Service a/inner", "22 HTTPRoute a/web"]);
        assert_eq!(
            problems,
            [
                "f.yaml:8: warning: Service a/web: items[0].spec.ports[0].tagetPort: unknown field `tagetPort` (did you mean `targetPort`?)",
                "f.yaml:16: error: Service a/inner: items[2].items[0].spec.ports[0].port: 99999 is out of range (use 1 to 65535)",
                "f.yaml:9: warning: items[1]: unknown kind `Endpoints` (it has no effect on the mesh)",
                "f.yaml:17: error: items[3]: the document has no `kind` (add `kind`, as in every Kubernetes manifest)",
            ]
        );
    }

    #[test]
    fn lists_that_are_none_are_told() {
        // Aim: an empty list is nothing, a list without items an error, and a list of a kind that nobody knows one warning.
        for (text, wanted) in [
            ("apiVersion: v1\nkind: List\nitems: []\n", &[][..]),
            ("apiVersion: v1\nkind: List\nitems: ~\n", &[]),
            ("apiVersion: v1\nkind: List\n", &["f.yaml:1: error: the list has no `items` (list the objects below `items`)"]),
            (
                "apiVersion: v1\nkind: SecretList\nitems: {a: 1}\n",
                &["f.yaml:1: error: expected a list below `items`, found a mapping (list the objects below `items`)"],
            ),
            (
                "apiVersion: v1\nkind: EventList\nitems: [{}]\n",
                &["f.yaml:1: warning: unknown kind `EventList` (it has no effect on the mesh)"],
            ),
        ] {
            assert_eq!(read(text), (Vec::new(), wanted.iter().map(ToString::to_string).collect()), "{text}");
        }
    }
}
