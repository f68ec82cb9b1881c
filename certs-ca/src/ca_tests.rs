use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::csr::tests::request as request_der;
use crate::external::verify;
use crate::held::Held;
use crate::own::dates;
use crate::roots::Phase;

const START: i64 = 1_800_000_000;
const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

fn request(uris: &[&str], workload: &str) -> Csr {
    Csr::parse(&request_der(uris, workload)).unwrap()
}

struct Desk {
    ca: Ca,
    time: Arc<AtomicI64>,
    folder: tempfile::TempDir,
}

fn open(folder: &Path, time: &Arc<AtomicI64>) -> Ca {
    let time = time.clone();
    let clock: Clock = Arc::new(move || OffsetDateTime::from_unix_timestamp(time.load(Ordering::Relaxed)).unwrap());
    Ca::open(folder, Policy::default(), clock).unwrap()
}

fn desk() -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(START));
    Desk { ca: open(folder.path(), &time), time, folder }
}

fn join(ca: &Ca) -> String {
    let order = TokenOrder { workload: "shop/catalog".into(), identity: CATALOG.parse().unwrap(), instance: None, life: None };
    ca.issue_token(&order).unwrap()
}

#[test]
fn a_token_gives_one_leaf_and_the_leaf_gives_the_next() {
    // Aim: first leaf by token, renewals by leaf, a second use refused; the book shows the newest.
    let desk = desk();
    let token = join(&desk.ca);
    let csr = request(&[CATALOG], "catalog");
    let first = desk.ca.sign(&csr, &Proof::Token(&token), "catalog-0", None).unwrap();
    let error = desk.ca.sign(&csr, &Proof::Token(&token), "catalog-0", None).unwrap_err().to_string();
    assert!(error.contains("used before"), "{error}");
    desk.time.store(START + 3600, Ordering::Relaxed);
    let second = desk.ca.sign(&csr, &Proof::Leaf(&first.chain[0]), "catalog-0", Some(Duration::from_secs(60))).unwrap();
    let certs = desk.ca.certs();
    assert_eq!(certs.iter().map(|entry| &entry.serial).collect::<Vec<_>>(), [&second.serial]);
    assert_eq!(certs[0].not_after, START + 3660);
    assert!(certs[0].issuer.contains("Meshwright issuing"));
}

#[test]
fn nobody_gets_another_identity() {
    // Aim: token or leaf for one workload signs no other, and a refused try does not use the token up.
    let desk = desk();
    let token = join(&desk.ca);
    let leaf = desk.ca.sign(&request(&[CATALOG], "catalog"), &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    for (identity, workload) in
        [("spiffe://cluster.local/ns/shop/sa/store", "catalog"), (CATALOG, "store"), ("spiffe://elsewhere/ns/shop/sa/catalog", "catalog")]
    {
        let csr = request(&[identity], workload);
        for proof in [Proof::Token(token.as_str()), Proof::Leaf(&leaf.chain[0])] {
            let error = desk.ca.sign(&csr, &proof, "catalog-0", None).unwrap_err();
            assert!(
                matches!(error, CaError::NotYours { .. } | CaError::TrustDomain { .. } | CaError::Token(TokenError::Other { .. })),
                "{error}"
            );
        }
    }
    desk.ca.sign(&request(&[CATALOG], "catalog"), &Proof::Token(&token), "catalog-0", None).unwrap();
}

#[test]
fn a_leaf_that_ended_within_a_day_comes_back_once() {
    // Aim: a machine that slept renews by its old leaf; a second time, or a day later, it needs a token.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", Some(Duration::from_secs(60))).unwrap();
    let renew = || desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None);
    desk.time.store(START + 3600, Ordering::Relaxed);
    renew().unwrap();
    assert!(renew().unwrap_err().to_string().contains("renewed once"));
    let other = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-1", Some(Duration::from_secs(60))).unwrap();
    desk.time.store(START + 3600 + 60 + 24 * 3600, Ordering::Relaxed);
    let late = desk.ca.sign(&csr, &Proof::Leaf(&other.chain[0]), "catalog-1", None).unwrap_err();
    assert!(late.to_string().contains("more than a day"), "{late}");
}

