//! Byte-stream servers.

use super::accept;
use aws_lc_rs::digest::{Context, SHA256};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends back what it gets, and ends its direction when the client has ended its own.
///
/// # Errors
/// The socket is not a listening one.
pub async fn tcp_echo(listener: TcpListener) -> io::Result<()> {
    accept(listener, |connection| async move { drop(echo(connection).await) }).await
}

/// Sends `greeting` before it reads anything, then echoes.
///
/// # Errors
/// The socket is not a listening one.
pub async fn tcp_greeter(listener: TcpListener, greeting: &[u8]) -> io::Result<()> {
    let greeting: Arc<[u8]> = greeting.into();
    let greet = |mut connection: TcpStream| {
        let greeting = greeting.clone();
        async move {
            if connection.write_all(&greeting).await.is_ok() {
                let _ = echo(connection).await;
            }
        }
    };
    accept(listener, greet).await
}

/// Reads until the client has ended its direction, then answers `LENGTH SHA256\n`: bytes in decimal, digest in lower
/// case hexadecimal.
///
/// # Errors
/// The socket is not a listening one.
pub async fn tcp_digest(listener: TcpListener) -> io::Result<()> {
    accept(listener, |connection| async move { drop(digest(connection).await) }).await
}

async fn echo(mut connection: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = connection.split();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer).await? {
            0 => return writer.shutdown().await,
            length => writer.write_all(&buffer[..length]).await?,
        }
    }
}

async fn digest(mut connection: TcpStream) -> io::Result<()> {
    let mut digest = Context::new(&SHA256);
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match connection.read(&mut buffer).await? {
            0 => break,
            read => {
                digest.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
    let digest: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    connection.write_all(format!("{length} {digest}\n").as_bytes()).await?;
    connection.shutdown().await
}
