//! The routes of one port of a Service, ready for use: compiled once for each change, shared by all workers.
use std::sync::Arc;

use weft_api::resource::NamespacedName;
use weft_api::routing::{
    Backend, Filter, Found, Mirror, RequestView, Retry, Route, RouteKind, RouteTable, Rule, Timeouts,
};

use super::filters::{HeaderEdit, RedirectEdit, RewriteEdit};

/// What decides where a port's requests go.
#[derive(Debug)]
pub struct PortRoutes {
    /// What it was made from.
    given: Vec<Arc<Route>>,
    table: RouteTable,
    /// By route and rule, as in the table.
    rules: Vec<Vec<ReadyRule>>,
}

/// A rule whose parts were checked and parsed.
#[derive(Debug)]
pub struct ReadyRule {
    /// What people know it by: `namespace/name` of the route, `#`, and the rule's name or number.
    pub label: Arc<str>,
    /// Kind and name for sentences: `rule 0 of HTTPRoute shop/canary`.
    pub title: String,
    /// Why it cannot be obeyed.
    pub refused: Option<String>,
    /// What is done to a request, in order.
    pub filters: Vec<ReadyFilter>,
    /// Where requests go.
    pub backends: Vec<ReadyBackend>,
    /// Sum of the backends' weights.
    weights: u64,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// When they are sent again.
    pub retry: Option<Retry>,
}

/// A filter made ready.
#[derive(Debug)]
pub enum ReadyFilter {
    /// Changes the request's headers.
    RequestHeaders(HeaderEdit),
    /// Changes the answer's headers.
    ResponseHeaders(HeaderEdit),
    /// Answers by itself.
    Redirect(RedirectEdit),
    /// Changes host or path.
    Rewrite(RewriteEdit),
    /// Sends a copy elsewhere.
    Mirror(ReadyMirror),
}

/// Where copies go.
#[derive(Debug)]
pub struct ReadyMirror {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    numerator: u32,
    denominator: u32,
}

/// Where requests go.
#[derive(Debug)]
pub struct ReadyBackend {
    /// The Service.
    pub service: NamespacedName,
    /// Its name and namespace once more, cheap to clone.
    pub party: (Arc<str>, Arc<str>),
    /// Its port.
    pub port: u16,
    weight: u32,
    /// What is done to what goes there.
    pub filters: Vec<ReadyFilter>,
    /// Why its share of the requests gets 500.
    pub refused: Option<String>,
}

impl PortRoutes {
    /// Makes `given` ready.
    pub fn new(given: &[Arc<Route>]) -> Self {
        let table = RouteTable::compile(given);
        let rules = table.routes().iter().map(|route| ready_rules(route)).collect();
        Self { given: given.to_vec(), table, rules }
    }

    /// Whether it was made from `given`, so that it need not be made again.
    pub fn is_of(&self, given: &[Arc<Route>]) -> bool {
        let same = |(one, other): (&Arc<Route>, &Arc<Route>)| Arc::ptr_eq(one, other) || one == other;
        self.given.len() == given.len() && self.given.iter().zip(given).all(same)
    }

    /// The rule that decides on a request; `None`: none does.
    pub fn find(&self, request: &RequestView<'_>) -> Option<(&ReadyRule, Found<'_>)> {
        let found = self.table.find(request)?;
        Some((&self.rules[found.route][found.rule], found))
    }

    /// The routes that count.
    pub fn routes(&self) -> &[Arc<Route>] {
        self.table.routes()
    }
}

impl ReadyRule {
    /// The backend that the number `drawn` falls to, of all below [`Self::weights`] each as often as its weight says.
    pub fn backend(&self, drawn: u64) -> Option<&ReadyBackend> {
        let mut left = drawn;
        self.backends.iter().find(|backend| {
            let weight = u64::from(backend.weight);
            let falls_to = left < weight;
            left = left.saturating_sub(weight);
            falls_to
        })
    }

    /// Sum of the backends' weights; 0: nobody is there.
    pub fn weights(&self) -> u64 {
        self.weights
    }
}

impl ReadyMirror {
    /// Whether a request is copied for which `drawn` was drawn from all below [`Self::denominator`].
    pub fn takes(&self, drawn: u32) -> bool {
        drawn < self.numerator
    }

    /// Of how many requests its share is counted.
    pub fn denominator(&self) -> u32 {
        self.denominator
    }
}

fn ready_rules(route: &Route) -> Vec<ReadyRule> {
    let kind = match route.kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
    };
    let ready = |(index, rule): (usize, &Rule)| {
        let (name, title) = match &rule.name {
            Some(name) => (name.clone(), format!("rule {name} of {kind} {}", route.name)),
            None => (index.to_string(), format!("rule {index} of {kind} {}", route.name)),
        };
        let (filters, bad_filters) = ready_filters(&rule.filters);
        ReadyRule {
            label: format!("{}#{name}", route.name).into(),
            title,
            refused: rule.refused.clone().or(bad_filters),
            filters,
            weights: rule.backends.iter().map(|backend| u64::from(backend.weight)).sum(),
            backends: rule.backends.iter().map(ready_backend).collect(),
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
        }
    };
    route.rules.iter().enumerate().map(ready).collect()
}

