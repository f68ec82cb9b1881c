//! What is to be logged, how, and where to.

use std::sync::Arc;

use proto::mesh::access_log::Format;
use proto::mesh::log_sink::{self, Kind};
use proto::mesh::{AccessLog, LogSink as RawSink};

use crate::authenticate::KeysUri;
use crate::model::rule_telemetry::{filter_of, percent_of, threshold};
use crate::model::{
    LOG_FILE_BYTES_RANGE, LOG_FILES_KEPT_MAX, LOG_SINKS_MAX, LogFields, LogFile, LogFilter, LogFormat, LogSink, LogTemplate,
};
use crate::rejected::Wrong;

/// What is said of the access log.
pub(super) struct Log {
    pub(super) format: LogFormat,
    pub(super) filter: Option<Arc<LogFilter>>,
    pub(super) success_threshold: u64,
    pub(super) sinks: Vec<LogSink>,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: None, success_threshold: threshold(100.0), sinks: Vec::new() }
    }
}

impl Log {
    pub(super) fn of(raw: &AccessLog) -> Result<Self, Wrong> {
        let AccessLog { enabled: _, format, template, fields, filter, sample_success_percent, sinks } = raw;
        let format = Format::try_from(*format).map_err(|_| Wrong::new("format", format!("{format} is none of ours")))?;
        if format != Format::Text && !template.is_empty() {
            return Err(Wrong::new("template", "has no meaning beside another format than TEXT"));
        }
        if format != Format::Json && !fields.is_empty() {
            return Err(Wrong::new("fields", "have no meaning beside another format than JSON"));
        }
        let format = match format {
            Format::Json if fields.is_empty() => LogFormat::Json,
            Format::Json => {
                let fields = LogFields::parse(fields.iter().map(String::as_str)).map_err(|why| Wrong::new("fields", why))?;
                LogFormat::Fields(Arc::new(fields))
            }
            Format::Combined => LogFormat::Combined,
            Format::Text => LogFormat::Text(Arc::new(LogTemplate::parse(template).map_err(|why| Wrong::new("template", why))?)),
        };
        if sinks.len() > LOG_SINKS_MAX {
            return Err(Wrong::new("sinks", format!("are more than {LOG_SINKS_MAX}")));
        }
        let sinks = sinks.iter().enumerate().map(|(index, one)| sink(one).map_err(|wrong| wrong.within(format!("sinks[{index}]"))));
        Ok(Self {
            format,
            filter: filter_of(filter, "filter")?,
            success_threshold: threshold(percent_of(sample_success_percent.unwrap_or(100.0), "sample_success_percent")?),
            sinks: sinks.collect::<Result<_, _>>()?,
        })
    }
}

fn sink(raw: &RawSink) -> Result<LogSink, Wrong> {
    let endpoint = |text: &str, field| match KeysUri::read(text) {
        Ok(uri) if !uri.is_secure() && matches!(uri.uri().path(), "" | "/") => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(Wrong::new(field, format!("`{}` is not of the form http://HOST:PORT", text.escape_debug()))),
    };
    Ok(match raw.kind.as_ref().ok_or_else(|| Wrong::new("kind", "is missing"))? {
        Kind::Stdout(_) => LogSink::Stdout,
        Kind::File(log_sink::File { path, bytes_max, keep }) => {
            LogFile::judge_path(path).map_err(|why| Wrong::new("file.path", why))?;
            let (least, most) = LOG_FILE_BYTES_RANGE;
            if !(least..=most).contains(bytes_max) {
                return Err(Wrong::new("file.bytes_max", format!("{bytes_max} is not between {least} and {most}")));
            }
            if !(1..=LOG_FILES_KEPT_MAX).contains(keep) {
                return Err(Wrong::new("file.keep", format!("{keep} is not between 1 and {LOG_FILES_KEPT_MAX}")));
            }
            LogSink::File(LogFile { path: path.clone(), bytes_max: *bytes_max, keep: *keep })
        }
        Kind::Otlp(log_sink::Otlp { endpoint: text }) => LogSink::Otlp(endpoint(text, "otlp.endpoint")?),
        Kind::Als(log_sink::Als { address }) => LogSink::Als(endpoint(address, "als.address")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what is sent is carried out, and what cannot be is refused with its field.
    #[test]
    fn an_access_log_is_read_or_refused() {
        let file = |path: &str, bytes_max, keep| RawSink { kind: Some(Kind::File(log_sink::File { path: path.into(), bytes_max, keep })) };
        let otlp = |endpoint: &str| RawSink { kind: Some(Kind::Otlp(log_sink::Otlp { endpoint: endpoint.into() })) };
        let als = |address: &str| RawSink { kind: Some(Kind::Als(log_sink::Als { address: address.into() })) };
        let with = |sinks: Vec<RawSink>| AccessLog { sinks, ..AccessLog::default() };
        let raw = AccessLog {
            fields: vec!["status".into()],
            filter: "response.code >= 400".into(),
            sample_success_percent: Some(1.0),
            sinks: vec![
                RawSink { kind: Some(Kind::Stdout(log_sink::Stdout {})) },
                file("/a", 1 << 20, 2),
                otlp("http://c:4317/"),
                als("http://als.shop.svc.cluster.local:9000"),
            ],
            ..AccessLog::default()
        };
        let read = Log::of(&raw).unwrap();
        assert!(matches!(read.format, LogFormat::Fields(_)));
        assert_eq!((read.filter.unwrap().text(), read.success_threshold), ("response.code >= 400", 42_949_672));
        let wanted = [
            LogSink::Stdout,
            LogSink::File(LogFile { path: "/a".into(), bytes_max: 1 << 20, keep: 2 }),
            LogSink::Otlp("http://c:4317".into()),
            LogSink::Als("http://als.shop.svc.cluster.local:9000".into()),
        ];
        assert_eq!(read.sinks, wanted);
        for (raw, field) in [
            (AccessLog { format: 1, fields: vec!["status".into()], ..AccessLog::default() }, "fields"),
            (AccessLog { fields: vec!["statuz".into()], ..AccessLog::default() }, "fields"),
            (AccessLog { filter: "nothing > 1".into(), ..AccessLog::default() }, "filter"),
            (AccessLog { sample_success_percent: Some(101.0), ..AccessLog::default() }, "sample_success_percent"),
            (AccessLog { sample_success_percent: Some(f64::NAN), ..AccessLog::default() }, "sample_success_percent"),
            (with(vec![RawSink { kind: None }]), "sinks[0].kind"),
            (with(vec![otlp("http://c:1"); LOG_SINKS_MAX + 1]), "sinks"),
            (with(vec![otlp("https://c:4317")]), "sinks[0].otlp.endpoint"),
            (with(vec![als("als.shop:9000")]), "sinks[0].als.address"),
            (with(vec![file("a", 1 << 20, 2)]), "sinks[0].file.path"),
            (with(vec![file("/a", 1, 2)]), "sinks[0].file.bytes_max"),
            (with(vec![file("/a", 1 << 20, 0)]), "sinks[0].file.keep"),
        ] {
            let told = Log::of(&raw).err().unwrap().text();
            assert!(told.starts_with(field), "{field}: {told}");
        }
    }
}
