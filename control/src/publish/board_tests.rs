use super::*;
use crate::publish::peer::Dialect;

fn claim(instance: &str) -> Claim {
    Claim {
        client: Dialect::Meshwright,
        mode: Mode::Sidecar,
        namespace: "shop".into(),
        workload: "catalog".into(),
        instance: instance.into(),
        replica: String::new(),
    }
}

#[tokio::test]
async fn a_question_finds_its_answer_or_a_clear_end() {
    // Aim: answered, refused by the proxy, hung up, not connected: each its own text, none waits forever.
    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let dump = || command::Kind::Dump(proto::mesh::DumpCommand { kind: "routes".into() });
    let patience = Duration::from_secs(2);
    assert!(board.ask("shop/a", dump(), patience).await.unwrap_err().contains("not connected"));
    let (stream, mut commands) = board.correspond("shop/a", "0.1.0", 7);
    let proxy = board.clone();
    let talk = tokio::spawn(async move {
        let first = commands.recv().await.unwrap();
        proxy.answered("shop/a", Answer { id: first.id, json: "[]".into(), error: String::new() });
        let second = commands.recv().await.unwrap();
        proxy.answered("shop/a", Answer { id: second.id, json: String::new(), error: "no such kind".into() });
        commands.recv().await.unwrap();
        proxy.hang_up("shop/a", stream);
    });
    assert_eq!(board.ask("shop/a", dump(), patience).await.unwrap(), "[]");
    assert_eq!(board.ask("shop/a", dump(), patience).await.unwrap_err(), "no such kind");
    assert!(board.ask("shop/a", dump(), patience).await.unwrap_err().contains("disconnected"));
    talk.await.unwrap();
}

#[tokio::test]
async fn an_epoch_wakes_whom_it_concerns_and_advances_the_others() {
    // Aim: of three proxies that rest on what they have, the one whose instance changed is woken, and the book waits for it alone; a
    // change that nobody can attribute is everybody's.
    use futures::FutureExt;

    use crate::source::{FileChange, Folder};
    use crate::translate::Subject;
    use crate::world::{Allocations, WorldSettings};

    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let (mut world, mut folder) = (World::new(WorldSettings::default(), Allocations::default()), Folder::default());
    let mut publish = |serial: u64, file: &str, text: &str| {
        let change = FileChange { file: file.to_owned(), text: Some(Ok(text.to_owned())) };
        world.apply(folder.update(vec![change], 0));
        let edition = Edition { world: world.clone(), epoch: serial, serial, roots: crate::publish::trust::tests::one() };
        board.open_epoch(edition, Vec::new());
    };
    let workload = |name: &str, port: u16| {
        format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{meshwright.dev/inject: enabled}}}}\nspec: {{command: [run], ports: [{{port: {port}}}]}}\n"
        )
    };
    for (serial, name) in [(1, "a"), (2, "b"), (3, "c")] {
        publish(serial, name, &workload(name, 1));
    }
    let following = ["a", "b", "c"].map(|name| {
        let following = board.concerns.follow(Some(format!("shop/{name}")));
        assert!(following.rest(3, &[Subject::instance(&("shop".to_owned(), name.to_owned()))]));
        following
    });
    let woken = || following.each_ref().map(|one| one.woken().now_or_never().is_some());
    publish(4, "a", &workload("a", 2));
    assert_eq!(woken(), [true, false, false]);
    let entry = board.entry(4).unwrap();
    assert!(entry.waiting().eq(["shop/a"]) && entry.unaffected == 2);
    assert_eq!(["shop/a", "shop/b"].map(|key| board.running(key)), [3, 4]);
    publish(
        5,
        "mesh",
        "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\nspec: {outsideMesh: Deny}\n",
    );
    assert_eq!(woken(), [true; 3]);
    assert_eq!(board.entry(5).unwrap().waiting().len(), 3);
}

