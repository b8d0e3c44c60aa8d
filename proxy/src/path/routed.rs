//! A request to a port with routes: which rule it falls under, what the rule does to it, and to which backend it goes.
//!
//! Order: match → filters of the rule, as written → backend by weight → mirrors → filters of the backend → send, within the
//! rule's time. What is matched is the path that policy judges, so that no spelling of a path is routed otherwise than it
//! is judged; what is sent on is the path as it came, unless a rule rewrites it. A request that no rule takes gets 404, and
//! never the Service's own endpoints. The routes of a backend's own Service are not followed.
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, LOCATION};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use rand::Rng;
use weft_api::policy::path::{normalize, normalize_host};
use weft_api::routing::RequestView;
use weft_api::workload::{ProtocolHint, Service};

use super::attempt;
use super::exact::{bad_request, upgrade_of};
use super::http::{begins_websocket, leave};
use super::limits::Limits;
use super::record::{Ending, Record, ResponseBody};
use super::respond::{self, Answer};
use super::send::{Forwarding, finish, prepare, strip_hop_by_hop, wait_for};
use super::{Closing, Worker, mirror};
use crate::stage::body::{Arriving, RequestBody};
use crate::stage::connect::HttpVersion;
use crate::stage::filters::HeaderEdit;
use crate::stage::policy::Permit;
use crate::stage::route::MeshView;
use crate::stage::routes::{PortRoutes, ReadyBackend, ReadyFilter, ReadyMirror, ReadyRule};
use crate::stage::tee::{Behind, Tee};
use crate::stage::tls::Lifetime;
use crate::telemetry::{Ends, Party};

/// Where a request came from: a port whose routes decide.
pub(crate) struct Hop<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) view: &'a MeshView,
    pub(crate) routes: &'a PortRoutes,
    /// The Service's port that was called.
    pub(crate) port: u16,
    pub(crate) closing: &'a Closing,
}

/// What a request asks for.
struct Asked<'u> {
    uri: &'u Uri,
    /// Its path in normal form.
    path: Cow<'u, str>,
    host: Option<&'u str>,
    version: Version,
    grpc: bool,
    /// Whether it wants its connection or stream to become something else.
    switches: bool,
}

/// What filters have changed beside the request's headers, or will change in its answer.
#[derive(Default)]
struct Changes<'r> {
    host: Option<&'r HeaderValue>,
    path: Option<PathAndQuery>,
    mirrors: Vec<&'r ReadyMirror>,
    answer: Vec<&'r HeaderEdit>,
    redirect: Option<(StatusCode, HeaderValue)>,
}

