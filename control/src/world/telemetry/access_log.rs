//! `accessLog` of a Telemetry.

use engine::model::{
    LOG_FIELDS_MAX, LOG_FILE_BYTES_DEFAULT, LOG_FILE_BYTES_RANGE, LOG_FILES_KEPT_DEFAULT, LOG_FILES_KEPT_MAX, LOG_SINKS_MAX, LogFields,
    LogFile, LogFilter, LogTemplate,
};
use proto::annotations::ROOT_NAMESPACE;
use proto::mesh::access_log::Format;

use super::super::door::{Cursor, Fields};
use super::super::problem::nearest;
use super::super::route::Reference;
use super::tracing::collector;
use super::{LogForm, Telemetry};

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The proxy's standard output.
    Stdout,
    /// A file of the proxy's own file system.
    File(LogFile),
    /// An OTLP collector, `http://HOST:PORT`.
    Otlp(String),
    /// A Service that takes Envoy's access log stream; its namespace is filled in.
    Als(Reference),
}

impl Telemetry {
    pub(super) fn read_access_log(&mut self, mut fields: Fields<'_>) {
        self.access_log = fields.get("enabled").and_then(|at| at.flag());
        let words = [("Json", Format::Json), ("Combined", Format::Combined), ("Text", Format::Text)];
        let format = fields.get("format").and_then(|at| Some((at.word(&words)?, at)));
        let template = fields.get("template").and_then(|at| Some((at.text()?, at))).filter(|(text, _)| !text.is_empty());
        let is_json = format.as_ref().is_none_or(|(format, _)| *format == Format::Json);
        self.log_format = match (format, template) {
            (Some((Format::Text, _)), Some((text, at))) => match LogTemplate::parse(&text) {
                Ok(_) => Some(LogForm::Text(text)),
                Err(why) => {
                    at.error(why, "write for example `{client_address} \"{method} {path}\" {status} {duration_ms}`");
                    None
                }
            },
            (Some((Format::Text, at)), None) => {
                at.error("the format Text has no template", "add accessLog.template, or use Json or Combined");
                None
            }
            (_, Some((_, at))) => {
                at.error("only the format Text has a template", "add `format: Text`, or remove it");
                None
            }
            (format, None) => format.map(|(format, _)| if format == Format::Combined { LogForm::Combined } else { LogForm::Json }),
        };
        if let Some(at) = fields.get("fields") {
            match is_json {
                true => self.log_format = chosen(&at).map(LogForm::Fields),
                false => at.error("only the format Json has fields", "remove them, or the format"),
            }
        }
        self.log_filter = fields.get("filter").and_then(|at| filter(&at));
        self.log_success_percent = fields.get("sampleSuccessPercent").and_then(|at| at.percent());
        self.log_sinks = fields.get("sinks").map(|at| sinks(&at));
        fields.done();
    }
}

/// Names of fields, in their order.
fn chosen(at: &Cursor<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for at in at.list(LOG_FIELDS_MAX) {
        let name = at.text()?;
        if !LogFields::names().any(|known| known == name) {
            let within = || LogFields::names().find(|known| known.rsplit_once('.').is_some_and(|(_, last)| last == name));
            let remedy = match nearest(&name, LogFields::names()).or_else(within) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "take a field of a JSON line, with a dot for one within another".to_owned(),
            };
            at.error(format!("`{}` is no field of the access log", name.escape_debug()), remedy);
            return None;
        }
        names.push(name);
    }
    match LogFields::parse(names.iter().map(String::as_str)) {
        Ok(_) => Some(names),
        Err(why) => {
            at.error(why, "name each field once, an object whole or field by field");
            None
        }
    }
}

fn filter(at: &Cursor<'_>) -> Option<String> {
    let text = at.text().filter(|text| !text.is_empty())?;
    match LogFilter::compile(&text) {
        Ok(_) => Some(text),
        Err(why) => {
            at.error(format!("the filter {why}"), "write for example `response.code >= 400 || duration_ms > 1000`");
            None
        }
    }
}

fn sinks(at: &Cursor<'_>) -> Vec<LogTarget> {
    let mut read: Vec<LogTarget> = Vec::new();
    for at in at.list(LOG_SINKS_MAX) {
        let Some(target) = sink(&at) else { continue };
        let rival = |one: &LogTarget| match (one, &target) {
            (LogTarget::File(one), LogTarget::File(other)) => one.path == other.path,
            (one, other) => one == other,
        };
        match read.iter().any(rival) {
            true => at.error("two sinks are one and the same", "remove one of them"),
            false => read.push(target),
        }
    }
    read
}

