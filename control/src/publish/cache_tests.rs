//! What is patched, and what is put together anew.

use proto::names::{Mode, NodeId};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::publish::trust::tests::one;
use crate::publish::trust::{Root, Roots};
use crate::source::{FileChange, Folder};
use crate::translate;
use crate::world::problem::Severity;
use crate::world::{Allocations, World, WorldSettings};

/// A caller, what it calls, and how.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: shop}
spec: {serviceAccount: client, command: [x]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}], timeouts: {request: 1s}}]
";

const REVOCATION: &str = "\
---
apiVersion: meshwright.dev/v1alpha1
kind: Revocation
metadata: {name: r, namespace: meshwright-system}
spec: {serials: ['7d']}
";

/// From now on callers of `web` are told apart by their account.
const BY_ACCOUNT: &str = "\
---
apiVersion: meshwright.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: f, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  faults: [{from: [{namespace: shop, serviceAccount: client}], abort: {httpStatus: 503}}]
";

const POLICY: &str = "\
---
apiVersion: meshwright.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {action: Deny, rules: [{to: [{methods: [DELETE]}]}]}
";

/// One world, whose file is written again and again.
struct Author {
    world: World,
    folder: Folder,
}

impl Author {
    fn new() -> Self {
        Self { world: World::new(WorldSettings::default(), Allocations::default()), folder: Folder::default() }
    }

    fn edition(&mut self, serial: u64, text: &str, roots: Arc<Roots>) -> Edition {
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
        self.world.apply(self.folder.update(vec![change], 0));
        let wrong: Vec<_> = self.world.problems().into_iter().filter(|problem| problem.severity == Severity::Error).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        Edition { world: self.world.clone(), epoch: serial, serial, roots }
    }
}

fn audience(edition: &Edition) -> Audience {
    let id = NodeId { mode: Mode::Sidecar, namespace: "shop".to_owned(), instance: "client".to_owned() };
    translate::audience(&edition.world, &id).unwrap()
}

fn root(byte: u8) -> Root {
    Root { der: CertificateDer::from(vec![0x30, byte]), sha256: [byte; 32] }
}

/// The same roots but for one thing.
fn roots(change: impl FnOnce(&mut Roots)) -> Arc<Roots> {
    let mut roots = Roots::clone(&one());
    change(&mut roots);
    Arc::new(roots)
}

/// What a stream has, and the names that it asked for.
struct Stream {
    content: Content,
    shown: Composition,
    wants: BTreeSet<String>,
}

impl Stream {
    fn begins(cache: &Cache, edition: &Edition) -> Self {
        let wants = BTreeSet::from(["out/10.96.0.10:80".to_owned()]);
        let (content, shown) = cache.content(edition, &audience(edition), &wants);
        Self { content, shown, wants }
    }

    /// What it is told of another edition: names of what is patched, after which it has just what would be put together anew.
    fn patched(&mut self, cache: &Cache, edition: &Edition) -> Option<Vec<String>> {
        let audience = audience(edition);
        let patch = cache.patch(edition, &audience, &mut self.shown, &self.content)?;
        let names = patch.iter().map(|(_, name, _)| name.clone()).collect();
        for (url, name, item) in patch {
            self.content.get_mut(url).unwrap().insert(name, item);
        }
        assert_eq!(self.content, cache.content(edition, &audience, &self.wants).0);
        Some(names)
    }
}

#[test]
fn only_other_versions_of_what_a_stream_has_are_patched() {
    // Aim: whatever changes, a patch leads to just the content that would be put together anew, and where anything beside the versions of
    // resources changes there is none: whom the mesh believes, who the proxy is, how it is told apart as a caller, what leads where.
    let with = |more: &str| format!("{SHOP}{more}");
    let edited = |from: &str, to: &str| {
        assert!(SHOP.contains(from), "{from}");
        SHOP.replace(from, to)
    };
    for (what, text, roots, wanted) in [
        ("nothing", with(""), one(), Some(vec![])),
        ("a version", edited("request: 1s", "request: 2s"), one(), Some(vec!["shop/web:80"])),
        ("another object", edited("name: db, namespace: shop", "name: other, namespace: shop"), one(), Some(vec![])),
        ("where it leads", edited("name: web, port: 80", "name: db, port: 80"), one(), None),
        ("what it is not called any more", edited("10.96.0.10", "10.96.0.12"), one(), None),
        ("a policy more", with(POLICY), one(), None),
        ("its account", edited("serviceAccount: client", "serviceAccount: other"), one(), None),
        ("callers are told apart", with(BY_ACCOUNT), one(), None),
        ("who is revoked", with(REVOCATION), one(), None),
        ("a root more", with(""), roots(|roots| roots.others.push(root(2))), None),
        ("the root that issues", with(""), roots(|roots| roots.issuing = root(2)), None),
        ("the roots as others have them", with(""), roots(|roots| roots.pem = "pem".into()), None),
        ("a root that nobody believes", with(""), roots(|roots| roots.retired.push(root(2))), Some(vec![])),
    ] {
        let (cache, mut author) = (Cache::default(), Author::new());
        let first = author.edition(1, SHOP, one());
        cache.turn(&first, Affected::All);
        let mut stream = Stream::begins(&cache, &first);
        let second = author.edition(2, &text, roots);
        cache.turn(&second, second.touched(Some(&first)));
        let names = stream.patched(&cache, &second);
        let wanted = wanted.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(names, wanted, "{what}");
        // What could not be patched is left as it was: the next look puts it together anew.
        let mut anew = Stream::begins(&cache, &second);
        let third = author.edition(3, &text, second.roots.clone());
        cache.turn(&third, third.touched(Some(&second)));
        assert_eq!(anew.patched(&cache, &third), Some(vec![]), "{what}, and then nothing");
    }
}

#[test]
fn a_patch_is_of_the_newest_edition_and_good() {
    // Aim: none where the edition is not the newest, where the stream has something else under that name, or where the engine refuses the new
    // version; then the stream's own composition is as it was.
    let (cache, mut author) = (Cache::default(), Author::new());
    let first = author.edition(1, SHOP, one());
    cache.turn(&first, Affected::All);
    let mut streams: Vec<Stream> = (0..3).map(|_| Stream::begins(&cache, &first)).collect();
    let [early, other, good] = &mut streams[..] else { unreachable!("there are three") };
    let second = author.edition(2, &SHOP.replace("request: 1s", "request: 2s"), one());
    assert_eq!(early.patched(&cache, &second), None, "nobody has said that it is the newest");
    cache.turn(&second, second.touched(Some(&first)));
    assert_eq!(cache.patch(&first, &audience(&first), &mut early.shown, &early.content), None, "it is the newest no more");
    let route = other.content.get_mut(xds::ROUTE).unwrap().get_mut("shop/web:80").unwrap();
    *route = Arc::new(Encoded::of_version("another".to_owned(), route.any.clone()));
    assert_eq!(other.patched(&cache, &second), None, "another part had the last word");
    assert_eq!(good.patched(&cache, &second), Some(vec!["shop/web:80".to_owned()]));
    let third = author.edition(3, &SHOP.replace("request: 1s", "request: 3s"), one());
    cache.turn(&third, third.touched(Some(&second)));
    let bad = cache.content(&third, &audience(&third), &good.wants).0[xds::ROUTE]["shop/web:80"].clone();
    bad.refused(|| Some("it is bad".to_owned()));
    assert_eq!(good.patched(&cache, &third), None);
    assert_eq!((good.shown.serial, cache.refused().len()), (2, 0), "as before; who puts it together notes the refusal");
}
