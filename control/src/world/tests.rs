use super::*;

fn candidate(text: &str) -> Candidate {
    crate::source::parse("f.yaml", text).candidates.remove(0)
}

fn service(port: &str) -> Candidate {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a}}\nspec: {{ports: [{{port: {port}}}]}}\n");
    candidate(&text)
}

fn put(origin: Origin, candidate: Candidate) -> Change {
    Change::Put { origin, candidate, now_ms: 7 }
}

fn world() -> World {
    World::new(WorldSettings::default(), Allocations::default())
}

fn key() -> ObjectKey {
    ObjectKey::new(Kind::Service, "a", "web")
}

fn port(world: &World) -> Option<u16> {
    let Spec::Service(service) = &world.get(&key())?.spec else { return None };
    Some(service.ports[0].port)
}

/// Applies one change and says what it came to.
fn one(world: &mut World, change: Change) -> Outcome {
    world.apply(vec![change]).outcomes[0].1
}

#[test]
fn an_applied_object_lies_over_the_folders_until_that_changes() {
    // Aim: apply overrides, the same folder content again changes nothing, other content ends the override, delete takes back.
    let mut world = world();
    assert_eq!(one(&mut world, put(Origin::Folder, service("1"))), Outcome::Created);
    assert_eq!(one(&mut world, put(Origin::Applied, service("2"))), Outcome::Changed);
    assert_eq!((port(&world), world.slots()[&key()].origin()), (Some(2), Some(Origin::Applied)));
    assert_eq!(one(&mut world, put(Origin::Folder, service("1"))), Outcome::Unchanged);
    assert_eq!(port(&world), Some(2));
    assert_eq!(one(&mut world, Change::Remove { origin: Origin::Applied, key: key() }), Outcome::Changed);
    assert_eq!(port(&world), Some(1));
    one(&mut world, put(Origin::Applied, service("2")));
    assert_eq!(one(&mut world, put(Origin::Folder, service("3"))), Outcome::Changed);
    assert_eq!(port(&world), Some(3));
    assert_eq!(one(&mut world, Change::Remove { origin: Origin::Folder, key: key() }), Outcome::Deleted);
    assert!(world.slots().is_empty() && world.ages().is_empty());
}

#[test]
fn a_refused_version_never_replaces_a_good_one() {
    // Aim: the last good version stays live with the newer one's reason beside it; a refused apply leaves no trace.
    let mut world = world();
    one(&mut world, put(Origin::Folder, service("1")));
    assert_eq!(one(&mut world, put(Origin::Folder, service("x"))), Outcome::Refused);
    assert_eq!(port(&world), Some(1));
    assert!(world.slots()[&key()].refused().is_some());
    assert_eq!(world.problems().len(), 1);
    assert_eq!(one(&mut world, put(Origin::Applied, service("y"))), Outcome::Refused);
    assert_eq!(one(&mut world, put(Origin::Folder, service("1"))), Outcome::Unchanged);
    assert!(world.slots()[&key()].refused().is_none());
    assert_eq!(world.slots()[&key()].generation(), 1);
    one(&mut world, put(Origin::Folder, service("2")));
    assert_eq!(world.slots()[&key()].generation(), 2);
}

#[test]
fn what_was_applied_survives_a_restart_unless_the_folder_moved_on() {
    // Aim: restored objects hold over the same folder content, in either order, and give way to other content or to its absence.
    let over = Some(service("1").digest);
    let restore = || Change::Restore { candidate: service("2"), over: over.clone() };
    let after = |changes: Vec<Change>| {
        let mut world = world();
        world.apply(changes);
        world.apply(vec![Change::Synced(Origin::Folder)]);
        port(&world)
    };
    assert_eq!(after(vec![restore(), put(Origin::Folder, service("1"))]), Some(2));
    assert_eq!(after(vec![put(Origin::Folder, service("1")), restore()]), Some(2));
    assert_eq!(after(vec![restore(), put(Origin::Folder, service("3"))]), Some(3));
    assert_eq!(after(vec![put(Origin::Folder, service("3")), restore()]), Some(3));
    assert_eq!(after(vec![restore()]), None);
    assert_eq!(after(vec![Change::Restore { candidate: service("2"), over: None }]), Some(2));
}