fn ready_backend(backend: &Backend) -> ReadyBackend {
    let (filters, bad_filters) = ready_filters(&backend.filters);
    ReadyBackend {
        party: (backend.service.name.as_str().into(), backend.service.namespace.as_str().into()),
        service: backend.service.clone(),
        port: backend.port,
        weight: backend.weight,
        filters,
        refused: backend.refused.clone().or(bad_filters),
    }
}

/// The filters, and why they cannot be obeyed. A mirror whose backend is refused is left out: the API wants it dropped.
fn ready_filters(given: &[Filter]) -> (Vec<ReadyFilter>, Option<String>) {
    let mut ready = Vec::new();
    for filter in given {
        let made = match filter {
            Filter::RequestHeaders(change) => HeaderEdit::new(change).map(ReadyFilter::RequestHeaders),
            Filter::ResponseHeaders(change) => HeaderEdit::new(change).map(ReadyFilter::ResponseHeaders),
            Filter::Redirect(redirect) => RedirectEdit::new(redirect).map(ReadyFilter::Redirect),
            Filter::Rewrite(rewrite) => RewriteEdit::new(rewrite).map(ReadyFilter::Rewrite),
            Filter::Mirror(mirror) if mirror.backend.refused.is_some() => continue,
            Filter::Mirror(Mirror { denominator: 0, .. }) => {
                Err("a mirror's fraction has the denominator 0".to_owned())
            }
            Filter::Mirror(mirror) => Ok(ReadyFilter::Mirror(ReadyMirror {
                service: mirror.backend.service.clone(),
                port: mirror.backend.port,
                numerator: mirror.numerator,
                denominator: mirror.denominator,
            })),
        };
        match made {
            Ok(made) => ready.push(made),
            Err(why) => return (Vec::new(), Some(why)),
        }
    }
    (ready, None)
}

#[cfg(test)]
mod tests {
    use weft_api::routing::HeaderChange;

    use super::*;

    fn backend(name: &str, weight: u32) -> Backend {
        Backend { service: NamespacedName::new("shop", name), port: 80, weight, filters: Vec::new(), refused: None }
    }

    fn ready(rule: Rule) -> PortRoutes {
        let name = NamespacedName::new("shop", "canary");
        PortRoutes::new(&[Arc::new(Route { kind: RouteKind::Http, name, created: 0, rules: vec![rule] })])
    }

    #[test]
    fn each_backend_gets_its_weight_of_all_numbers() {
        let backends = vec![backend("none", 0), backend("v1", 90), backend("also-none", 0), backend("v2", 10)];
        let routes = ready(Rule { backends, ..Rule::default() });
        let rule = &routes.rules[0][0];
        assert_eq!(rule.weights(), 100);
        let to = |name: &str| {
            let goes = |drawn: &u64| rule.backend(*drawn).is_some_and(|backend| backend.service.name == name);
            (0..rule.weights()).filter(goes).count()
        };
        assert_eq!([to("none"), to("v1"), to("also-none"), to("v2")], [0, 90, 0, 10]);
        assert!(ready(Rule::default()).rules[0][0].backend(0).is_none());
        let heavy = ready(Rule { backends: vec![backend("a", u32::MAX); 3], ..Rule::default() });
        assert_eq!(heavy.rules[0][0].weights(), 3 * u64::from(u32::MAX));
    }

    #[test]
    fn a_filter_that_cannot_be_obeyed_refuses_what_it_stands_in() {
        let host = HeaderChange { set: vec![("host".into(), "a".into())], ..HeaderChange::default() };
        let bad = vec![Filter::RequestHeaders(host)];
        let routes = ready(Rule { filters: bad.clone(), backends: vec![backend("v1", 1)], ..Rule::default() });
        assert!(routes.rules[0][0].refused.is_some());
        let backends = vec![Backend { filters: bad, ..backend("v1", 1) }, backend("v2", 1)];
        let routes = ready(Rule { backends, ..Rule::default() });
        assert!(routes.rules[0][0].refused.is_none());
        assert!(routes.rules[0][0].backends[0].refused.is_some() && routes.rules[0][0].backends[1].refused.is_none());
    }

    #[test]
    fn a_mirror_that_is_refused_is_dropped_and_the_rest_obeyed() {
        let refused = Backend { refused: Some("no such Service".into()), ..backend("gone", 1) };
        let mirror = |backend| Filter::Mirror(Mirror { backend, numerator: 1, denominator: 2 });
        let filters = vec![mirror(refused), mirror(backend("copies", 1))];
        let routes = ready(Rule { filters, ..Rule::default() });
        let rule = &routes.rules[0][0];
        assert!(rule.refused.is_none());
        let [ReadyFilter::Mirror(mirror)] = &rule.filters[..] else { panic!("{:?}", rule.filters) };
        assert_eq!((mirror.service.name.as_str(), mirror.takes(0), mirror.takes(1)), ("copies", true, false));
    }

    #[test]
    fn routes_are_made_ready_again_only_when_they_changed() {
        let routes = ready(Rule { backends: vec![backend("v1", 1)], ..Rule::default() });
        let equal: Vec<Arc<Route>> = routes.given.iter().map(|route| Arc::new(Route::clone(route))).collect();
        assert!(routes.is_of(&routes.given) && routes.is_of(&equal));
        let mut changed = Route::clone(&equal[0]);
        changed.rules[0].backends[0].weight = 2;
        assert!(!routes.is_of(&[Arc::new(changed)]) && !routes.is_of(&[]));
    }
}
