//! Everything that may go wrong between an API server and us. Time is the runtime's own and jumps, so minutes take none.

use std::time::Duration;

use control::world::{Kind, ObjectKey, Spec, World, references};
use serde_json::{Value, json};

use crate::server::{Call, Follower, Server, Wrong, has, settings};

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "shop"}})
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "172.30.0.9", "clusterIPs": ["172.30.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "selector": {"app": name}, "ports": [{"port": port, "targetPort": port, "protocol": "TCP"}], "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"},
        "status": {"loadBalancer": {}},
    })
}

fn egress(roots: &[&str]) -> Value {
    let rule = |name: &&str| {
        let kind = if name.starts_with('s') { "Secret" } else { "ConfigMap" };
        json!({"hosts": ["a.example"], "ports": [80], "tls": {"originate": {"sni": "a.example", "caCertificateRefs": [{"group": "", "kind": kind, "name": name}]}}})
    };
    let allow: Vec<_> = roots.iter().map(rule).collect();
    json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "e", "namespace": "shop"}, "spec": {"allow": allow}})
}

fn port(world: &World, name: &str) -> Option<u16> {
    let view = world.index().services.get(&("shop".to_owned(), name.to_owned()))?;
    Some(view.service()?.ports.first()?.port)
}

fn problems(world: &World) -> String {
    world.problems().iter().map(|problem| format!("{problem}\n")).collect()
}

