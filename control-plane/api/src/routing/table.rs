//! All routes of one port of a Service in their order of precedence.
//!
//! Precedence is the Gateway API's (`HTTPRouteRule.matches`, `GRPCRouteRule.matches`): of all matches that fit a request,
//! the one with
//! - for an HTTPRoute an exact path, then a regular expression (where the API leaves open: the longer one first), then the
//!   longer prefix; then a method; then more headers; then more query parameters;
//! - for a GRPCRoute the longer service, the longer method, more headers;
//!
//! then the older route, then the first by `namespace/name`, then the first rule in it. Where both kinds are attached to one
//! port only the GRPCRoutes count (GEP-1294, "Route types").
use std::cmp::Reverse;
use std::sync::Arc;

use http::HeaderMap;

use super::matching::Matcher;
use super::{Match, PathMatch, Route, RouteKind, Rule, Text};

/// What routes look at in a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Whether it is gRPC's: GRPCRoutes match no other.
    pub grpc: bool,
    /// Method, as sent.
    pub method: &'a str,
    /// Path after [`crate::policy::path::normalize`], without query: what is routed is what policy judges.
    pub path: &'a str,
    /// What follows the `?`, as sent.
    pub query: Option<&'a str>,
    /// `Host` or `:authority`, as sent; matches of the header `host` see it.
    pub host: Option<&'a str>,
    /// Header fields.
    pub headers: &'a HeaderMap,
}

/// The routes of one port, compiled.
#[derive(Clone, Debug)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    /// By precedence: the first that fits decides.
    entries: Vec<Entry>,
    refused: Vec<Refused>,
}

#[derive(Clone, Debug)]
struct Entry {
    route: usize,
    rule: usize,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
struct Refused {
    route: usize,
    rule: usize,
    why: String,
}

/// The rule that decides on a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t> {
    /// Index of its route in [`RouteTable::routes`].
    pub route: usize,
    /// Index of the rule in the route.
    pub rule: usize,
    /// Bytes of the path's prefix that was matched; 0: the whole path was, or no prefix (`/` is none).
    pub prefix: usize,
    /// Why the request gets 500: the rule asks for what cannot be done.
    pub refused: Option<&'t str>,
}

impl RouteTable {
    /// Puts the routes of one port in order. A rule of which a match cannot be compiled is refused: what its other matches
    /// fit gets 500.
    pub fn compile(routes: &[Arc<Route>]) -> Self {
        let deciding = match routes.iter().any(|route| route.kind == RouteKind::Grpc) {
            true => RouteKind::Grpc,
            false => RouteKind::Http,
        };
        let routes: Vec<Arc<Route>> = routes.iter().filter(|route| route.kind == deciding).cloned().collect();
        let mut entries = Vec::new();
        let mut refused = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let name = route.name.to_string();
            for (rule, given) in route.rules.iter().enumerate() {
                let mut why = given.refused.clone();
                let matches =
                    if given.matches.is_empty() { std::slice::from_ref(Matcher::ANY) } else { &given.matches };
                for fits in matches {
                    match Matcher::compile(fits) {
                        Ok(matcher) => {
                            let rank = (specificity(fits), route.created, name.clone(), index, rule);
                            entries.push((rank, Entry { route: index, rule, matcher }));
                        }
                        Err(bad) => why = why.or(Some(bad)),
                    }
                }
                if let Some(why) = why {
                    refused.push(Refused { route: index, rule, why });
                }
            }
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { routes, entries: entries.into_iter().map(|(_, entry)| entry).collect(), refused }
    }

    /// The routes that count.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The rule that decides on `request`. `None`: no rule does, which is 404, and never the Service's own endpoints.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found<'_>> {
        if !request.grpc && self.routes.first().is_some_and(|route| route.kind == RouteKind::Grpc) {
            return None;
        }
        let entry = self.entries.iter().find(|entry| entry.matcher.fits(request))?;
        let refused = self.refused.iter().find(|refused| (refused.route, refused.rule) == (entry.route, entry.rule));
        Some(Found {
            route: entry.route,
            rule: entry.rule,
            prefix: entry.matcher.path.prefix(),
            refused: refused.map(|refused| refused.why.as_str()),
        })
    }

    /// The rule that was found.
    pub fn rule(&self, found: Found<'_>) -> &Rule {
        &self.routes[found.route].rules[found.rule]
    }
}

/// How specific a match is: the smaller comes first.
type Specificity = (u8, Reverse<usize>, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

fn specificity(fits: &Match) -> Specificity {
    let length = |text: &str| Reverse(text.chars().count());
    let text = |text: &Option<Text>| match text {
        Some(Text::Exact(text) | Text::Regex(text)) => length(text),
        None => Reverse(0),
    };
    let (kind, first, second) = match &fits.path {
        Some(PathMatch::Exact(path)) => (0, length(path), Reverse(0)),
        Some(PathMatch::Regex(pattern)) => (1, length(pattern), Reverse(0)),
        Some(PathMatch::Prefix(prefix)) => (2, length(prefix.trim_end_matches('/')), Reverse(0)),
        None => (2, Reverse(0), Reverse(0)),
        Some(PathMatch::Rpc { service, method }) => (2, text(service), text(method)),
    };
    (kind, first, second, fits.method.is_none(), Reverse(fits.headers.len()), Reverse(fits.query.len()))
}
