//! A rule that says of its own what is told of its requests: the head decided by the proxy's settings is decided again where they differ.

use std::net::IpAddr;
use std::sync::Arc;

use engine::model::{Keep, RuleTelemetry, Settings};
use http::header::REFERER;
use http::request::Parts;

use super::account::Account;
use super::downstream::Downstream;
use super::record::{Word, text};
use super::trace::{self, Context, Forms, Remote};
use super::under_way::TraceLink;
use super::worker::{HeadersSay, Traced};

impl Account {
    /// Its rule has a word of its own on what is told of it. Before anything is sent: its trace headers may be written again. Costs nothing
    /// that an ordinary request pays.
    #[cold]
    pub fn governed(&mut self, says: &RuleTelemetry, parts: &mut Parts, (downstream, client): (&Downstream, Option<IpAddr>)) {
        let snapshot = Arc::clone(&self.seen.snapshot);
        let Some(settings) = snapshot.settings.as_deref() else { return };
        if self.worker.telemetry.traces(Some(settings)) {
            self.traced_by(says, settings, parts, downstream);
        }
        self.logged_by(says, settings, parts, downstream);
        if let Some(client) = client {
            self.came_for(client);
        }
        self.let_go();
    }

    fn traced_by(&mut self, says: &RuleTelemetry, settings: &Settings, parts: &mut Parts, downstream: &Downstream) {
        let keep = settings.keep.of_rule(says);
        let sampled = self.is_sampled();
        let decided = match (self.headers, says.sample_threshold) {
            (HeadersSay::Drawn(drawn), Some(threshold)) => u64::from(u32::from_ne_bytes(drawn)) < threshold,
            _ => sampled,
        };
        if decided != sampled || keep.is_any() && !decided && !settings.keep.is_any() {
            let Some(context) = self.told_again(decided, parts) else { return };
            self.noted(Some(context), keep, (parts, downstream));
        } else if let Some(detail) = &mut self.detail {
            detail.keep = keep;
        }
    }

    /// Takes notes for a line, or none any more.
    fn logged_by(&mut self, says: &RuleTelemetry, settings: &Settings, parts: &mut Parts, downstream: &Downstream) {
        let logged = says.log_enabled.unwrap_or(settings.access_log);
        if logged && self.detail.is_none() {
            // Nobody traces it: a line names the caller's trace.
            let remote = trace::read(&parts.headers, Forms::of(&parts.headers)).remote;
            let context = |Remote { trace_id, span_id }| Context { trace_id, span_id: 0, parent: Some(span_id), sampled: false };
            self.noted(remote.map(context), Keep::default(), (parts, downstream));
        }
        let Some(detail) = &mut self.detail else { return };
        if logged && !detail.logged {
            let referer = text(&parts.headers, &REFERER).filter(|_| settings.log_format.tells_referer());
            if let Some(referer) = referer {
                detail.word(Word::Referer, referer);
            }
            self.worker.request_id(parts, detail);
        }
        detail.logged = logged;
    }

    /// Writes the trace's headers again, with that decision. `None`: there is no trace.
    fn told_again(&self, sampled: bool, parts: &mut Parts) -> Option<Context> {
        let headers = &mut parts.headers;
        let (found, context) = match self.headers {
            HeadersSay::Ours | HeadersSay::Drawn(_) => trace::written(headers)?,
            HeadersSay::Theirs => {
                let found = trace::read(headers, Forms::of(headers));
                let Remote { trace_id, span_id } = found.remote?;
                (found, Context { trace_id, span_id: self.worker.span_id(), parent: Some(span_id), sampled })
            }
        };
        let known = self.detail.as_ref().and_then(|detail| detail.context).filter(|known| known.span_id == context.span_id);
        let context = Context { sampled, parent: known.map_or(context.parent, |known| known.parent), ..context };
        trace::write(headers, &found, &context);
        Some(context)
    }

    /// Takes notes from now on, under that context.
    fn noted(&mut self, context: Option<Context>, keep: Keep, (parts, downstream): (&Parts, &Downstream)) {
        if let Some(detail) = &mut self.detail {
            (detail.context, detail.keep) = (context, keep);
            return;
        }
        let traced = Traced { context, headers: self.headers, link: TraceLink::None };
        let mut detail = self.worker.notes(false, traced, keep, (self.seen.direction, downstream));
        detail.read_head(parts, downstream.tls.is_some() && downstream.peer.is_none(), false);
        self.detail = Some(detail);
    }

    /// Notes that nobody reads are taken no longer.
    fn let_go(&mut self) {
        let watched = self.is_watched();
        if let Some(detail) = self.detail.take_if(|detail| !watched && !detail.logged && !detail.is_sampled() && !detail.keep.is_any()) {
            self.worker.take_back(detail);
        }
    }

    fn is_sampled(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.is_sampled())
    }
}
