//! What outlives a turn and is deleted in the middle of it: the holder, who knows what it held, makes it again.

use std::sync::Arc;
use std::time::Duration;

use apiserver::keep::{ConfigMap, Keep, KeepError, Secret};
use tokio_util::sync::CancellationToken;

/// Between two looks. Whoever takes the lease meanwhile would find no authority, and make another.
const LOOK: Duration = Duration::from_secs(5);

/// Looks until `stop`. The same trouble again is not told again.
pub(super) async fn mended(safe: Arc<Keep<Secret>>, book: Arc<Keep<ConfigMap>>, stop: CancellationToken) {
    let mut troubles = [None, None];
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let [of_safe, of_book] = &mut troubles;
        told(of_safe, safe.place(), safe.mend().await);
        told(of_book, book.place(), book.mend().await);
    }
}

fn told(trouble: &mut Option<String>, place: &str, mended: Result<bool, KeepError>) {
    match &mended {
        Ok(true) => {
            tracing::warn!(place, "it was deleted, and is made again with all that it held; `meshwright uninstall` removes the mesh")
        }
        Ok(false) => {}
        Err(error) if trouble.as_ref() == Some(&error.to_string()) => {}
        Err(error) => tracing::warn!(place, %error, "it is not known whether it is still there"),
    }
    *trouble = mended.err().map(|error| error.to_string());
}