/// A leaf for the catalog as a thief signs it below that root, with a serial number of his choice.
fn forged(root: &crate::store::Pair, csr: &Csr, serial: [u8; SERIAL_BYTES]) -> CertificateDer<'static> {
    let now = OffsetDateTime::from_unix_timestamp(START).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(
        &CertificateDer::from(root.certificate.clone()),
        KeyPair::from_pkcs8_der_and_sign_algo(&root.key.as_slice().into(), &PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    let root_der = CertificateDer::from(root.certificate.clone());
    let (not_before, not_after) = dates(&root_der).unwrap();
    let certificate_der = root_der.clone();
    let issuing = Issuing { root_der, certificate_der, above: Vec::new(), not_after, not_before, issuer: Arc::new(issuer.unwrap()) };
    authority::sign(csr, &csr.identity, &issuing, SERVER_LIFE, now, serial, Bearer::default()).unwrap().chain.remove(0)
}

fn bytes(hex: &str) -> [u8; SERIAL_BYTES] {
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
}

#[test]
fn what_a_leaked_root_has_signed_buys_nothing() {
    // Aim: a leaf that this authority has not issued is renewed neither below the root in force nor below the retired one, whatever its
    // serial number says, also after a restart; one that it has issued is.
    let mut desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let leaked = desk.ca.store.pair(crate::store::Seal::Root).unwrap().unwrap();
    let issued = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    let thefts = [forged(&leaked, &csr, [7; SERIAL_BYTES]), forged(&leaked, &csr, bytes(&issued.serial))];
    for rotated in [false, true] {
        for theft in &thefts {
            for instance in ["catalog-0", "catalog-1"] {
                let refused = desk.ca.sign(&csr, &Proof::Leaf(theft), instance, None).unwrap_err();
                assert!(matches!(refused, CaError::NotIssued), "rotated: {rotated}, {instance}: {refused}");
            }
        }
        for turn in [Step::Trust, Step::Issue, Step::Drop].into_iter().filter(|_| !rotated) {
            desk = step(desk, turn, true);
        }
    }
    assert_eq!(desk.ca.roots().retired().len(), 1);
    desk.ca.sign(&csr, &Proof::Leaf(&issued.chain[0]), "catalog-0", None).unwrap();
}

#[test]
fn a_leaf_that_left_the_book_is_known_by_the_log() {
    // Aim: the bound of the book costs no instance its renewal; who shows what neither knows is counted like one who guesses.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    for _ in 0..crate::book::OF_INSTANCE_MAX {
        desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    }
    assert!(desk.ca.lock().book.find(&Held::read(&leaf.chain[0]).unwrap()).is_none());
    desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None).unwrap();
}

#[test]
fn a_leaf_renews_its_own_instance_only() {
    // Aim: no replica has leaves written into the book in the name of another, and none is kept from renewing by another.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    let refused = desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-1", None).unwrap_err().to_string();
    assert!(refused.contains("instance catalog-0") && refused.contains("instance catalog-1"), "{refused}");
    desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None).unwrap();
}

#[test]
fn rows_of_older_versions_are_known_by_what_they_say() {
    // Aim: they have no hash of the leaf; names, serial number and dates stand for it, so that an update asks nobody for a token.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    let mut row = desk.ca.store.entries().unwrap().remove(0);
    row.leaf_sha256.clear();
    desk.ca.store.put_issued(&[row], &[], &[], START).unwrap();
    let Desk { ca, time, folder } = desk;
    drop(ca);
    let ca = open(folder.path(), &time);
    ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None).unwrap();
}

