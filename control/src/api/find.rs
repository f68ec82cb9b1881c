//! `explain ID`: what the proxies keep of one request, hop by hop.

use std::sync::Arc;

use futures::StreamExt as _;
use proto::mesh::{FindCommand, FindRequest, Json, command};
use serde_json::{Value, json};
use tonic::Status;

use super::PATIENCE;
use crate::publish::board::Board;

/// Proxies asked at a time.
const ASKED_MAX: usize = 256;
/// Longest id.
const ID_BYTES_MAX: usize = 256;
/// Hops of one request; a trace may have more, which are left out and told.
const HOPS_MAX: usize = 1000;

pub(super) async fn run(board: &Arc<Board>, request: FindRequest) -> Result<Json, Status> {
    let id = request.id;
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Status::invalid_argument(format!("`{id}` is no id; give a request's x-request-id, or the id of its trace")));
    }
    let asked = futures::stream::iter(board.correspondents()).map(|key| {
        let (board, command) = (Arc::clone(board), command::Kind::Find(FindCommand { id: id.clone() }));
        async move {
            let answer = board.ask(&key, command, PATIENCE).await;
            (key, answer)
        }
    });
    let answers: Vec<(String, Result<String, String>)> = asked.buffer_unordered(ASKED_MAX).collect().await;
    let silent = answers.iter().filter(|(_, answer)| answer.is_err()).count();
    let mut hops: Vec<Value> = answers.into_iter().filter_map(|(key, answer)| Some(lines(&key, &answer.ok()?))).flatten().collect();
    let order = |hop: &Value| (hop["time"].as_str().unwrap_or_default().to_owned(), hop["direction"] != "outbound");
    hops.sort_by_cached_key(order);
    let more = hops.len().saturating_sub(HOPS_MAX);
    hops.truncate(HOPS_MAX);
    let mut note = String::new();
    if more > 0 {
        note += &format!("{more} later hops are left out");
    }
    if silent > 0 {
        let before = if note.is_empty() { "" } else { "; " };
        note += &format!("{before}{silent} proxies did not answer, so hops may be missing");
    }
    Ok(Json { json: Value::Array(hops).to_string(), note })
}

/// What one proxy keeps, each line with who tells it.
fn lines(key: &str, answer: &str) -> Vec<Value> {
    let Ok(Value::Array(lines)) = serde_json::from_str(answer) else { return Vec::new() };
    let told = lines.into_iter().filter(Value::is_object).map(|mut line| {
        line["proxy"] = json!(key);
        line
    });
    told.collect()
}
