//! Conversations of a WebSocket client, numbered as the cases of the Autobahn test suite that they follow.
use std::net::SocketAddr;

use anyhow::{Result, bail};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::{WebSocketStream, client_async};

/// What carries the WebSocket.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Http1,
    Http2,
}

fn frame(code: OpCode, payload: impl Into<Bytes>, last: bool) -> Frame {
    let header = FrameHeader { is_final: last, opcode: code, ..FrameHeader::default() };
    Frame::from_payload(header, payload.into())
}

fn data(kind: Data, payload: impl Into<Bytes>, last: bool) -> Frame {
    frame(OpCode::Data(kind), payload, last)
}

fn ping(payload: impl Into<Bytes>) -> Frame {
    frame(OpCode::Control(Control::Ping), payload, true)
}

/// A close with a code and a reason, whether they are allowed or not.
fn close(code: u16, reason: &[u8]) -> Frame {
    frame(OpCode::Control(Control::Close), [&code.to_be_bytes(), reason].concat(), true)
}

fn in_pieces(kind: Data, payload: &[u8], piece: usize) -> Vec<Frame> {
    let count = payload.len().div_ceil(piece);
    let pieces = payload.chunks(piece).enumerate();
    let kind = |number| if number == 0 { kind } else { Data::Continue };
    pieces.map(|(number, part)| data(kind(number), part.to_vec(), number + 1 == count)).collect()
}

pub fn one_frame() -> Vec<Frame> {
    vec![data(Data::Text, "hello", true)]
}

/// Name and frames of each conversation. Those that do not end themselves are ended with a close of 1000.
pub fn conversations() -> Vec<(String, Vec<Frame>)> {
    let mut all: Vec<(String, Vec<Frame>)> = Vec::new();
    let mut add = |name: String, frames: Vec<Frame>| all.push((name, frames));
    for size in [0, 125, 126, 127, 128, 65_535, 65_536] {
        add(format!("1.1 text of {size}"), vec![data(Data::Text, vec![b'*'; size], true)]);
        add(format!("1.2 binary of {size}"), vec![data(Data::Binary, vec![0xfe; size], true)]);
    }
    add("1.1.8 text of 65536 in pieces of 997".into(), in_pieces(Data::Text, &[b'*'; 65_536], 997));
    add("2.1 empty ping".into(), vec![ping("")]);
    add("2.4 ping of 125".into(), vec![ping(vec![0xfe; 125])]);
    add("2.5 ping of 126".into(), vec![ping(vec![0xfe; 126])]);
    add("2.7 unasked pong".into(), vec![frame(OpCode::Control(Control::Pong), "", true), ping("after")]);
    add("2.10 ten pings".into(), (0..10).map(|number| ping(format!("ping {number}"))).collect());
    for bits in 1..8 {
        let mut bad = data(Data::Text, "reserved", true);
        let header = bad.header_mut();
        (header.rsv1, header.rsv2, header.rsv3) = (bits & 4 != 0, bits & 2 != 0, bits & 1 != 0);
        add(format!("3.{bits} reserved bits"), vec![data(Data::Text, "before", true), bad]);
    }
    for code in [3, 7] {
        add(format!("4.1 reserved opcode {code}"), vec![data(Data::Reserved(code), "", true)]);
    }
    for code in [11, 15] {
        add(
            format!("4.2 reserved control opcode {code}"),
            vec![frame(OpCode::Control(Control::Reserved(code)), "", true)],
        );
    }
    add(
        "5.1 ping in fragments".into(),
        vec![frame(OpCode::Control(Control::Ping), "a", false), data(Data::Continue, "b", true)],
    );
    add("5.3 text in two".into(), in_pieces(Data::Text, b"fragment1fragment2", 9));
    add(
        "5.6 ping between fragments".into(),
        vec![data(Data::Text, "frag1", false), ping("ping"), data(Data::Continue, "frag2", true)],
    );
    add("5.9 continuation of nothing".into(), vec![data(Data::Continue, "none", true)]);
    add("5.18 text within text".into(), vec![data(Data::Text, "one", false), data(Data::Text, "two", true)]);
    add(
        "5.19 many fragments and pings".into(),
        vec![
            data(Data::Text, "fragment1", false),
            data(Data::Continue, "fragment2", false),
            ping("pongme 1"),
            data(Data::Continue, "fragment3", false),
            data(Data::Continue, "fragment4", false),
            ping("pongme 2"),
            data(Data::Continue, "fragment5", true),
        ],
    );
    let greek = "κόσμε — Ὦ ἄνδρες 😈".as_bytes();
    add("6.2 UTF-8".into(), vec![data(Data::Text, greek, true)]);
    add("6.2.3 UTF-8 cut at each byte".into(), in_pieces(Data::Text, greek, 1));
    for (number, bad) in
        [&b"\xce\xba\xed\xa0\x80"[..], b"\xf4\x90\x80\x80", b"\xff", b"\xc0\xaf"].into_iter().enumerate()
    {
        add(format!("6.3.{number} not UTF-8"), vec![data(Data::Text, bad, true)]);
    }
    add("7.1.1 close after text".into(), vec![data(Data::Text, "Hello World!", true), close(1000, b"")]);
    add("7.1.2 two closes".into(), vec![close(1000, b""), close(1000, b"")]);
    add("7.1.3 ping after close".into(), vec![close(1000, b""), ping("late")]);
    add("7.3.1 close without code".into(), vec![frame(OpCode::Control(Control::Close), "", true)]);
    add("7.3.2 close with half a code".into(), vec![frame(OpCode::Control(Control::Close), "a", true)]);
    add("7.3.5 close with the longest reason".into(), vec![close(1000, &[b'r'; 123])]);
    add("7.3.6 close with too long a reason".into(), vec![close(1000, &[b'r'; 124])]);
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        add(format!("7.7 close {code}"), vec![close(code, b"reason")]);
    }
    for code in [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535] {
        add(format!("7.9 close {code}, which is not allowed"), vec![close(code, b"")]);
    }
    add("9.1.3 text of 1 MiB".into(), vec![data(Data::Text, vec![b'*'; 1 << 20], true)]);
    add("9.2.6 binary of 16 MiB".into(), vec![data(Data::Binary, vec![0xfe; 16 << 20], true)]);
    add("9.4 binary of 4 MiB in pieces of 4 KiB".into(), in_pieces(Data::Binary, &vec![0xfe; 4 << 20], 4096));
    add("9.7 a thousand texts".into(), (0..1000).map(|n| data(Data::Text, format!("message {n}"), true)).collect());
    all
}