async fn synced(server: &Server) -> Follower {
    let mut follower = Follower::start(server, settings());
    follower.until(World::synced).await;
    follower
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_read_once_and_then_followed() {
    // Aim: the first edition comes when all has been listed; creation, change and deletion arrive within a moment; what changes nothing
    // that is read says nothing; addresses are the cluster's own.
    let server = Server::new();
    server.put("services", service("web", 80));
    server.put("serviceaccounts", account("web"));
    let mut follower = synced(&server).await;
    assert_eq!(port(&follower.world, "web"), Some(80));
    assert_eq!(
        follower.world.index().services[&("shop".to_owned(), "web".to_owned())].addresses,
        ["172.30.0.9".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(follower.world.ages().is_empty(), "an API server dates its objects");
    server.put("services", service("web", 81));
    server.put("services", service("new", 80));
    assert!(follower.until(|world| port(world, "web") == Some(81) && port(world, "new").is_some()).await < Duration::from_secs(1));
    server.delete("services", "shop", "new");
    follower.until(|world| port(world, "new").is_none()).await;
    let steps = follower.applied.len();
    let mut touched = service("web", 81);
    touched["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
    touched["status"]["loadBalancer"] = json!({"ingress": [{"ip": "192.0.2.1"}]});
    server.put("services", touched);
    follower.rest(Duration::from_secs(200)).await;
    assert_eq!(follower.applied.len(), steps);
    assert_eq!(problems(&follower.world), "");
    assert_eq!(
        server.count(Call::List, "services"),
        1,
        "watches go on from where they were: {:?}",
        server.asked().iter().filter(|asked| asked.contains("/services?")).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_away_for_minutes_changes_nothing() {
    // Aim: while nobody answers the last state stays and it is told; afterwards what has changed meanwhile is there and the complaint gone.
    let server = Server::new();
    server.put("services", service("web", 80));
    server.put("services", service("old", 80));
    let mut follower = synced(&server).await;
    server.set_away(true);
    follower.until(|world| problems(world).contains("cannot watch services")).await;
    server.put("services", service("web", 81));
    server.delete("services", "shop", "old");
    let asked = server.asked().len();
    follower.rest(Duration::from_secs(600)).await;
    assert!((port(&follower.world, "web"), port(&follower.world, "old")) == (Some(80), Some(80)) && follower.world.synced());
    let calls = (server.asked().len() - asked) / 25;
    assert!((10..=60).contains(&calls), "{calls} calls of each watch in ten minutes");
    server.set_away(false);
    let took = follower.until(|world| port(world, "web") == Some(81) && port(world, "old").is_none() && problems(world).is_empty()).await;
    assert!(took < Duration::from_secs(65), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_gone_is_listed_anew() {
    // Aim: 410 as an event, as an answer to a watch and in the middle of a list ends in a new list, which never passes through less than
    // what is there; what is gone meanwhile goes.
    let gone =
        json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "status": "Failure"}});
    for wrong in [
        vec![(Call::Watch, Wrong::Line(gone.to_string()))],
        vec![(Call::Watch, Wrong::Status(410, 0))],
        vec![(Call::Watch, Wrong::Status(410, 0)), (Call::List, Wrong::Status(410, 0))],
    ] {
        let server = Server::new();
        for number in 0..600 {
            server.put("services", service(&format!("s{number:03}"), 80));
        }
        let mut follower = synced(&server).await;
        assert_eq!(server.count(Call::List, "services"), 3, "pages");
        server.delete("services", "shop", "s000");
        server.put("services", service("s001", 81));
        follower.until(|world| port(world, "s001") == Some(81)).await;
        for (call, wrong) in wrong {
            server.wrong(call, "services", [wrong]);
        }
        // The watch that is open now ends within a minute; the next one goes wrong.
        follower.rest(Duration::from_secs(100)).await;
        server.delete("services", "shop", "s002");
        server.put("services", service("s003", 83));
        let fits = |world: &World| port(world, "s002").is_none() && port(world, "s003") == Some(83);
        follower.until_always(fits, |world| assert!(world.index().services.len() >= 598)).await;
        assert!(server.count(Call::List, "services") >= 6);
        assert_eq!(problems(&follower.world), "");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_while_away_comes_by_a_new_list() {
    // Aim: an API server that has forgotten what happened meanwhile costs a list, not an object.
    let server = Server::new();
    server.put("services", service("web", 80));
    server.put("services", service("old", 80));
    let mut follower = synced(&server).await;
    server.set_away(true);
    follower.until(|world| problems(world).contains("cannot watch services")).await;
    server.delete("services", "shop", "old");
    server.put("services", service("web", 81));
    server.compact();
    server.put("services", service("new", 80));
    server.set_away(false);
    let fits = |world: &World| port(world, "old").is_none() && port(world, "new").is_some();
    follower.until_always(fits, |world| assert!(port(world, "web").is_some())).await;
    assert_eq!(port(&follower.world, "web"), Some(81));
}

#[tokio::test(start_paused = true)]
async fn a_busy_api_server_is_waited_for() {
    // Aim: 429 is asked again no sooner than it says, 409 and 500 after a pause, and the start waits for each.
    let server = Server::new();
    server.put("services", service("web", 80));
    server.wrong(Call::List, "services", [Wrong::Status(429, 20), Wrong::Status(409, 0), Wrong::Status(500, 0)]);
    let mut follower = Follower::start(&server, settings());
    let took = follower.until(World::synced).await;
    assert!((Duration::from_secs(21)..Duration::from_secs(60)).contains(&took), "{took:?}");
    assert_eq!((server.count(Call::List, "services"), port(&follower.world, "web")), (4, Some(80)));
}

#[tokio::test(start_paused = true)]
async fn a_busy_api_server_says_when_to_come_again() {
    // Aim: real ones say it in plain text and in a header, to lists and watches: it is read, told in their words, and obeyed.
    let server = Server::new();
    server.put("services", service("web", 80));
    server.wrong(Call::List, "services", [Wrong::Busy(20)]);
    let mut follower = Follower::start(&server, settings());
    follower.until(|world| problems(world).contains("Too many requests, please try again later.")).await;
    let took = follower.until(World::synced).await;
    assert!((Duration::from_secs(19)..Duration::from_secs(40)).contains(&took), "{took:?}");
    server.wrong(Call::Watch, "services", [Wrong::Busy(20)]);
    follower.until(|world| problems(world).contains("cannot watch services: Too many requests")).await;
    let asked = server.count(Call::Watch, "services");
    follower.rest(Duration::from_secs(19)).await;
    assert_eq!(server.count(Call::Watch, "services"), asked);
    follower.until(|world| problems(world).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_at_once_is_not_asked_for_in_a_loop() {
    // Aim: an API server, or what stands before it, that ends every watch with nothing is asked ever less often, a list now and then brings what
    // has changed, and once watches last again all is as it was.
    for code in [200, 503] {
        let server = Server::new();
        server.put("services", service("web", 80));
        server.wrong(Call::Watch, "services", vec![Wrong::Empty(code); 10_000]);
        let mut follower = synced(&server).await;
        server.put("services", service("web", 81));
        let took = follower.until(|world| port(world, "web") == Some(81)).await;
        assert!(took < Duration::from_secs(30), "{code}: {took:?}");
        follower.rest(Duration::from_secs(600)).await;
        let (watches, lists) = (server.count(Call::Watch, "services"), server.count(Call::List, "services"));
        assert!((20..=60).contains(&watches) && (4..=12).contains(&lists), "{code}: {watches} watches and {lists} lists in ten minutes");
        server.right();
        server.put("services", service("web", 82));
        let took = follower.until(|world| port(world, "web") == Some(82) && problems(world).is_empty()).await;
        assert!(took < Duration::from_secs(60), "{code}: {took:?}");
        let lists = server.count(Call::List, "services");
        follower.rest(Duration::from_secs(200)).await;
        assert_eq!(server.count(Call::List, "services"), lists);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    // Aim: a watch whose connection died without a word, a watch and a list that are never answered, a list whose body never ends: each is
    // given up within its bound, and nothing is lost.
    for (call, wrong, bound) in [
        (Call::Watch, Wrong::Silent, 130),
        (Call::Watch, Wrong::Stuck, 100),
        (Call::List, Wrong::Stuck, 35),
        (Call::List, Wrong::Silent, 65),
    ] {
        let server = Server::new();
        server.put("services", service("web", 80));
        server.wrong(call, "services", [wrong.clone()]);
        let mut follower = Follower::start(&server, settings());
        let began = follower.until(World::synced).await;
        server.put("services", service("web", 81));
        let took = began + follower.until(|world| port(world, "web") == Some(81) && problems(world).is_empty()).await;
        assert!(took < Duration::from_secs(bound), "{call:?} {wrong:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_nothing_until_it_is() {
    // Aim: missing kinds hold nothing up for long and are not asked for in a loop; one that is installed later is found, at whichever of
    // its versions is served; one that is taken out takes its objects along, and a single 404 does not.
    let server = Server::new();
    for place in ["/v1/tcproutes", "/v1alpha2/tcproutes", "/v1/tlsroutes"] {
        server.serve(&format!("gateway.networking.k8s.io{place}"), false);
    }
    let route = |kind: &str, version: &str| {
        json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind, "metadata": {"name": "r", "namespace": "shop", "generation": 3},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}})
    };
    server.put("tcproutes", route("TCPRoute", "v1alpha2"));
    server.put("tlsroutes", route("TLSRoute", "v1alpha2"));
    let mut follower = Follower::start(&server, settings());
    assert!(follower.until(World::synced).await < Duration::from_secs(5));
    assert!(has(&follower.world, Kind::TLSRoute, "shop", "r") && !has(&follower.world, Kind::TCPRoute, "shop", "r"));
    follower.rest(Duration::from_secs(300)).await;
    assert_eq!(problems(&follower.world), "");
    let looks = server.count(Call::List, "tcproutes");
    assert!((16..=28).contains(&looks), "{looks} looks in five minutes");
    server.set_secretive(true);
    assert!(Follower::start(&server, settings()).until(World::synced).await < Duration::from_secs(5), "what it serves is not ours to ask");
    server.set_secretive(false);
    server.serve("gateway.networking.k8s.io/v1alpha2/tcproutes", true);
    assert!(follower.until(|world| has(world, Kind::TCPRoute, "shop", "r")).await < Duration::from_secs(35));
    let slot = follower.world.slots().iter().find(|(key, _)| key.kind == Kind::TCPRoute).unwrap().1;
    assert_eq!(slot.generation(), 3);
    server.wrong(Call::Watch, "tcproutes", [Wrong::Status(410, 0)]);
    server.wrong(Call::List, "tcproutes", [Wrong::Status(404, 0), Wrong::Status(404, 0)]);
    follower.rest(Duration::from_secs(120)).await;
    assert!(has(&follower.world, Kind::TCPRoute, "shop", "r"));
    server.serve("gateway.networking.k8s.io/v1alpha2/tcproutes", false);
    server.wrong(Call::Watch, "tcproutes", [Wrong::Status(404, 0)]);
    follower.until(|world| !has(world, Kind::TCPRoute, "shop", "r")).await;
}

#[tokio::test(start_paused = true)]
async fn a_404_from_in_front_takes_nothing_away() {
    // Aim: a load balancer without an API server behind it says 404 to everything: nothing leaves the world, of any kind, and it is told; a
    // start before it is never synced. Afterwards all goes on.
    let server = Server::new();
    server.serve("gateway.networking.k8s.io/v1/tcproutes", false);
    server.serve("gateway.networking.k8s.io/v1alpha2/tcproutes", false);
    server.put("services", service("web", 80));
    server.put("egresspolicies", egress(&["c1"]));
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c1", "namespace": "shop"}, "data": {"ca.crt": "x"}});
    server.put("configmaps", map);
    let mut follower = synced(&server).await;
    server.set_hidden(true);
    let mut late = Follower::start(&server, settings());
    tokio::join!(follower.rest(Duration::from_secs(600)), late.rest(Duration::from_secs(600)));
    assert!(follower.world.synced() && port(&follower.world, "web") == Some(80));
    assert!(has(&follower.world, Kind::EgressPolicy, "shop", "e") && has(&follower.world, Kind::ConfigMap, "shop", "c1"));
    let told = problems(&follower.world);
    assert!(told.contains("cannot watch services") && told.contains("cannot watch egresspolicies"), "{told}");
    assert!(!late.world.synced());
    server.put("services", service("web", 81));
    server.set_hidden(false);
    let well = |world: &World| world.synced() && port(world, "web") == Some(81) && problems(world).is_empty();
    let took = follower.until(well).await.max(late.until(well).await);
    assert!(took < Duration::from_secs(65), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_missing_is_named() {
    // Aim: without the right to read a kind nothing is published, the kind and the remedy are told, and once the right is there it goes on.
    let server = Server::new();
    server.wrong(Call::List, "pods", vec![Wrong::Status(403, 0); 1_000]);
    let mut follower = Follower::start(&server, settings());
    follower.rest(Duration::from_secs(120)).await;
    assert!(!follower.world.synced());
    let told = problems(&follower.world);
    assert!(told.contains("cannot watch pods: the server says 403") && told.contains("meshwright install"), "{told}");
    server.right();
    follower.until(World::synced).await;
    follower.until(|world| problems(world).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_is_referred_to_is_asked_for() {
    // Aim: Secrets and ConfigMaps are asked for one by one, by name, before the first edition; they follow the references; nobody ever
    // lists all of them.
    let server = Server::new();
    let secret = |name: &str, value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "data": {"ca.crt": value}});
    server.put("secrets", secret("s1", "b25l"));
    server.put("secrets", secret("s2", "b25l"));
    server.put("egresspolicies", egress(&["s1", "c1"]));
    let mut follower = synced(&server).await;
    let found = |world: &World| {
        let kept = world.live().filter(|(key, _)| matches!(key.kind, Kind::Secret | Kind::ConfigMap));
        kept.map(|(key, _)| key.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(found(&follower.world), ["s1"]);
    server.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c1", "namespace": "shop"}, "data": {"ca.crt": "x"}}),
    );
    follower.until(|world| found(world) == ["s1", "c1"]).await;
    server.put("egresspolicies", egress(&["s2"]));
    follower.until(|world| found(world) == ["s2"]).await;
    server.put("secrets", secret("s1", "dHdv"));
    follower.rest(Duration::from_secs(200)).await;
    assert_eq!(found(&follower.world), ["s2"]);
    let asked: Vec<_> = server.asked().into_iter().filter(|asked| asked.contains("secrets") || asked.contains("configmaps")).collect();
    assert!(asked.iter().all(|asked| asked.contains("/namespaces/shop/") && asked.contains("fieldSelector=metadata.name%3D")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_and_its_roots_change_together() {
    // Aim: a policy that is led to other roots is in force with the roots it refers to, former or new, whatever time their list takes; roots
    // that cannot be had hold it up for seconds only.
    let server = Server::new();
    let roots = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": {"ca.crt": "x"}});
    for name in ["c1", "c2"] {
        server.put("configmaps", roots(name));
    }
    server.put("egresspolicies", egress(&["c1"]));
    let mut follower = synced(&server).await;
    let key = ObjectKey::new(Kind::EgressPolicy, "shop", "e");
    let named = |world: &World| references(world.get(&key).unwrap()).into_iter().map(|root| root.name).collect::<Vec<_>>();
    let whole = |world: &World| assert!(named(world).iter().all(|name| has(world, Kind::ConfigMap, "shop", name)), "{:?}", named(world));
    server.wrong(Call::List, "configmaps", [Wrong::Status(500, 0)]);
    server.put("egresspolicies", egress(&["c2"]));
    let took = follower.until_always(|world| named(world) == ["c2"], whole).await;
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&took), "{took:?}");
    follower.until(|world| !has(world, Kind::ConfigMap, "shop", "c1")).await;
    server.wrong(Call::List, "configmaps", vec![Wrong::Status(403, 0); 100]);
    server.put("egresspolicies", egress(&["c1"]));
    let took = follower.until(|world| named(world) == ["c1"]).await;
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_strange_spoils_nothing_else() {
    // Aim: words and fields of a newer cluster, a line that is no JSON and an object that is refused leave everything else in force, and a
    // refused version leaves the last good one.
    let server = Server::new();
    let mut newer = service("newer", 80);
    newer["spec"]["type"] = "Teleport".into();
    newer["spec"]["ports"].as_array_mut().unwrap().push(json!({"port": 81, "protocol": "QUIC"}));
    newer["spec"]["wormhole"] = json!({"size": 3});
    server.put("services", newer);
    server.put(
        "endpointslices",
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "FQDN",
        "metadata": {"name": "f", "namespace": "shop", "labels": {"kubernetes.io/service-name": "newer"}},
        "endpoints": [{"addresses": ["example.com"]}], "ports": [{"port": 80}]}),
    );
    server.put(
        "trafficpolicies",
        json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "t", "namespace": "shop"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "newer"}], "timeouts": {"connect": "1s"}}}),
    );
    server.wrong(Call::Watch, "services", [Wrong::Line("{\"type\": \"ADDED\", \"object\": {\"metadata\": 7".to_owned())]);
    let mut follower = synced(&server).await;
    assert_eq!(port(&follower.world, "newer"), Some(80));
    assert!(has(&follower.world, Kind::EndpointSlice, "shop", "f"));
    server.put(
        "trafficpolicies",
        json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "t", "namespace": "shop"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "newer"}], "timeouts": {"connect": "soon"}}}),
    );
    server.put("services", service("web", 80));
    follower.until(|world| port(world, "web").is_some() && problems(world).contains("`soon` is no duration")).await;
    assert!(has(&follower.world, Kind::TrafficPolicy, "shop", "t"));
    let times = follower.applied.iter().flat_map(|applied| &applied.problems).filter(|problem| problem.message.contains("soon")).count();
    assert_eq!(times, 1);
}

#[tokio::test(start_paused = true)]
async fn size_is_no_matter() {
    // Aim: ten thousand EndpointSlices come in pages and steps, an object of 1 MB is read, and one that is more than we hold is told.
    let server = Server::new();
    server.put("services", service("web", 80));
    for number in 0..10_000 {
        server.put("endpointslices", json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("web-{number}"), "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": [format!("10.{}.{}.{}", number / 65_536, number / 256 % 256, number % 256)], "nodeName": "n1"}], "ports": [{"name": "", "port": 80}]}));
    }
    let map = |name: &str, bytes: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": {"ca.crt": "x".repeat(bytes)}});
    server.put("configmaps", map("big", 1_000_000));
    server.put("configmaps", map("huge", 1_100_000));
    server.put("egresspolicies", egress(&["big", "huge"]));
    let mut follower = synced(&server).await;
    let slices = follower.world.live().filter(|(_, object)| matches!(object.spec, Spec::EndpointSlice(_))).count();
    assert_eq!((slices, server.count(Call::List, "endpointslices")), (10_000, 40));
    assert!(has(&follower.world, Kind::ConfigMap, "shop", "big") && !has(&follower.world, Kind::ConfigMap, "shop", "huge"));
    assert!(problems(&follower.world).contains("it holds 1100000 bytes"), "{}", problems(&follower.world));
    assert!(follower.applied.iter().all(|applied| applied.outcomes.len() <= 1_000));
    assert!(
        follower.applied.iter().all(|applied| applied.changed.iter().all(|key| key.kind != Kind::EndpointSlice)),
        "endpoints are no epoch"
    );
    let steps = follower.applied.len();
    for number in 0..100 {
        server.delete("endpointslices", "shop", &format!("web-{number}"));
    }
    follower.until(|world| world.slots().len() < 9_910).await;
    follower.rest(Duration::from_secs(5)).await;
    assert!(follower.applied.len() - steps <= 3, "a burst is few steps");
}
