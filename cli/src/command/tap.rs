//! `meshwright tap`.

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::failure::Reason;
use proto::mesh::{Header, StatusRange, TapFilter, TapNews, TapRequest};
use tokio::time::{Instant, sleep_until};

use crate::client::{self, WhichMesh};
use crate::duration;
use crate::output::requests::{RequestRows, failed};
use crate::output::{self, TextOrJson, terminal};

/// Where nobody said when to end.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Headers that hold secrets; proxies refuse them as well.
const SECRET_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Arguments of `meshwright tap`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwright tap -n shop frontend\n  meshwright tap --service shop/catalog --status 5xx\n  meshwright tap gateway/edge --path /api --slower 100ms\n  meshwright tap --failed --max 10 -o json | jq .reason"
)]
pub(crate) struct TapArgs {
    /// Only this workload, instance or `gateway/NAME`; all proxies where not given
    workload: Option<String>,
    /// Only proxies of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only calls to this Service
    #[arg(long, value_name = "[NS/]NAME")]
    service: Option<String>,
    /// Only what this route led on
    #[arg(long, value_name = "[NS/]NAME")]
    route: Option<String>,
    /// Only these statuses, for example 503 or 4xx,5xx
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = statuses)]
    status: Vec<RangeInclusive<u16>>,
    /// Only failures: 5xx, no answer, or an error of gRPC that is the server's
    #[arg(long)]
    failed: bool,
    /// Only this method
    #[arg(long)]
    method: Option<http::Method>,
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only one side: inbound is the callee's proxy, outbound the caller's
    #[arg(long, value_enum)]
    direction: Option<Side>,
    /// Only requests with this header, or with this value of it; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME[:VALUE]", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Only what ended for this reason of the mesh's own, for example denied
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
    /// Only what took at least so long
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    slower: Option<Duration>,
    /// Lines that each proxy may send in a second; further ones are counted
    #[arg(long, value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Ends after so many lines
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Ends after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::positive)]
    lasts: Option<Duration>,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it; json: one access log line per line
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

/// Which of the two proxies of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Inbound,
    Outbound,
}

fn statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("`{text}` is no status; write for example 503, 4xx or 400-499");
    let number = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status)).ok_or_else(wrong);
    if let Some(class) = text.strip_suffix("xx") {
        let class = number(&format!("{class}00"))?;
        return Ok(class..=class + 99);
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = number(from)?..=number(to)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    let name = http::HeaderName::try_from(name.trim()).map_err(|_| format!("`{text}` is not of the form NAME or NAME:VALUE"))?;
    if SECRET_HEADERS.contains(&name.as_str()) {
        return Err(format!("{name} holds secrets, which nobody is to guess at; ask for another header"));
    }
    let value = http::HeaderValue::try_from(value.trim()).map_err(|_| format!("`{value}` is no header's value"))?;
    Ok((name.as_str().to_owned(), value.to_str().map_err(|_| format!("`{text}` has a value that is no text"))?.to_owned()))
}

fn reason(text: &str) -> Result<String, String> {
    let known = || Reason::ALL.map(Reason::text).join(", ");
    Reason::parse(text).map(|reason| reason.text().to_owned()).ok_or_else(|| format!("there is no reason `{text}`; there are {}", known()))
}

impl TapArgs {
    fn request(&self) -> TapRequest {
        let range = |range: &RangeInclusive<u16>| StatusRange { from: u32::from(*range.start()), to: u32::from(*range.end()) };
        let direction = match self.direction {
            None => "",
            Some(Side::Inbound) => "inbound",
            Some(Side::Outbound) => "outbound",
        };
        let filter = TapFilter {
            direction: direction.to_owned(),
            service: self.service.clone().unwrap_or_default(),
            route: self.route.clone().unwrap_or_default(),
            statuses: self.status.iter().map(range).collect(),
            method: self.method.as_ref().map(ToString::to_string).unwrap_or_default(),
            path_prefix: self.path.clone().unwrap_or_default(),
            headers: self.headers.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
            reason: self.reason.clone().unwrap_or_default(),
            failed: self.failed,
            slower: self.slower.map(duration::to_message),
        };
        TapRequest {
            namespace: self.namespace.clone().unwrap_or_default(),
            workload: self.workload.clone().unwrap_or_default(),
            filter: Some(filter),
            lines_per_sec: self.rate,
        }
    }
}

