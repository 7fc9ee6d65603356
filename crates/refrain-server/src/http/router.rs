//! Which path does what.

use super::AppState;
use axum::Router;
use std::sync::Arc;

/// All routes of the API.
pub fn router(state: Arc<AppState>) -> Router {
    let _ = state;
    todo!()
}
