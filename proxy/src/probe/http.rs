//! An HTTP check as the kubelet does it: one GET, redirects within the pod followed, any status from 200 to 399 good.
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, LOCATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_api::probe::HttpGet;

use super::{Failure, Prober, tls};

/// Requests that redirects may make of one.
const MAX_REQUESTS: usize = 10;
/// Bytes of an answer's body that must arrive; the rest is not waited for.
const MAX_BODY: usize = 10 * 1024;
/// Bytes of an answer's header section.
const MAX_HEADERS: usize = 64 * 1024;

/// Where a request goes. The address is always the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    port: u16,
    path: String,
    /// `Host`, where the check or the redirect names one.
    host: Option<HeaderValue>,
}

pub(super) async fn get(
    prober: &Prober,
    address: IpAddr,
    declared: &HttpGet,
    user_agent: Option<&HeaderValue>,
) -> Result<(), Failure> {
    let mut headers = headers(declared, user_agent)?;
    let host = headers.remove(HOST);
    let mut target = Target { tls: declared.tls, port: declared.port, path: declared.path.clone(), host };
    for _ in 0..MAX_REQUESTS {
        let response = request(prober, address, &target, &headers).await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).cloned();
        match location {
            Some(location) if is_redirect(status) => match redirected(&target, address, &location)? {
                Some(next) => target = next,
                // To another host: the kubelet does not go there, and is content.
                None => return Ok(()),
            },
            _ if status.is_success() || status.is_redirection() => return Ok(()),
            _ => {
                let reason = format!("HTTP status {}", status.as_u16());
                return Err(Failure { reason, status: Some(status) });
            }
        }
    }
    Err(Failure::new(format_args!("more than {MAX_REQUESTS} redirects")))
}

/// The declared header fields with the kubelet's defaults. A default that is declared empty is left out.
fn headers(declared: &HttpGet, user_agent: Option<&HeaderValue>) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in &declared.headers {
        let parsed = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        let (name, value) = parsed.ok_or_else(|| Failure::new("a declared header field is not one"))?;
        headers.append(name, value);
    }
    let kubelet = user_agent.filter(|agent| agent.as_bytes().starts_with(b"kube-probe/")).cloned();
    let agent = kubelet.unwrap_or_else(|| HeaderValue::from_static("kube-probe/weft"));
    for (name, default) in [(USER_AGENT, agent), (ACCEPT, HeaderValue::from_static("*/*"))] {
        match headers.get(&name) {
            None => drop(headers.insert(name, default)),
            Some(declared) if declared.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    Ok(headers)
}

/// Sends one request and reads its answer as far as it matters.
async fn request(
    prober: &Prober,
    address: IpAddr,
    target: &Target,
    headers: &HeaderMap,
) -> Result<Response<()>, Failure> {
    let stream = prober.connect(address, target.port).await?;
    if !target.tls {
        return http1(stream, request_of(address, target, headers, false)?).await;
    }
    let (stream, h2) =
        tls::connect(stream, address).await.map_err(|fault| Failure::new(format_args!("TLS: {fault}")))?;
    let request = request_of(address, target, headers, h2)?;
    if h2 { http2(stream, request).await } else { http1(stream, request).await }
}

fn request_of(
    address: IpAddr,
    target: &Target,
    headers: &HeaderMap,
    h2: bool,
) -> Result<Request<Empty<Bytes>>, Failure> {
    let default = if target.tls { 443 } else { 80 };
    let own = match SocketAddr::new(address, target.port) {
        SocketAddr::V4(v4) if v4.port() == default => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.port() == default => format!("[{}]", v6.ip()),
        other => other.to_string(),
    };
    let host = match &target.host {
        Some(host) => host.clone(),
        None => HeaderValue::try_from(own).map_err(Failure::new)?,
    };
    let path =
        PathAndQuery::try_from(target.path.as_str()).map_err(|_| Failure::new("the path cannot be asked for"))?;
    let mut request = Request::new(Empty::new());
    *request.headers_mut() = headers.clone();
    if h2 {
        let authority = Authority::try_from(host.as_bytes()).map_err(|_| Failure::new("`Host` is no host"))?;
        let scheme = if target.tls { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
        *request.uri_mut() = uri.map_err(Failure::new)?;
    } else {
        *request.uri_mut() = Uri::from(path);
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(request)
}

async fn http1<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<()>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = http1::Builder::new();
    let (mut sender, connection) =
        builder.max_buf_size(MAX_HEADERS).handshake(TokioIo::new(stream)).await.map_err(broken)?;
    driven(connection, async { read(sender.send_request(request).await.map_err(broken)?).await }).await
}

async fn http2<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<()>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(broken)?;
    driven(connection, async { read(sender.send_request(request).await.map_err(broken)?).await }).await
}

/// An answer whose body breaks off is none.
async fn read(response: Response<Incoming>) -> Result<Response<()>, Failure> {
    let (head, mut body) = response.into_parts();
    let mut bytes = 0;
    while bytes <= MAX_BODY {
        match body.frame().await {
            Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(fault)) => return Err(broken(fault)),
            None => break,
        }
    }
    Ok(Response::from_parts(head, ()))
}