pub(crate) fn run(args: TapArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        let mut control = args.place.connect().await?;
        let mut stream = control.tap(args.request()).await.map_err(|status| client::refused(&status))?.into_inner();
        let (mut shown, mut interrupts) = (Shown::new(&args), terminal::interrupts()?);
        let end = Instant::now() + args.lasts.unwrap_or(FOR_EVER);
        let ended = loop {
            let news = tokio::select! {
                biased;
                _ = interrupts.recv() => break Ok(()),
                () = sleep_until(end) => break Ok(()),
                news = stream.message() => news,
            };
            match news {
                Ok(Some(news)) => shown.take(news)?,
                Ok(None) => break Err(tonic::Status::unavailable("it ended the tap")),
                Err(status) => break Err(status),
            }
            if shown.is_full() {
                break Ok(());
            }
        };
        eprintln!("{}", shown.summary());
        ended.map_err(|status| client::refused(&status))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What was shown so far.
struct Shown {
    /// `None`: as JSON.
    rows: Option<RequestRows>,
    max: u64,
    rate: u32,
    begun: bool,
    proxies: u32,
    lines: u64,
    seen: u64,
    errors: u64,
    dropped: u64,
}

impl Shown {
    fn new(args: &TapArgs) -> Self {
        let rows = || RequestRows::new(terminal::size().map(|(columns, _)| columns), terminal::colours());
        Self {
            rows: (args.output == TextOrJson::Text).then(rows),
            max: args.max.unwrap_or(u64::MAX),
            rate: args.rate,
            begun: false,
            proxies: 0,
            lines: 0,
            seen: 0,
            errors: 0,
            dropped: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.lines >= self.max
    }

    fn take(&mut self, news: TapNews) -> anyhow::Result<()> {
        (self.seen, self.dropped) = (self.seen.saturating_add(news.seen), self.dropped.saturating_add(news.dropped));
        if !news.note.is_empty() {
            let end = if self.begun { "" } else { "; Ctrl-C ends it" };
            eprintln!("{}{end}", terminal::harmless(&news.note));
            self.begun = true;
        }
        if news.proxies > 0 {
            self.proxies = news.proxies;
        }
        for line in news.lines {
            if self.is_full() {
                break;
            }
            self.show(&line)?;
        }
        Ok(())
    }

    /// A line that is no JSON of one line is none of our proxies'.
    fn show(&mut self, line: &str) -> anyhow::Result<()> {
        let Some(value) = Some(line).filter(|line| !line.contains(char::is_control)).and_then(|line| serde_json::from_str(line).ok())
        else {
            self.dropped += 1;
            return Ok(());
        };
        let first = self.lines == 0;
        self.lines += 1;
        self.errors += u64::from(failed(&value));
        let Some(rows) = &mut self.rows else { return output::print(line) };
        rows.resize(terminal::size().map(|(columns, _)| columns));
        let row = rows.row(&value);
        if first {
            output::print(&rows.head())?;
        }
        output::print(&row)
    }

    fn summary(&self) -> String {
        let Self { seen, lines, errors, dropped, rate, proxies, .. } = self;
        let several = if *proxies == 1 { "proxy" } else { "proxies" };
        let mut text = format!("{seen} seen at {proxies} {several}, {lines} shown, {errors} of them failed");
        if *dropped > 0 {
            text += &format!("; {dropped} dropped ({rate} lines a second for each proxy: --rate)");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: statuses are read as people write them, and what is none is refused with an example.
    #[test]
    fn statuses_are_read() {
        for (text, range) in [("503", 503..=503), ("5xx", 500..=599), ("400-404", 400..=404)] {
            assert_eq!(statuses(text), Ok(range), "{text}");
        }
        for text in ["", "xx", "6xx", "99", "600", "5x", "404-400", "a-b", "-"] {
            assert!(statuses(text).unwrap_err().contains("for example"), "{text}");
        }
    }

    /// Aim: a header is asked for by name or by value, and secrets are not.
    #[test]
    fn headers_are_read() {
        assert_eq!(header("X-Beta"), Ok(("x-beta".to_owned(), String::new())));
        assert_eq!(header("x-beta: 1"), Ok(("x-beta".to_owned(), "1".to_owned())));
        assert!(header("Authorization: Bearer x").unwrap_err().contains("secrets") && header("a b").is_err());
        assert!(reason("denied").is_ok() && reason("because").unwrap_err().contains("no_route"));
    }

    /// Aim: what is dropped is told with its remedy, more than `--max` is not shown, and what is no line of a log is not printed.
    #[test]
    fn the_end_says_what_was_missed() {
        let mut shown = Shown { rows: None, max: 1, rate: 100, begun: false, proxies: 0, lines: 0, seen: 0, errors: 0, dropped: 0 };
        let lines = ["no json", "{\"a\":\n1}", r#"{"status":503}"#, r#"{"status":200}"#].map(str::to_owned).to_vec();
        shown.take(TapNews { lines, seen: 9, dropped: 3, proxies: 2, note: String::new() }).unwrap();
        assert!(shown.is_full());
        assert_eq!(
            shown.summary(),
            "9 seen at 2 proxies, 1 shown, 1 of them failed; 5 dropped (100 lines a second for each proxy: --rate)"
        );
    }
}