#[test]
fn nobody_gets_the_identity_of_the_control_plane() {
    // Aim: neither token nor leaf for it, whatever is declared: with it one would be the control plane to every proxy.
    let desk = desk();
    let identity = "spiffe://cluster.local/ns/meshwright-system/sa/control";
    let order =
        TokenOrder { workload: "meshwright-system/control".into(), identity: identity.parse().unwrap(), instance: None, life: None };
    assert!(matches!(desk.ca.issue_token(&order), Err(CaError::Control(_))));
    let seat = desk.ca.seat(&ServerNames::default()).unwrap();
    let csr = request(&[identity], "control");
    for proof in [Proof::Leaf(&seat.chain[0]), Proof::Token(&join(&desk.ca)), Proof::ServiceAccount("x")] {
        let refused = desk.ca.sign(&csr, &proof, "control", None).unwrap_err();
        assert!(matches!(refused, CaError::Control(_)) && refused.to_string().contains("another service account"), "{refused}");
    }
    assert!(matches!(desk.ca.mint(&seat.chain[0], &["a".to_owned()]), Err(CaError::Control(_))));
}

#[test]
fn the_book_at_rest_is_the_book() {
    // Aim: what leaves the book leaves the disk, also where it ended while the process was away.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    for n in 0..10 {
        desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), &format!("catalog-{n}"), None).unwrap();
    }
    let Desk { ca, time, folder } = desk;
    drop(ca);
    time.store(START + 3 * 24 * 3600, Ordering::Relaxed);
    let ca = open(folder.path(), &time);
    for left in [7, 4, 3, 4] {
        ca.sign(&csr, &Proof::Token(&join(&ca)), "catalog-0", None).unwrap();
        assert_eq!(ca.store.entries().unwrap().len(), left);
    }
    let many: Vec<_> = (0..20_u8).map(|n| IssuedLeaf { serial: format!("{n:02}"), ..ca.store.entries().unwrap().remove(0) }).collect();
    ca.store.put_issued(&many, &[], &[], START).unwrap();
    drop(ca);
    let ca = open(folder.path(), &time);
    assert_eq!(ca.store.entries().unwrap().len(), crate::book::OF_INSTANCE_MAX);
}

#[test]
fn keys_tokens_and_book_survive_a_restart() {
    // Aim: same root, token still good, book still there after the process is gone.
    let desk = desk();
    let (token, used) = (join(&desk.ca), join(&desk.ca));
    let csr = request(&[CATALOG], "catalog");
    desk.ca.sign(&csr, &Proof::Token(&used), "catalog-0", None).unwrap();
    let bundle = desk.ca.bundle_pem();
    let Desk { ca, time, folder } = desk;
    drop(ca);
    let ca = open(folder.path(), &time);
    assert_eq!(ca.bundle_pem(), bundle);
    assert_eq!(ca.certs().len(), 1);
    ca.sign(&csr, &Proof::Token(&token), "catalog-1", None).unwrap();
    assert!(ca.sign(&csr, &Proof::Token(&used), "catalog-1", None).is_err());
}

#[test]
fn ten_years_of_issuing_never_hand_out_a_leaf_beyond_its_issuer() {
    // Aim: the issuing certificate renews itself in time, month after month, and ends with the root.
    let desk = desk();
    let day = 24 * 3600;
    let mut issuers = std::collections::BTreeSet::new();
    let csr = request(&[CATALOG], "catalog");
    for month in 1..121 {
        desk.time.store(START + month * 30 * day, Ordering::Relaxed);
        let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
        let (_, issuer_end) = dates(&leaf.chain[1]).unwrap();
        assert!(leaf.not_after <= issuer_end);
        issuers.insert(leaf.chain[1].to_vec());
    }
    assert!(issuers.len() > 40, "{}", issuers.len());
    desk.time.store(START + 3650 * day, Ordering::Relaxed);
    assert!(matches!(
        desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None),
        Err(CaError::Sign(SignError::IssuerExpired(_)))
    ));
}

