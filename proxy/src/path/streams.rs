//! The byte streams of an inbound connection: one by itself, or one after another in frames.
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::http::{idle_must_close, told_to_leave};
use super::inbound::{Connection, SILENCE, refused};
use super::observe::keep_stream_refusal;
use super::record::Ending;
use super::until;
use crate::stage::forward::{self as carry, Side};
use crate::stage::frames::Open;
use crate::stage::policy::Permit;
use crate::stage::tls;
use crate::stage::transport::{Stream, Transport};
use crate::stage::tunnel::Tunnel;
use crate::telemetry::{ConnectionEvent, OpenConnection, Protocol};

/// A sidecar's connection without a byte stream for this long is closed. Longer than clients keep idle ones.
const STREAM_TIMEOUT: Duration = Duration::from_secs(120);

impl Connection {
    /// Byte streams that a sidecar sends one after another. Each is judged, limited and counted as if it had a connection of
    /// its own.
    pub(super) async fn streams(&self, transport: Transport) {
        let mut tunnel = Tunnel::new(transport, self.target.port());
        while let Some(open) = self.next_stream(&mut tunnel).await {
            match open.undecided {
                false => Box::pin(self.bytes(&mut tunnel, None)).await,
                true => {
                    if let Some(server) = self.first_of_stream(&mut tunnel).await {
                        Box::pin(self.bytes(&mut tunnel, server)).await;
                    }
                }
            }
            if Instant::now() >= self.lifetime.end || !tunnel.settle().await {
                break;
            }
        }
        if let Some(fault) = tunnel.fault() {
            refused(&self.worker, "bad_frame", Some(&fault.to_string()), self.peer);
        }
        tunnel.close().await;
    }

    /// `None`: there will be no more.
    async fn next_stream(&self, tunnel: &mut Tunnel) -> Option<Open> {
        let mut view = self.worker.view.clone();
        view.mark_unchanged();
        let unused = tunnel.streams() == 0;
        tokio::select! {
            biased;
            open = tunnel.next() => open.ok().flatten(),
            // A client that has just connected has a stream on its way.
            () = told_to_leave(&self.worker, self.lifetime), if !unused => None,
            () = idle_must_close(&self.worker, self.lifetime), if unused => None,
            () = tokio::time::sleep(STREAM_TIMEOUT) => None,
            _ = self.until_forbidden(view) => None,
        }
    }

    /// Waits for the first byte of a stream whose client was silent when it was opened, from either side: where policy would
    /// let bytes pass, the application is let to speak first. `None`: the client took the stream back, or is gone.
    async fn first_of_stream(&self, tunnel: &mut Tunnel) -> Option<Option<Stream>> {
        let (server, patience) = match self.admit_stream().permit {
            Ok(_) => (self.worker.upstreams.tcp(self.target).await.ok(), SILENCE),
            Err(_) => (None, tls::HANDSHAKE_TIMEOUT),
        };
        // A client that waits for the server to speak would wait for ever: it is told that nobody will.
        let Some(server) = server else {
            let first = tokio::time::timeout(patience, tunnel.first()).await;
            return first.unwrap_or(Ok(true)).ok()?.then_some(None);
        };
        let mut peeked = [0];
        tokio::select! {
            biased;
            first = tunnel.first() => if !first.ok()? { return None },
            _ = server.peek(&mut peeked) => {}
            () = until(self.lifetime.end) => return None,
        }
        Some(Some(Transport::Plain(server).rewind(BytesMut::new())))
    }

    /// Carries a byte stream, for as long as policy permits it. It is judged here and not when it was accepted: the
    /// first byte may come long after.
    pub(super) async fn bytes(&self, caller: &mut impl Side, server: Option<Stream>) {
        let worker = &self.worker;
        let mut view = worker.view.clone();
        view.mark_unchanged();
        let judged = self.admit_stream();
        self.count(&judged, Protocol::Tcp, None);
        let open = worker.telemetry.connection_opened(&self.ends);
        let permitted = match judged.permit {
            Err(denial) => Err(Ending::Denied { policy: denial.policy, reason: denial.explanation }),
            Ok(permit) => match self.limit() {
                Err(limited) => Err(Ending::Limited { policy: limited.policy, limit: limited.limit }),
                Ok(()) => Ok(permit),
            },
        };
        let outcome = match permitted {
            Err(refusal) => {
                caller.cut();
                refusal
            }
            Ok(permit) => tokio::select! {
                ending = self.carry(caller, server, &permit, &open) => ending,
                () = until(self.lifetime.end) => Ending::Failed("certificate_expired"),
                denial = self.until_forbidden(view) => {
                    Ending::Denied { policy: denial.policy, reason: denial.explanation }
                }
            },
        };
        keep_stream_refusal(self, &outcome);
        let event = ConnectionEvent {
            outcome: outcome.as_outcome(),
            peer_identity: self.caller.identity().map(|id| id.as_str()),
            peer_address: Some(self.peer),
        };
        open.finish(&event);
    }

    async fn carry(
        &self,
        caller: &mut impl Side,
        server: Option<Stream>,
        permit: &Permit,
        open: &OpenConnection,
    ) -> Ending {
        let server = match server {
            Some(server) => Ok(server),
            None => {
                self.worker.upstreams.tcp(self.target).await.map(|tcp| Transport::Plain(tcp).rewind(BytesMut::new()))
            }
        };
        match server {
            Err(error) => {
                tracing::debug!(%error, "application not reached");
                caller.cut();
                Ending::Failed(error.label())
            }
            Ok(mut server) => {
                let (sent, received) = (|read| open.add_sent(read), |read| open.add_received(read));
                match carry::bytes(caller, &mut server, sent, received, permit).await {
                    Ok(()) => Ending::Forwarded,
                    Err(_) => Ending::Failed("cut"),
                }
            }
        }
    }
}
