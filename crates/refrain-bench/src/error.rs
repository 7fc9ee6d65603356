//! What can go wrong in a benchmark.

/// A benchmark could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option has a value that makes no sense.
    #[error("{option}: {why}")]
    Option {
        /// The option as the command line names it.
        option: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The engine did not take a request.
    #[error("the engine refused a request: {0}")]
    Refused(#[from] refrain_engine::SubmitError),
    /// A request that the engine had taken failed.
    #[error("a request failed: {0}")]
    Failed(#[from] refrain_engine::RequestFailure),
    /// The engine went away before a request was complete.
    #[error("the engine stopped before all requests were complete")]
    EngineGone,
    /// The address of the server is not one.
    #[error("{url:?} is no address of a server: {why}")]
    Url {
        /// The address.
        url: String,
        /// Why not.
        why: String,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{url}: {why}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The server answered with an error.
    #[error("{url}: status {status}: {message}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The server answered with something that is not what the API promises.
    #[error("{url}: {why}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
}
