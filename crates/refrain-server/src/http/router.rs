//! Which path does what.

use super::access::{authenticate, log, request_id};
use super::state::AppState;
use super::{generate, info, tokenize};
use crate::api::ApiError;
use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, Any as AnyOrigin, CorsLayer};

/// Whether a route wants an API key, if there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Probes and scrapers, as in vLLM.
    Open,
    Key,
}

/// One route.
pub(crate) struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests call every route"))]
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    handler: MethodRouter<Arc<AppState>>,
}

/// All routes of the API.
pub(crate) fn routes() -> Vec<Route> {
    let route = |method, path, access, handler| Route { method, path, access, handler };
    let open = |path, handler| route(Method::GET, path, Access::Open, handler);
    let read = |path, handler| route(Method::GET, path, Access::Key, handler);
    let write = |path, handler| route(Method::POST, path, Access::Key, handler);
    vec![
        open("/health", get(info::health)),
        open("/ping", get(info::health)),
        open("/livez", get(info::livez)),
        open("/readyz", get(info::readyz)),
        open("/version", get(info::version)),
        open("/load", get(info::load)),
        open("/metrics", get(info::metrics)),
        read("/server_info", get(info::server_info)),
        read("/v1/models", get(info::models)),
        read("/v1/models/{*id}", get(info::model)),
        write("/v1/chat/completions", post(generate::chat)),
        write("/v1/completions", post(generate::completions)),
        write("/tokenize", post(tokenize::tokenize)),
        write("/detokenize", post(tokenize::detokenize)),
    ]
}

/// The whole API as a service.
pub fn router(state: Arc<AppState>) -> Router {
    let (mut open, mut guarded) = (Router::new(), Router::new());
    for Route { path, access, handler, .. } in routes() {
        match access {
            Access::Open => open = open.route(path, handler),
            Access::Key => guarded = guarded.route(path, handler),
        }
    }
    // The key is asked for where the route is, so that no spelling of a path gets around it.
    let guarded = guarded.route_layer(from_fn_with_state(state.clone(), authenticate));
    let routes = open.merge(guarded).method_not_allowed_fallback(wrong_method);
    let mut router = routes.clone();
    let root = state.config.root_path.trim_matches('/');
    if !root.is_empty() {
        router = router.nest(&format!("/{root}"), routes);
    }
    let mut router = with_panic_guard(router.fallback(no_route));
    if let Some(cors) = cors(&state.config.allowed_origins) {
        router = router.layer(cors);
    }
    if state.config.enable_request_id_headers {
        router = router.layer(from_fn(request_id));
    }
    if state.config.access_log {
        router = router.layer(from_fn_with_state(state.clone(), log));
    }
    router.with_state(state)
}

/// Answers 500 where a handler panics.
pub(crate) fn with_panic_guard<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.layer(CatchPanicLayer::custom(panicked))
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    // A literal * would leave Authorization out.
    let headers = AllowHeaders::mirror_request();
    let layer = CorsLayer::new().allow_methods(AnyOrigin).allow_headers(headers).expose_headers(AnyOrigin);
    if origins.is_empty() {
        None
    } else if origins.iter().any(|origin| origin == "*") {
        Some(layer.allow_origin(AnyOrigin))
    } else {
        let known: Vec<HeaderValue> = origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
        Some(layer.allow_origin(known))
    }
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    let message = format!("there is no {method} {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} doesn't take the method {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
}

/// A bug in one request is answered with 500; the server goes on. What it was goes to the log, not to the client.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!("a request handler panicked: {}", what.unwrap_or("?"));
    ApiError::internal("the server made a mistake; its log says more").into_response()
}
