//! The Service that writes DNS records which prove names. It is asked by HTTP, as lego's `httpreq` asks: POST `/present` and `/cleanup` with
//! `{"fqdn": "_acme-challenge.shop.example.", "value": "…"}`, and any 2xx is done. A value is added to those that the name has, and taken from them:
//! several orders may be at one name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use http_body_util::Full;
use rustls::ClientConfig;
use serde_json::json;
use tokio::time::timeout;

use super::calls::{believing, send};
use crate::translate::AcmeWebhook;

/// Of what it says no with, what is told.
const ANSWER_CHARS_TOLD: usize = 200;

/// See the module.
#[derive(Clone)]
pub(super) struct Webhook {
    place: AcmeWebhook,
    tls: Option<(Arc<ClientConfig>, String)>,
    patience: Duration,
    /// The value of `authorization`.
    shown: Option<HeaderValue>,
}

impl Webhook {
    /// Waits so long for each answer; shows that token, if there is one.
    ///
    /// # Errors
    /// Nobody can be believed there, or the token is none.
    pub(super) fn new(place: &AcmeWebhook, patience: Duration, token: Option<&[u8]>) -> Result<Self, String> {
        let tls = match &place.tls {
            Some(tls) => {
                let from = format!("the BackendTLSPolicy of Service {}", place.service);
                Some((believing(tls.roots.as_deref(), &from)?, tls.name.clone()))
            }
            None => None,
        };
        let shown = token.map(|token| {
            let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat()).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let shown = match shown {
            Some(None) => return Err("entry `dns01.token` of the Secret that accountSecretRef names is no token".to_owned()),
            shown => shown.flatten(),
        };
        Ok(Self { place: place.clone(), tls, patience, shown })
    }

    /// Asks it for one thing.
    async fn ask(&self, path: &str, fqdn: &str, value: &str) -> Result<(), String> {
        let wrong = |why: String| format!("the webhook {} ({path} {fqdn}): {why}", self.place.service);
        let body = Bytes::from(json!({"fqdn": fqdn, "value": value}).to_string());
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut request = Request::post(format!("{scheme}://{}{path}", self.place.authority)).header(CONTENT_TYPE, "application/json");
        if let Some(shown) = &self.shown {
            request = request.header(AUTHORIZATION, shown);
        }
        let request = request.body(Full::new(body)).map_err(|error| wrong(error.to_string()))?;
        let tls = self.tls.as_ref().map(|(config, name)| (config, name.as_str()));
        let answer = match timeout(self.patience, send(tls, &self.place.addresses, request)).await {
            Ok(answer) => answer.map_err(wrong)?,
            Err(_) => return Err(wrong(format!("no answer within {} ms", self.patience.as_millis()))),
        };
        if answer.status().is_success() {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(answer.body()).chars().take(ANSWER_CHARS_TOLD).collect();
        Err(wrong(format!("it answers {} {}", answer.status(), said.escape_debug())))
    }
}

/// A record that a webhook has written. Whoever drops it leaves it to a task to have it taken away.
pub(super) struct Record {
    webhook: Webhook,
    fqdn: String,
    value: String,
    there: bool,
}

impl Record {
    /// Has it written.
    ///
    /// # Errors
    /// The webhook does not answer, or says no; what it may have written all the same is taken away.
    pub(super) async fn write(webhook: Webhook, fqdn: String, value: String) -> Result<Self, String> {
        // From here on it may be there, whether or not an answer comes.
        let record = Self { webhook, fqdn, value, there: true };
        match record.webhook.ask("/present", &record.fqdn, &record.value).await {
            Ok(()) => Ok(record),
            Err(why) => {
                record.take_back().await;
                Err(why)
            }
        }
    }

    /// Has it taken away. A webhook that does not is told of; nothing else hangs on it.
    pub(super) async fn take_back(mut self) {
        self.there = false;
        cleaned(&self.webhook, &self.fqdn, &self.value).await;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.there {
            let (webhook, fqdn, value) = (self.webhook.clone(), std::mem::take(&mut self.fqdn), std::mem::take(&mut self.value));
            runtime.spawn(async move { cleaned(&webhook, &fqdn, &value).await });
        }
    }
}

async fn cleaned(webhook: &Webhook, fqdn: &str, value: &str) {
    if let Err(why) = webhook.ask("/cleanup", fqdn, value).await {
        tracing::warn!(why, "a record that proved a name stays in DNS; it is of no more use to anybody");
    }
}
