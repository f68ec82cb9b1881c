use std::time::SystemTime;

use proto::canary::{BUCKETS, bucket};
use proto::mesh::CanaryTraffic;

use super::*;
use crate::clock::Clock;
use crate::publish::edition::Edition;
use crate::source::{FileChange, Folder};
use crate::store::{Page, Row};
use crate::world::canary::CanaryPhase;
use crate::world::{Allocations, Change, Kind, Origin, World, WorldSettings};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {selector: {app: v2}, ports: [{name: http, port: 80}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: v2, namespace: shop, labels: {app: v2}}
spec: {addresses: [10.1.0.1]}
";

/// A control plane of nothing but canaries.
struct Plane {
    board: Arc<Board>,
    store: Arc<Store>,
    helm: CanaryHelm,
    /// Totals of the one proxy, by version: requests, failures, latencies.
    totals: [(u64, u64, Vec<u64>); 2],
    stop: CancellationToken,
}

fn world(spec: &str) -> World {
    read(manifests(spec))
}

fn manifests(spec: &str) -> String {
    format!(
        "{SHOP}---\napiVersion: meshwright.dev/v1alpha1\nkind: Canary\nmetadata: {{name: c, namespace: shop}}\n\
         spec: {{serviceRef: {{name: catalog, port: 80}}, stable: v1, candidate: v2, {spec}}}\n"
    )
}

fn read(text: String) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let mut changes = Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0);
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    world
}

impl Plane {
    /// Begins, in the data folder of an earlier one or a fresh one.
    fn start(folder: &std::path::Path, mut world: World) -> Self {
        let began = Instant::now();
        let clock = Clock::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + began.elapsed());
        let (board, mut events) = Board::new(clock);
        let store = Arc::new(Store::open(folder).unwrap());
        world.apply(vec![Change::Canaries(Arc::new(KeptCanary::book(&KeptCanary::load(&store))))]);
        let edition =
            |world: &World, serial| Edition { world: world.clone(), epoch: serial, serial, roots: crate::publish::trust::tests::one() };
        board.publish(edition(&world, 1));
        let (driver, helm, _) = CanaryDriver::new(board.clone(), store.clone());
        let stop = CancellationToken::new();
        tokio::spawn(driver.run(stop.clone()));
        let (writing, kept_in, ending) = (board.clone(), store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut serial = 1;
            while let Some(event) = tokio::select! {
                () = ending.cancelled() => None,
                event = events.recv() => event,
            } {
                let Errand::Canaries { book, kept, reply, .. } = event else { continue };
                let mut page = Page::default();
                page.put(Row::Canaries, &kept);
                assert!(kept_in.write(page));
                world.apply(vec![Change::Canaries(book)]);
                serial += 1;
                writing.publish(edition(&world, serial));
                let _ = reply.send(serial);
            }
        });
        Self { board, store, helm, totals: [(0, 0, vec![0; BUCKETS]), (0, 0, vec![0; BUCKETS])], stop }
    }

    fn row(&self) -> Value {
        self.helm.rows("shop", "c").pop().unwrap_or_default()
    }

    fn weight(&self) -> u64 {
        self.row()["weight"].as_u64().unwrap_or(0)
    }

    /// A second of a hundred requests by the weight of now; of a thousand of each version so many fail, and each takes so long.
    async fn second(&mut self, failing: [u64; 2], latency_ms: [u64; 2], counter: u64) {
        let candidate = self.weight();
        let run = self.row()["run"].as_str().unwrap_or_default().to_owned();
        for (version, more) in [100 - candidate, candidate].into_iter().enumerate() {
            let (requests, failures, buckets) = &mut self.totals[version];
            for _ in 0..more {
                *requests += 1;
                // Spread evenly: every so many-th.
                *failures += u64::from((*requests * failing[version]) % 1_000 < failing[version]);
                let latency_ms = latency_ms[version] + *requests % 7;
                buckets[bucket(latency_ms * 1_000_000)] += 1;
            }
        }
        let rows: Vec<CanaryTraffic> = self
            .totals
            .iter()
            .enumerate()
            .map(|(version, (requests, failures, buckets))| CanaryTraffic {
                canary: "shop/c".into(),
                run: run.clone(),
                candidate: version == 1,
                counter: counter + version as u64,
                requests: *requests,
                failures: *failures,
                duration_buckets: buckets.clone(),
            })
            .collect();
        self.board.versions.lock().take("sidecar/shop/web", &rows);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Seconds until it is over, at most so many; how many requests the candidate had by then.
    async fn until_over(&mut self, secs: u64, failing: [u64; 2], latency_ms: [u64; 2]) -> (String, u64) {
        for _ in 0..secs {
            self.second(failing, latency_ms, 1).await;
            let phase = self.row()["phase"].as_str().unwrap_or_default().to_owned();
            if matches!(phase.as_str(), "Promoted" | "RolledBack" | "Paused") {
                return (phase, self.totals[1].0);
            }
        }
        (self.row().to_string(), self.totals[1].0)
    }
}

const STEPS: &str = "steps: [{weight: 10, hold: 5s}, {weight: 50}], analysis: {minRequests: 100}";