#[test]
fn a_clock_that_was_ahead_for_a_moment_leaves_nothing_behind() {
    // Aim: an issuing certificate of the future is replaced once the clock is right again, also by a control plane that was restarted
    // meanwhile; the leaf that the instance got last is the one in the book.
    let day = 24 * 3600;
    for restarted in [false, true] {
        let mut desk = desk();
        let csr = request(&[CATALOG], "catalog");
        let sign = |ca: &Ca| ca.sign(&csr, &Proof::Token(&join(ca)), "catalog-0", None).unwrap();
        desk.time.store(START + 70 * day, Ordering::Relaxed);
        let early = sign(&desk.ca);
        desk.time.store(START, Ordering::Relaxed);
        if restarted {
            let Desk { ca, time, folder } = desk;
            drop(ca);
            desk = Desk { ca: open(folder.path(), &time), time, folder };
        }
        let leaf = sign(&desk.ca);
        let root = desk.ca.roots().issuing().clone();
        verify(&leaf.chain[0], &leaf.chain[1..], &root, now(&desk)).unwrap();
        let seat = desk.ca.seat(&ServerNames::default()).unwrap();
        verify(&seat.chain[0], &seat.chain[1..], &root, now(&desk)).unwrap();
        let again = sign(&desk.ca);
        assert_eq!(leaf.chain[1], again.chain[1], "replaced once");
        let certs = desk.ca.certs();
        assert_eq!(certs.iter().map(|entry| &entry.serial).collect::<Vec<_>>(), [&again.serial], "not {}", early.serial);
        let roots = desk.ca.roots_of_leaves();
        let known = [&early, &leaf, &again].map(|leaf| roots.get(&leaf.serial) == Some(&certs[0].root));
        assert_eq!(known, [true; 3], "each of them is known");
    }
}

#[test]
fn a_clock_that_was_ahead_leaves_no_issuer_of_the_future() {
    // Aim: an issuing certificate made while the clock was ahead, by a rotation or because the former one seemed to end, is replaced when
    // the clock is right again: a leaf never begins before what it was issued by.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    for (ahead, rotates) in [(7 * 3600, true), (3000 * 24 * 3600, false)] {
        desk.time.store(START + ahead, Ordering::Relaxed);
        if rotates {
            desk.ca.rotate(Step::Trust).unwrap();
            desk.ca.rotate(Step::Issue).unwrap();
        }
        desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
        desk.time.store(START, Ordering::Relaxed);
        let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
        for above in &leaf.chain[1..] {
            assert!(dates(above).unwrap().0 <= leaf.not_before, "{ahead}");
        }
    }
}

#[test]
fn nothing_that_has_ended_already_is_written_down() {
    // Aim: with the clock beyond the root's end, whoever asks makes no issuing certificate; the one at rest is as good as before once the
    // clock is right.
    let desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let first = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    let kept = || desk.ca.store.pair(crate::store::Seal::Issuing).unwrap().unwrap().certificate;
    let before = kept();
    desk.time.store(START + 4000 * 24 * 3600, Ordering::Relaxed);
    for _ in 0..3 {
        let refused = desk.ca.sign(&csr, &Proof::Token("mw1.none"), "catalog-0", None);
        assert!(matches!(refused, Err(CaError::Sign(SignError::IssuerExpired(_)))));
    }
    assert_eq!(kept(), before);
    desk.time.store(START, Ordering::Relaxed);
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    assert_eq!(leaf.chain[1], first.chain[1]);
}

#[test]
fn the_control_plane_has_a_seat_with_all_its_names() {
    // Aim: its leaf carries SPIFFE, DNS and IP names, and says when to fetch the next.
    let desk = desk();
    let names = ServerNames { dns: vec!["control.meshwright-system.svc".into()], addresses: vec!["10.77.0.1".parse().unwrap()] };
    let seat = desk.ca.seat(&names).unwrap();
    let (_, parsed) = X509Certificate::from_der(&seat.chain[0]).unwrap();
    let sans: Vec<_> = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(sans.len(), 3);
    assert!(sans[0].contains("spiffe://cluster.local/ns/meshwright-system/sa/control"), "{sans:?}");
    assert!(seat.lasts > SERVER_LIFE / 2 && seat.lasts < SERVER_LIFE);
}

/// Takes a step, in a process that ends right after it where `crash`.
fn step(desk: Desk, step: Step, crash: bool) -> Desk {
    desk.ca.rotate(step).unwrap();
    if !crash {
        return desk;
    }
    let Desk { ca, time, folder } = desk;
    drop(ca);
    Desk { ca: open(folder.path(), &time), time, folder }
}

