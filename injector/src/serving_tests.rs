use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Aim: a certificate is renewed at two thirds of its life; failures are retried ever more slowly, and how things stand is said.
#[test]
fn renewal_is_early_and_patient() {
    let begin = HOUR * 100;
    let none = Renewal::default();
    assert_eq!((none.is_due(begin), none.standing(begin)), (true, Standing::Missing));
    let fresh = Renewal::issued(begin, begin + HOUR * 3);
    assert_eq!((fresh.is_due(begin + HOUR * 2 - Duration::from_secs(1)), fresh.is_due(begin + HOUR * 2)), (false, true));
    let (mut late, mut waits) = (fresh, Vec::new());
    for _ in 0..8 {
        late = late.failed(begin);
        waits.push((late.due - begin).as_secs());
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(fresh.standing(begin + HOUR * 2), Standing::Fresh);
    assert_eq!(late.standing(begin + HOUR * 2), Standing::Overdue);
    assert_eq!((fresh.standing(begin + HOUR * 3), late.standing(begin + HOUR * 4)), (Standing::Expired, Standing::Expired));
    assert_eq!((0..100).fold(none, |renewal, _| renewal.failed(begin)).standing(begin), Standing::Missing);
}

/// An issuer whose next word is put into it.
struct Scripted(parking_lot::Mutex<Result<(String, Duration), String>>);

impl Scripted {
    fn say(&self, word: Result<(&str, Duration), &str>) {
        *self.0.lock() = word.map(|(name, end)| (name.to_owned(), end)).map_err(str::to_owned);
    }
}

impl Issuer for Scripted {
    fn issue(&self) -> Result<Issued, String> {
        let (name, not_after) = self.0.lock().clone()?;
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name]).unwrap().self_signed(&key).unwrap();
        Ok(Issued { chain: vec![certificate.der().clone()], key: key.into(), not_before: not_after.saturating_sub(HOUR), not_after })
    }

    fn roots(&self) -> Result<String, String> {
        self.0.lock().clone().map(|(name, _)| format!("roots of {name}"))
    }

    fn has_news(&self) -> bool {
        false
    }
}

/// Aim: through hours of keeping: the first certificate comes at once, the next at two thirds, the roots with it; while the issuer is away the
/// last one serves on, expired at the end and said to be; when it is back, all is well within the longest wait.
#[tokio::test(start_paused = true)]
async fn a_certificate_is_kept() {
    let begin = tokio::time::Instant::now();
    let unix = move || HOUR * 1000 + begin.elapsed();
    let cell = Arc::new(ServingCell::new(Arc::new(move || UNIX_EPOCH + unix())));
    let issuer = Arc::new(Scripted(parking_lot::Mutex::new(Err("away".to_owned()))));
    let (roots, told) = watch::channel(String::new());
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(keep(Arc::clone(&cell), Arc::clone(&issuer) as Arc<dyn Issuer>, roots, stop.clone()));
    let serving = |cell: &ServingCell| cell.certificate.load_full().map(|certified| certified.cert[0].clone());

    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((cell.standing(), serving(&cell)), (Standing::Missing, None));
    issuer.say(Ok(("first", unix() + HOUR)));
    cell.first().await;
    let first = serving(&cell);
    assert_eq!(cell.standing(), Standing::Fresh);

    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(serving(&cell), first);
    issuer.say(Ok(("second", unix() + HOUR)));
    tokio::time::sleep(HOUR / 4).await;
    let second = serving(&cell);
    assert!(second.is_some() && second != first);
    assert_eq!(*told.borrow(), "roots of second");

    issuer.say(Err("away"));
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!((cell.standing(), serving(&cell)), (Standing::Overdue, second.clone()));
    tokio::time::sleep(HOUR).await;
    assert_eq!((cell.standing(), serving(&cell)), (Standing::Expired, second.clone()));
    assert_eq!(*told.borrow(), "roots of second");

    issuer.say(Ok(("third", unix() + HOUR)));
    tokio::time::sleep(RETRY_MAX + LOOK).await;
    assert_eq!(cell.standing(), Standing::Fresh);
    assert!(serving(&cell) != second);
    stop.cancel();
    keeping.await.unwrap();
}