/// Sends the frames, and tells what came back until the end.
pub async fn hold(target: SocketAddr, way: Way, frames: Vec<Frame>) -> Result<String> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    match way {
        Way::Http1 => {
            let (socket, _) = client_async("ws://server/chat", stream).await?;
            Ok(speak(socket, frames).await)
        }
        Way::Http2 => {
            let (status, upgraded) = extended_connect(stream, Some("websocket")).await?;
            let Some(upgraded) = upgraded else { bail!("answered {status}") };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
            Ok(speak(socket, frames).await)
        }
    }
}

/// The status with which a CONNECT over HTTP/2 is answered.
pub async fn connect_status(target: SocketAddr, protocol: Option<&'static str>) -> Result<u16> {
    Ok(extended_connect(TcpStream::connect(target).await?, protocol).await?.0.as_u16())
}

async fn extended_connect(
    stream: TcpStream,
    protocol: Option<&'static str>,
) -> Result<(StatusCode, Option<hyper::upgrade::Upgraded>)> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = match protocol {
        Some(_) => "http://server/chat".parse()?,
        None => "server:80".parse()?,
    };
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    request.headers_mut().insert("sec-websocket-version", http::HeaderValue::from_static("13"));
    let mut response = sender.send_request(request).await?;
    let status = response.status();
    let upgraded = match status {
        StatusCode::OK => Some(hyper::upgrade::on(&mut response).await?),
        _ => None,
    };
    Ok((status, upgraded))
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<S>, frames: Vec<Frame>) -> String {
    let (mut writer, mut reader) = socket.split();
    let ends = frames.iter().any(|frame| frame.header().opcode == OpCode::Control(Control::Close));
    let speaking = async {
        for frame in frames {
            if writer.send(Message::Frame(frame)).await.is_err() {
                return;
            }
        }
        if !ends {
            let _ = writer.send(Message::Frame(close(1000, b""))).await;
        }
    };
    let hearing = async {
        let mut heard = Vec::new();
        while let Some(message) = reader.next().await {
            let closed = matches!(message, Ok(Message::Close(_)));
            heard.push(match message {
                Ok(Message::Text(text)) => tell("text", text.as_bytes()),
                Ok(Message::Binary(bytes)) => tell("binary", &bytes),
                Ok(Message::Pong(bytes)) => tell("pong", &bytes),
                Ok(Message::Ping(bytes)) => tell("ping", &bytes),
                Ok(Message::Close(Some(CloseFrame { code, reason }))) => format!("close {code} {reason}"),
                Ok(Message::Close(None)) => "close".to_owned(),
                Ok(Message::Frame(_)) => "a raw frame".to_owned(),
                Err(_) => "cut".to_owned(),
            });
            // How the connection below ends after both have closed is not WebSocket's to say.
            if closed {
                break;
            }
        }
        heard.join(", ")
    };
    tokio::join!(speaking, hearing).1
}

fn tell(kind: &str, payload: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, payload);
    let digest: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind} of {} {digest}", payload.len())
}
