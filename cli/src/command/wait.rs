//! `meshwright wait`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use proto::mesh::{Progress, WaitRequest};
use tokio::time::Instant;

use super::apply;
use crate::client::{self, Control, Unreached, WhichMesh};
use crate::output::{self, ProgressLine, TextOrJson};
use crate::{duration, state};

/// Pause between two tries to reach a mesh that is not there yet.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// Time given to the control plane beyond our own deadline, so that its answer names the laggards.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Arguments of `meshwright wait`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright wait --timeout 2m\n  Returns when the mesh runs and its newest configuration is live in every proxy."
)]
pub(crate) struct WaitArgs {
    /// The epoch to wait for; the newest where not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epoch: Option<u64>,
    /// How long to wait, also for a mesh that does not run yet
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::positive)]
    timeout: Duration,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

pub(crate) fn run(args: WaitArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        let result = until_live(&args.place, args.epoch, Instant::now() + args.timeout).await?;
        let Some(last) = result else {
            bail!(
                "no mesh answered within {}; start one with `meshwright up`, or set {} to its state directory ({})",
                output::milliseconds(args.timeout.as_secs_f64() * 1000.0),
                state::STATE_DIR_ENV,
                args.place.shown()
            );
        };
        let value = output::parse(&last.json)?;
        match args.output {
            TextOrJson::Json => output::print(&last.json)?,
            TextOrJson::Text => output::print(&apply::epoch(&value))?,
        }
        if !last.ok && args.output == TextOrJson::Text {
            eprintln!("error: {}", apply::failure(&value));
        }
        Ok(if last.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Asks until the deadline; `None` when no control plane gave an answer by then. A control plane that restarts is asked again.
async fn until_live(place: &WhichMesh, epoch: Option<u64>, deadline: Instant) -> anyhow::Result<Option<Progress>> {
    let line = ProgressLine::start("waiting for a mesh");
    loop {
        match place.connect().await {
            Ok(control) => {
                line.say("waiting for the proxies");
                if let Some(last) = ask(control, epoch, deadline, &line).await? {
                    return Ok(Some(last));
                }
            }
            Err(Unreached::Absent(_)) => {}
            Err(Unreached::Wrong(error)) => return Err(error),
        }
        if Instant::now() + RETRY_EVERY > deadline {
            return Ok(None);
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// One question; `None` when the control plane went away before it answered.
async fn ask(mut control: Control, epoch: Option<u64>, deadline: Instant, line: &ProgressLine) -> anyhow::Result<Option<Progress>> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = WaitRequest { epoch: epoch.unwrap_or(0), timeout: Some(duration::to_message(left)) };
    let answer = async { apply::last(control.wait(request).await?.into_inner(), line).await };
    match tokio::time::timeout(left + ANSWER_GRACE, answer).await {
        Ok(Ok(last)) => Ok(Some(last)),
        Ok(Err(status)) if !broken(&status) => Err(client::refused(&status)),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// Whether the connection broke, rather than the question was refused: tonic calls a reset `Unknown`.
fn broken(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
}
