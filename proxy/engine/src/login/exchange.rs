//! What is asked at a provider's token endpoint (RFC 6749), how the client proves itself there, and what an answer says.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaPair;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::form::encoded;
use super::seal::drawn;
use crate::authenticate::KeysUri;
use crate::callout::CalloutAnswer;

/// A signed proof of the client's holds so long.
const ASSERTION_SECS: u64 = 60;
/// Longest token of an answer.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// How a client proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientProof {
    /// It does not: it is public.
    None,
    /// By its secret, in the header (RFC 6749, section 2.3.1).
    Basic,
    /// By its secret, in the form.
    Post,
    /// By a signature (RFC 7523).
    PrivateKeyJwt,
}

/// Who asks.
pub(super) struct LoginClient<'c> {
    pub(super) id: &'c str,
    pub(super) proof: ClientProof,
    /// Its secret, or its private key.
    pub(super) secret: &'c [u8],
    /// Name of the private key.
    pub(super) key_id: &'c str,
}

/// What the token endpoint says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenAnswer {
    pub(super) access_token: String,
    pub(super) id_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    pub(super) expires_secs: Option<u64>,
}

/// Why there are no tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoTokens {
    /// What was shown does not hold (any more).
    Refused,
    /// The client is not who it says, or may not ask; or what the provider says is no answer.
    Wrong,
}

/// Writes a question down. `form`: its own fields.
///
/// # Errors
/// The client cannot prove itself; says why, without its secret.
pub(super) fn question(at: &KeysUri, client: &LoginClient<'_>, form: &[(&str, &str)], now_secs: u64) -> Result<Request<Bytes>, String> {
    let mut body = Zeroizing::new(String::new());
    let mut add = |name: &str, value: &str| {
        if !body.is_empty() {
            body.push('&');
        }
        body.push_str(&encoded(name));
        body.push('=');
        body.push_str(&encoded(value));
    };
    form.iter().for_each(|(name, value)| add(name, value));
    let secret = std::str::from_utf8(client.secret).map_err(|_| "the client's secret is no text".to_owned())?;
    let mut shown = None;
    match client.proof {
        ClientProof::None => add("client_id", client.id),
        ClientProof::Basic => {
            let pair = Zeroizing::new(format!("{}:{}", encoded(client.id), encoded(secret)));
            let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            shown = Some(value.map_err(|_| "the client's secret cannot be written down".to_owned())?);
        }
        ClientProof::Post => {
            add("client_id", client.id);
            add("client_secret", secret);
        }
        ClientProof::PrivateKeyJwt => {
            add("client_id", client.id);
            add("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
            add("client_assertion", &assertion(at, client, now_secs)?);
        }
    }
    let target = at.uri().path_and_query().map_or("/", |target| target.as_str());
    let host = at.uri().authority().map_or("", |authority| authority.as_str());
    let content = Bytes::copy_from_slice(body.as_bytes());
    let mut request = Request::post(if target.is_empty() { "/" } else { target })
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "meshwright")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::CONTENT_LENGTH, content.len());
    if let Some(mut value) = shown {
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(content).map_err(|error| error.to_string())
}

/// A private key, by its kind.
enum ClientKey {
    Rsa(Box<RsaPair>),
    Elliptic(EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
}

fn signing(pem: &[u8]) -> Result<ClientKey, String> {
    let none = || "it is no private key in PEM (PKCS #8: RSA of 2048 bits or more, P-256 or Ed25519)".to_owned();
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| none())?;
    let der = key.secret_der();
    if let PrivateKeyDer::Pkcs1(_) = key {
        return RsaPair::from_der(der).map(|pair| ClientKey::Rsa(Box::new(pair))).map_err(|_| none());
    }
    if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
        return Ok(ClientKey::Elliptic(pair));
    }
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(ClientKey::Edwards(pair));
    }
    RsaPair::from_pkcs8(der).map(|pair| ClientKey::Rsa(Box::new(pair))).map_err(|_| none())
}

/// Why this is no key that a client can sign with.
///
/// # Errors
/// Says why, without it.
pub fn check_private_key(pem: &[u8]) -> Result<(), String> {
    signing(pem).map(|_| ())
}

/// A signed proof, for this endpoint alone (OpenID Connect Core 1.0, section 9).
fn assertion(at: &KeysUri, client: &LoginClient<'_>, now_secs: u64) -> Result<String, String> {
    let key = signing(client.secret)?;
    let algorithm = match key {
        ClientKey::Rsa(_) => "RS256",
        ClientKey::Elliptic(_) => "ES256",
        ClientKey::Edwards(_) => "EdDSA",
    };
    let mut head = json!({"alg": algorithm, "typ": "JWT"});
    if !client.key_id.is_empty() {
        head["kid"] = client.key_id.into();
    }
    let unique = drawn::<16>().ok_or("the system gives no random bytes")?;
    let claims = json!({
        "iss": client.id, "sub": client.id, "aud": at.uri().to_string(), "jti": unique, "iat": now_secs, "exp": now_secs + ASSERTION_SECS,
    });
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let random = SystemRandom::new();
    let failed = |_| "the client's key does not sign".to_owned();
    let signature = match &key {
        ClientKey::Rsa(pair) => {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).map_err(failed)?;
            signature
        }
        ClientKey::Elliptic(pair) => pair.sign(&random, message.as_bytes()).map_err(failed)?.as_ref().to_vec(),
        ClientKey::Edwards(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
    };
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

impl TokenAnswer {
    /// Reads an answer (RFC 6749, section 5).
    pub(super) fn read(answer: &CalloutAnswer) -> Result<Self, NoTokens> {
        let said: Map<String, Value> = serde_json::from_slice(&answer.body).map_err(|_| NoTokens::Wrong)?;
        if answer.status != StatusCode::OK {
            let error = said.get("error").and_then(Value::as_str);
            return Err(if error == Some("invalid_grant") { NoTokens::Refused } else { NoTokens::Wrong });
        }
        let token = |name: &str| match said.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) if good(token) => Ok(Some(token.clone())),
            Some(_) => Err(NoTokens::Wrong),
        };
        let expires_secs = match said.get("expires_in") {
            None | Some(Value::Null) => None,
            Some(Value::Number(secs)) => Some(secs.as_f64().filter(|secs| *secs >= 0.0).ok_or(NoTokens::Wrong)? as u64),
            // Some providers write it as text.
            Some(Value::String(secs)) => Some(secs.parse().map_err(|_| NoTokens::Wrong)?),
            Some(_) => return Err(NoTokens::Wrong),
        };
        Ok(Self {
            access_token: token("access_token")?.ok_or(NoTokens::Wrong)?,
            id_token: token("id_token")?,
            refresh_token: token("refresh_token")?,
            expires_secs,
        })
    }
}

