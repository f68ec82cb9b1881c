//! Sessions: a client goes back to the endpoint that answered it first, as long as that one lives.

use std::sync::Arc;

use engine::model::{Cluster, Endpoint, Forward, Session, SessionKept, SessionTerms, Settings, Target};
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

/// Where a session leads: the backend, by its place in the rule, and the cluster.
pub type Home = (usize, Arc<Cluster>);

impl Sticky {
    /// Finds a request's session among all backends of its rule, those without weight too: a weight decides about new clients. `secure`: the
    /// client came by TLS.
    pub fn find(
        session: &Session,
        forward: &Forward,
        headers: &HeaderMap,
        settings: &Arc<Settings>,
        (secure, wall_secs): (bool, u32),
    ) -> (Box<Self>, Option<Home>) {
        let mut sticky = Box::new(Self { settings: Arc::clone(settings), kept: None, secure, endpoint: None });
        sticky.kept = session.wanted(headers, sticky.terms(wall_secs));
        let Some(kept) = sticky.kept else { return (sticky, None) };
        for (place, backend) in forward.backends.iter().enumerate() {
            let Target::Cluster(cluster) = &backend.target else { continue };
            if let Some(endpoint) = cluster.endpoints.load().of_session(&kept.token) {
                sticky.endpoint = Some(Arc::clone(endpoint));
                return (sticky, Some((place, Arc::clone(cluster))));
            }
        }
        (sticky, None)
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
