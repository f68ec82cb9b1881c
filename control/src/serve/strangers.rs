//! Callers that have proved nothing yet, or never do: how many there are, how many of one origin, and how long one may stay that asks
//! nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use proto::origin;
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::publish::peer::Peer;

/// Stays of a stranger without an open request end after this long: a call by token takes less to begin.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// A number of places, of which no origin has more than a share.
#[derive(Debug)]
pub struct Shares {
    places_max: usize,
    of_origin_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    places: usize,
    origins: BTreeMap<IpAddr, usize>,
}

/// A place that is taken until this drops.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    origin: IpAddr,
}

impl Shares {
    /// So many places in all, and of one origin.
    pub fn new(places_max: usize, of_origin_max: usize) -> Arc<Self> {
        Arc::new(Self { places_max, of_origin_max, taken: Mutex::default() })
    }

    /// A place for a caller from there; `None`: all are taken, or its origin's are.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let origin = origin::of(address);
        let mut taken = self.taken.lock();
        let own = taken.origins.get(&origin).copied().unwrap_or(0);
        if taken.places >= self.places_max || own >= self.of_origin_max {
            return None;
        }
        taken.places += 1;
        taken.origins.insert(origin, own + 1);
        Some(Share { shares: self.clone(), origin })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock();
        taken.places -= 1;
        match taken.origins.get_mut(&self.origin) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.origins.remove(&self.origin)),
        }
    }
}

/// What the connection of a stranger is used for.
#[derive(Clone, Debug)]
pub struct Stay(Arc<Mutex<Use>>);

#[derive(Debug)]
struct Use {
    open: usize,
    /// Since when none is open.
    idle: Instant,
}

impl Stay {
    /// A connection that has just come.
    pub fn begin() -> Self {
        Self(Arc::new(Mutex::new(Use { open: 0, idle: Instant::now() })))
    }

    /// A request is open until what this gives drops.
    fn open(&self) -> Asking {
        self.0.lock().open += 1;
        Asking(self.clone())
    }

    /// When it has to go, as things stand; `None`: not while a request is open.
    fn ends(&self) -> Option<Instant> {
        let used = self.0.lock();
        (used.open == 0).then(|| used.idle + IDLE_MAX)
    }
}

struct Asking(Stay);

impl Drop for Asking {
    fn drop(&mut self) {
        let mut used = self.0.0.lock();
        used.open -= 1;
        used.idle = Instant::now();
    }
}

/// Ends a stay that asks nothing.
#[derive(Debug)]
pub struct Leave {
    stay: Stay,
    look: Pin<Box<Sleep>>,
}

impl Leave {
    /// Of that stay.
    pub fn of(stay: Stay) -> Self {
        Self { stay, look: Box::pin(sleep(IDLE_MAX)) }
    }

    /// Ready when the connection has to go. Wakes nobody before.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            let now = Instant::now();
            match self.stay.ends() {
                Some(end) if end <= now => return Poll::Ready(()),
                later => self.look.as_mut().reset(later.unwrap_or(now + IDLE_MAX)),
            }
        }
    }
}

/// What a request is told of its connection.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The other end.
    pub peer: Peer,
    /// Where it is a stranger's.
    pub stay: Option<Stay>,
}

/// Says of each request who asks, and counts those of strangers while they are open.
#[derive(Clone, Copy, Debug)]
pub struct Reception;

/// See [`Reception`].
#[derive(Clone, Debug)]
pub struct Received<S>(S);

impl<S> Layer<S> for Reception {
    type Service = Received<S>;

    fn layer(&self, inner: S) -> Received<S> {
        Received(inner)
    }
}

impl<S> Service<Request<Body>> for Received<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let guest = request.extensions_mut().remove::<Guest>();
        let asking = guest.and_then(|guest| {
            request.extensions_mut().insert(guest.peer);
            guest.stay.map(|stay| stay.open())
        });
        let answer = self.0.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // It is open until the last of its answer is gone.
            let held = |asking: Asking, body: Body| Body::new(body.map_frame(move |frame| (&asking, frame).1));
            Ok(match asking {
                Some(asking) => response.map(|body| held(asking, body)),
                None => response,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_origin_has_all_places() {
        // Aim: one address, or one network of IPv6, has its share, others have theirs, all together have the whole; what is given back is
        // there again.
        let shares = Shares::new(10, 4);
        let take = |text: &str| shares.take(text.parse().unwrap());
        let mut held: Vec<_> = (0..9).filter_map(|n| take(&format!("2001:db8::{n}"))).collect();
        assert_eq!(held.len(), 4);
        held.extend((0..9).filter_map(|_| take("127.0.0.2")));
        held.extend((0..9).filter_map(|_| take("127.0.0.3")));
        assert_eq!((held.len(), take("127.0.0.4").is_none()), (10, true));
        held.truncate(9);
        assert!(take("127.0.0.4").is_some());
        drop(held);
        let left = shares.taken.lock();
        assert_eq!((left.places, left.origins.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stay_ends_when_nothing_is_asked() {
        // Aim: half a minute without an open request is the end, an open one is none however long it takes, and its end begins anew.
        let stay = Stay::begin();
        let leave = |stay: &Stay| {
            let mut leave = Leave::of(stay.clone());
            tokio::spawn(std::future::poll_fn(move |cx| leave.poll(cx)))
        };
        let left = leave(&stay);
        sleep(IDLE_MAX - Duration::from_secs(1)).await;
        let asking = stay.open();
        sleep(IDLE_MAX * 10).await;
        assert!(!left.is_finished());
        let second = stay.open();
        drop(asking);
        sleep(IDLE_MAX * 2).await;
        assert!(!left.is_finished());
        drop(second);
        sleep(IDLE_MAX - Duration::from_secs(1)).await;
        assert!(!left.is_finished());
        sleep(IDLE_MAX).await;
        assert!(left.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_open_until_its_answer_has_gone() {
        // Aim: the peer is told to whoever answers; while the answer's body is there, the request counts as open.
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>(1);
        let body = Mutex::new(Some(Body::new(http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))));
        let mut service = Reception.layer(tower::service_fn(|request: Request<Body>| {
            assert!(request.extensions().get::<Peer>().is_some() && request.extensions().get::<Guest>().is_none());
            let body = body.lock().take().unwrap();
            async { Ok::<_, std::convert::Infallible>(Response::new(body)) }
        }));
        let stay = Stay::begin();
        let peer = Peer { door: crate::publish::peer::Entrance::Tls, address: None, proven: None };
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Guest { peer, stay: Some(stay.clone()) });
        let response = service.call(request).await.unwrap();
        assert!(stay.ends().is_none());
        drop(sender);
        response.into_body().collect().await.unwrap();
        assert!(stay.ends().is_some());
    }
}