fn broken(fault: hyper::Error) -> Failure {
    Failure::new(format_args!("HTTP: {}", super::told(&fault)))
}

/// Waits for `exchange` while `connection` moves its bytes.
pub(super) async fn driven<T>(
    connection: impl Future<Output = Result<(), impl fmt::Debug>>,
    exchange: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let driver = async {
        // How it ends is seen by the exchange.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = exchange => result,
        never = driver => never,
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads, if it stays with the pod.
fn redirected(from: &Target, address: IpAddr, location: &HeaderValue) -> Result<Option<Target>, Failure> {
    let fault = || Failure::new("a redirect leads to no address");
    let location = location.to_str().map_err(|_| fault())?;
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = match location.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
            (Some(scheme.to_ascii_lowercase()), rest)
        }
        _ => (None, location),
    };
    let authority_follows = scheme.is_some() || rest.starts_with("//");
    if !authority_follows {
        let path = joined(&from.path, location);
        return Ok(Some(Target { path, ..from.clone() }));
    }
    let tls = match scheme.as_deref() {
        Some("http") => false,
        Some("https") => true,
        None => from.tls,
        Some(_) => return Err(fault()),
    };
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let authority: Authority = rest[..end].parse().map_err(|_| fault())?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    if name.parse::<IpAddr>().map(|ip| ip.to_canonical()) != Ok(address.to_canonical()) {
        return Ok(None);
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Ok(Some(Target { tls, port, path: joined("/", &rest[end..]), host: None }))
}

/// `reference` as a path and query, seen from `base` (RFC 3986 section 5.2).
fn joined(base: &str, reference: &str) -> String {
    let base_path = base.split('?').next().unwrap_or_default();
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let merged = match path {
        "" => base_path.to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{}/{relative}", base_path.rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = merged.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." => {}
            ".." => drop(segments.pop()),
            _ => {
                segments.push(part);
                continue;
            }
        }
        if last {
            segments.push("");
        }
    }
    let query = query.or_else(|| base.split_once('?').map(|(_, query)| query).filter(|_| reference.is_empty()));
    let path = format!("/{}", segments.join("/"));
    query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_followed_within_the_pod_and_nowhere_else() {
        let address: IpAddr = "10.0.0.5".parse().expect("an address");
        let from = Target {
            tls: false,
            port: 8080,
            path: "/a/b?x=1".to_owned(),
            host: Some(HeaderValue::from_static("shop")),
        };
        let same = |path: &str| Some((false, 8080, path.to_owned(), true));
        for (location, expected) in [
            ("/login", same("/login")),
            ("c?y=2#top", same("/a/c?y=2")),
            ("../c", same("/c")),
            ("?y=2", same("/a/b?y=2")),
            ("./", same("/a/")),
            ("/../../c", same("/c")),
            ("http://10.0.0.5:9090/x", Some((false, 9090, "/x".to_owned(), false))),
            ("https://10.0.0.5", Some((true, 443, "/".to_owned(), false))),
            ("//10.0.0.5:81/x?y", Some((false, 81, "/x?y".to_owned(), false))),
            ("http://[::ffff:10.0.0.5]:81/", Some((false, 81, "/".to_owned(), false))),
            ("http://10.0.0.6/", None),
            ("http://127.0.0.1/", None),
            ("http://localhost:8080/", None),
            ("http://10.0.0.5.evil.test/", None),
            ("http://10.0.0.5@evil.test/", None),
        ] {
            let next = redirected(&from, address, &HeaderValue::from_static(location)).expect("an address");
            let next = next.map(|next| (next.tls, next.port, next.path, next.host.is_some()));
            assert_eq!(next, expected, "{location}");
        }
        for location in ["gopher://10.0.0.5/", "http://", "http://[10.0.0.5/", "http://10.0.0.5:99999/x"] {
            let next = redirected(&from, address, &HeaderValue::from_static(location));
            assert!(!matches!(next, Ok(Some(ref target)) if target.port != 80), "{location}: {next:?}");
        }
    }

    #[test]
    fn the_kubelets_header_fields_are_sent_unless_declared_otherwise() {
        let get = |headers: &[(&str, &str)]| HttpGet {
            port: 80,
            path: "/".to_owned(),
            tls: false,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let agent = HeaderValue::from_static("kube-probe/1.36");
        for (declared, asked_by, user_agent, accept) in [
            (&[][..], Some(&agent), Some("kube-probe/1.36"), Some("*/*")),
            (&[], None, Some("kube-probe/weft"), Some("*/*")),
            (&[], Some(&HeaderValue::from_static("curl/8")), Some("kube-probe/weft"), Some("*/*")),
            (&[("user-agent", "mine"), ("Accept", "")], Some(&agent), Some("mine"), None),
            (&[("User-Agent", "")], Some(&agent), None, Some("*/*")),
        ] {
            let headers = headers(&get(declared), asked_by).expect("valid");
            let value = |name| headers.get(name).map(|value| value.to_str().expect("a text"));
            assert_eq!((value(USER_AGENT), value(ACCEPT)), (user_agent, accept), "{declared:?}");
        }
        assert!(headers(&get(&[("a b", "c")]), None).is_err());
        assert!(headers(&get(&[("a", "b\r\nc: d")]), None).is_err());
    }
}
