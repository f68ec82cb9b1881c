//! Attempts of one request: what each is sent, whose answer counts, how long they may take, and what is told of their endpoints.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proto::mesh::{self, ClusterPolicy, Hedge, Limits, RoutePolicy, Session};
use tokio::time::{Instant, sleep};

use super::governed::{GET, OK, ONE, TWO, UNAVAILABLE, answered, millis, play, retry};
use super::resources::{Told, told};
use super::*;

/// Plays every connection that is dialled: each thing that is read at once is a request, and is answered as `answer` says of its endpoint, or
/// never.
fn plays(world: &mut World, answer: impl AsyncFn(SocketAddr) -> Option<String> + 'static) {
    let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
    let answer = Rc::new(answer);
    tokio::task::spawn_local(async move {
        while let Some((address, mut application)) = applications.recv().await {
            let answer = Rc::clone(&answer);
            tokio::task::spawn_local(async move {
                let mut bytes = [0; 1024];
                while let Ok(1..) = application.read(&mut bytes).await {
                    if let Some(text) = answer(address).await {
                        write(&mut application, &text).await;
                    }
                }
            });
        }
    });
}

/// Asks on a connection of its own; whether the answer is good.
async fn is_answered(world: &World, ask: &str) -> bool {
    let mut client = world.dial(SERVICE);
    write(&mut client, ask).await;
    head(&mut client).await.starts_with("HTTP/1.1 200 ")
}

#[test]
fn an_early_answer_that_is_not_taken_takes_nothing_from_the_next() {
    // Aim: an endpoint that answers 503 before it has the whole body gets no more of it; the next one gets all, piece by piece.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\none").await;
        let (first, _, mut one) = play(&mut world, 3, UNAVAILABLE).await;
        let (second, mut two) = world.applications.recv().await.unwrap();
        assert_ne!(first, second);
        head(&mut two).await;
        for piece in ["one", "two", "six"] {
            if piece != "one" {
                write(&mut client, piece).await;
            }
            assert_eq!(exactly(&mut two, 3).await, piece);
        }
        assert_eq!(rest(&mut one).await, "", "it is closed, for its request has no end");
        write(&mut two, OK).await;
        answered(&mut client, "200").await;
    });
}

#[test]
fn the_same_holds_for_streams() {
    // Aim: over HTTP/2, where an endpoint that has answered goes on reading; its stream is reset, and the next one gets the whole body.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let refused: Rc<RefCell<Option<Incoming>>> = Rc::default();
        let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
        let own = Rc::clone(&refused);
        tokio::task::spawn_local(async move {
            while let Some((_, application)) = applications.recv().await {
                let refused = Rc::clone(&own);
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let refused = Rc::clone(&refused);
                    async move {
                        let first = refused.borrow().is_none();
                        let mut response = Response::new(Full::default());
                        if first {
                            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                            refused.replace(Some(request.into_body()));
                        } else {
                            *response.body_mut() = Full::new(request.into_body().collect().await.unwrap().to_bytes());
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                let builder = hyper::server::conn::http2::Builder::new(http2::LocalTasks);
                tokio::task::spawn_local(builder.serve_connection(TokioIo::new(application), service));
            }
        });
        let mut sender = http2::client(world.dial(SERVICE)).await;
        let (feed, fed) = mpsc::channel::<Bytes>(1);
        let pieces = futures::stream::unfold(fed, |mut fed| async move {
            let piece = fed.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), fed))
        });
        let request = Request::post("http://catalog/a").version(Version::HTTP_2).body(BodyExt::boxed(StreamBody::new(pieces))).unwrap();
        let calling = tokio::task::spawn_local(async move { sender.send_request(request).await.unwrap() });
        for piece in ["one", "two", "six"] {
            feed.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        drop(feed);
        let answer = calling.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "onetwosix");
        let first = refused.take().unwrap();
        assert!(first.collect().await.is_err(), "what was refused does not look whole");
    });
}

#[test]
fn trailers_are_sent_each_time() {
    // Aim: a request's trailers over HTTP/1 are there in its second sending, too.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        let body = "3\r\none\r\n0\r\nx-sum: 7\r\n\r\n";
        write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}")).await;
        let (_, first, _one) = play(&mut world, body.len(), UNAVAILABLE).await;
        let (_, second, _two) = play(&mut world, body.len(), OK).await;
        assert!(first.ends_with(body) && first == second, "{first} {second}");
        answered(&mut client, "200").await;
    });
}

