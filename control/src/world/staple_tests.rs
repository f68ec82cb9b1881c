use super::*;

/// One DER value. Lengths below 64 KiB.
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let length = match content.len() {
        0..128 => vec![low],
        128..256 => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag][..], &length, content].concat()
}

/// A response for that serial number: the status as its tag (0x80 good, 0xa1 revoked, 0x82 unknown), from when and until when
/// (`YYYYMMDDHHMMSSZ`).
pub(in crate::world) fn response(serial: &[u8], status: u8, from: &str, until: Option<&str>) -> Vec<u8> {
    signed((serial, status), (from, until), &|_| vec![0; 64], &[])
}

/// The same with a signature (ECDSA with SHA-256), and certificates behind it.
fn signed(
    (serial, status): (&[u8], u8),
    (from, until): (&str, Option<&str>),
    sign: &dyn Fn(&[u8]) -> Vec<u8>,
    certificates: &[u8],
) -> Vec<u8> {
    let time = |text: &str| value(0x18, text.as_bytes());
    let hash = value(0x30, &value(0x06, &[0x2b, 0x0e, 0x03, 0x02, 0x1a]));
    let id = value(0x30, &[hash, value(0x04, &[1; 20]), value(0x04, &[2; 20]), value(0x02, serial)].concat());
    let revoked = time("20260101000000Z");
    let status = value(status, if status == 0xa1 { &revoked } else { &[] });
    let until = until.map(|until| value(0xa0, &time(until))).unwrap_or_default();
    let single = value(0x30, &[id, status, time(from), until].concat());
    let data = [value(0xa2, &value(0x04, &[3; 20])), time(from), value(0x30, &single)].concat();
    let algorithm = value(0x30, &value(0x06, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]));
    let data = value(0x30, &data);
    let signature = value(0x03, &[&[0][..], &sign(&data)].concat());
    let behind = if certificates.is_empty() { Vec::new() } else { value(0xa0, &value(0x30, certificates)) };
    let basic = value(0x30, &[data, algorithm, signature, behind].concat());
    let bytes = value(0x30, &[value(0x06, &BASIC), value(0x04, &basic)].concat());
    value(0x30, &[value(0x0a, &[0]), value(0xa0, &bytes)].concat())
}

#[test]
fn an_answer_is_shown_for_as_long_as_it_holds() {
    // Aim: what is no response, an error, for another certificate, not good, early or over is left out and says why; the dates count once
    // the time is known, and an answer without an end has none.
    let serial = [0x12, 0x34];
    let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap().unix_timestamp() * 1000;
    let now = at("2026-06-01T00:00:00Z");
    let week = response(&serial, 0x80, "20260529000000Z", Some("20260605000000Z"));
    let mut broken = week.clone();
    broken.truncate(week.len() - 1);
    let longer = [&week[..], &[0]].concat();
    for (der, now_ms, wanted) in [
        (week.clone(), now, None),
        (week.clone(), 0, None),
        (week.clone(), at("2026-05-28T23:59:30Z"), None),
        (week.clone(), at("2026-05-28T00:00:00Z"), Some("holds from 2026-05-29T00:00:00Z")),
        (week.clone(), at("2026-06-05T00:00:01Z"), Some("held until 2026-06-05T00:00:00Z")),
        (response(&serial, 0x80, "20260529000000Z", None), at("2036-01-01T00:00:00Z"), None),
        (response(&[0x12, 0x35], 0x80, "20260529000000Z", None), now, Some("is for another certificate")),
        (response(&serial, 0xa1, "20260529000000Z", None), now, Some("says that the certificate is revoked")),
        (response(&serial, 0x82, "20260529000000Z", None), now, Some("says that its authority does not know the certificate")),
        (value(0x30, &value(0x0a, &[3])), now, Some("is an error of its authority, not an answer")),
        (b"garbage".to_vec(), now, Some("is no OCSP response (DER)")),
        (Vec::new(), now, Some("is no OCSP response (DER)")),
        (broken, now, Some("is no OCSP response (DER)")),
        (longer, now, Some("is no OCSP response (DER)")),
    ] {
        let read = Staple::read("tls.ocsp", &KeptBytes::new(der), (&serial, None));
        let staple = read.at(now_ms, 60_000).unwrap_or(read);
        let wanted = wanted.map(|why| format!("its entry `tls.ocsp` {why}; the certificate is shown without"));
        assert_eq!(staple.refused(), wanted);
        assert_eq!(staple.shown().is_some(), wanted.is_none());
        assert_eq!(staple.at(now_ms, 60_000), None, "the same moment makes it no other");
    }
}

#[test]
fn who_signed_it_is_looked_at_where_the_issuer_is_known() {
    // Aim: the issuer itself, or somebody with its certificate for answering; not a stranger, nor a certificate for something else, nor an
    // answer that was changed. Without the issuer in the chain clients judge.
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SigningKey as _};
    let serial = [0x12, 0x34];
    let (root_key, own_key, foe_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::new(vec!["root.example".to_owned()]).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let by = |key: &KeyPair, certificates: &[u8]| {
        signed((&serial, 0x80), ("20260529000000Z", None), &|said| key.sign(said).unwrap(), certificates)
    };
    let issuer = Issuer::new(root, KeyPair::from_pem(&root_key.serialize_pem()).unwrap());
    let responder = |purpose: ExtendedKeyUsagePurpose| {
        let mut params = CertificateParams::new(vec!["ocsp.example".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        params.signed_by(&own_key, &issuer).unwrap().der().to_vec()
    };
    let answers = responder(ExtendedKeyUsagePurpose::OcspSigning);
    let own = CertificateParams::new(vec!["foe.example".to_owned()]).unwrap().self_signed(&foe_key).unwrap().der().to_vec();
    let mut changed = by(&root_key, &[]);
    let at = changed.windows(14).position(|bytes| bytes == b"20260529000000").unwrap();
    changed[at + 3] = b'7';
    let (_, root) = X509Certificate::from_der(&root_der).unwrap();
    for (der, good) in [
        (by(&root_key, &[]), true),
        (by(&own_key, &answers), true),
        (by(&foe_key, &[]), false),
        (by(&foe_key, &answers), false),
        (by(&foe_key, &own), false),
        (by(&own_key, &responder(ExtendedKeyUsagePurpose::ServerAuth)), false),
        (changed, false),
    ] {
        let read = |issuer| Staple::read("tls.ocsp", &KeptBytes::new(der.clone()), (&serial, issuer)).refused();
        assert_eq!(read(Some(&root)).is_none(), good, "{:?}", read(Some(&root)));
        assert_eq!(read(None), None);
    }
}

#[test]
fn no_bytes_are_too_odd_to_be_judged() {
    // Aim: every cut and every flipped byte of a response is answered, never with a panic.
    let serial = [0x01];
    let whole = response(&serial, 0x80, "20260529000000Z", Some("20260605000000Z"));
    for place in 0..whole.len() {
        assert!(said_of(&whole[..place], &serial).is_err());
        let mut flipped = whole.clone();
        flipped[place] ^= 0xff;
        let _ = said_of(&flipped, &serial);
    }
}