fn sink(at: &Cursor<'_>) -> Option<LogTarget> {
    let mut fields = at.fields();
    let mut found: Vec<Option<LogTarget>> = Vec::new();
    if let Some(at) = fields.get("stdout") {
        at.fields().done();
        found.push(Some(LogTarget::Stdout));
    }
    found.extend(fields.get("file").map(|at| file(at.fields())));
    found.extend(fields.get("otlp").map(|at| otlp(at.fields())));
    found.extend(fields.get("als").map(|at| als(at.fields())));
    fields.done();
    if found.len() != 1 {
        at.error("a sink is one of stdout, file, otlp and als", "write for example `{stdout: {}}`, each in an item of its own");
        return None;
    }
    found.pop().flatten()
}

fn file(mut fields: Fields<'_>) -> Option<LogTarget> {
    let path = fields.need("path").and_then(|at| {
        let path = at.text()?;
        LogFile::judge_path(&path)
            .map_err(|why| at.error(format!("as the path of a file: {why}"), "write for example /var/log/meshwright/{instance}.log"))
            .ok()?;
        Some(path)
    });
    let whole = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let (least, most) = LOG_FILE_BYTES_RANGE;
    let bytes_max = fields.get("maxBytes").map(|at| at.int(whole(least)..=whole(most)).and_then(|bytes| u64::try_from(bytes).ok()));
    let keep = fields.get("keep").map(|at| at.int(1..=LOG_FILES_KEPT_MAX.into()).and_then(|keep| u32::try_from(keep).ok()));
    fields.done();
    Some(LogTarget::File(LogFile {
        path: path?,
        bytes_max: bytes_max.unwrap_or(Some(LOG_FILE_BYTES_DEFAULT))?,
        keep: keep.unwrap_or(Some(LOG_FILES_KEPT_DEFAULT))?,
    }))
}

fn otlp(mut fields: Fields<'_>) -> Option<LogTarget> {
    let endpoint = fields.need("endpoint").and_then(|at| {
        let text = at.text()?;
        let fits = |uri: &http::Uri| uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        if !collector(&text).as_ref().is_some_and(fits) {
            at.error(format!("`{text}` is no OTLP/gRPC endpoint"), "write it as http://HOST:4317");
            return None;
        }
        Some(text.trim_end_matches('/').to_owned())
    });
    fields.done();
    endpoint.map(LogTarget::Otlp)
}