#[test]
fn ages_are_first_acceptances_and_come_back() {
    // Aim: an edit does not make an object young again, a restored age holds, and ages of what is gone are dropped.
    let mut world = world();
    let gone = ObjectKey::new(Kind::Service, "a", "gone");
    world.apply(vec![Change::Age { key: key(), created_ms: 3 }, Change::Age { key: gone, created_ms: 3 }]);
    world.apply(vec![put(Origin::Folder, service("1")), put(Origin::Folder, service("2")), Change::Synced(Origin::Folder)]);
    assert_eq!(world.created_ms(world.get(&key()).unwrap()), 3);
    assert_eq!(world.ages().len(), 1);
    let dated =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a, creationTimestamp: \"1970-01-01T00:00:01Z\"}\nspec: {}\n";
    world.apply(vec![put(Origin::Folder, candidate(dated))]);
    assert_eq!(world.created_ms(world.get(&key()).unwrap()), 1000);
}

#[test]
fn clones_share_and_do_not_change() {
    // Aim: a clone is a picture of its moment.
    let mut world = world();
    one(&mut world, put(Origin::Folder, service("1")));
    let before = world.clone();
    one(&mut world, put(Origin::Folder, service("2")));
    assert_eq!((port(&before), port(&world)), (Some(1), Some(2)));
    assert_eq!(before.index().services.len(), 1);
}

#[test]
fn an_instance_that_leaves_the_mesh_is_not_draining_for_ever() {
    // Aim: its last proxy said that it drains; without a proxy the instance gets traffic all the same, with a new one it waits for its word.
    let workload = |inject: &str| {
        let labels = format!("{{meshwright.dev/inject: {inject}}}");
        let head = "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\n";
        candidate(&format!("{head}metadata: {{name: web, namespace: a, labels: {labels}}}\nspec: {{command: [sleep]}}\n"))
    };
    let mut world = world();
    let name = ("a".to_owned(), "web".to_owned());
    world.apply(vec![put(Origin::Folder, workload("enabled")), Change::Draining { instance: name.clone(), draining: true }]);
    assert!(world.index().instances[&name].draining);
    one(&mut world, put(Origin::Folder, workload("disabled")));
    assert!(!world.index().instances[&name].draining);
}

#[test]
fn instances_that_a_change_of_replicas_renames_serve_until_others_do() {
    // Aim: between one replica and several, what is ready under an old name stays until the first new name is ready; what is not ready,
    // what another Workload declares and what only looks alike is not kept.
    let workload = |name: &str, replicas: u32| {
        let head = "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\n";
        candidate(&format!("{head}metadata: {{name: {name}, namespace: a}}\nspec: {{command: [sleep], replicas: {replicas}}}\n"))
    };
    let ready = |names: &[&str]| {
        let state = |name: &&str| (("a".to_owned(), (*name).to_owned()), InstanceState { ready: true, ..InstanceState::default() });
        Change::Node { instances: names.iter().map(state).collect(), gateways: BTreeMap::new() }
    };
    let seen = |world: &World| {
        let all = world.index().instances.values().map(|instance| (instance.name.clone(), instance.ready));
        all.map(|(name, ready)| if ready { name } else { format!("({name})") }).collect::<Vec<_>>().join(" ")
    };
    let mut world = world();
    world.apply(vec![put(Origin::Folder, workload("web", 3)), put(Origin::Folder, workload("web-2", 1)), ready(&["web-0", "web-1"])]);
    assert_eq!(seen(&world), "web-0 web-1 (web-2)");
    world.apply(vec![put(Origin::Folder, workload("web", 1)), ready(&["web-0", "web-1", "web-2", "web-01", "web-x", "webs-0"])]);
    assert_eq!(seen(&world), "(web) web-0 web-1 web-2");
    assert_eq!(world.index().workloads[&("a".to_owned(), "web".to_owned())].len(), 3);
    world.apply(vec![ready(&["web", "web-0", "web-1", "web-2"])]);
    assert_eq!(seen(&world), "web web-2");
    world.apply(vec![ready(&["web", "web-2"]), put(Origin::Folder, workload("web", 2))]);
    assert_eq!(seen(&world), "web (web-0) (web-1) web-2");
    world.apply(vec![ready(&["web", "web-1", "web-2"])]);
    assert_eq!(seen(&world), "(web-0) web-1 web-2");
}

