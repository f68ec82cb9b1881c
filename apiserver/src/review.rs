//! Whose a service-account token is: the API server says so (TokenReview), and whether the pod that the token is bound to is there still.
//!
//! No verdict is remembered: it would outlive its pod. A certificate lasts for hours, so the calls are few; so many at once at most
//! ([`REVIEWS_MAX`]), and whoever waits for its turn waits no longer than for an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::Semaphore;

use crate::client::{CallError, within};

/// Tokens reviewed at once.
pub const REVIEWS_MAX: usize = 64;
/// How long a review may take in all, its turn included. A proxy waits for ten seconds.
pub const REVIEW_MAX: Duration = Duration::from_secs(8);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// Namespace of the account, and of the pod.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// Name and unique id of the pod it is bound to, which is there; absent in tokens that are bound to none.
    pub pod: Option<(String, String)>,
    /// For whom it is, of those that were asked about.
    pub audiences: Vec<String>,
}

/// Why a token admits nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It is not good; the same never is.
    #[error("{0}")]
    Refused(String),
    /// Nobody could say; the same may be good later.
    #[error("{0}")]
    Unreachable(String),
}

impl From<CallError> for ReviewError {
    fn from(error: CallError) -> Self {
        Self::Unreachable(error.text)
    }
}

/// Asks the API server.
pub struct Reviewer {
    client: Client,
    turns: Semaphore,
}

impl Reviewer {
    /// One that asks as `client`, which needs the right to create `tokenreviews` and to get `pods`.
    pub fn new(client: Client) -> Self {
        Self { client, turns: Semaphore::new(REVIEWS_MAX) }
    }

    /// Judges signature, end, audience and pod of a token.
    ///
    /// # Errors
    /// [`ReviewError`].
    pub async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        let asked = async {
            // Never closed.
            let _turn = self.turns.acquire().await;
            let reviewed = judge(self.ask(token, audience).await?)?;
            if let Some((name, uid)) = &reviewed.pod {
                let pods: Api<Pod> = Api::namespaced(self.client.clone(), &reviewed.namespace);
                let found = within(REVIEW_MAX, pods.get_metadata_opt(name)).await?;
                alive(&reviewed.namespace, name, uid, found.map(|pod| pod.uid().unwrap_or_default()).as_deref())?;
            }
            Ok(reviewed)
        };
        let late = || ReviewError::Unreachable(format!("the API server has not answered within {} s", REVIEW_MAX.as_secs()));
        tokio::time::timeout(REVIEW_MAX, asked).await.unwrap_or_else(|_| Err(late()))
    }

    async fn ask(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, CallError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        Ok(within(REVIEW_MAX, reviews.create(&PostParams::default(), &review)).await?.status.unwrap_or_default())
    }
}

/// What the API server's answer says. Pure.
fn judge(status: TokenReviewStatus) -> Result<Reviewed, ReviewError> {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|why| !why.is_empty());
        return Err(ReviewError::Refused(
            why.unwrap_or_else(|| "the API server does not know it: it is expired, or of another cluster".to_owned()),
        ));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account.filter(|(namespace, account)| !namespace.is_empty() && !account.is_empty()) else {
        return Err(ReviewError::Refused(format!("it is of the user `{name}`, who is no service account")));
    };
    let extra = user.extra.unwrap_or_default();
    let pod = match (one(&extra, POD_NAME), one(&extra, POD_UID)) {
        (Some(name), Some(uid)) => Some((name, uid)),
        _ => None,
    };
    let (namespace, account) = (namespace.to_owned(), account.to_owned());
    Ok(Reviewed { namespace, account, pod, audiences: status.audiences.unwrap_or_default() })
}

fn one(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    extra.get(key).and_then(|values| values.first()).filter(|value| !value.is_empty()).cloned()
}

