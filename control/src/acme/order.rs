//! One order, from the account to the certificate (RFC 8555, section 7). It touches nothing that is in force: what comes of it is judged before it
//! takes the place of anything.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use proto::names;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256,
    RsaKeySize,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::accounts::AccountSecret;
use super::calls::CallFault;
use super::dns;
use super::proving::Proving;
use super::shelf::document;
use super::trouble::{Trouble, VALIDATION_MAX, says, told};
use super::webhook::{Record, Webhook};
use crate::clock::Clock;
use crate::source::parse;
use crate::translate::AcmeName;
use crate::world::acme::{AcmeProof, AcmeShown};
use crate::world::certificate::{Certificate, judge};
use crate::world::edge::{AcmeChallenge, AcmeKeyType};
use crate::world::{ObjectKey, Spec};

/// Before it is asked a second time.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// Longest token of a challenge (RFC 8555, section 8: at least 128 bits as base64url).
const TOKEN_BYTES_MAX: usize = 256;

/// By what names are proved.
pub(super) struct Proofs<'a> {
    /// By proxies.
    pub proving: &'a Proving,
    /// What is shown to a webhook that writes DNS.
    pub account: &'a AccountSecret,
    /// The time.
    pub clock: &'a Clock,
}

/// A certificate that came: its Secret as text, and what it holds.
#[derive(Clone)]
pub(super) struct NewCertificate {
    /// The Secret, JSON.
    pub secret: Zeroizing<String>,
    /// Judged.
    pub certificate: Certificate,
}

impl NewCertificate {
    /// Whether it is of use for a host at that time, milliseconds since 1970.
    pub(super) fn is_for(&self, host: &str, now_ms: i64) -> bool {
        self.certificate.covers(host) && self.certificate.ends_ms > now_ms
    }
}

/// Which certificate an authority is asked about (RFC 9773, section 4.1); `None`: it does not say who has signed it.
pub(super) fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let leaf = CertificateDer::from_pem_slice(&certificate.chain).ok()?;
    CertificateIdentifier::try_from(&leaf).ok().map(CertificateIdentifier::into_owned)
}

/// Orders a certificate for a name. `replaces`: in place of that one.
pub(super) async fn obtain(
    account: &Account,
    name: &AcmeName,
    replaces: Option<CertificateIdentifier<'static>>,
    proofs: &Proofs<'_>,
) -> Result<NewCertificate, Trouble> {
    let mut order = begin(account, name, replaces).await?;
    let shared = proofs.account.is_shared(&name.secret.namespace);
    if shared && forgotten(&mut order).await? {
        order = begin(account, name, None).await?;
    }
    let shown = authorize(&mut order, name, proofs, shared).await?;
    let came = finish(&mut order, name, proofs).await;
    if let Some(shown) = shown {
        shown.take_back().await;
    }
    came
}

/// Places an order.
async fn begin(account: &Account, name: &AcmeName, replaces: Option<CertificateIdentifier<'static>>) -> Result<Order, Error> {
    let names = [Identifier::Dns(name.host.clone())];
    let Some(replaced) = replaces else { return account.new_order(&NewOrder::new(&names)).await };
    match account.new_order(&NewOrder::new(&names).replaces(replaced)).await {
        Err(error) if minds_replacing(&error) => account.new_order(&NewOrder::new(&names)).await,
        // Else it is another authority's, or replaced already, or one that does not say that it has understood: then it is one more.
        order => order,
    }
}

/// Gives up what the authority knows of a name already, where others prove names by the same account: that they have proved it, somewhere, is no proof
/// that whoever orders it now may have it. Whether there was anything.
async fn forgotten(order: &mut Order) -> Result<bool, Trouble> {
    let (mut open, mut any) = (order.authorizations(), false);
    while let Some(authorization) = open.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            authorization.deactivate().await?;
            any = true;
        }
    }
    Ok(any)
}

/// From the proofs to the certificate.
async fn finish(order: &mut Order, name: &AcmeName, proofs: &Proofs<'_>) -> Result<NewCertificate, Trouble> {
    let patience = RetryPolicy::new().initial_delay(FIRST_LOOK).backoff(1.5).timeout(VALIDATION_MAX);
    let ready = order.poll_ready(&patience).await;
    if !matches!(ready, Ok(OrderStatus::Ready)) {
        // What the authority saw says more than that it did not like it.
        let seen = refused(order).await;
        return Err(match (seen, ready) {
            (Some(why), _) => Trouble::Failed(why),
            (None, Err(error)) => error.into(),
            (None, Ok(status)) => Trouble::Failed(format!("the authority holds the order {status:?}")),
        });
    }
    let kind = name.terms.key_type;
    let key = spawn_blocking(move || key(kind)).await.map_err(|_| Trouble::Failed("making a key ended unexpectedly".to_owned()))??;
    let csr = request(&name.host, &key)?;
    order.finalize_csr(&csr).await?;
    let chain = order.poll_certificate(&patience).await?;
    issued(&name.secret, &name.host, (&chain, &key), proofs.clock.age_ms())
}

