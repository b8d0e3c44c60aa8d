//! Copies of requests for mirrors. A copy goes to one endpoint, once; its answer is read and thrown away. It never holds up
//! or harms the original: one that cannot be sent, lags behind ([`crate::stage::tee::MOST_BEHIND`]) or takes too long is
//! dropped and counted.
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use weft_api::workload::Service;

use super::Worker;
use crate::stage::balance::Tried;
use crate::stage::body::RequestBody;
use crate::stage::connect::HttpVersion;
use crate::stage::route::MeshView;
use crate::stage::routes::ReadyMirror;
use crate::stage::tee::Behind;

/// Copies that one worker has under way at most.
const MOST: usize = 1024;
/// How long a copy may take, to the end of its answer.
const LONGEST: Duration = Duration::from_secs(30);

/// What a worker's copies take.
#[derive(Debug, Default)]
pub struct Mirrors {
    /// How many are under way.
    under_way: Rc<Cell<usize>>,
    /// What they hold.
    pub(crate) behind: Behind,
}

/// One of them.
struct Place(Rc<Cell<usize>>);

impl Mirrors {
    fn enter(&self) -> Option<Place> {
        let under_way = self.under_way.get();
        (under_way < MOST).then(|| {
            self.under_way.set(under_way + 1);
            Place(Rc::clone(&self.under_way))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Sends `copy` on its way.
pub(crate) fn start(
    worker: &Rc<Worker>,
    view: &MeshView,
    mirror: &ReadyMirror,
    version: HttpVersion,
    copy: Request<RequestBody>,
) {
    let to = view.backend(&mirror.service, mirror.port).map(|(service, port)| (Arc::clone(service), port));
    let (Some((service, port)), Some(place)) = (to, worker.mirrors.enter()) else {
        return worker.telemetry.mirrored(false);
    };
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let _place = place;
        let sent = tokio::time::timeout(LONGEST, send(&worker, &service, port, version, copy)).await;
        worker.telemetry.mirrored(sent.is_ok_and(|answered| answered.is_some()));
    });
}

/// Sends the copy and reads its answer to the end. `None`: it failed, whichever way.
async fn send(
    worker: &Rc<Worker>,
    service: &Arc<Service>,
    port: usize,
    version: HttpVersion,
    copy: Request<RequestBody>,
) -> Option<()> {
    let destination = worker.balancer.service(service, port, None);
    let mut chosen = destination.choose(&Tried::default(), Instant::now())?;
    let identity = worker.identity();
    let connected = worker.upstreams.http(&destination, &chosen.target, version, &identity, false).await;
    let mut sender = connected.inspect_err(|error| tracing::debug!(%error, "mirror not reached")).ok()?;
    let asked = Instant::now();
    let mut answer = sender.send(copy).await.ok()?;
    let now = Instant::now();
    chosen.succeeded(now, now - asked);
    while let Some(frame) = answer.frame().await {
        frame.ok()?;
    }
    sender.give_back();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_bounded_number_of_copies_under_way() {
        let mirrors = Mirrors::default();
        let places: Vec<_> = std::iter::from_fn(|| mirrors.enter()).collect();
        assert_eq!(places.len(), MOST);
        drop(places);
        assert!(mirrors.enter().is_some());
    }
}