/// Visible characters, as a header and a form can carry them (RFC 6749, appendix A.12).
fn good(token: &str) -> bool {
    !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proof: ClientProof, secret: &[u8]) -> LoginClient<'_> {
        LoginClient { id: "ed ge", proof, secret, key_id: "" }
    }

    fn asked(client: &LoginClient<'_>) -> (Option<String>, String) {
        let at = KeysUri::read("https://id.example/token").unwrap();
        let request = question(&at, client, &[("grant_type", "authorization_code"), ("code", "a&b=c")], 1_000).unwrap();
        assert_eq!((request.uri().path(), request.headers()["host"].to_str().unwrap()), ("/token", "id.example"));
        let shown = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        (shown, String::from_utf8(request.into_body().to_vec()).unwrap())
    }

    #[test]
    fn a_client_proves_itself_as_it_is_told() {
        // Aim: each way of RFC 6749, section 2.3, and RFC 7523; nothing of the form can be made of a value; a secret stands in one place.
        let form = "grant_type=authorization_code&code=a%26b%3Dc";
        assert_eq!(asked(&client(ClientProof::None, b"")), (None, format!("{form}&client_id=ed%20ge")));
        let basic = format!("Basic {}", STANDARD.encode("ed%20ge:s%3Acret"));
        assert_eq!(asked(&client(ClientProof::Basic, b"s:cret")), (Some(basic), form.to_owned()));
        assert_eq!(asked(&client(ClientProof::Post, b"s:cret")), (None, format!("{form}&client_id=ed%20ge&client_secret=s%3Acret")));
    }

    #[test]
    fn a_private_key_signs_for_one_endpoint() {
        // Aim: the proof names client and endpoint, holds a minute and verifies by the public half; what is no key is refused without it.
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, KeyPair as _, UnparsedPublicKey};
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = pair.to_pkcs8v1().unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
        check_private_key(pem.as_bytes()).unwrap();
        let (shown, form) = asked(&LoginClient { key_id: "k1", ..client(ClientProof::PrivateKeyJwt, pem.as_bytes()) });
        assert!(shown.is_none() && form.contains("jwt-bearer"));
        let (_, assertion) = form.split_once("client_assertion=").unwrap();
        let (message, signature) = assertion.rsplit_once('.').unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
        public.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let (head, claims) = message.split_once('.').unwrap();
        let read = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!((read(head)["alg"].as_str(), read(head)["kid"].as_str()), (Some("ES256"), Some("k1")));
        let claims = read(claims);
        assert_eq!((claims["aud"].as_str(), claims["exp"].as_u64()), (Some("https://id.example/token"), Some(1_060)));
        for text in ["", "secret", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            let why = check_private_key(text.as_bytes()).unwrap_err();
            assert!(why.contains("no private key") && !why.contains("AAAA"));
        }
    }

    #[test]
    fn an_answer_is_read_or_is_none() {
        // Aim: what RFC 6749, section 5, says, and nothing that a form or header could not carry on; only `invalid_grant` is the provider's no.
        let read = |status: u16, body: &str| {
            TokenAnswer::read(&CalloutAnswer {
                status: StatusCode::from_u16(status).unwrap(),
                body: Bytes::copy_from_slice(body.as_bytes()),
                ..CalloutAnswer::default()
            })
        };
        let whole = read(200, r#"{"access_token":"a","id_token":"i","refresh_token":"r","expires_in":60,"token_type":"Bearer"}"#).unwrap();
        let wanted =
            TokenAnswer { access_token: "a".into(), id_token: Some("i".into()), refresh_token: Some("r".into()), expires_secs: Some(60) };
        assert_eq!(whole, wanted);
        assert_eq!(read(200, r#"{"access_token":"a","expires_in":"60"}"#).unwrap().expires_secs, Some(60));
        for (status, body) in [
            (200, ""),
            (200, "<html>"),
            (200, "[]"),
            (200, "{}"),
            (200, r#"{"access_token":7}"#),
            (200, r#"{"access_token":"a\nb"}"#),
            (200, r#"{"access_token":"a","id_token":{}}"#),
            (200, r#"{"access_token":"a","expires_in":-1}"#),
            (200, r#"{"access_token":"a","expires_in":[]}"#),
            (401, r#"{"error":"invalid_client"}"#),
            (500, r#"{"error":"server_error"}"#),
            (302, "{}"),
        ] {
            assert_eq!(read(status, body), Err(NoTokens::Wrong), "{status} {body}");
        }
        assert_eq!(read(400, r#"{"error":"invalid_grant"}"#), Err(NoTokens::Refused));
        let long = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(read(200, &long), Err(NoTokens::Wrong));
    }
}
