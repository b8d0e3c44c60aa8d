//! `grpc.health.v1.Health/Check` in the clear, as the kubelet asks it.
//!
//! One request and one small answer: the message is written and read here rather than through generated code.
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::Failure;
use super::http::driven;

/// Bytes of the answer.
const MAX_ANSWER: usize = 10 * 1024;
const SERVING: u64 = 1;

pub(super) async fn check(stream: TcpStream, address: IpAddr, port: u16, service: &str) -> Result<(), Failure> {
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(no_grpc)?;
    let asked = async {
        let authority = SocketAddr::new(address, port).to_string();
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/grpc.health.v1.Health/Check");
        let request = Request::post(uri.build().map_err(Failure::new)?)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
            .header(TE, HeaderValue::from_static("trailers"))
            .header(USER_AGENT, HeaderValue::from_static("kube-probe/weft"))
            .body(Full::new(request_message(service)))
            .map_err(Failure::new)?;
        let (head, body) = sender.send_request(request).await.map_err(no_grpc)?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(Failure::new(format_args!("HTTP status {} in place of a gRPC answer", head.status.as_u16())));
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Failure::new)?;
        let code = grpc_status(body.trailers()).or_else(|| grpc_status(Some(&head.headers)));
        match code.as_deref() {
            Some("0") => serving(&body.to_bytes()),
            Some("12") => Err(Failure::new("the server does not offer grpc.health.v1.Health")),
            Some(code) => Err(Failure::new(format_args!("gRPC status {code}"))),
            None => Err(Failure::new("the answer has no gRPC status")),
        }
    };
    driven(connection, asked).await
}

fn no_grpc(fault: hyper::Error) -> Failure {
    Failure::new(format_args!("the port does not speak gRPC in the clear: {}", super::told(&fault)))
}

/// The status, if it is one: it comes from the application and goes into the log.
fn grpc_status(headers: Option<&HeaderMap>) -> Option<String> {
    let text = headers?.get("grpc-status")?.to_str().ok()?;
    (text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.to_owned())
}

/// `HealthCheckRequest { service = 1 }` behind the five bytes that gRPC puts before each message.
fn request_message(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).expect("seven bits"));
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Reads `HealthCheckResponse { status = 1 }`.
fn serving(answer: &[u8]) -> Result<(), Failure> {
    let message = match answer {
        [0, _, _, _, _, message @ ..] => message,
        [] => return Err(Failure::new("the answer has no message")),
        _ => return Err(Failure::new("the answer is compressed or no gRPC message")),
    };
    match status(message) {
        Some(SERVING) => Ok(()),
        Some(status) => Err(Failure::new(format_args!("health status {status}, not SERVING"))),
        None => Err(Failure::new("the answer is no HealthCheckResponse")),
    }
}

/// The last field 1 of a message, a number; 0 where it is left out. Fields that are not known are passed over.
fn status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = number(&mut message)?;
        match tag & 7 {
            0 => {
                let value = number(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(number(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// A variable-length number.
fn number(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_is_success() {
        for (answer, hint) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], ""),
            (b"\0\0\0\0\x07\x12\x03abc\x08\x01", ""),
            (b"\0\0\0\0\x02\x08\x02", "status 2"),
            (b"\0\0\0\0\0", "status 0"),
            (b"", "no message"),
            (b"\x01\0\0\0\x02\x08\x01", "compressed"),
            (b"\0\0\0\0\x02\x08", "no HealthCheckResponse"),
            (b"\0\0\0\0\x02\x12\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no HealthCheckResponse"),
            (b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no HealthCheckResponse"),
        ] {
            match serving(answer) {
                Ok(()) => assert_eq!(hint, "", "{answer:?}"),
                Err(failure) => assert!(!hint.is_empty() && failure.reason.contains(hint), "{failure:?}"),
            }
        }
    }

    #[test]
    fn the_service_is_asked_about_by_name() {
        assert_eq!(&request_message("")[..], b"\0\0\0\0\0");
        assert_eq!(&request_message("shop.Orders")[..], b"\0\0\0\0\x0d\x0a\x0bshop.Orders");
        assert_eq!(request_message(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
    }
}
