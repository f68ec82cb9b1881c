//! The storefront of the examples, and its guide `docs/storefront.md`: every line does what the page says.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::look::free_port;

use crate::guide;
use crate::mesh::{Mesh, root};

/// Where the page's edge listens, and where a collector of traces would.
const PORTS: [&str; 3] = ["8080", "8443", "4317"];

/// The storefront as the page sets it up, but for its ports.
pub(crate) struct Storefront {
    pub(crate) mesh: Mesh,
    work: TempDir,
    ports: Ports,
}

/// Those of [`PORTS`] in this test.
struct Ports([String; 3]);

impl Ports {
    fn free() -> Self {
        Self(PORTS.map(|_| free_port().to_string()))
    }

    /// A text with these ports; none of them is looked at for the page's.
    fn put(&self, text: &str) -> String {
        let marks = ["\u{1}", "\u{2}", "\u{3}"];
        let marked = PORTS.iter().zip(marks).fold(text.to_owned(), |text, (port, mark)| text.replace(port, mark));
        self.0.iter().zip(marks).fold(marked, |text, (port, mark)| text.replace(mark, port))
    }
}

/// Copies a folder of the examples.
fn copy(name: &str, ports: &Ports, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(root().join("examples").join(name)).unwrap() {
        let from = entry.unwrap().path();
        // Of a Python that somebody ran there.
        if from.is_dir() {
            continue;
        }
        let at = to.join(from.file_name().unwrap());
        // What may be run stays so.
        fs::copy(&from, &at).unwrap();
        fs::write(&at, ports.put(&fs::read_to_string(&from).unwrap())).unwrap();
    }
}

impl Storefront {
    /// Runs the page's lines up to `meshwright up`, and that.
    pub(crate) fn start(lines: &mut impl Iterator<Item = String>) -> Self {
        let (work, ports) = (tempfile::tempdir().unwrap(), Ports::free());
        for name in ["shop", "storefront"] {
            copy(name, &ports, &work.path().join("examples").join(name));
        }
        let store = tempfile::Builder::new().prefix("store").rand_bytes(0).tempdir_in(work.path()).unwrap();
        for line in lines.take_while(|line| line != "meshwright up store") {
            guide::shell(work.path(), [("HOME", work.path())], &line).unwrap();
        }
        assert!(store.path().join("ca.crt").is_file(), "the page does not make its certificate");
        let mesh = Mesh::start_in(store, &[], &[], &[]);
        Self { mesh, work, ports }
    }

    /// Runs a line of the page; whose home is the folder in which it runs.
    pub(crate) fn run(&self, line: &str) -> String {
        let line = self.ports.put(line);
        let told = self.mesh.command(&[]);
        let state = told.get_envs().map(|(name, value)| (name, value.unwrap()));
        let variables = state.chain([("HOME".as_ref(), self.work.path().as_os_str())]);
        guide::shell(self.work.path(), variables, &line).unwrap_or_else(|said| panic!("{line}: {said}\n{}", self.mesh.log()))
    }

    /// A text of the page, with this test's ports.
    pub(crate) fn here(&self, text: &str) -> String {
        self.ports.put(text)
    }

    /// The authority that clients believe.
    pub(crate) fn authority(&self) -> PathBuf {
        self.mesh.folder().join("ca.crt")
    }

    pub(crate) fn leave(self) {
        self.mesh.leave();
    }
}

/// How often a sign stands at the beginning of a line.
fn lines_of(output: &str, sign: &str) -> usize {
    output.lines().filter(|line| line.starts_with(sign)).count()
}

/// Aim: all lines of the page, in their order, have the outcome that the page tells.
#[test]
fn the_guide_is_true() {
    let mut lines = guide::lines("storefront.md").into_iter();
    let store = Storefront::start(&mut lines);
    let mut next = || store.run(&lines.next().expect("another line of the page"));

    next();
    assert!(next().contains(" 0 errors, 0 warnings"));
    tls(&store, &mut next);
    plans(&mut next);
    login(&store, &mut next);
    flows(&store, &mut next);

    next();
    let listed = || store.run("certutil -d sql:$HOME/.pki/nssdb -L").contains("storefront");
    next();
    assert!(listed());
    next();
    assert!(!listed());

    let logged: serde_json::Value = serde_json::from_str(&next()).unwrap();
    let said = ["consumer", "auth_method", "limit"].map(|field| logged[field].as_str().unwrap_or_default());
    assert_eq!((logged["status"].as_u64(), said), (Some(429), ["shop/corner-shop", "ApiKey", "shop/plans/bronze"]), "{logged}");
    assert_eq!(lines.next(), None, "a line of the page is not run");
    store.leave();
}

fn tls(store: &Storefront, next: &mut impl FnMut() -> String) {
    let sent_on = next();
    assert!(
        sent_on.starts_with("HTTP/1.1 301 ") && sent_on.contains(&store.here("location: https://shop.localhost:8443/\r\n")),
        "{sent_on}"
    );
    assert_eq!(next(), "exit code 60\n");
    assert_eq!(next(), "200 HTTP/2\n");
    assert!(next().contains("shop.localhost, id.localhost"));
}

fn plans(next: &mut impl FnMut() -> String) {
    next();
    next();
    assert_eq!(next(), "401\n");
    assert_eq!(next(), "\"x-customer\":[\"acme\"]\n");
    let bronze = next();
    for (line, left) in bronze.lines().zip(["5", "4", "3", "2", "1", "0"]) {
        assert!(line.starts_with(&format!("200 \"bronze\";r={left};t=")), "{bronze}");
    }
    let last = bronze.lines().nth(6).unwrap_or_default();
    let again: u32 = last.strip_prefix("429 \"bronze\";r=0;t=").and_then(|rest| rest.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    assert!((1..=10).contains(&again), "{bronze}");
    assert!(next().contains(r#""reason":"rate_limited""#));
    assert!(next().starts_with("200 \"gold\";r=59"));
    let limits = next();
    assert!(limits.contains("bronze") && limits.contains("gold"), "{limits}");
    let explained = next();
    for told in ["api_key: Continue", "`bronze` lets through 6 in 60s", "server side", "shop/frontend:80"] {
        assert!(explained.contains(told), "{explained}");
    }
    assert!(!explained.contains("bad_request"), "{explained}");
    next();
    assert_eq!(next(), "401\n");
}

fn login(store: &Storefront, next: &mut impl FnMut() -> String) {
    assert_eq!(next(), "401\n");
    next();
    let form = fs::read_to_string(store.work.path().join("store/login")).unwrap();
    assert!(form.starts_with(&store.here("https://id.localhost:8443/authorize?")), "{form}");
    assert!(next().contains("Hello, Ada</h1>"));
    let told = next();
    assert!(told.contains(">Ada</dd>") && told.contains(">ada@shop.localhost</dd>"), "{told}");
    let explained = next();
    assert!(explained.contains("stage      login: "), "{explained}");
    assert_eq!(next(), "303\n");
    assert_eq!(next(), "401\n");
}

fn flows(store: &Storefront, next: &mut impl FnMut() -> String) {
    let events = next();
    assert_eq!(lines_of(&events, "data: {\"time\": "), 3, "{events}");
    assert_eq!(next().trim_end(), "HTTP/1.1 101 Switching Protocols");
    next();
    let route = fs::read_to_string(store.mesh.folder().join("catalog-route.yaml")).unwrap();
    assert_eq!(route.matches("weight: 50").count(), 2, "{route}");
}
