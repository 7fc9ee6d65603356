//! The endpoints that say how the server is and what it has.

use super::state::AppState;
use crate::api::{ApiError, json_response};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use refrain_engine::{EngineHandle, Span};
use serde_json::{Map, Value, json};
use std::sync::Arc;

type Shared = State<Arc<AppState>>;

fn answer(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string())
}

/// `GET /health` and `/ping`, as vLLM: an empty 200 while the engine works.
pub(super) async fn health(State(state): Shared) -> StatusCode {
    if state.is_live() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `GET /livez`: whether the process should go on.
pub(super) async fn livez(State(state): Shared) -> Response {
    status(state.is_live(), "live", "the engine does not work")
}

/// `GET /readyz`: whether new requests should come here.
pub(super) async fn readyz(State(state): Shared) -> Response {
    let ready = state.is_live() && !state.is_draining() && state.engine().is_accepting();
    status(ready, "ready", if state.is_draining() { "the server is shutting down" } else { "the engine does not work" })
}

fn status(good: bool, name: &str, otherwise: &str) -> Response {
    if good { answer(&json!({"status": name})) } else { ApiError::unavailable(otherwise).into_response() }
}

/// `GET /version`.
pub(super) async fn version(State(state): Shared) -> Response {
    answer(&json!({"version": state.config.version}))
}

/// `GET /load`, as vLLM: requests for text that are being answered.
pub(super) async fn load(State(state): Shared) -> Response {
    answer(&json!({"server_load": state.in_flight()}))
}

/// `GET /metrics`: Prometheus' text format.
pub(super) async fn metrics(State(state): Shared) -> Result<Response, ApiError> {
    let mut response = Response::new(state.metrics_text()?.into());
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// `GET /server_info`: what the server is, the resolved settings, and what the engine is doing.
pub(super) async fn server_info(State(state): Shared) -> Response {
    let device = state.engine().device();
    let mut info = Map::new();
    info.insert("version".to_owned(), json!(state.config.version));
    info.insert("model".to_owned(), json!(state.model_name()));
    info.insert("max_model_len".to_owned(), json!(state.text.max_model_len()));
    info.insert("device".to_owned(), json!({"kind": device.kind, "name": device.name, "compute": device.compute}));
    if let Value::Object(more) = &state.config.server_info {
        info.extend(more.clone());
    }
    let load = state.engine().load();
    let load = json!({
        "in_flight": state.in_flight(),
        "running": load.running,
        "waiting": load.waiting,
        "kv_blocks_used": load.kv_blocks_used,
        "kv_blocks_total": load.kv_blocks_total,
        "slots_used": load.slots_used,
        "slots_total": load.slots_total,
        "steps": load.steps,
        "preemptions": load.preemptions,
    });
    info.insert("load".to_owned(), load);
    info.insert("policy".to_owned(), policy(state.engine()));
    answer(&Value::Object(info))
}

/// `GET /v1/models`.
pub(super) async fn models(State(state): Shared) -> Response {
    let models: Vec<Value> = state.config.served_model_names.iter().map(|name| model_card(&state, name)).collect();
    answer(&json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{id}`; ids may have slashes.
pub(super) async fn model(State(state): Shared, Path(id): Path<String>) -> Result<Response, ApiError> {
    state.check_model(Some(&id))?;
    Ok(answer(&model_card(&state, &id)))
}

fn model_card(state: &AppState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "refrain",
        "root": state.config.model_root,
        "parent": null,
        "max_model_len": state.text.max_model_len(),
    })
}

/// By which rule steps are run, how they were run so far, and which cell is measured to be the fastest for which.
fn policy(engine: &EngineHandle) -> Value {
    let span = |span: Span| json!([span.from, span.to]);
    let steps = engine.step_modes().into_iter().map(|steps| {
        json!({
            "phase": steps.phase.name(),
            "cell": steps.cell.to_string(),
            "steps": steps.steps,
            "padding_rows": steps.padding,
        })
    });
    let fastest = engine.policy_table().into_iter().filter(|entry| entry.present).map(|entry| {
        json!({
            "phase": entry.alike.phase.name(),
            "rows": span(entry.alike.rows),
            "context": span(entry.alike.context),
            "cell": entry.cell.to_string(),
            "milliseconds": entry.average.seconds * 1e3,
            "samples": entry.average.samples,
        })
    });
    json!({
        "mode": engine.policy().name(),
        "steps": steps.collect::<Vec<_>>(),
        "fastest": fastest.collect::<Vec<_>>(),
    })
}
