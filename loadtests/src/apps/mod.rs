//! Small servers to put into pods. Each takes a listening socket (see [`crate::lab::Pod::listen`]) and serves until it
//! is dropped; a fault of one connection ends that connection only.
//!
//! | server | protocol |
//! |---|---|
//! | [`http()`] | HTTP/1.1 and HTTP/2 without TLS: tells what it received, or does what the path says |
//! | [`tcp_echo`] | sends back what it gets |
//! | [`tcp_greeter`] | speaks first, as SMTP or MySQL do; then echoes |
//! | [`tcp_digest`] | reads until end-of-stream, then answers with length and SHA-256: proves half-closing |

mod http;
mod tcp;

pub use http::{Request, http};
pub use tcp::{tcp_digest, tcp_echo, tcp_greeter};

use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Serves each connection in a task of its own.
pub(crate) async fn accept<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => {
                    let _ = connection.set_nodelay(true);
                    connections.spawn(serve(connection));
                }
                // Out of descriptors, or the client has gone: neither ends the server.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