/// One request to a port with routes.
pub(crate) async fn request(
    hop: Hop<'_>,
    _permit: Permit,
    mut request: Request<Incoming>,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let (version, grpc) = (request.version(), respond::is_grpc(request.headers()));
    let upgrade = upgrade_of(request.headers(), version);
    let switches = upgrade.is_some() || begins_websocket(&request);
    let caller_side = switches.then(|| hyper::upgrade::on(&mut request));
    let (uri, host) = (record.uri.clone(), record.host.clone());
    let (mut head, body) = request.into_parts();
    let refuse = |mut record: Box<Record>, answer: Answer| {
        record.ending = Ending::Failed(answer.label);
        leave(hop.closing, record.answer(answer.into_response(grpc)))
    };
    let path = match normalize(uri.path()) {
        Ok(path) => path,
        Err(why) => return refuse(record, bad_request(why.label(), &why.to_string())),
    };
    let host = host.as_ref().and_then(|host| host.to_str().ok());
    let asked = Asked { uri: &uri, path, host, version, grpc, switches };

    let mut changes = Changes::default();
    let chosen = choose(&hop, &asked, &mut head, &mut changes, &mut record);
    if let Some((status, location)) = changes.redirect.take() {
        let mut response = Response::new(ResponseBody::local(Default::default()));
        *response.status_mut() = status;
        response.headers_mut().insert(LOCATION, location);
        changes.answer.iter().for_each(|edit| edit.apply(response.headers_mut()));
        return leave(hop.closing, record.answer(response));
    }
    let Chosen { rule, prefix, backend, service, port } = match chosen {
        Ok(chosen) => chosen,
        Err(answer) => return refuse(record, answer),
    };
    let (name, namespace) = backend.party.clone();
    record.ends = Rc::new(Ends { destination: Party { name, namespace }, ..(*record.ends).clone() });
    if let Some(span) = &record.span {
        span.inject(&mut head.headers);
    }

    let repeat = rule.retry.is_some() && !switches;
    // What becomes a byte stream cannot be copied.
    let mirrors = if switches { Vec::new() } else { std::mem::take(&mut changes.mirrors) };
    let body = match !body.is_end_stream() && (repeat || !mirrors.is_empty()) {
        true => Body::Shared(Tee::new(Arriving::new(body, &record.request_body, wait_for(hop.worker, grpc)), repeat)),
        false => Body::Own(RequestBody::incoming(body, &record.request_body, wait_for(hop.worker, grpc))),
    };
    for mirror in mirrors {
        let version = version_to(hop.view.backend(&mirror.service, mirror.port), &asked);
        let mut copy = head.clone();
        aim(&mut copy, version, None, changes.host, changes.path.clone(), &record);
        mirror::start(
            hop.worker,
            hop.view,
            mirror,
            version,
            Request::from_parts(copy, body.copy(&hop.worker.mirrors.behind)),
        );
    }
    if let Err(answer) = filter(&backend.filters, &hop, &asked, prefix, &mut head, &mut changes) {
        return refuse(record, answer);
    }
    let version = version_to(Some((service, port)), &asked);
    aim(&mut head, version, upgrade.as_ref(), changes.host, changes.path.take(), &record);

    let identity = hop.worker.identity();
    let destination = hop.worker.balancer.service(service, port, None);
    let limits = Limits::new(rule, repeat, grpc.then_some(&head.headers), record.started);
    let to = Forwarding {
        worker: hop.worker,
        identity: &identity,
        destination: &destination,
        policy: limits.policy,
        path: None,
        closing: hop.closing,
        lifetime: Lifetime::unbounded(),
    };
    let (tee, body) = body.into_request();
    let sent = attempt::send(&to, Request::from_parts(head, body), version, &mut record).await;
    if let Some(tee) = tee {
        tee.settle();
    }
    let until = sent.as_ref().ok().and_then(|(_, _, chosen)| limits.end(chosen.begun));
    let mut response = finish(&to, sent, caller_side, grpc, record);
    // What was spoken with the backend is no matter of the caller's.
    if response.version() != asked.version {
        response.headers_mut().remove(CONNECTION);
        *response.version_mut() = if asked.version == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
        response = leave(hop.closing, response);
    }
    changes.answer.iter().for_each(|edit| edit.apply(response.headers_mut()));
    if let Some(until) = until {
        response.body_mut().end_by(until, grpc && asked.version == Version::HTTP_2);
    }
    response
}

/// The body of a request.
enum Body {
    Own(RequestBody),
    /// It may be sent again, or others get copies.
    Shared(Tee),
}

impl Body {
    /// What a mirror is sent.
    fn copy(&self, all: &Behind) -> RequestBody {
        match self {
            Self::Own(_) => RequestBody::Empty,
            Self::Shared(tee) => RequestBody::Copy(tee.copy(all)),
        }
    }

    fn into_request(self) -> (Option<Tee>, RequestBody) {
        match self {
            Self::Own(body) => (None, body),
            Self::Shared(tee) => {
                let body = RequestBody::Repeatable(tee.read());
                (Some(tee), body)
            }
        }
    }
}

/// Where a request goes.
struct Chosen<'r> {
    rule: &'r ReadyRule,
    /// Bytes of its path that the rule's prefix matched.
    prefix: usize,
    backend: &'r ReadyBackend,
    service: &'r Arc<Service>,
    /// Index of the backend's port in its Service.
    port: usize,
}