#[tokio::test(start_paused = true)]
async fn a_clean_candidate_wins_and_a_bad_one_goes() {
    // Aim: by what proxies count: no difference is promoted through every step; five per cent more failures, and fifty milliseconds more, are rolled
    // back within a thousand requests; each decision has its numbers.
    for (failing, latency_ms, wanted) in
        [([2, 2], [10, 10], "Promoted"), ([2, 52], [10, 10], "RolledBack"), ([2, 2], [10, 60], "RolledBack")]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut plane = Plane::start(folder.path(), world(STEPS));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (phase, requests) = plane.until_over(900, failing, latency_ms).await;
        assert_eq!(phase, wanted, "{failing:?} {latency_ms:?}: {}", plane.row());
        assert!(wanted == "Promoted" || requests < 1_000, "{requests}");
        let row = plane.row();
        let decisions = row["decisions"].as_array().unwrap();
        let words: Vec<_> = decisions.iter().map(|decision| decision["verdict"].as_str().unwrap()).collect();
        let ends = if wanted == "Promoted" { vec!["Begin", "Advance", "Promote"] } else { vec!["Begin", "Rollback"] };
        assert!(words.starts_with(&ends[..1]) && words.ends_with(&ends[ends.len() - 1..]), "{words:?}");
        let last = decisions.last().unwrap();
        assert!(last["candidate"]["requests"].as_u64().unwrap() > 0 && last["stable"]["p99_ms"].as_f64().unwrap() > 9.0, "{last}");
        // A fault may be found with fewer than `minRequests`.
        let counted = ["stable", "candidate"].map(|version| row[version]["requests"].as_u64().unwrap());
        assert!(counted[0] > 100 && counted[1] >= 50, "{row}");
        assert_eq!((row["weight"].as_u64(), row["problem"].is_null()), (Some(if wanted == "Promoted" { 100 } else { 0 }), true));
        plane.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_next_goes_on_from_there() {
    // Aim: another process with the same book is at the same step of the same run, counts nothing twice, and still ends it.
    let folder = tempfile::tempdir().unwrap();
    let mut plane = Plane::start(folder.path(), world(STEPS));
    tokio::time::sleep(Duration::from_secs(1)).await;
    while plane.row()["step"] != 2 {
        plane.second([2, 2], [10, 10], 1).await;
    }
    let (run, totals) = (plane.row()["run"].clone(), plane.totals.clone());
    let counted = plane.row()["candidate"]["requests"].clone();
    plane.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((plane.board, plane.store));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut next = Plane::start(folder.path(), world(STEPS));
    next.totals = totals;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((next.row()["run"].clone(), next.row()["step"].clone(), next.weight()), (run, Value::from(2), 50));
    next.second([2, 2], [10, 10], 1).await;
    assert_eq!(next.row()["candidate"]["requests"], counted, "that was from before");
    assert_eq!(next.until_over(900, [2, 2], [10, 10]).await.0, "Promoted");
    next.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn people_steer() {
    // Aim: what is said is in force when the answer comes; what makes no sense is told; after its end it may begin anew.
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(folder.path(), world("steps: [{weight: 10, approve: true}]"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let key = || ObjectKey::new(Kind::Canary, "shop", "c");
    let phase = |row: Value| row["phase"].as_str().unwrap_or_default().to_owned();
    assert_eq!(phase(plane.helm.steer(key(), CanaryVerb::Pause).await.unwrap()), "Paused");
    assert!(plane.helm.steer(key(), CanaryVerb::Pause).await.unwrap_err().contains("already"));
    let row = plane.helm.steer(key(), CanaryVerb::Promote).await.unwrap();
    assert_eq!((row["weight"].as_u64(), phase(row)), (Some(100), "Promoted".to_owned()));
    let world = plane.board.edition().unwrap().world.clone();
    assert_eq!(world.canaries().standings[&key()].phase, CanaryPhase::Promoted);
    assert_eq!(phase(plane.helm.steer(key(), CanaryVerb::Abort).await.unwrap()), "RolledBack");
    let row = plane.helm.steer(key(), CanaryVerb::Resume).await.unwrap();
    assert_eq!((row["step"].as_u64(), phase(row)), (Some(1), "Progressing".to_owned()));
    let nobody = ObjectKey::new(Kind::Canary, "shop", "nobody");
    assert!(plane.helm.steer(nobody, CanaryVerb::Abort).await.unwrap_err().contains("there is no Canary shop/nobody"));
    plane.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn nobody_meets_a_candidate_that_is_not_ready() {
    // Aim: without a ready endpoint of the candidate no run begins, and that is said; once there is one it begins by itself.
    let folder = tempfile::tempdir().unwrap();
    let spec = "steps: [{weight: 10}]";
    let plane = Plane::start(folder.path(), read(manifests(spec).replace("labels: {app: v2}", "labels: {app: other}")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let row = plane.row();
    assert!(
        row["phase"].is_null() && row["weight"] == 0 && row["problem"].as_str().is_some_and(|why| why.contains("no ready endpoint")),
        "{row}"
    );
    let key = ObjectKey::new(Kind::Canary, "shop", "c");
    assert!(plane.helm.steer(key, CanaryVerb::Promote).await.unwrap_err().contains("no ready endpoint"));
    let edition = plane.board.edition().unwrap();
    plane.board.publish(Edition { world: world(spec), epoch: 9, serial: 9, roots: edition.roots.clone() });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((plane.row()["phase"].as_str(), plane.weight()), (Some("Progressing"), 10), "{}", plane.row());
    plane.stop.cancel();
}
