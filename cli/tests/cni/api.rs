//! A small API server: pods with list and watch, one namespace, one DaemonSet. Enough for an agent, without a cluster.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use weft_loadtests::lab::{Pod, Task};

const PORT: u16 = 6443;

/// What the API server has; cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Mutex<State>>);

struct State {
    pods: Vec<Value>,
    /// The code with which every request is refused; 0: none is.
    refuses: u16,
    daemon_set: Option<Value>,
    /// What was told so far; a resource version is how many of them a client knows.
    events: Vec<String>,
    watches: broadcast::Sender<String>,
    gets: usize,
    deleted: Vec<String>,
}

impl Cluster {
    /// With the DaemonSet and no pod.
    pub fn new() -> Self {
        let daemon_set = Some(json!({"metadata": {"name": "weft-cni", "namespace": "weft-system", "uid": "d"}}));
        let (watches, _) = broadcast::channel(64);
        let state = State {
            pods: Vec::new(),
            refuses: 0,
            daemon_set,
            events: Vec::new(),
            watches,
            gets: 0,
            deleted: Vec::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a pod of namespace `shop`, and tells those who watch if `told`.
    pub fn add(&self, name: &str, annotations: Value, init_containers: Value, told: bool) {
        self.put(pod(name, annotations, init_containers), told);
    }

    /// Adds `pod` as it is.
    pub fn put(&self, mut pod: Value, told: bool) {
        self.state(|state| {
            let version = state.events.len() + usize::from(told);
            pod["metadata"]["resourceVersion"] = json!(version.to_string());
            if told {
                let event = format!("{}\n", json!({"type": "ADDED", "object": pod}));
                state.events.push(event.clone());
                // Whoever comes later reads it from the list of events.
                let _ = state.watches.send(event);
            }
            state.pods.push(pod);
        });
    }

    /// Names of the pods that were deleted, one request each.
    pub fn deleted(&self) -> Vec<String> {
        self.state(|state| state.deleted.clone())
    }

    pub fn refuse(&self, code: u16) {
        self.state(|state| state.refuses = code);
    }

    pub fn delete_daemon_set(&self) {
        self.state(|state| state.daemon_set = None);
    }

    /// How often a single pod was asked for.
    pub fn gets(&self) -> usize {
        self.state(|state| state.gets)
    }

    /// Serves on loopback of `node`; returns the kubeconfig for it.
    pub fn serve(&self, node: &Pod, folder: &Path) -> Result<(Task<()>, PathBuf)> {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        let listener = node.run(move || async move { std::net::TcpListener::bind(address) })??;
        listener.set_nonblocking(true)?;
        let cluster = self.clone();
        let task = node.start(move || async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let cluster = cluster.clone();
                let answer = service_fn(move |request| {
                    let response = cluster.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        })?;
        let kubeconfig = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}], "users": [{"name": "c", "user": {}}],
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        Ok((task, kubeconfig))
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        self.state(|state| {
            if state.refuses != 0 {
                return failure(state.refuses);
            }
            if path == "/api/v1/pods" {
                assert!(query.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{query}");
                if query.contains("watch=true") {
                    let version = query.split('&').find_map(|field| field.strip_prefix("resourceVersion="));
                    let known = version.and_then(|version| version.parse().ok()).unwrap_or(0);
                    let missed = futures_util::stream::iter(state.events[known..].to_vec());
                    let told = BroadcastStream::new(state.watches.subscribe()).map(Result::unwrap_or_default);
                    let frames = missed.chain(told).map(|line| Ok(Frame::data(Bytes::from(line))));
                    return Response::new(BodyExt::boxed(StreamBody::new(frames)));
                }
                let list = json!({
                    "apiVersion": "v1", "kind": "PodList", "items": state.pods,
                    "metadata": {"resourceVersion": state.events.len().to_string()},
                });
                return object(StatusCode::OK, &list);
            }
            let found = match path.split('/').collect::<Vec<_>>().as_slice() {
                ["", "api", "v1", "namespaces", "shop", "pods", name] if request.method() == Method::DELETE => {
                    state.deleted.push((*name).to_owned());
                    state.pods.iter().find(|pod| pod["metadata"]["name"] == *name)
                }
                ["", "api", "v1", "namespaces", "shop", "pods", name] => {
                    state.gets += 1;
                    state.pods.iter().find(|pod| pod["metadata"]["name"] == *name)
                }
                ["", "api", "v1", "namespaces", "weft-system"] => {
                    return object(StatusCode::OK, &json!({"metadata": {"name": "weft-system"}}));
                }
                ["", "apis", "apps", "v1", "namespaces", "weft-system", "daemonsets", "weft-cni"] => {
                    state.daemon_set.as_ref()
                }
                _ => None,
            };
            found.map_or_else(|| failure(404), |found| object(StatusCode::OK, found))
        })
    }
}

/// A pod of namespace `shop` on this node.
pub fn pod(name: &str, annotations: Value, init_containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("{name}-uid"), "annotations": annotations},
        "spec": {"nodeName": "node-1", "initContainers": init_containers, "containers": [{"name": "app"}]},
    })
}

fn object(status: StatusCode, object: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::from(object.to_string()).boxed());
    *response.status_mut() = status;
    response
}

fn failure(code: u16) -> Response<BoxBody<Bytes, Infallible>> {
    let reason = if code == 404 { "NotFound" } else { "Refused" };
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "refused", "reason": reason});
    object(StatusCode::from_u16(code).expect("a status"), &status)
}
