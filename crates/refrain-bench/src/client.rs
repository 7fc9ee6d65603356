//! A small HTTP client for an OpenAI-compatible server: JSON in, JSON or server-sent events out, connections kept.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::BenchError;

/// A connection pool to one server.
#[derive(Clone, Debug)]
pub struct Client {
    pool: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
}

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8000`, that sends `headers` with every request.
    ///
    /// # Errors
    /// [`BenchError::Url`] if `base` is no `http://` address, [`BenchError::Option`] if a header is none.
    pub fn new(base: &str, headers: &[(String, String)]) -> Result<Self, BenchError> {
        let wrong = |why: &str| BenchError::Url { url: base.to_owned(), why: why.to_owned() };
        let uri: Uri = base.parse().map_err(|error| wrong(&format!("{error}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("the benchmark speaks http only; measure without TLS")),
            _ => return Err(wrong("it must begin with http://")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let invalid =
                |_| BenchError::Option { option: "--header", why: format!("{name:?}={value:?} is no HTTP header") };
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|error| invalid(error.to_string()))?;
            map.insert(parsed, HeaderValue::from_str(value).map_err(|error| invalid(error.to_string()))?);
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { pool, base: base.trim_end_matches('/').to_owned(), headers: map })
    }

    /// The address of `path` on this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Gets a JSON document.
    ///
    /// # Errors
    /// [`BenchError`] if the server can't be reached or answers with an error or without JSON.
    pub async fn get(&self, path: &str) -> Result<Value, BenchError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.json(path, response).await
    }

    /// Posts a JSON document and gets one back.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, BenchError> {
        let response = self.send(Method::POST, path, body.to_string().into()).await?;
        self.json(path, response).await
    }

    /// Posts a JSON document and gets server-sent events back.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_for_events(&self, path: &str, body: &Value) -> Result<EventStream, BenchError> {
        let response = self.send(Method::POST, path, body.to_string().into()).await?;
        Ok(EventStream { body: response.into_body(), url: self.url(path), decoder: EventDecoder::default() })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, BenchError> {
        let url = self.url(path);
        let lost = |why: String| BenchError::Connection { url: url.clone(), why };
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| lost(error.to_string()))?;
        request.headers_mut().extend(self.headers.clone());
        let response = self.pool.request(request).await.map_err(|error| lost(chain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(|error| lost(chain(&error)))?.to_bytes();
        let message = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|json| json["error"]["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Err(BenchError::Status { url, status: status.as_u16(), message })
    }

    async fn json(&self, path: &str, response: Response<Incoming>) -> Result<Value, BenchError> {
        let url = self.url(path);
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(BenchError::Connection { url, why: chain(&error) }),
        };
        serde_json::from_slice(&body).map_err(|error| BenchError::Answer { url, why: format!("not JSON: {error}") })
    }
}

/// An error with what caused it: hyper keeps the interesting part ("connection refused") below.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The events of one streamed answer.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    url: String,
    decoder: EventDecoder,
}

impl EventStream {
    /// The data of the next event; none at the end of the body.
    ///
    /// # Errors
    /// [`BenchError::Connection`] if the connection breaks.
    pub async fn next(&mut self) -> Result<Option<String>, BenchError> {
        loop {
            if let Some(data) = self.decoder.next_event() {
                return Ok(Some(data));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.decoder.extend(bytes);
                    }
                }
                Some(Err(error)) => {
                    return Err(BenchError::Connection { url: self.url.clone(), why: chain(&error) });
                }
            }
        }
    }
}

/// Cuts a byte stream into the data of server-sent events, however the bytes arrive.
#[derive(Debug, Default)]
struct EventDecoder {
    pending: Vec<u8>,
    /// Leading bytes of `pending` that are done with.
    consumed: usize,
    data: Option<String>,
}

impl EventDecoder {
    fn extend(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.consumed);
        self.consumed = 0;
        self.pending.extend_from_slice(bytes);
    }

    fn next_event(&mut self) -> Option<String> {
        while let Some(length) = self.pending[self.consumed..].iter().position(|&byte| byte == b'\n') {
            let line = &self.pending[self.consumed..self.consumed + length];
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            self.consumed += length + 1;
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Some(data);
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_arrive() {
        let stream = ": ping\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata: lines é\r\n\r\ndata: [DONE]\n\n";
        for size in 1..=stream.len() {
            let mut decoder = EventDecoder::default();
            let mut events = Vec::new();
            for piece in stream.as_bytes().chunks(size) {
                decoder.extend(piece);
                events.extend(std::iter::from_fn(|| decoder.next_event()));
            }
            assert_eq!(events, ["{\"a\":1}", "two\nlines é", "[DONE]"], "pieces of {size}");
        }
    }

    #[test]
    fn a_wrong_address_is_explained() {
        for (url, word) in
            [("https://a", "http only"), ("127.0.0.1:8000", "http://"), ("http://", "address"), ("a b", "address")]
        {
            let message = Client::new(url, &[]).unwrap_err().to_string();
            assert!(message.contains(word), "{url}: {message}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(&format!("http://{address}"), &[]).unwrap();
        let message = client.get("/v1/models").await.unwrap_err().to_string();
        assert!(message.contains(&address.to_string()) && message.contains("refused"), "{message}");
    }
}