#[test]
fn the_account_of_the_control_plane_is_nobody_elses() {
    // Aim: neither a Workload that names it nor a Gateway that would have it, by its name, is taken; elsewhere both are names like others.
    let workload = |namespace: &str, account: &str| {
        format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w, namespace: {namespace}}}\nspec: {{serviceAccount: {account}, command: [x]}}\n"
        )
    };
    let gateway = |namespace: &str, name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{gatewayClassName: meshwright, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    for (text, taken) in [
        (workload("meshwright-system", "control"), false),
        (workload("shop", "control"), true),
        (workload("meshwright-system", "other"), true),
        (gateway("meshwright-system", "control"), false),
        (gateway("shop", "control"), true),
        (gateway("meshwright-system", "public"), true),
    ] {
        let candidate = candidate(&text);
        let told: Vec<_> = candidate.problems.iter().filter(|problem| problem.message.contains("control plane's own account")).collect();
        assert_eq!(told.is_empty(), taken, "{text}{:?}", candidate.problems);
        assert!(told.iter().all(|problem| problem.severity == Severity::Error));
    }
}

#[test]
fn origins_lie_over_one_another() {
    // Aim: the folder's version lies over the cluster's and the applied one over both; each that goes lets the next one through, whatever
    // the order; and the cluster's own change ends no override.
    let mut world = world();
    one(&mut world, put(Origin::Folder, service("2")));
    assert_eq!(one(&mut world, put(Origin::Cluster, service("1"))), Outcome::Unchanged);
    assert_eq!(one(&mut world, put(Origin::Applied, service("3"))), Outcome::Changed);
    assert_eq!((port(&world), world.slots()[&key()].origin()), (Some(3), Some(Origin::Applied)));
    one(&mut world, put(Origin::Cluster, service("4")));
    assert_eq!(port(&world), Some(3));
    assert_eq!(one(&mut world, Change::Remove { origin: Origin::Folder, key: key() }), Outcome::Changed);
    assert_eq!((port(&world), world.slots()[&key()].origin()), (Some(4), Some(Origin::Cluster)));
    assert_eq!(one(&mut world, put(Origin::Cluster, service("x"))), Outcome::Refused);
    assert_eq!((port(&world), world.slots()[&key()].refused_newer().is_some()), (Some(4), true));
    one(&mut world, put(Origin::Folder, service("5")));
    assert!(world.slots()[&key()].refused_newer().is_none() && world.slots()[&key()].refused().is_some());
    one(&mut world, Change::Remove { origin: Origin::Folder, key: key() });
    assert_eq!(one(&mut world, Change::Remove { origin: Origin::Cluster, key: key() }), Outcome::Deleted);
    assert!(world.slots().is_empty());
}

#[test]
fn the_world_is_read_when_all_its_origins_are() {
    // Aim: with a folder beside a cluster, both must have been read; the same problem of an object that a cluster sends again is told once.
    let settings = WorldSettings { origins: [Origin::Folder, Origin::Cluster].into(), ..WorldSettings::default() };
    let mut world = World::new(settings, Allocations::default());
    world.apply(vec![Change::Synced(Origin::Cluster)]);
    assert!(!world.synced());
    world.apply(vec![Change::Synced(Origin::Folder)]);
    assert!(world.synced());
    let told = |world: &mut World, origin| world.apply(vec![put(origin, service("x"))]).problems.len();
    assert_eq!((told(&mut world, Origin::Cluster), told(&mut world, Origin::Cluster)), (1, 0));
    assert_eq!((told(&mut world, Origin::Folder), told(&mut world, Origin::Folder)), (1, 1));
}

