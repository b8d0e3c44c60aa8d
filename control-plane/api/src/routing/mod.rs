//! Routes of the Gateway API (`HTTPRoute`, `GRPCRoute`) as a sidecar is told of them: parsed, attached to a port of a Service,
//! with every backend resolved or refused. Pure.
//!
//! The control plane's `compile` makes [`Route`]s, [`crate::wire`] carries them, the proxy's `MeshView` puts those of one port
//! into an order of precedence ([`RouteTable`]) and asks it for each request.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::resource::NamespacedName;

mod matching;
mod pattern;
mod query;
mod table;
#[cfg(test)]
mod table_tests;

pub use pattern::{BadPattern, MAX_REGEX_BYTES, Pattern};
pub use table::{Found, RequestView, RouteTable};

/// A route that is attached to a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Which kind of resource it was written as.
    pub kind: RouteKind,
    /// Its name.
    pub name: NamespacedName,
    /// When it was created, in seconds since 1970: of two routes that match alike the older wins. 0: unknown, as in files.
    pub created: u64,
    /// Its rules, one or more, in the order written.
    pub rules: Vec<Rule>,
}

impl Route {
    /// A route that is there and cannot be understood: every request that reaches it gets 500.
    pub(crate) fn unreadable(why: &str) -> Self {
        let why = format!("this sidecar cannot read the route ({why}); bring it to the control plane's version");
        let rules = vec![Rule { refused: Some(why), ..Rule::default() }];
        Self { kind: RouteKind::Http, name: NamespacedName::new("", "unreadable"), created: 0, rules }
    }
}

/// The kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RouteKind {
    /// `HTTPRoute`.
    Http,
    /// `GRPCRoute`: matches only requests that are gRPC's, and answers with gRPC statuses.
    Grpc,
}

impl RouteKind {
    /// The kind's name in the Gateway API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

/// What happens to the requests that one of the matches fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Its name, for logs and metrics.
    pub name: Option<String>,
    /// One of them must fit. Empty: every request does.
    pub matches: Vec<Match>,
    /// Applied in this order.
    pub filters: Vec<Filter>,
    /// Where requests go, by weight. Empty, or all of weight 0: 500, unless a filter answers by itself.
    pub backends: Vec<Backend>,
    /// How long requests may take.
    pub timeouts: Timeouts,
    /// When they are sent again.
    pub retry: Option<Retry>,
    /// Why requests that match get 500: the rule asks for what cannot be done.
    pub refused: Option<String>,
}

/// What a request must be like. All that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Its path; `None`: any.
    pub path: Option<PathMatch>,
    /// Its method; `None`: any.
    pub method: Option<String>,
    /// Its headers, by lower-case name; each name at most once.
    pub headers: Vec<ValueMatch>,
    /// Its query parameters, each name at most once.
    pub query: Vec<ValueMatch>,
}

/// What a path must be like. Queries are no part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatch {
    /// This very path.
    Exact(String),
    /// It begins with these whole segments; without a slash at its end, except `/` alone.
    Prefix(String),
    /// A regular expression (RE2 syntax) that fits the whole path.
    Regex(String),
    /// A call of gRPC: `/service/method`. `None`: any.
    Rpc {
        /// Name of the service with its package.
        service: Option<Text>,
        /// Name of the method.
        method: Option<Text>,
    },
}

/// A header or query parameter and what its value must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueMatch {
    /// Its name.
    pub name: String,
    /// What its value must be like.
    pub value: Text,
}

/// What a text must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Text {
    /// Exactly this.
    Exact(String),
    /// A regular expression (RE2 syntax) that fits the whole text.
    Regex(String),
}

/// What is done to a request or its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// Changes the request's headers.
    RequestHeaders(HeaderChange),
    /// Changes the answer's headers.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect; nothing is forwarded.
    Redirect(Redirect),
    /// Changes host or path.
    Rewrite(Rewrite),
    /// Sends a copy somewhere else, whose answer is thrown away.
    Mirror(Mirror),
}

/// Header fields that are replaced, added and removed, in this order. Names are lower-case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderChange {
    /// Replaces all lines of that name.
    pub set: Vec<(String, String)>,
    /// Adds a line.
    pub add: Vec<(String, String)>,
    /// Removes all lines of that name.
    pub remove: Vec<String>,
}

/// Where a redirect leads. What is `None` stays as in the request, by the rules of `HTTPRequestRedirectFilter`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Its path.
    pub path: Option<PathChange>,
    /// Port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. `None`: 302.
    pub status: Option<u16>,
}

/// What a request is rewritten to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rewrite {
    /// Its host.
    pub hostname: Option<String>,
    /// Its path.
    pub path: Option<PathChange>,
}

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathChange {
    /// Replaced whole.
    Full(String),
    /// The prefix that the rule matched is replaced.
    Prefix(String),
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Where to.
    pub backend: Backend,
    /// `numerator` of `denominator` requests are copied.
    pub numerator: u32,
    /// Above 0.
    pub denominator: u32,
}

/// A Service's port that requests go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// Its share of the requests, against the sum of all; 0: none.
    pub weight: u32,
    /// Applied to what goes there, after the rule's own.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Why its share of the requests gets 500: no such Service, not granted, or not a Service.
    #[serde(default)]
    pub refused: Option<String>,
}

/// How long requests may take. `None`: no limit of the route's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the request's head to the answer's last byte, over all attempts.
    pub request: Option<Duration>,
    /// Each attempt.
    pub backend_request: Option<Duration>,
}

/// When a request is sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Statuses that are tried again.
    pub codes: Vec<u16>,
    /// How often at most, after the first attempt.
    pub attempts: Option<u32>,
    /// Least time between attempts.
    pub backoff: Option<Duration>,
}
