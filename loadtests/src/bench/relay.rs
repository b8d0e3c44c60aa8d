//! A relay of bytes without TLS and without a look at them: what two hops through user space cost by themselves.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};

/// Relays until killed; each of `pairs` is `LISTEN=TO`.
///
/// # Errors
/// An address is none, or cannot be listened on.
pub fn run(pairs: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    for pair in pairs {
        let (listen, to) = pair.split_once('=').with_context(|| format!("`{pair}` is not LISTEN=TO"))?;
        let (listen, to): (SocketAddr, SocketAddr) = (listen.parse()?, to.parse()?);
        let listener = runtime.block_on(TcpListener::bind(listen)).with_context(|| format!("listen on {listen}"))?;
        local.spawn_local(relay(listener, to));
    }
    println!("ready");
    local.block_on(&runtime, std::future::pending::<()>());
    Ok(())
}

async fn relay(listener: TcpListener, to: SocketAddr) {
    loop {
        let Ok((mut caller, _)) = listener.accept().await else { continue };
        tokio::task::spawn_local(async move {
            let mut server = TcpStream::connect(to).await?;
            caller.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut caller, &mut server).await
        });
    }
}
