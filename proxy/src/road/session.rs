//! Sessions: a client goes back to the endpoint that answered it first, as long as that one lives.

use std::sync::Arc;

use engine::model::{Cluster, Endpoint, Forward, Session, SessionHome, SessionKept, SessionTerms, Settings};
use http::{HeaderMap, Response};

use crate::ground::body::Received;

/// What is known of a request's session until it is answered.
pub struct Sticky {
    settings: Arc<Settings>,
    kept: Option<SessionKept>,
    secure: bool,
    /// Where its client was served before.
    pub endpoint: Option<Arc<Endpoint>>,
}

impl Sticky {
    /// Finds a request's session. `secure`: the client came by TLS.
    pub fn find(
        session: &Session,
        forward: &Forward,
        headers: &HeaderMap,
        settings: &Arc<Settings>,
        (secure, wall_secs): (bool, u32),
    ) -> (Box<Self>, Option<SessionHome>) {
        let mut sticky = Box::new(Self { settings: Arc::clone(settings), kept: None, secure, endpoint: None });
        sticky.kept = session.wanted(headers, sticky.terms(wall_secs));
        let home = sticky.kept.and_then(|kept| forward.home(&kept.token));
        sticky.endpoint = home.as_ref().map(|home| Arc::clone(&home.endpoint));
        (sticky, home)
    }

    /// Tells the client its session with the endpoint that answered, if it does not know.
    pub fn tell(&self, session: &Session, (cluster, endpoint): (&Cluster, &Endpoint), wall_secs: u32, response: &mut Response<Received>) {
        // Made when the set was; an endpoint that has left it meanwhile begins no session.
        if let Some(token) = cluster.endpoints.load().session_of(endpoint)
            && let Some((name, value)) = session.answer(token, self.kept, self.terms(wall_secs))
        {
            response.headers_mut().append(name, value);
        }
    }

    fn terms(&self, wall_secs: u32) -> SessionTerms<'_> {
        SessionTerms { key: &self.settings.session_key, wall_secs, secure: self.secure }
    }
}