/// Finds the rule, does what it says, and draws one of its backends.
fn choose<'r>(
    hop: &Hop<'r>,
    asked: &Asked<'_>,
    head: &mut Parts,
    changes: &mut Changes<'r>,
    record: &mut Record,
) -> Result<Chosen<'r>, Answer> {
    let view = RequestView {
        grpc: asked.grpc,
        method: head.method.as_str(),
        path: &asked.path,
        query: asked.uri.query(),
        host: asked.host,
        headers: &head.headers,
    };
    let Some((rule, found)) = hop.routes.find(&view) else {
        return Err(Answer::new(StatusCode::NOT_FOUND, "no_route", nobody(hop)));
    };
    let prefix = found.prefix;
    record.route = Some(Arc::clone(&rule.label));
    if let Some(why) = found.refused.or(rule.refused.as_deref()) {
        return Err(refused("route_refused", format!("{} cannot be obeyed: {why}", rule.title)));
    }
    strip_hop_by_hop(&mut head.headers);
    filter(&rule.filters, hop, asked, prefix, head, changes)?;
    let backend = match rule.weights() {
        0 => None,
        sum => rule.backend(rand::rng().random_range(0..sum)),
    };
    let Some(backend) = backend else {
        return Err(refused("no_backends", format!("{} sends requests nowhere: no backend has a weight", rule.title)));
    };
    let to = &backend.service;
    if let Some(why) = &backend.refused {
        let text = format!("{} cannot send to Service {to} port {}: {why}", rule.title, backend.port);
        return Err(refused("backend_refused", text));
    }
    let Some((service, port)) = hop.view.backend(to, backend.port) else {
        let text = format!("{} sends to Service {to} port {}, which does not exist", rule.title, backend.port);
        return Err(refused("backend_refused", text));
    };
    Ok(Chosen { rule, prefix, backend, service, port })
}

/// 500, as the Gateway API has it; gRPC callers get `UNAVAILABLE`.
fn refused(label: &'static str, text: String) -> Answer {
    Answer { unavailable: true, ..Answer::new(StatusCode::INTERNAL_SERVER_ERROR, label, text) }
}

/// That no rule takes a request, for people.
fn nobody(hop: &Hop<'_>) -> String {
    let names: Vec<String> = hop.routes.routes().iter().map(|route| route.name.to_string()).collect();
    format!("no rule of the routes of this port takes the request: {}", names.join(", "))
}

/// Does what filters say, in their order.
fn filter<'r>(
    filters: &'r [ReadyFilter],
    hop: &Hop<'r>,
    asked: &Asked<'_>,
    prefix: usize,
    head: &mut Parts,
    changes: &mut Changes<'r>,
) -> Result<(), Answer> {
    for filter in filters {
        match filter {
            ReadyFilter::RequestHeaders(edit) => edit.apply(&mut head.headers),
            ReadyFilter::ResponseHeaders(edit) => changes.answer.push(edit),
            ReadyFilter::Mirror(mirror) => {
                if mirror.takes(rand::rng().random_range(0..mirror.denominator())) {
                    changes.mirrors.push(mirror);
                }
            }
            ReadyFilter::Rewrite(rewrite) => {
                changes.host = rewrite.host.as_ref().or(changes.host);
                if let Some(path) = &rewrite.path {
                    changes.path = path.apply(&asked.path, prefix, asked.uri.query());
                }
            }
            ReadyFilter::Redirect(redirect) => {
                let host = normalize_host(asked.host.unwrap_or_default())
                    .map_err(|why| bad_request(why.label(), &why.to_string()))?;
                let root = PathAndQuery::from_static("/");
                let target = asked.uri.path_and_query().unwrap_or(&root);
                changes.redirect = redirect.answer(&host, hop.port, target, &asked.path, prefix);
            }
        }
    }
    Ok(())
}

/// What is spoken with a backend: what its port is declared to speak, else what the caller speaks.
fn version_to(backend: Option<(&Arc<Service>, usize)>, asked: &Asked<'_>) -> HttpVersion {
    match backend.map(|(service, port)| service.ports[port].protocol) {
        Some(ProtocolHint::Http1) if !asked.grpc && !asked.switches => HttpVersion::Http1,
        Some(ProtocolHint::Http2) if !asked.switches => HttpVersion::Http2,
        _ if asked.version == Version::HTTP_2 => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    }
}

/// Gives the head the form of its next hop, with the host and path that it was rewritten to.
fn aim(
    head: &mut Parts,
    version: HttpVersion,
    upgrade: Option<&HeaderValue>,
    host: Option<&HeaderValue>,
    path: Option<PathAndQuery>,
    record: &Record,
) {
    let path = path.or_else(|| head.uri.path_and_query().cloned());
    if let Some(host) = host {
        head.headers.insert(HOST, host.clone());
        // Whatever authority the target named is replaced with it.
        head.uri = Uri::default();
    }
    prepare(head, version, upgrade, path, host.or(record.host.as_ref()));
}