/// Whether an authority may take the same order without a word of what it replaces (RFC 9773, section 5).
fn minds_replacing(error: &Error) -> bool {
    match error {
        Error::Api(_) => {
            !["rateLimited", "serverInternal", "accountDoesNotExist", "rejectedIdentifier"].iter().any(|word| says(error, word))
        }
        Error::Unsupported(_) => true,
        // The order is placed, and its answer does not repeat the word as it should: it has not been heard.
        Error::Other(cause) => cause.downcast_ref::<CallFault>().is_none(),
        _ => false,
    }
}

/// Meets the challenge of an order, if it is still open. What is given is to be taken back when the order ends. `shared`: nothing that was proved
/// before counts.
async fn authorize(order: &mut Order, name: &AcmeName, proofs: &Proofs<'_>, shared: bool) -> Result<Option<Record>, Trouble> {
    let wanted = order.state().authorizations.len();
    let mut open = order.authorizations();
    let (1, Some(authorization)) = (wanted, open.next().await) else {
        return Err(Trouble::Failed(format!("the authority wants {wanted} proofs for {}: it is to want one", name.host)));
    };
    let mut authorization = authorization?;
    match authorization.status {
        AuthorizationStatus::Valid if shared => {
            let why =
                "the authority takes the name for proved, by an account that other namespaces order by too, and does not give that up";
            return Err(Trouble::Failed(format!("{why}: give {} an account of its own", name.secret.namespace)));
        }
        AuthorizationStatus::Valid => return Ok(None),
        AuthorizationStatus::Pending => {}
        other => return Err(Trouble::Failed(format!("the authority holds the authorization for {} {other:?}", name.host))),
    }
    let kind = match name.terms.challenge {
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::Dns01 => ChallengeType::Dns01,
    };
    let none = || Trouble::Failed(format!("the authority offers no challenge {} for {}", name.terms.challenge, name.host));
    let mut challenge = authorization.challenge(kind).ok_or_else(none)?;
    if !is_token(&challenge.token) {
        return Err(Trouble::Failed("the authority's token is none: it is to be base64url of at most 256 characters".to_owned()));
    }
    let answer = challenge.key_authorization();
    let (proof, shown) = match name.terms.challenge {
        AcmeChallenge::Dns01 => {
            let record = written(name, &answer.dns_value(), proofs).await?;
            if let Err(error) = challenge.set_ready().await {
                record.take_back().await;
                return Err(error.into());
            }
            return Ok(Some(record));
        }
        AcmeChallenge::Http01 => (names::challenge_answer(&name.host, &challenge.token), AcmeShown::Answer(answer.as_str().to_owned())),
        AcmeChallenge::TlsAlpn01 => (names::challenge_certificate(&name.host), certificate(&name.host, answer.digest().as_ref())?),
    };
    let proof = AcmeProof { gateways: name.gateways.clone(), name: proof, shown };
    proofs.proving.show(&name.secret, proof).await.map_err(Trouble::Failed)?;
    challenge.set_ready().await?;
    Ok(None)
}

/// Has a record written into DNS, and waits until it is seen there.
async fn written(name: &AcmeName, value: &str, proofs: &Proofs<'_>) -> Result<Record, Trouble> {
    let (Some(terms), Some(place)) = (&name.terms.dns, &name.webhook) else {
        return Err(Trouble::Failed("nobody writes DNS for it (acme.dns01)".to_owned()));
    };
    let webhook = Webhook::new(place, terms.timeout, proofs.account.token()).map_err(Trouble::Failed)?;
    let fqdn = format!("_acme-challenge.{}.", name.host.trim_start_matches("*."));
    let record = Record::write(webhook, fqdn.clone(), value.to_owned()).await.map_err(Trouble::Failed)?;
    if let Err(why) = dns::seen(&fqdn, value, &terms.resolvers).await {
        record.take_back().await;
        return Err(Trouble::Failed(why));
    }
    Ok(record)
}

/// Whether it is a token (RFC 8555, section 8.3): it becomes part of a path that is answered, and of the name of what is sent to proxies.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(plain)
}

/// What the authority says of a challenge that it did not find met.
async fn refused(order: &mut Order) -> Option<String> {
    let mut all = order.authorizations();
    while let Some(Ok(mut authorization)) = all.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let error = state.challenges.iter().find_map(|challenge| challenge.error.clone());
        if let Some(error) = error {
            return Some(told(&Error::Api(error)));
        }
    }
    None
}

fn faulty(error: rcgen::Error) -> Trouble {
    Trouble::Failed(format!("a key or a certificate cannot be made: {error}"))
}

fn key(kind: AcmeKeyType) -> Result<KeyPair, Trouble> {
    let made = match kind {
        AcmeKeyType::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        AcmeKeyType::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        AcmeKeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
    };
    made.map_err(faulty)
}

