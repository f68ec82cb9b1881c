//! What `up` says: sentences and a moving line on a terminal, plain lines in a pipe, one JSON value per line where asked for.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Something that happened. Fields are added, never renamed.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum News {
    /// `up` has its state directory and its rights.
    Starting { pid: u32, state_dir: String, manifests: String, rootless: bool },
    /// The control plane answers.
    ControlReady { address: String, pid: u32 },
    /// An instance changed its state: starting, started, ready, not_ready, failed, stopping, stopped.
    Instance { namespace: String, workload: String, instance: String, state: &'static str, pid: Option<u32>, message: String },
    /// A part died and will be started again, or not.
    Died { part: String, pid: u32, reason: String, restart_in_ms: Option<u64> },
    /// An edge listener's port on this machine.
    Edge { namespace: String, gateway: String, port: u16, host_port: u16, url: String },
    /// Something is wrong with a manifest; the fields are those of `analyze -o json`.
    Problem {
        severity: String,
        file: String,
        line: u64,
        kind: String,
        namespace: String,
        name: String,
        field: String,
        message: String,
        remedy: String,
    },
    /// Anything else that a person should know.
    Notice { message: String },
    /// Everything declared is live.
    Live { epoch: u64, instances: usize, elapsed_ms: u64 },
    /// The end begins.
    Stopping { reason: String },
    /// Nothing is left.
    Stopped { elapsed_ms: u64 },
}

impl News {
    /// As a sentence; `None` where a person need not see it.
    pub(crate) fn text(&self, terminal: bool) -> Option<String> {
        Some(match self {
            Self::Starting { pid, state_dir, manifests, rootless } => {
                let how = if *rootless { ", without root in a user namespace" } else { "" };
                format!("meshwright up (pid {pid}){how}\nmanifests {manifests}\nstate     {state_dir}")
            }
            Self::ControlReady { address, pid } => format!("control plane ready on {address} (pid {pid})"),
            Self::Instance { namespace, instance, state, message, .. } => match *state {
                "ready" if !terminal => format!("{namespace}/{instance} ready"),
                "failed" | "not_ready" => format!("{namespace}/{instance} {}: {message}", state.replace('_', " ")),
                _ => return None,
            },
            Self::Died { part, pid, reason, restart_in_ms } => {
                let then =
                    restart_in_ms.map_or_else(|| "not restarted (--no-restart)".to_owned(), |wait| format!("restarting in {wait} ms"));
                format!("{part} (pid {pid}) {reason}; {then}")
            }
            Self::Edge { namespace, gateway, port, host_port, url } => {
                let moved = if port == host_port { String::new() } else { format!(" (port {port} is taken or privileged)") };
                format!("edge {namespace}/{gateway}: {url}{moved}")
            }
            Self::Problem { severity, file, line, kind, namespace, name, field, message, remedy } => {
                let place = if file.is_empty() { String::new() } else { format!("{file}:{line}: ") };
                let slash = if namespace.is_empty() { "" } else { "/" };
                let object = if kind.is_empty() { String::new() } else { format!("{kind} {namespace}{slash}{name}: ") };
                let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
                let remedy = if remedy.is_empty() { String::new() } else { format!("\n    {remedy}") };
                format!("{place}{}: {object}{field}{message}{remedy}", severity.to_lowercase())
            }
            Self::Notice { message } => message.clone(),
            Self::Live { epoch, instances, elapsed_ms } => {
                format!("live: epoch {epoch}, {instances} instances, after {:.1} s", *elapsed_ms as f64 / 1000.0)
            }
            Self::Stopping { reason } => format!("stopping: {reason}"),
            Self::Stopped { elapsed_ms } => format!("stopped after {:.1} s; nothing is left running", *elapsed_ms as f64 / 1000.0),
        })
    }
}

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rendering {
    Terminal,
    Plain,
    Json,
}

/// The place where events go.
#[derive(Debug)]
pub(crate) struct Screen {
    mode: Rendering,
    line: RefCell<Option<ProgressBar>>,
}

impl Screen {
    /// Chooses by where stdout leads.
    pub(crate) fn new(json: bool) -> Self {
        let mode = match (json, io::stdout().is_terminal()) {
            (true, _) => Rendering::Json,
            (false, true) => Rendering::Terminal,
            (false, false) => Rendering::Plain,
        };
        Self { mode, line: RefCell::new(None) }
    }

    /// Whether a moving line is of use.
    pub(crate) fn moves(&self) -> bool {
        self.mode == Rendering::Terminal
    }

    /// Shows an event.
    pub(crate) fn tell(&self, event: &News) {
        match self.mode {
            Rendering::Json => {
                let mut value = serde_json::to_value(event).unwrap_or_default();
                if let (Some(fields), Ok(now)) = (value.as_object_mut(), OffsetDateTime::now_utc().format(&Rfc3339)) {
                    fields.insert("time".to_owned(), now.into());
                }
                self.print(&value.to_string());
            }
            Rendering::Terminal | Rendering::Plain => {
                let Some(text) = event.text(self.moves()) else { return };
                if matches!(event, News::Problem { .. }) {
                    self.complain(&text);
                } else {
                    self.print(&text);
                }
            }
        }
    }

    /// Shows a notice.
    pub(crate) fn notice(&self, message: impl Into<String>) {
        self.tell(&News::Notice { message: message.into() });
    }

    /// Shows text for people; in JSON there is no place for it.
    pub(crate) fn people(&self, text: &str) {
        if self.mode != Rendering::Json {
            self.print(text);
        }
    }

    /// Sets the moving line; nothing in a pipe.
    pub(crate) fn moving(&self, text: &str) {
        if !self.moves() {
            return;
        }
        let mut line = self.line.borrow_mut();
        let bar = line.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            // The template is a constant: were it wrong, the default style is as good.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            bar
        });
        bar.set_message(text.to_owned());
    }

    /// Takes the moving line away.
    pub(crate) fn still(&self) {
        if let Some(bar) = self.line.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }

    /// What is wrong goes to stderr, so that it is seen where the output is piped away.
    fn complain(&self, text: &str) {
        let say = || {
            // A reader that went away does not end the mesh.
            let _ = writeln!(io::stderr().lock(), "{text}");
        };
        match self.line.borrow().as_ref() {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn print(&self, text: &str) {
        if let Some(bar) = self.line.borrow().as_ref() {
            bar.println(text);
            return;
        }
        // A reader that went away does not end the mesh.
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what people read names the part, the cause and what comes next; what programs read has stable names.
    #[test]
    fn events_as_text_and_json() {
        let died = News::Died {
            part: "shop/web's proxy".to_owned(),
            pid: 7,
            reason: "was killed by SIGKILL".to_owned(),
            restart_in_ms: Some(100),
        };
        assert_eq!(died.text(false).unwrap(), "shop/web's proxy (pid 7) was killed by SIGKILL; restarting in 100 ms");
        let json = serde_json::to_value(&died).unwrap();
        assert_eq!((json["event"].as_str(), json["restart_in_ms"].as_u64()), (Some("died"), Some(100)));
        let edge = News::Edge {
            namespace: "shop".to_owned(),
            gateway: "edge".to_owned(),
            port: 80,
            host_port: 8080,
            url: "http://127.0.0.1:8080".to_owned(),
        };
        assert!(edge.text(true).unwrap().contains("http://127.0.0.1:8080 (port 80 is taken or privileged)"));
    }
}
