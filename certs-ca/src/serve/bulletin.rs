//! The bundles as they are told: looked up once for all who listen, as long as anybody does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::mesh::BundlesResponse;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How soon a change of the bundles is told.
const LOOK: Duration = Duration::from_secs(1);

type Told = Option<Result<BundlesResponse, Status>>;

/// See the module.
pub(super) struct Bulletin {
    look: Box<dyn Fn() -> Result<BundlesResponse, Status> + Send + Sync>,
    told: watch::Sender<Told>,
    /// Whether a task looks.
    looking: Mutex<bool>,
    /// Nothing is told any more.
    stop: CancellationToken,
}

impl Bulletin {
    /// What is told until `stop` is what `look` finds, which may block.
    pub(super) fn new(look: impl Fn() -> Result<BundlesResponse, Status> + Send + Sync + 'static, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { look: Box::new(look), told: watch::Sender::new(None), looking: Mutex::new(false), stop })
    }

    /// Tells the bundles as long as somebody listens; an error ends it, and the stop, which is told as one.
    pub(super) async fn tell(self: Arc<Self>, listener: mpsc::Sender<Result<BundlesResponse, Status>>) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // Who has not taken in what came before gets no more.
                let _ = listener.try_send(Err(Status::unavailable("this control plane stops; come again")));
            }
            () = self.tell_on(&listener) => {}
        }
    }

    async fn tell_on(self: Arc<Self>, listener: &mpsc::Sender<Result<BundlesResponse, Status>>) {
        let mut told = self.listen();
        loop {
            let now = told.borrow_and_update().clone();
            if let Some(now) = now {
                let failed = now.is_err();
                if listener.send(now).await.is_err() || failed {
                    return;
                }
            }
            tokio::select! {
                () = listener.closed() => return,
                changed = told.changed() => if changed.is_err() { return },
            }
        }
    }

    fn listen(self: &Arc<Self>) -> watch::Receiver<Told> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if !*looking {
            *looking = true;
            tokio::spawn(self.clone().look());
        }
        self.told.subscribe()
    }

    async fn look(self: Arc<Self>) {
        loop {
            let asked = self.clone();
            let found = tokio::task::spawn_blocking(move || (asked.look)()).await;
            let found = found.unwrap_or_else(|_| Err(Status::internal("looking up the bundles ended unexpectedly")));
            self.told.send_if_modified(|told| {
                let same = matches!((&told, &found), (Some(Ok(told)), Ok(found)) if told == found);
                *told = Some(found);
                !same
            });
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            if self.told.receiver_count() == 0 {
                *looking = false;
                // Whoever comes next is told what is then.
                self.told.send_replace(None);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn bundles(trust_domain: &str) -> BundlesResponse {
        BundlesResponse { trust_domain: trust_domain.to_owned(), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_is_for_all() {
        // Aim: a hundred listeners cost one look a second; each is told the bundles and their change once; with the last one the looking
        // ends, and who comes later is told what is then.
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = looks.clone();
        let bulletin = Bulletin::new(
            move || {
                let look = counted.fetch_add(1, Ordering::Relaxed);
                Ok(bundles(if look < 5 { "first" } else { "second" }))
            },
            CancellationToken::new(),
        );
        let mut listeners: Vec<_> = (0..100)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(1);
                tokio::spawn(bulletin.clone().tell(sender));
                receiver
            })
            .collect();
        for listener in &mut listeners {
            assert_eq!(listener.recv().await.unwrap().unwrap(), bundles("first"));
        }
        for listener in &mut listeners {
            assert_eq!(listener.recv().await.unwrap().unwrap(), bundles("second"));
            assert!(listener.try_recv().is_err());
        }
        assert_eq!(looks.load(Ordering::Relaxed), 6);
        drop(listeners);
        tokio::time::sleep(LOOK * 10).await;
        assert!(looks.load(Ordering::Relaxed) <= 7);
        let (sender, mut receiver) = mpsc::channel(1);
        tokio::spawn(bulletin.clone().tell(sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), bundles("second"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_ends_all_streams_and_the_looking() {
        // Aim: whoever listens is told to come again, one that reads nothing is let go, too, and nobody holds the authority any more.
        let (stop, held) = (CancellationToken::new(), Arc::new(()));
        let (ca, looks) = (Arc::downgrade(&held), AtomicUsize::new(0));
        let bulletin = Bulletin::new(
            move || {
                let _ca = &held;
                Ok(bundles(&looks.fetch_add(1, Ordering::Relaxed).to_string()))
            },
            stop.clone(),
        );
        let [(first, mut hearing), (second, mut deaf)] = [mpsc::channel(1), mpsc::channel(1)];
        let streams = [tokio::spawn(bulletin.clone().tell(first)), tokio::spawn(bulletin.clone().tell(second))];
        hearing.recv().await.unwrap().unwrap();
        tokio::time::sleep(LOOK * 3).await;
        while hearing.try_recv().is_ok() {}
        stop.cancel();
        for stream in streams {
            tokio::time::timeout(LOOK, stream).await.unwrap().unwrap();
        }
        assert_eq!(hearing.recv().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(deaf.recv().await.unwrap().is_ok() && deaf.recv().await.is_none());
        drop(bulletin);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ca.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_ends_the_stream() {
        // Aim: it is told, and the listener comes again by itself; then it is told again what is.
        let looks = AtomicUsize::new(0);
        let bulletin = Bulletin::new(
            move || match looks.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Status::unavailable("the disk")),
                _ => Ok(bundles("later")),
            },
            CancellationToken::new(),
        );
        let (sender, mut receiver) = mpsc::channel(1);
        tokio::spawn(bulletin.clone().tell(sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap_err().message(), "the disk");
        assert!(receiver.recv().await.is_none());
        tokio::time::sleep(LOOK * 2).await;
        let (sender, mut receiver) = mpsc::channel(1);
        tokio::spawn(bulletin.tell(sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), bundles("later"));
    }
}