#[test]
fn a_hedge_tells_of_the_attempt_that_won() {
    // Aim: where the first attempt wins its race the session is its endpoint's, and a request of a session is not asked for elsewhere.
    run(|| async {
        let hedge = Some(Hedge { at_quantile: 95.0, max_percent: 50.0, methods: vec!["GET".into()] });
        let session = Some(Session { name: "mw-session".into(), path: "/".into(), ..Session::default() });
        let policy = RoutePolicy { hedge, session, ..RoutePolicy::default() };
        let cluster = ClusterPolicy { sessions: true, ..ClusterPolicy::default() };
        let (mut world, _) = told(&Told { policy, cluster, ..Told::to(vec![ONE, TWO]) });
        let (wait, asked) = (Rc::new(Cell::new(5)), Rc::new(Cell::new(0)));
        let (own_wait, own_asked) = (Rc::clone(&wait), Rc::clone(&asked));
        plays(&mut world, async move |address| {
            own_asked.set(own_asked.get() + 1);
            sleep(Duration::from_millis(own_wait.get())).await;
            Some(OK.replace("ok", if address.to_string() == ONE { "o1" } else { "o2" }))
        });
        let mut client = world.dial(SERVICE);
        for _ in 0..200 {
            write(&mut client, GET).await;
            answered(&mut client, "200").await;
            exactly(&mut client, 2).await;
        }
        wait.set(100);
        asked.set(0);
        for _ in 0..4 {
            write(&mut client, GET).await;
            let answer = answered(&mut client, "200").await;
            let first = exactly(&mut client, 2).await;
            let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap().split(';').next().unwrap();
            write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n")).await;
            answered(&mut client, "200").await;
            assert_eq!(exactly(&mut client, 2).await, first);
        }
        assert_eq!(asked.get(), 4 * 2 + 4, "each first one is raced, and none of a session");
    });
}

#[test]
fn who_never_answers_is_found_by_the_time_of_requests() {
    // Aim: five requests that the route's own time has ended throw their endpoint out; a caller's shorter time and its slow body do not.
    run(|| async {
        let outlier = Some(mesh::Outlier {
            consecutive_errors: 5,
            interval: millis(10_000),
            eject_for: millis(3_000_000),
            max_ejected_percent: 100.0,
            ..mesh::Outlier::default()
        });
        let cluster = ClusterPolicy { outlier, ..ClusterPolicy::default() };
        let (mut world, _) = told(&Told { cluster, timeout: Some(Duration::from_secs(1)), ..Told::to(vec![ONE, TWO]) });
        plays(&mut world, async |address| (address.to_string() != ONE).then(|| OK.to_owned()));
        for (ask, wanted) in [
            ("GET / HTTP/1.1\r\nhost: a\r\ngrpc-timeout: 100m\r\n\r\n", 6..60),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf!", 6..60),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nwhole", 5..6),
            (GET, 0..1),
        ] {
            let mut missed = 0;
            for _ in 0..60 {
                missed += usize::from(!is_answered(&world, ask).await);
            }
            assert!(wanted.contains(&missed), "{missed} of {ask}");
        }
    });
}

#[test]
fn who_leaves_makes_room_for_the_next_trial() {
    // Aim: the one request that tries an endpoint whose ejection is over may be given up by its caller; the next one tries it.
    run(|| async {
        let outlier = Some(mesh::Outlier {
            consecutive_errors: 1,
            interval: millis(10_000),
            eject_for: millis(30_000),
            max_ejected_percent: 100.0,
            ..mesh::Outlier::default()
        });
        let cluster = ClusterPolicy { outlier, ..ClusterPolicy::default() };
        let (mut world, _) = told(&Told { cluster, ..Told::to(vec![ONE, TWO]) });
        let (silent, tried) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let (own_silent, own_tried) = (Rc::clone(&silent), Rc::clone(&tried));
        plays(&mut world, async move |address| {
            if address.to_string() != ONE {
                return Some(OK.to_owned());
            }
            own_tried.set(own_tried.get() + 1);
            (!own_silent.get()).then(|| UNAVAILABLE.to_owned())
        });
        while is_answered(&world, GET).await {}
        sleep(Duration::from_secs(31)).await;
        silent.set(true);
        // The request that finds the time to be over is not the one that tries.
        assert!(is_answered(&world, GET).await);
        for trial in 2..5 {
            let mut client = world.dial(SERVICE);
            write(&mut client, GET).await;
            sleep(Duration::from_millis(10)).await;
            assert_eq!(tried.get(), trial);
            assert!(is_answered(&world, GET).await, "one at a time");
            client.abort();
            drop(client);
            sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn who_waits_for_a_connection_is_not_late() {
    // Aim: the time of an attempt begins when there is a connection for it.
    run(|| async {
        let policy = RoutePolicy { attempt_timeout: millis(500), ..RoutePolicy::default() };
        let limits = Some(Limits { connections: 1, pending: 10, pending_timeout: millis(10_000), ..Limits::default() });
        let (mut world, _) = told(&Told { policy, cluster: ClusterPolicy { limits, ..ClusterPolicy::default() }, ..Told::to(vec![ONE]) });
        plays(&mut world, async |_| {
            sleep(Duration::from_millis(400)).await;
            Some(OK.to_owned())
        });
        let began = Instant::now();
        let answers = futures::future::join_all((0..3).map(|_| is_answered(&world, GET))).await;
        assert_eq!(answers, [true; 3]);
        assert!(began.elapsed() >= Duration::from_millis(1200), "one after the other: {:?}", began.elapsed());
    });
}

#[test]
fn no_wait_is_begun_that_the_request_would_not_outlast() {
    // Aim: a server that asks for more time than the request has is taken at its word: the caller gets its answer, at once.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, timeout: Some(Duration::from_secs(1)), ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        let began = Instant::now();
        write(&mut client, GET).await;
        let _one = play(&mut world, 0, "HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\ncontent-length: 0\r\n\r\n").await;
        let answer = answered(&mut client, "503").await;
        assert!(answer.contains("retry-after: 10\r\n") && began.elapsed() < Duration::from_millis(100), "{answer} {:?}", began.elapsed());
    });
}
