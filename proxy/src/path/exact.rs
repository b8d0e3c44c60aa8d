//! What a request must be before anything is decided about it: one reading, for us and for whoever reads it next.
//!
//! A request that fails is answered here and goes no further: 400 for what is ambiguous or malformed, 417, 414 or 405
//! where HTTP has a status of its own. Its HTTP/1 connection ends with the answer, since nobody can say where the next
//! request begins.
use http::header::{CONNECTION, EXPECT, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};

use super::http::is_tunnel;
use super::respond::{Answer, ERROR_HEADER};
use crate::stage::body::Failure;
use crate::stage::http1_scan::Fault;

/// The host that a request names: of HTTP/2 and absolute targets the authority, else the one `Host` line.
///
/// # Errors
/// The answer to a request that has no single reading.
pub(crate) fn host_of<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Answer> {
    if let Some(fault) = request.extensions().get::<Fault>() {
        return Err(faulty(*fault));
    }
    let uri = request.uri();
    if is_tunnel(request) {
        return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, "connect", "CONNECT is not allowed here"));
    }
    let host = one_host(request)?;
    match uri.scheme_str() {
        // An https URI is for TLS of the caller's own, which never is HTTP to us (RFC 9110 section 4.2.2).
        Some("https") if request.version() < Version::HTTP_2 => {
            return Err(bad_request("scheme", "an https target outside of TLS"));
        }
        None | Some("http" | "https") => {}
        Some(_) => return Err(bad_request("scheme", "the scheme is not http or https")),
    }
    let expectations = request.headers().get_all(EXPECT).iter();
    // RFC 9110 section 10.1.1: there is no other.
    if expectations.into_iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let text = "the Expect field asks for something else than 100-continue";
        return Err(Answer::new(StatusCode::EXPECTATION_FAILED, "expect", text));
    }
    Ok(host)
}

/// RFC 9112 section 3.2: no Host, several, or an empty one in HTTP/1.1 is a fault of the request; RFC 9113 section 8.3.1:
/// an HTTP/2 request has one in `:authority` or `host`, and if both they are the same.
fn one_host<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Answer> {
    let mut lines = request.headers().get_all(HOST).iter();
    let (line, more) = (lines.next(), lines.next());
    if more.is_some() {
        return Err(bad_request("host", "more than one Host header"));
    }
    let uri = request.uri();
    if uri.authority().is_some() && uri.scheme().is_none() {
        return Err(bad_request("target", "the request target does not begin with a slash"));
    }
    let host = match (uri.authority(), line) {
        (Some(authority), Some(line))
            if request.version() == Version::HTTP_2
                && !line.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return Err(bad_request("host", "the Host header differs from :authority"));
        }
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).ok(),
        (None, Some(host)) => Some(host.clone()),
        (None, None) if request.version() < Version::HTTP_11 => return Ok(None),
        (None, None) => return Err(bad_request("host", "no Host header")),
    };
    match host.filter(|host| !host.is_empty()) {
        Some(host) => Ok(Some(host)),
        None => Err(bad_request("host", "an empty Host header")),
    }
}

fn faulty(fault: Fault) -> Answer {
    match fault {
        Fault::Framing => bad_request("framing", "it says more than once how long it is"),
        Fault::TransferCoding => bad_request("transfer_coding", "a transfer coding other than chunked alone"),
        Fault::BareLineFeed => bad_request("line_feed", "a line ends without a carriage return"),
        Fault::FoldedLine => bad_request("folded_line", "a header field is continued on a second line"),
        Fault::TargetTooLong => {
            let text = "the request line is longer than 32 KiB";
            Answer::new(StatusCode::URI_TOO_LONG, "target_too_long", text)
        }
    }
}

/// The answer to a request whose body was not read to its end: the caller's fault, not the server's.
pub(crate) fn body_failed(failure: Failure) -> Answer {
    match failure {
        Failure::Stalled => {
            Answer::new(StatusCode::REQUEST_TIMEOUT, "slow_body", "the request's body did not come in time")
        }
        Failure::Broken => bad_request("body", "its body is malformed or was cut off"),
    }
}

pub(crate) fn bad_request(label: &'static str, text: &str) -> Answer {
    Answer::new(StatusCode::BAD_REQUEST, label, format!("the request is ambiguous or malformed: {text}"))
}

/// The connection upgrade (such as `websocket`) that a request asks for. An upgrade to h2c is not one: it is dropped.
pub(crate) fn upgrade_of(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    let upgrade = headers.get(UPGRADE).filter(|_| version == Version::HTTP_11)?;
    let asked = headers.get_all(CONNECTION).iter().any(|line| {
        line.as_bytes().split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    (asked && !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| upgrade.clone())
}

/// Whether an answer is the last of its HTTP/1 connection: our own word on a request that was not understood.
pub(crate) fn ends_connection<B>(response: &Response<B>) -> bool {
    const LAST: [StatusCode; 5] = [
        StatusCode::BAD_REQUEST,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::URI_TOO_LONG,
        StatusCode::EXPECTATION_FAILED,
    ];
    LAST.contains(&response.status()) && response.headers().contains_key(ERROR_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, target: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn a_request_names_one_host_or_is_refused() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let rows: &[(Version, &str, &[(&str, &str)], Result<Option<&str>, (u16, &str)>)] = &[
            (one, "/", &[("host", "a")], Ok(Some("a"))),
            (one, "http://b/", &[("host", "a")], Ok(Some("b"))),
            (Version::HTTP_10, "/", &[], Ok(None)),
            (one, "/", &[], Err((400, "host"))),
            (one, "/", &[("host", "")], Err((400, "host"))),
            (one, "/", &[("host", "a"), ("host", "a")], Err((400, "host"))),
            (one, "https://a/", &[("host", "a")], Err((400, "scheme"))),
            (one, "ftp://a/", &[("host", "a")], Err((400, "scheme"))),
            (one, "a", &[("host", "a")], Err((400, "target"))),
            (one, "/", &[("host", "a"), ("expect", "100-Continue")], Ok(Some("a"))),
            (one, "/", &[("host", "a"), ("expect", "tea")], Err((417, "expect"))),
            (two, "http://a/", &[], Ok(Some("a"))),
            (two, "https://a/", &[("host", "A")], Ok(Some("a"))),
            (two, "http://a/", &[("host", "b")], Err((400, "host"))),
            (two, "/", &[], Err((400, "host"))),
            (two, "/", &[("host", "b")], Ok(Some("b"))),
            (two, "ftp://a/", &[], Err((400, "scheme"))),
        ];
        for (version, target, fields, expected) in rows {
            let found = host_of(&request(*version, target, fields));
            let found = match &found {
                Ok(host) => Ok(host.as_ref().map(|host| host.to_str().expect("text"))),
                Err(answer) => Err((answer.status.as_u16(), answer.label)),
            };
            assert_eq!(&found, expected, "{version:?} {target} {fields:?}");
        }
    }
}
