//! Questions to stores: from workers to whoever speaks with them. Neither side waits for the other.

use std::sync::Arc;

use engine::filter::guard::LimitAsk;
use engine::limit::RemoteStore;
use engine::login::{StoreAsk, StoreCommand, StoreTold};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait to be taken up; beyond it a request is treated as if the store were away.
pub const POSED_MAX: usize = 8_192;

/// One question about a limit; who waits for the answer looks at the limit again when it has come.
#[derive(Debug)]
pub struct Posed {
    /// What.
    pub ask: LimitAsk,
    /// Told when the answer has been noted; dropped without one where there is none.
    pub told: Option<oneshot::Sender<()>>,
}

/// One command about a session.
#[derive(Debug)]
pub struct PosedCommand {
    /// Who is to do it.
    pub store: Arc<RemoteStore>,
    /// What.
    pub command: StoreCommand,
    /// Told what came of it; dropped where that is not known.
    pub told: oneshot::Sender<StoreTold>,
}

/// What a store elsewhere is asked.
#[derive(Debug)]
pub enum PosedElsewhere {
    /// To count.
    Limit(Posed),
    /// To keep a session, or to say what it keeps.
    Command(PosedCommand),
}

/// The ways from workers to the stores: one to the control plane, one to all others.
#[derive(Debug, Default)]
pub struct LimitQuestions {
    leases: Way<Posed>,
    remote: Way<PosedElsewhere>,
}

#[derive(Debug)]
struct Way<T> {
    sender: mpsc::Sender<T>,
    receiver: Mutex<Option<mpsc::Receiver<T>>>,
}

impl<T> Default for Way<T> {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(POSED_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl LimitQuestions {
    /// Asks beside the road. A question that finds no place is asked again by the next request.
    pub fn aside(&self, ask: LimitAsk) {
        self.pose(Posed { ask, told: None });
    }

    /// Asks, and says when the answer has come; `None`: too many wait already.
    pub fn ask(&self, ask: LimitAsk) -> Option<oneshot::Receiver<()>> {
        let (told, answer) = oneshot::channel();
        self.pose(Posed { ask, told: Some(told) }).then_some(answer)
    }

    /// Asks about a session, and says when each answer has come; `None`: too many wait already, and nothing, or a part of it, is done.
    pub fn command(&self, ask: &StoreAsk) -> Option<Vec<oneshot::Receiver<StoreTold>>> {
        let pose = |command: &StoreCommand| {
            let (told, answer) = oneshot::channel();
            let posed = PosedCommand { store: Arc::clone(&ask.store), command: command.clone(), told };
            self.remote.sender.try_send(PosedElsewhere::Command(posed)).ok().map(|()| answer)
        };
        ask.commands.iter().map(pose).collect()
    }

    /// Whether it has found a place.
    fn pose(&self, posed: Posed) -> bool {
        let left = if posed.ask.object.remote.is_some() {
            match self.remote.sender.try_send(PosedElsewhere::Limit(posed)) {
                Ok(()) => return true,
                Err(full) => full.into_inner(),
            }
        } else {
            match self.leases.sender.try_send(posed) {
                Ok(()) => return true,
                Err(full) => PosedElsewhere::Limit(full.into_inner()),
            }
        };
        left.unanswered();
        false
    }

    /// Takes the other end of the way to the control plane, once.
    pub fn take(&self) -> Option<mpsc::Receiver<Posed>> {
        self.leases.receiver.lock().take()
    }

    /// The same of the way to stores elsewhere.
    pub fn take_remote(&self) -> Option<mpsc::Receiver<PosedElsewhere>> {
        self.remote.receiver.lock().take()
    }
}

impl PosedElsewhere {
    /// There is no answer. Who waits for one about a session learns it by that nobody will tell any more.
    pub fn unanswered(&self) {
        if let Self::Limit(posed) = self {
            unanswered(posed);
        }
    }

    /// Who is asked.
    pub fn store(&self) -> Option<&Arc<RemoteStore>> {
        match self {
            Self::Limit(posed) => posed.ask.object.remote.as_ref(),
            Self::Command(posed) => Some(&posed.store),
        }
    }
}

/// There is no answer to a question.
pub fn unanswered(posed: &Posed) {
    posed.ask.object.unanswered(posed.ask.key, 0);
}