fn now(desk: &Desk) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(desk.time.load(Ordering::Relaxed)).unwrap()
}

#[test]
fn a_rotation_goes_on_after_a_crash_at_any_point() {
    // Aim: after each step, with or without the end of the process behind it, roots, issuer and the leaves handed out fit together; a step
    // taken again, or out of turn, changes nothing.
    for crashes in 0..8 {
        let mut desk = desk();
        let old = desk.ca.roots().issuing().clone();
        let csr = request(&[CATALOG], "catalog");
        let mut new = None;
        let turns = [(Step::Trust, Phase::Trusting), (Step::Issue, Phase::Issuing), (Step::Drop, Phase::Steady)];
        for (turn, (turn_step, phase)) in turns.into_iter().enumerate() {
            desk = step(desk, turn_step, crashes & (1 << turn) != 0);
            let roots = desk.ca.roots();
            assert_eq!(desk.ca.rotate(turn_step).unwrap(), roots, "taken again");
            assert_eq!(roots.phase(), phase);
            let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
            verify(&leaf.chain[0], &leaf.chain[1..], roots.issuing(), now(&desk)).unwrap();
            assert!(leaf.not_after <= dates(&leaf.chain[1]).unwrap().1);
            match turn_step {
                Step::Trust => {
                    assert_eq!((roots.issuing(), roots.der().len()), (&old, 2));
                    new = Some(roots.der()[1].clone());
                    assert_eq!(desk.ca.rotate(Step::Drop).unwrap(), roots, "out of turn");
                }
                Step::Issue => {
                    assert_eq!((roots.der()[0].clone(), roots.der()[1].clone()), (new.clone().unwrap(), old.clone()));
                    // Whoever has lost the control plane knows the former root only, and believes this leaf still.
                    verify(&leaf.chain[0], &leaf.chain[1..], &old, now(&desk)).unwrap();
                }
                Step::Drop => {
                    assert_eq!((roots.der(), roots.retired()), (&[new.clone().unwrap()][..], &[old.clone()][..]));
                    assert_eq!(leaf.chain.len(), 2);
                }
            }
        }
    }
}

#[test]
fn whoever_knows_a_former_root_only_believes_the_control_plane() {
    // Aim: after one rotation and after two, the control plane's chain leads to every root that was, and shows each of them.
    let mut desk = desk();
    let mut former = Vec::new();
    for _ in 0..3 {
        former.push(desk.ca.roots().issuing().clone());
        for turn in [Step::Trust, Step::Issue, Step::Drop] {
            desk = step(desk, turn, false);
        }
        let seat = desk.ca.seat(&ServerNames::default()).unwrap();
        let roots = desk.ca.roots();
        for root in former.iter().chain([roots.issuing()]) {
            verify(&seat.chain[0], &seat.chain[1..], root, now(&desk)).unwrap();
            assert!(root == roots.issuing() || seat.chain.contains(root));
        }
    }
    assert!(desk.ca.seat(&ServerNames::default()).unwrap().chain.len() <= 3 + 2 * authority::FORMER_MAX);
}

#[test]
fn a_cross_certificate_stands_for_the_next_root_and_is_no_other() {
    // Aim: name and key of the next root, signed by the former one, with a serial number and dates of its own (facts.md: rcgen would derive
    // the serial from the key, and date it from 1975 to 4096).
    fn read<'d>(der: &'d CertificateDer<'_>) -> X509Certificate<'d> {
        X509Certificate::from_der(der).unwrap().1
    }
    let mut desk = desk();
    let old = desk.ca.roots().issuing().clone();
    desk.time.fetch_add(3600, Ordering::Relaxed);
    for turn in [Step::Trust, Step::Issue] {
        desk = step(desk, turn, false);
    }
    let new = desk.ca.roots().issuing().clone();
    let chain = desk.ca.seat(&ServerNames::default()).unwrap().chain;
    let [_, _, cross, shown @ ..] = chain.as_slice() else { panic!("{}", chain.len()) };
    assert_eq!(shown, [old.clone(), new.clone()]);
    let (cross, old, new) = (read(cross), read(&old), read(&new));
    assert_eq!((cross.subject(), cross.issuer(), cross.public_key()), (new.subject(), old.subject(), new.public_key()));
    assert_ne!(cross.raw_serial(), new.raw_serial());
    assert_eq!(cross.validity().not_after, old.validity().not_after);
    assert_eq!(cross.validity().not_before.timestamp(), old.validity().not_before.timestamp() - 365 * 24 * 3600);
}

