//! A folder of manifests and a cluster that holds the same objects give the same mesh.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use control::source::{FileChange, Folder, load};
use control::translate::{audiences, statuses, view};
use control::world::tree::documents;
use control::world::{Allocations, Change, Origin, Spec, World, WorldSettings};
use proto::names;
use serde_json::Value;

use crate::server::{Follower, Server, plural};

/// Every document of a folder's files as an API server would hold them, with addresses as the folder's mesh gave them. `None` where no API
/// server would: what cannot be read, is refused, stands twice or is a list is a matter of files alone.
fn stored(files: &[FileChange], mesh: &World) -> Option<Vec<Value>> {
    let texts: Option<Vec<&String>> = files.iter().map(|file| file.text.as_ref()?.as_ref().ok()).collect();
    let nodes: Result<Vec<_>, _> = texts?.into_iter().flat_map(|text| documents(text)).collect();
    let mut objects: Vec<Value> = nodes.ok()?.iter().map(control::world::tree::Node::json).collect();
    let name = |object: &Value| [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]].map(ToString::to_string);
    let names: BTreeSet<_> = objects.iter().map(name).collect();
    let lists = objects.iter().any(|object| object["kind"].as_str().is_none_or(|kind| kind.ends_with("List")));
    if lists
        || names.len() < objects.len()
        || mesh.slots().len() != objects.len()
        || mesh.slots().values().any(|slot| slot.live().is_none())
    {
        return None;
    }
    for object in &mut objects {
        let metadata = &mut object["metadata"];
        metadata["creationTimestamp"] = "2026-06-01T00:00:00Z".into();
        metadata["generation"] = 1.into();
        let kind = object["kind"].as_str().unwrap().to_owned();
        if matches!(kind.as_str(), "Namespace" | "GatewayClass") {
            continue;
        }
        let metadata = &mut object["metadata"];
        if metadata["namespace"].is_null() {
            metadata["namespace"] = "default".into();
        }
        let name = (metadata["namespace"].as_str().unwrap().to_owned(), metadata["name"].as_str().unwrap().to_owned());
        if let ("Service", Some(view)) = (kind.as_str(), mesh.index().services.get(&name))
            && !view.addresses.is_empty()
        {
            let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
            object["spec"]["clusterIP"] = addresses[0].as_str().into();
            object["spec"]["clusterIPs"] = addresses.into();
        }
    }
    Some(objects)
}

fn read(files: Vec<FileChange>) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let mut changes = Folder::default().update(files, 0);
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    world
}

/// Everything that every proxy holds when it has called and asked for everything, and every status.
fn mesh(world: &World) -> String {
    let mut wants = BTreeSet::new();
    for ((namespace, name), view) in world.index().services.iter() {
        wants.insert(names::dns(&format!("{name}.{namespace}")));
        let Spec::Service(service) = &view.object.spec else { continue };
        let pairs = view.addresses.iter().flat_map(|address| service.ports.iter().map(move |port| (*address, port.port)));
        wants.extend(pairs.map(|pair| names::outbound(pair.into())));
    }
    let mut text = String::new();
    for audience in audiences(world) {
        let view = view(world, &audience, &wants);
        text += &format!("{audience:?}\nmissing {:?}\n", view.missing);
        for ((type_url, name), resource) in &view.resources {
            text += &format!("{type_url} {name} {} {:?}\n", resource.version, resource.any.value);
        }
    }
    for (key, status) in statuses(world) {
        text += &format!("{key} {}\n", serde_json::to_string(&status).unwrap());
    }
    text
}

/// Folders of examples and of golden scenarios.
fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let below = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut folders = [below(&root.join("../examples")), below(&root.join("tests/golden"))].concat();
    folders.retain(|folder| folder.is_dir() && folder.file_name().unwrap() != "snapshots");
    folders.sort();
    folders
}

#[tokio::test(start_paused = true)]
async fn folder_and_cluster_are_the_same_mesh() {
    // Aim: for every example and every golden scenario, all proxies' resources, byte for byte, and all statuses are the same, whichever way
    // the objects come.
    let mut compared = BTreeSet::new();
    for folder in folders() {
        let files = load(&folder).unwrap();
        let Some(objects) = stored(&files, &read(files.clone())) else { continue };
        let server = Server::new();
        let mut text = String::new();
        for object in objects {
            text += &format!("---\n{object}\n");
            server.put(&plural(&object), object);
        }
        let by_folder = read(vec![FileChange { file: "all.yaml".to_owned(), text: Some(Ok(text)) }]);
        // The mesh's own addresses in both: what differs is the way alone.
        let settings = WorldSettings { origins: [Origin::Cluster].into(), ..WorldSettings::default() };
        let mut follower = Follower::start(&server, settings);
        follower.until(World::synced).await;
        let (one, other) = (mesh(&by_folder), mesh(&follower.world));
        if let Some((one, other)) = one.lines().zip(other.lines()).find(|(one, other)| one != other) {
            let short = |line: &str| line.chars().take(2_000).collect::<String>();
            panic!("{}\n{}\n{}", folder.display(), short(one), short(other));
        }
        assert_eq!(one.len(), other.len(), "{}", folder.display());
        assert!(one.len() > 200 || audiences(&by_folder).is_empty(), "{}", folder.display());
        compared.insert(folder.file_name().unwrap().to_str().unwrap().to_owned());
    }
    for example in ["resilience", "resilience-policies", "shop", "zero-trust"] {
        assert!(compared.contains(example), "{example}");
    }
    assert!(compared.len() >= 12, "{compared:?}");
}