/// The stream goes to whom the object's own namespace names; what holds for the whole mesh may name any.
fn als(mut fields: Fields<'_>) -> Option<LogTarget> {
    let own = fields.at().key().namespace.clone();
    let reference = fields.need("backendRef").and_then(|at| {
        let mut fields = at.fields();
        let reference = Reference::read(&mut fields);
        fields.done();
        let reference = reference?;
        let namespace = reference.namespace.clone().unwrap_or_else(|| own.clone());
        if !matches!(reference.group.as_str(), "" | "core") || reference.kind != "Service" {
            at.error(format!("the access log's stream goes to a Service, not to a {}", reference.kind), "name a Service");
            return None;
        }
        if namespace != own && own != ROOT_NAMESPACE {
            at.error(
                format!("a Service of another namespace is named by an object of {ROOT_NAMESPACE} alone"),
                format!("name a Service of {own}"),
            );
            return None;
        }
        reference.port.is_some().then_some(Reference { namespace: Some(namespace), ..reference })
    });
    fields.done();
    reference.map(LogTarget::Als)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::Spec;

    fn read_in(namespace: &str, log: &str) -> (Option<Telemetry>, String) {
        let text = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Telemetry\nmetadata: {{name: log, namespace: {namespace}}}\nspec: {{accessLog: {{{log}}}}}\n"
        );
        let candidate = parse("f.yaml", &text).candidates.remove(0);
        let told = candidate.problems.iter().map(ToString::to_string).collect();
        let object = candidate.object.map(|object| match &object.spec {
            Spec::Telemetry(spec) => spec.clone(),
            other => panic!("{other:?}"),
        });
        (object, told)
    }

    fn read(log: &str) -> (Option<Telemetry>, String) {
        read_in("shop", log)
    }

    #[test]
    fn an_access_log_is_read() {
        // Aim: fields, filter, share and each sink, with the defaults that kinds.md says; what is silent leaves it to wider objects.
        let (read_one, told) = read(
            "enabled: true, fields: [time, source, status], filter: response.code >= 400, sampleSuccessPercent: 0.5, sinks: [{stdout: {}}, \
             {file: {path: /var/log/a.log}}, {file: {path: /var/log/b.log, maxBytes: 65536, keep: 1}}, {otlp: {endpoint: 'http://c:4317/'}}, \
             {als: {backendRef: {name: als, port: 9000}}}]",
        );
        let log = read_one.unwrap_or_else(|| panic!("{told}"));
        assert_eq!(log.log_format, Some(LogForm::Fields(vec!["time".into(), "source".into(), "status".into()])));
        assert_eq!((log.log_filter.as_deref(), log.log_success_percent), (Some("response.code >= 400"), Some(0.5)));
        let sinks = log.log_sinks.unwrap();
        let file = |path: &str, bytes_max, keep| LogTarget::File(LogFile { path: path.into(), bytes_max, keep });
        assert_eq!(sinks[..3], [LogTarget::Stdout, file("/var/log/a.log", 64 << 20, 5), file("/var/log/b.log", 65536, 1)]);
        assert_eq!(sinks[3], LogTarget::Otlp("http://c:4317".into()));
        let LogTarget::Als(reference) = &sinks[4] else { panic!("{sinks:?}") };
        assert_eq!((reference.namespace.as_deref(), reference.port), (Some("shop"), Some(9000)));
        let silent = read("enabled: false").0.unwrap();
        assert_eq!((silent.log_format, silent.log_filter, silent.log_success_percent, silent.log_sinks), (None, None, None, None));
        assert!(read_in(ROOT_NAMESPACE, "sinks: [{als: {backendRef: {name: als, namespace: obs, port: 9000}}}]").0.is_some());
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        // Aim: each slip is refused with a sentence that helps: the nearest field, what a filter may look at, what a sink is.
        for (log, wanted) in [
            ("fields: [statuz]", "did you mean `status`?"),
            ("fields: [workload]", "did you mean `source.workload`?"),
            ("fields: [nothing_like_it]", "take a field of a JSON line"),
            ("fields: [status, status]", "named twice"),
            ("fields: []", "no fields"),
            ("format: Combined, fields: [status]", "only the format Json has fields"),
            ("format: Text, template: '{path}', fields: [status]", "only the format Json has fields"),
            ("filter: response.status >= 400", "`response.status` is not known of an exchange that has ended; there are request.method"),
            ("filter: response.code", "compare it with something"),
            ("filter: \"request.method == 5\"", "a text and a whole number"),
            ("sampleSuccessPercent: 101", "sampleSuccessPercent"),
            ("sinks: [{}]", "one of stdout, file, otlp and als"),
            ("sinks: [{stdout: {}, file: {path: /a}}]", "one of stdout, file, otlp and als"),
            ("sinks: [{syslog: {}}]", "unknown field `syslog`"),
            ("sinks: [{stdout: {}}, {stdout: {}}]", "one and the same"),
            ("sinks: [{file: {path: /a}}, {file: {path: /a, keep: 2}}]", "one and the same"),
            ("sinks: [{file: {path: a}}]", "no absolute path"),
            ("sinks: [{file: {path: /a/../b}}]", "`..`"),
            ("sinks: [{file: {path: '/{pod}.log'}}]", "stands for nothing"),
            ("sinks: [{file: {path: /a, maxBytes: 1}}]", "out of range"),
            ("sinks: [{file: {path: /a, keep: 0}}]", "out of range"),
            ("sinks: [{otlp: {endpoint: 'https://c:4317'}}]", "no OTLP/gRPC endpoint"),
            ("sinks: [{otlp: {endpoint: 'http://c:4318/v1/logs'}}]", "no OTLP/gRPC endpoint"),
            ("sinks: [{als: {backendRef: {name: als}}}]", "needs a port"),
            ("sinks: [{als: {backendRef: {name: als, namespace: obs, port: 1}}}]", "by an object of meshwright-system alone"),
            ("sinks: [{als: {backendRef: {group: gateway.networking.x-k8s.io, kind: XBackend, name: als, port: 1}}}]", "not to a XBackend"),
        ] {
            let (_, told) = read(log);
            assert!(told.contains(wanted), "{log}: {told}");
        }
    }
}