#[test]
fn a_former_root_of_the_future_leads_to_the_next_one_now() {
    // Aim: both roots were made while the clock was ahead; who knows the former one only believes the control plane as soon as the clock is
    // right again, not when that time has come.
    let mut desk = desk();
    desk.time.fetch_add(4 * 3600, Ordering::Relaxed);
    for turn in [Step::Trust, Step::Issue, Step::Drop] {
        desk = step(desk, turn, false);
    }
    let former = desk.ca.roots().issuing().clone();
    for turn in [Step::Trust, Step::Issue, Step::Drop] {
        desk = step(desk, turn, false);
    }
    desk.time.fetch_sub(4 * 3600, Ordering::Relaxed);
    let seat = desk.ca.seat(&ServerNames::default()).unwrap();
    verify(&seat.chain[0], &seat.chain[1..], &former, now(&desk)).unwrap();
}

#[test]
fn a_retired_root_is_remembered_as_long_as_somebody_may_come_back() {
    // Aim: the longest leaf below it and the day of grace; then it is forgotten.
    let mut desk = desk();
    let csr = request(&[CATALOG], "catalog");
    let long = Policy { leaf_life: Duration::from_secs(30 * 24 * 3600), ..Policy::default() };
    desk.ca.set_policy(long);
    let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
    desk.ca.set_policy(Policy::default());
    for turn in [Step::Trust, Step::Issue, Step::Drop] {
        desk = step(desk, turn, false);
    }
    let renew = |desk: &Desk| desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None);
    desk.time.store(leaf.not_after.unix_timestamp() + 24 * 3600 - 1, Ordering::Relaxed);
    assert_eq!(desk.ca.roots().retired().len(), 1);
    renew(&desk).unwrap();
    desk.time.fetch_add(2, Ordering::Relaxed);
    assert!(desk.ca.roots().retired().is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]
    #[test]
    fn whatever_happens_to_an_authority_its_leaves_are_believed(
        story in proptest::collection::vec((0_u8..5, 1_u8..40), 1..20),
    ) {
        // Aim: steps in any order, ends of the process, weeks that pass: the leaf of that moment ends in the issuing root, which is believed,
        // and outlives nothing above it; the control plane's chain leads to the root of before.
        let mut desk = desk();
        let csr = request(&[CATALOG], "catalog");
        for (happens, days) in story {
            let before = desk.ca.roots();
            match happens {
                0 => drop(desk.ca.rotate(Step::Trust).unwrap()),
                1 => drop(desk.ca.rotate(Step::Issue).unwrap()),
                2 => drop(desk.ca.rotate(Step::Drop).unwrap()),
                3 => {
                    let Desk { ca, time, folder } = desk;
                    drop(ca);
                    desk = Desk { ca: open(folder.path(), &time), time, folder };
                }
                _ => drop(desk.time.fetch_add(i64::from(days) * 24 * 3600, Ordering::Relaxed)),
            }
            let roots = desk.ca.roots();
            let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
            verify(&leaf.chain[0], &leaf.chain[1..], roots.issuing(), now(&desk)).unwrap();
            proptest::prop_assert!(roots.der().contains(roots.issuing()) && roots.der().len() <= 2);
            proptest::prop_assert!(leaf.chain.iter().chain([roots.issuing()]).all(|above| leaf.not_after <= dates(above).unwrap().1));
            let seat = desk.ca.seat(&ServerNames::default()).unwrap();
            for root in before.der().iter().filter(|root| before.issuing() == *root || before.phase() == Phase::Issuing) {
                verify(&seat.chain[0], &seat.chain[1..], root, now(&desk)).unwrap();
            }
        }
    }
}
