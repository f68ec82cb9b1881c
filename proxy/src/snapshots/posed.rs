//! Questions about limits that proxies share: from workers to whoever speaks with the store. Neither side waits for the other.

use engine::filter::guard::LimitAsk;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait to be taken up; beyond it a request is treated as if the store were away.
pub const POSED_MAX: usize = 8_192;

/// One question; who waits for the answer looks at the limit again when it has come.
#[derive(Debug)]
pub struct Posed {
    /// What.
    pub ask: LimitAsk,
    /// Told when the answer has been noted; dropped without one where there is none.
    pub told: Option<oneshot::Sender<()>>,
}

/// The ways from workers to the stores: one to the control plane, one to all others.
#[derive(Debug, Default)]
pub struct LimitQuestions {
    leases: Way,
    remote: Way,
}

#[derive(Debug)]
struct Way {
    sender: mpsc::Sender<Posed>,
    receiver: Mutex<Option<mpsc::Receiver<Posed>>>,
}

impl Default for Way {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(POSED_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl LimitQuestions {
    /// Asks beside the road. A question that finds no place is asked again by the next request.
    pub fn aside(&self, ask: LimitAsk) {
        let _ = self.way(&ask).try_send(Posed { ask, told: None }).map_err(|full| unanswered(&full.into_inner()));
    }

    /// Asks, and says when the answer has come; `None`: too many wait already.
    pub fn ask(&self, ask: LimitAsk) -> Option<oneshot::Receiver<()>> {
        let (told, answer) = oneshot::channel();
        match self.way(&ask).try_send(Posed { ask, told: Some(told) }) {
            Ok(()) => Some(answer),
            Err(full) => {
                unanswered(&full.into_inner());
                None
            }
        }
    }

    /// Takes the other end of the way to the control plane, once.
    pub fn take(&self) -> Option<mpsc::Receiver<Posed>> {
        self.leases.receiver.lock().take()
    }

    /// The same of the way to stores elsewhere.
    pub fn take_remote(&self) -> Option<mpsc::Receiver<Posed>> {
        self.remote.receiver.lock().take()
    }

    fn way(&self, ask: &LimitAsk) -> &mpsc::Sender<Posed> {
        if ask.object.remote.is_some() { &self.remote.sender } else { &self.leases.sender }
    }
}

/// There is no answer to a question.
pub fn unanswered(posed: &Posed) {
    posed.ask.object.unanswered(posed.ask.key, 0);
}