#[test]
fn a_new_list_takes_away_what_is_gone_and_nothing_else() {
    // Aim: of that origin and that kind only, in one step with what is new.
    let named = |name: &str, port: &str| {
        candidate(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        ))
    };
    let account = candidate("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: a}\n");
    let mut world = world();
    world.apply(vec![
        put(Origin::Cluster, named("one", "1")),
        put(Origin::Cluster, named("two", "1")),
        put(Origin::Folder, named("three", "1")),
        put(Origin::Cluster, account),
    ]);
    let keys = ["two", "four"].map(|name| ObjectKey::new(Kind::Service, "a", name)).into();
    let applied = world.apply(vec![
        put(Origin::Cluster, named("two", "2")),
        put(Origin::Cluster, named("four", "1")),
        Change::Relisted { origin: Origin::Cluster, kind: Kind::Service, keys },
    ]);
    let all: Vec<_> = world.slots().keys().map(|key| format!("{} {}", key.kind, key.name)).collect();
    assert_eq!(all, ["ServiceAccount web", "Service four", "Service three", "Service two"]);
    let changed: Vec<_> = applied.changed.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(changed, ["four", "one", "two"]);
}

#[test]
fn what_a_cluster_says_of_what_runs_is_no_change_of_the_mesh() {
    // Aim: endpoints of a cluster are told as states of what runs are; the same from a folder are its author's.
    let slice = |ip: &str| {
        let head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n";
        let metadata = "metadata: {name: s, namespace: a, labels: {kubernetes.io/service-name: web}}";
        candidate(&format!("{head}{metadata}\nendpoints: [{{addresses: [{ip}]}}]\nports: [{{port: 80}}]\n"))
    };
    let mut world = world();
    let applied = world.apply(vec![put(Origin::Cluster, slice("192.0.2.1"))]);
    assert!(applied.changed.is_empty() && applied.runtime && !applied.book && !applied.shown);
    let again = world.apply(vec![put(Origin::Cluster, slice("192.0.2.1"))]);
    assert!(again.changed.is_empty() && !again.runtime && !again.shown);
    let key = ObjectKey::new(Kind::EndpointSlice, "a", "s");
    assert!(world.is_running(&key));
    let applied = world.apply(vec![put(Origin::Folder, slice("192.0.2.2"))]);
    assert!(applied.changed.contains(&key) && applied.book && !world.is_running(&key));
}

#[test]
fn the_same_objects_have_the_same_hash_however_they_came() {
    // Aim: an epoch stands for the objects in force: not for their order, former versions, refused ones, or what a cluster says of what runs.
    let account = |name: &str| candidate(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: a}}\n"));
    let after = |changes: Vec<Change>| {
        let mut world = world();
        world.apply(changes);
        assert_eq!(world.content_hash(), world.content_anew());
        world.content_hash()
    };
    let both = after(vec![put(Origin::Folder, service("1")), put(Origin::Folder, account("x"))]);
    let roundabout = vec![
        put(Origin::Folder, account("y")),
        put(Origin::Folder, account("x")),
        put(Origin::Folder, service("2")),
        put(Origin::Folder, service("1")),
        put(Origin::Folder, service("none")),
        Change::Remove { origin: Origin::Folder, key: account("y").key },
    ];
    assert_eq!(after(roundabout), both);
    let node = candidate("apiVersion: v1\nkind: Node\nmetadata: {name: n}\n");
    let running = vec![put(Origin::Cluster, service("1")), put(Origin::Cluster, account("x")), put(Origin::Cluster, node)];
    assert_eq!(after(running), both);
    assert_ne!(after(vec![put(Origin::Folder, service("2")), put(Origin::Folder, account("x"))]), both);
    assert_ne!(after(vec![put(Origin::Folder, service("1"))]), both);
    assert_eq!(after(vec![]), 0);
}

#[test]
fn nothing_is_remembered_of_a_pod_that_is_gone() {
    // Aim: pods come and go by the thousand, and each says that it leaves.
    let pod = candidate("apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a}\nspec: {}\nstatus: {}\n");
    let mut world = world();
    let instance = ("a".to_owned(), "p".to_owned());
    world.apply(vec![put(Origin::Cluster, pod.clone()), Change::Draining { instance, draining: true }]);
    assert_eq!(world.draining.len(), 1);
    world.apply(vec![Change::Remove { origin: Origin::Cluster, key: pod.key }]);
    assert!(world.draining.is_empty() && world.slots().is_empty() && world.ages().is_empty());
}
