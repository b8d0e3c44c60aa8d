//! Asks the other replicas for their reports, all at once, each for two seconds at most.
//!
//! One connection a question: it always presents the present certificate, and a replica that is gone costs nothing later.
//! What a replica said last is kept, so that one where nothing happened answers in a few bytes.
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_api::observation::CallList;
use weft_api::report::Report;
use weft_api::wire::proto::replicas_client::ReplicasClient;
use weft_api::wire::{self, proto};
use weft_certs::{ExpectedServer, Svid, tls_config};

use crate::publish::Publisher;

/// A replica that has not told everything by then is not counted.
const PATIENCE: Duration = Duration::from_secs(2);
/// Replicas that are asked; more are a mistake.
const MOST: usize = 64;
/// Calls of one replica; it keeps fewer.
const MOST_CALLS: usize = 100_000;
/// gRPC is HTTP/2 (RFC 9113 section 3.2).
const ALPN: &[&[u8]] = &[b"h2"];

/// Another replica of this control plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Name of its pod.
    pub name: String,
    /// Where its gRPC services listen.
    pub address: SocketAddr,
}

/// The replicas of this control plane: this one and those beside it. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    publisher: Arc<Publisher>,
    others: watch::Receiver<Vec<Replica>>,
    svid: watch::Receiver<Svid>,
    told: Arc<Mutex<BTreeMap<Replica, Arc<Report>>>>,
}

/// What all replicas say.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// This replica's own first.
    pub reports: Vec<Arc<Report>>,
    /// Replicas that did not answer, by name.
    pub silent: Vec<String>,
}

impl Reports {
    /// Equal while nobody has anything new to say.
    pub fn revisions(&self) -> (Vec<u64>, Vec<String>) {
        (self.reports.iter().map(|report| report.revision).collect(), self.silent.clone())
    }
}

impl Replicas {
    /// `others` are those beside this one; `svid` is the control plane's own and proves it to them.
    pub fn new(publisher: Arc<Publisher>, others: watch::Receiver<Vec<Replica>>, svid: watch::Receiver<Svid>) -> Self {
        Self { publisher, others, svid, told: Arc::default() }
    }

    /// Asks everybody.
    pub async fn reports(&self) -> Reports {
        let others: Vec<Replica> = self.others.borrow().iter().take(MOST).cloned().collect();
        self.told().retain(|replica, _| others.contains(replica));
        let asked = others.iter().map(|replica| async move {
            let known = self.told().get(replica).cloned();
            match tokio::time::timeout(PATIENCE, self.ask(replica, known)).await {
                Ok(Ok(report)) => Ok(report),
                Ok(Err(fault)) => Err(fault.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            }
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut all = Reports { reports: vec![Arc::new(self.publisher.report())], silent: Vec::new() };
        for (replica, answer) in others.into_iter().zip(answers) {
            match answer {
                Ok(report) => {
                    self.told().insert(replica, Arc::clone(&report));
                    all.reports.push(report);
                }
                Err(fault) => {
                    tracing::debug!(replica = replica.name, fault, "a replica does not say how its sidecars fare");
                    all.silent.push(replica.name);
                }
            }
        }
        all
    }

    /// Asks everybody for the calls that their sidecars judged in the last `hours`.
    pub async fn calls(&self, hours: u32) -> CallList {
        let others: Vec<Replica> = self.others.borrow().iter().take(MOST).cloned().collect();
        let asked = others.iter().map(|replica| async move {
            match tokio::time::timeout(PATIENCE, self.calls_of(replica, hours)).await {
                Ok(Ok(list)) => Ok(list),
                Ok(Err(fault)) => Err(fault.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            }
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut all = self.publisher.judged_calls(hours);
        for (replica, answer) in others.into_iter().zip(answers) {
            match answer {
                Ok(list) => all.add(list),
                Err(fault) => {
                    tracing::debug!(replica = replica.name, fault, "a replica does not say which calls it knows");
                    all.silent.push(replica.name);
                }
            }
        }
        all.merged()
    }

    async fn calls_of(&self, replica: &Replica, hours: u32) -> anyhow::Result<CallList> {
        let svid = self.svid.borrow().clone();
        let client = ReplicasClient::new(connect(replica.address, &svid).await?);
        let mut client = client.max_decoding_message_size(wire::MAX_UPDATE_BYTES);
        let mut parts = client.calls(proto::CallsRequest { hours }).await?.into_inner();
        let mut list = CallList::default();
        while let Some(part) = parts.message().await? {
            list.add(serde_json::from_slice(&part.json)?);
            anyhow::ensure!(list.calls.len() <= MOST_CALLS, "it says more than any replica keeps");
        }
        Ok(list)
    }

    async fn ask(&self, replica: &Replica, known: Option<Arc<Report>>) -> anyhow::Result<Arc<Report>> {
        let svid = self.svid.borrow().clone();
        let client = ReplicasClient::new(connect(replica.address, &svid).await?);
        let mut client = client.max_decoding_message_size(wire::MAX_UPDATE_BYTES);
        let revision = known.as_ref().map_or(0, |known| known.revision);
        let mut parts = client.report(proto::ReportRequest { revision }).await?.into_inner();
        let mut report = Report::default();
        while let Some(part) = parts.message().await? {
            if !wire::decode_report_part(&mut report, part)? {
                return known.filter(|known| known.revision == report.revision).ok_or_else(|| {
                    anyhow::anyhow!("it says that nothing changed since a report that was never asked for")
                });
            }
        }
        anyhow::ensure!(report.revision != 0, "it said nothing");
        Ok(Arc::new(report))
    }

    fn told(&self) -> std::sync::MutexGuard<'_, BTreeMap<Replica, Arc<Report>>> {
        // Each change is one call: a panic leaves nothing half done.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect(address: SocketAddr, svid: &Svid) -> Result<Channel, tonic::transport::Error> {
    let expected = ExpectedServer::OneOf(Arc::from([svid.id().clone()]));
    let config = tls_config::client_config(Some(svid), svid.bundle(), expected, ALPN);
    let connect = tower::service_fn(move |_| {
        let connector = TlsConnector::from(Arc::clone(&config));
        async move {
            let stream = TcpStream::connect(address).await?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(tls_config::server_name(), stream).await?))
        }
    });
    Endpoint::from_static("http://control-plane").connect_with_connector(connect).await
}
