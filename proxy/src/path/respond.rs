//! Answers of the sidecar's own: refusals and failures, in the caller's protocol.
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::record::ResponseBody;

/// Names the reason of an answer that is the sidecar's and not the application's.
pub(crate) const ERROR_HEADER: &str = "x-weft-error";

/// An answer that the sidecar gives itself.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Stable label, also a header.
    pub(crate) label: &'static str,
    /// One sentence for people.
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
    /// The server reset the stream: the caller's is reset alike, instead of an answer.
    pub(crate) reset: Option<h2::Reason>,
    /// Whether gRPC callers are told `UNAVAILABLE`, whatever the status.
    pub(crate) unavailable: bool,
}

/// In the extensions of a response: it is not to be sent, the stream is to be reset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset(pub(crate) h2::Reason);

/// Stands for an answer where there is none.
pub(crate) fn reset(reason: h2::Reason) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::local(Bytes::new()));
    response.extensions_mut().insert(Reset(reason));
    response
}

impl Answer {
    pub(crate) fn new(status: StatusCode, label: &'static str, text: impl Into<String>) -> Self {
        Self { status, label, text: text.into(), retry_after: None, reset: None, unavailable: false }
    }

    /// As an HTTP response, or for gRPC as a trailers-only one (status 200, `grpc-status`).
    pub(crate) fn into_response(self, grpc: bool) -> Response<ResponseBody> {
        let mut response = Response::new(match grpc {
            true => ResponseBody::local(Bytes::new()),
            false => ResponseBody::local(Bytes::from(format!("{}\n", self.text))),
        });
        let headers = response.headers_mut();
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.label));
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up: RFC 9110 section 10.2.3.
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64));
        }
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let status = if self.unavailable { UNAVAILABLE } else { grpc_status(self.status) };
            headers.insert("grpc-status", HeaderValue::from(status));
            if let Ok(text) = HeaderValue::from_str(&percent_encode(&self.text)) {
                headers.insert("grpc-message", text);
            }
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.status_mut() = self.status;
        }
        response
    }
}

/// gRPC: nobody is there to serve the call.
const UNAVAILABLE: u16 = 14;

/// Whether a request is gRPC, and wants its errors as `grpc-status`.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The gRPC status that a client should see for an HTTP status (gRPC "HTTP to gRPC Status Code Mapping"; 429 is
/// RESOURCE_EXHAUSTED here, as it is our limit and not a proxy's on the way).
pub(crate) fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 => 8,
        504 => 4,
        502 | 503 => UNAVAILABLE,
        _ => 2,
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2, "Responses").
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_grpc_call_gets_its_status_in_a_200() {
        let mut answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "50% spent");
        answer.retry_after = Some(Duration::from_millis(1200));
        let response = answer.clone().into_response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "50%25 spent");
        let response = answer.into_response(false);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
    }

    #[test]
    fn only_grpc_content_types_are_grpc() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
