//! Network namespaces of a mesh on one machine: made, held and entered without a name, so that nothing survives the process that holds them.

pub(crate) mod fabric;
pub(crate) mod link;
pub(crate) mod ranges;
pub(crate) mod services;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// A network namespace. It lives as long as a value (or a process inside) holds it; clones hold the same one.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// Makes an empty namespace with loopback up. Every port may be bound there without privilege, as in a pod.
    ///
    /// # Errors
    /// The right is missing (`CAP_SYS_ADMIN` in the user namespace), or the kernel's bound on namespaces is reached.
    pub(crate) fn anonymous() -> anyhow::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (user.max_net_namespaces, CAP_SYS_ADMIN)")?;
            let namespace = Self::current()?;
            link::Netlink::new().up("lo")?;
            // Best effort: an old kernel without it only loses the convenience.
            let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
            Ok(namespace)
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn current() -> anyhow::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("cannot open /proc/thread-self/ns/net; is /proc mounted?")?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Where another process of the same user finds it, as long as this process lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `work` inside, in a thread that ends with it. The calling thread stays where it is, and waits.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the work's own error.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        in_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// As [`Self::run`] for work that may wait: the caller's runtime goes on. When the future is dropped the thread ends by itself.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the work's own error.
    pub(crate) async fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
        let (done, answer) = oneshot::channel();
        let namespace = self.clone();
        let thread = thread::Builder::new().name("netns".to_owned());
        thread
            .spawn(move || {
                let result = namespace.enter().and_then(|()| work());
                // Nobody waits any more: the result has no reader.
                let _ = done.send(result);
            })
            .context("cannot start a thread")?;
        answer.await.map_err(|_| anyhow!("work inside a network namespace panicked"))?
    }

    fn enter(&self) -> anyhow::Result<()> {
        setns(self.file.as_ref(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace of this mesh")
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work).context("cannot start a thread")?;
        thread.join().unwrap_or_else(|_| Err(anyhow!("work inside a network namespace panicked")))
    })
}