/// Whether the pod is there that a token is bound to. The API server's own word may be older than the pod's end; another pod of the same
/// name is another pod.
fn alive(namespace: &str, name: &str, uid: &str, found: Option<&str>) -> Result<(), ReviewError> {
    match found {
        Some(found) if found == uid => Ok(()),
        Some(found) => Err(ReviewError::Refused(format!(
            "it is bound to the pod {namespace}/{name} of uid {uid}, in whose place there is another ({found}); the pod's own token is renewed by its kubelet"
        ))),
        None => Err(ReviewError::Refused(format!("it is bound to the pod {namespace}/{name} of uid {uid}, which is deleted"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::testing::{Fake, Mood};

    const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
    const POD: &str = "/api/v1/namespaces/shop/pods/catalog-0";

    fn says(status: Value) -> Fake {
        let fake = Fake::default();
        fake.state()
            .answers
            .insert(REVIEWS.into(), json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {}, "status": status}));
        fake.state().put(POD, json!({"metadata": {"name": "catalog-0", "namespace": "shop", "uid": "u-1"}}));
        fake
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["meshwright.dev/ca"],
            "user": {
                "username": "system:serviceaccount:shop:catalog",
                "uid": "sa-uid",
                "groups": ["system:serviceaccounts"],
                "extra": {POD_NAME: ["catalog-0"], POD_UID: ["u-1"], "authentication.kubernetes.io/node-name": ["n"]},
            },
        })
    }

    async fn review(fake: &Fake) -> Result<Reviewed, ReviewError> {
        Reviewer::new(fake.client()).review("ey.token", "meshwright.dev/ca").await
    }

    #[tokio::test]
    async fn a_good_token_says_whose_it_is() {
        // Aim: the audience is asked for; account, pod and its uid come from the answer.
        let fake = says(good());
        let reviewed = review(&fake).await.unwrap();
        assert_eq!(fake.state().posted["spec"], json!({"token": "ey.token", "audiences": ["meshwright.dev/ca"]}));
        assert_eq!((reviewed.namespace.as_str(), reviewed.account.as_str()), ("shop", "catalog"));
        assert_eq!(reviewed.pod, Some(("catalog-0".into(), "u-1".into())));
        assert_eq!(reviewed.audiences, ["meshwright.dev/ca"]);
    }

    #[tokio::test]
    async fn what_is_not_good_is_refused_with_the_reason() {
        // Aim: another audience, an unknown token, a user, a deleted pod and a replaced one: each is refused, and the reason is told.
        let with = |path: &str, value: Value| {
            let mut status = good();
            *status.pointer_mut(path).unwrap() = value;
            status
        };
        let audience = "invalid bearer token, token audiences [\"x\"] is invalid for the target audiences [\"meshwright.dev/ca\"]";
        let table = [
            (json!({"authenticated": false, "error": audience}), "is invalid for the target audiences"),
            (json!({"authenticated": false}), "expired, or of another cluster"),
            (json!({}), "expired, or of another cluster"),
            (with("/user/username", json!("kubernetes-admin")), "`kubernetes-admin`, who is no service account"),
            (with("/user/username", json!("system:serviceaccount:shop:")), "no service account"),
            (with("/user/extra/authentication.kubernetes.io~1pod-uid", json!(["u-0"])), "there is another (u-1)"),
            (
                with("/user/extra/authentication.kubernetes.io~1pod-name", json!(["catalog-9"])),
                "shop/catalog-9 of uid u-1, which is deleted",
            ),
        ];
        for (status, why) in table {
            match review(&says(status)).await {
                Err(ReviewError::Refused(text)) => assert!(text.contains(why), "{text}"),
                other => panic!("{why}: {other:?}"),
            }
        }
        let unbound = review(&says(with("/user/extra", json!({})))).await.unwrap();
        assert_eq!(unbound.pod, None, "who asks decides on tokens of no pod");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_says_nothing_is_not_waited_for_for_ever() {
        // Aim: away, out of order, or forbidden to us: the token may be good later, and nobody waits longer than a proxy does.
        for mood in [Mood::Away, Mood::Says(500), Mood::Says(403)] {
            let fake = says(good());
            fake.state().mood = mood;
            let began = Instant::now();
            let error = review(&fake).await.unwrap_err();
            assert!(matches!(error, ReviewError::Unreachable(_)), "{error:?}");
            assert!(began.elapsed() <= REVIEW_MAX);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reviews_beyond_the_bound_wait_for_their_turn() {
        // Aim: no more calls at once than said, and who does not come to its turn in time is told so.
        let fake = says(good());
        fake.state().mood = Mood::Away;
        let reviewer = std::sync::Arc::new(Reviewer::new(fake.client()));
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..REVIEWS_MAX + 10 {
            let reviewer = reviewer.clone();
            asked.spawn(async move { reviewer.review("t", "a").await });
        }
        tokio::time::sleep(REVIEW_MAX / 2).await;
        assert_eq!(fake.state().calls, REVIEWS_MAX);
        while let Some(reviewed) = asked.join_next().await {
            assert!(matches!(reviewed.unwrap(), Err(ReviewError::Unreachable(_))));
        }
    }
}