#[tokio::test]
async fn nobody_waits_for_those_that_are_gone() {
    // Aim: a declared proxy is waited for, connected or not, until it is declared no more; another one as long as it is connected; and
    // one that is revoked only then.
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, WorldSettings};

    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let (mut world, mut folder) = (World::new(WorldSettings::default(), Allocations::default()), Folder::default());
    let mut publish = |serial: u64, text: Option<String>| {
        world.apply(folder.update(vec![FileChange { file: "f.yaml".to_owned(), text: text.map(Ok) }], 0));
        let edition = Edition { world: world.clone(), epoch: serial, serial, roots: crate::publish::trust::tests::one() };
        board.open_epoch(edition, Vec::new());
    };
    let waiting = |number: u64| board.entry(number).unwrap().waiting().map(String::as_str).collect::<Vec<_>>().join(" ");
    let workload = "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: a, namespace: shop, labels: {meshwright.dev/inject: enabled}}\nspec: {command: [run]}\n";
    let revocation = "---\napiVersion: meshwright.dev/v1alpha1\nkind: Revocation\nmetadata: {name: r, namespace: meshwright-system}\nspec: {identities: ['spiffe://cluster.local/ns/shop/sa/default']}\n";
    let connect = |instance: &str| {
        let following = board.concerns.follow(Some(format!("shop/{instance}")));
        (following, board.arrive(claim(instance), Entrance::Tls, String::new()).unwrap())
    };
    let other = connect("other");
    publish(1, Some(workload.to_owned()));
    assert_eq!(waiting(1), "shop/a shop/other");
    drop(other);
    assert_eq!(waiting(1), "shop/a");
    drop(connect("a"));
    assert_eq!(waiting(1), "shop/a");
    publish(2, Some(format!("{workload}{revocation}")));
    assert_eq!((waiting(1), waiting(2)), (String::new(), String::new()));
    publish(3, Some(workload.to_owned()));
    assert_eq!(waiting(3), "shop/a");
    let connected = connect("a");
    publish(4, None);
    assert_eq!((waiting(3), waiting(4)), ("shop/a".to_owned(), "shop/a".to_owned()));
    drop(connected);
    assert_eq!((waiting(3), waiting(4)), (String::new(), String::new()));
    publish(5, Some(workload.to_owned()));
    publish(6, None);
    assert!(board.entry(5).unwrap().settled());
}

#[test]
fn presence_ends_with_its_stream() {
    // Aim: two streams of one node count as present until both are gone.
    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let first = board.arrive(claim("a"), Entrance::Tls, String::new());
    let second = board.arrive(claim("a"), Entrance::Tls, String::new());
    drop(first);
    assert!(board.is_present("shop/a"));
    drop(second);
    assert!(!board.is_present("shop/a"));
}

#[test]
fn a_gateway_has_a_bound_of_proxies() {
    // Aim: at the bound another name is refused, a second stream of a proxy that is there is not, nor another Gateway's proxy; who goes makes
    // room, and those that are there are found by the Gateway.
    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let arrive = |gateway: &str, replica: &str| {
        let [workload, instance, replica] = [gateway, gateway, replica].map(str::to_owned);
        let claim = Claim { mode: Mode::Edge, workload, instance, replica, ..claim("") };
        board.arrive(claim, Entrance::Tls, String::new())
    };
    let mut seats: Vec<_> = (0..REPLICAS_MAX).map(|number| arrive("public", &format!("public-{number}")).unwrap()).collect();
    let crowded = arrive("public", "public-x").err().unwrap().to_string();
    assert!(crowded.starts_with("edge/shop/public has 256 proxies"), "{crowded}");
    let more = [arrive("public", "public-0").unwrap(), arrive("public-0", "x").unwrap(), arrive("public-0", "").unwrap()];
    assert_eq!((board.gateway_proxies("shop", "public").len(), board.gateway_proxies("shop", "public-0").len()), (REPLICAS_MAX, 2));
    drop(more);
    seats.pop();
    let last = arrive("public", "public-x").unwrap();
    assert_eq!(board.gateway_runs("shop", "public"), None, "none has answered");
    board.write(|book, now_us| {
        book.acknowledged("edge/shop/public/public-0", 7, now_us);
        book.acknowledged("edge/shop/public/public-x", 5, now_us);
    });
    assert_eq!(board.gateway_runs("shop", "public"), Some(5));
    drop((seats, last));
    assert!(board.gateway_proxies("shop", "public").is_empty());
}