/// A request to sign (RFC 8555, section 7.4): the name alone, where clients look.
fn request(host: &str, key: &KeyPair) -> Result<Vec<u8>, Trouble> {
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(faulty)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key).map_err(faulty)?.der().to_vec())
}

/// What RFC 8737, section 3, wants to be shown: the name, and the hash of what would be answered.
fn certificate(host: &str, digest: &[u8]) -> Result<AcmeShown, Trouble> {
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(faulty)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(faulty)?;
    let shown = params.self_signed(&key).map_err(faulty)?;
    Ok(AcmeShown::Certificate(shown.pem(), Zeroizing::new(key.serialize_pem())))
}

/// A chain that came, judged as that of any Secret.
fn issued(secret: &ObjectKey, host: &str, (chain, key): (&str, &KeyPair), now_ms: i64) -> Result<NewCertificate, Trouble> {
    let text = Zeroizing::new(document(secret, chain, &key.serialize_pem()).to_string());
    let read = parse("acme", &text).candidates.into_iter().find_map(|candidate| candidate.object);
    let judged = match read.as_deref().map(|object| &object.spec) {
        Some(Spec::Secret(contents)) => judge(contents).map_err(|fault| fault.to_string()),
        _ => Err("it cannot be read".to_owned()),
    };
    let wrong = |why: String| Trouble::Failed(format!("what the authority issued for {host} is not used: {why}"));
    let certificate = judged.map_err(wrong)?;
    if !certificate.covers(host) {
        return Err(wrong(format!("it is for {}", certificate.names.join(", "))));
    }
    if certificate.ends_ms <= now_ms {
        return Err(wrong("it has ended already by the clock of this machine".to_owned()));
    }
    Ok(NewCertificate { secret: text, certificate })
}

#[cfg(test)]
mod tests {
    use proto::annotations::ACME;

    use super::*;
    use crate::world::Kind;

    #[test]
    fn what_is_shown_to_an_authority_is_for_the_name_and_its_hash() {
        // Aim: one DNS name, and the critical extension 1.3.6.1.5.5.7.1.31 with the hash as an octet string (RFC 8737, section 3).
        let Ok(AcmeShown::Certificate(chain, key)) = certificate("a.example", &[7; 32]) else { panic!("no certificate") };
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let (_, read) = x509_parser::parse_x509_certificate(&der).unwrap();
        let extension = read.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31").unwrap();
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &[7; 32]].concat());
        let names = read.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(key.contains("PRIVATE KEY"));
    }

    #[test]
    fn tokens_are_base64url() {
        // Aim: what an authority says becomes a path and a name: nothing else than its alphabet, and no more of it than any needs.
        assert!(is_token("DGyRejmCefe7v4NfDGDKfA") && is_token("a-_9") && is_token(&"a".repeat(256)));
        for text in ["", "a/b", "../x", "a.b", "a b", "a%2f", "é", "a\n", &"a".repeat(257)] {
            assert!(!is_token(text), "{text}");
        }
    }

    #[test]
    fn what_comes_is_judged_before_it_is_used() {
        // Aim: another key, another name, an end that is over and no certificate are refused with words; a good one is a Secret that says that it is ours; every kind
        // of key makes a request.
        let secret = ObjectKey::new(Kind::Secret, "shop", "acme-a.example");
        let own = key(AcmeKeyType::P256).ok().unwrap();
        let signed = |host: &str, key: &KeyPair| CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(key).unwrap().pem();
        let failed = |chain: &str| match issued(&secret, "a.example", (chain, &own), 0) {
            Err(Trouble::Failed(why)) => why,
            _ => panic!("it should be refused"),
        };
        assert!(failed("nonsense").contains("holds no certificate"), "{}", failed("nonsense"));
        assert!(failed(&signed("a.example", &key(AcmeKeyType::P256).ok().unwrap())).contains("not that of its certificate"));
        assert!(failed(&signed("b.example", &own)).contains("it is for b.example"));
        let chain = signed("a.example", &own);
        let good = issued(&secret, "a.example", (&chain, &own), 0).ok().unwrap();
        let Err(Trouble::Failed(why)) = issued(&secret, "a.example", (&chain, &own), good.certificate.ends_ms) else {
            panic!("it has ended")
        };
        assert!(why.contains("has ended already"), "{why}");
        assert!(good.is_for("a.example", 0) && !good.is_for("b.example", 0) && !good.is_for("a.example", good.certificate.ends_ms));
        let document: serde_json::Value = serde_json::from_str(&good.secret).unwrap();
        assert_eq!((document["metadata"]["labels"][ACME].as_str(), document["type"].as_str()), (Some("on"), Some("kubernetes.io/tls")));
        for kind in [AcmeKeyType::P256, AcmeKeyType::P384, AcmeKeyType::Rsa2048] {
            assert!(request("a.example", &key(kind).ok().unwrap()).is_ok_and(|csr| csr.len() > 100), "{kind:?}");
        }
    }
}
