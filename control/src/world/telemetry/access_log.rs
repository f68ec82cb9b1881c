//! `accessLog` of a Telemetry.

use engine::model::LogTemplate;
use proto::mesh::access_log::Format;

use super::super::door::Fields;
use super::{LogForm, Telemetry};

impl Telemetry {
    pub(super) fn read_access_log(&mut self, mut fields: Fields<'_>) {
        self.access_log = fields.get("enabled").and_then(|at| at.flag());
        let words = [("Json", Format::Json), ("Combined", Format::Combined), ("Text", Format::Text)];
        let format = fields.get("format").and_then(|at| Some((at.word(&words)?, at)));
        let template = fields.get("template").and_then(|at| Some((at.text()?, at))).filter(|(text, _)| !text.is_empty());
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
        self.log_filter = fields.get("filter").and_then(|at| at.text()).filter(|text| !text.is_empty());
        self.log_success_percent = fields.get("sampleSuccessPercent").and_then(|at| at.percent());
        fields.unsupported(&["fields", "sinks"]);
        fields.done();
    }
}
