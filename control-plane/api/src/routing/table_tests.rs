//! The Gateway API's words on matching and precedence, as rows; and a reference that does it slowly.
use std::cmp::Ordering;
use std::sync::Arc;

use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::resource::NamespacedName;

fn exact(path: &str) -> Match {
    Match { path: Some(PathMatch::Exact(path.into())), ..Match::default() }
}

fn prefix(path: &str) -> Match {
    Match { path: Some(PathMatch::Prefix(path.into())), ..Match::default() }
}

fn regex(pattern: &str) -> Match {
    Match { path: Some(PathMatch::Regex(pattern.into())), ..Match::default() }
}

fn rpc(service: Option<&str>, method: Option<&str>) -> Match {
    let text = |text: &str| Text::Exact(text.into());
    Match { path: Some(PathMatch::Rpc { service: service.map(text), method: method.map(text) }), ..Match::default() }
}

impl Match {
    fn method(self, method: &str) -> Self {
        Self { method: Some(method.into()), ..self }
    }
    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(ValueMatch { name: name.into(), value: Text::Exact(value.into()) });
        self
    }
    fn header_like(mut self, name: &str, pattern: &str) -> Self {
        self.headers.push(ValueMatch { name: name.into(), value: Text::Regex(pattern.into()) });
        self
    }
    fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(ValueMatch { name: name.into(), value: Text::Exact(value.into()) });
        self
    }
}

/// One rule for each list of matches; rules are told apart by their index.
fn route(kind: RouteKind, name: &str, created: u64, rules: &[&[Match]]) -> Arc<Route> {
    let rules = rules.iter().map(|matches| Rule { matches: matches.to_vec(), ..Rule::default() }).collect();
    Arc::new(Route { kind, name: NamespacedName::new("shop", name), created, rules })
}

struct Asked {
    grpc: bool,
    method: &'static str,
    target: &'static str,
    headers: HeaderMap,
}

fn ask(method: &'static str, target: &'static str, headers: &[(&'static str, &str)]) -> Asked {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().expect("a header's value"));
    }
    Asked { grpc: false, method, target, headers: map }
}

fn get(target: &'static str) -> Asked {
    ask("GET", target, &[])
}

fn call(target: &'static str) -> Asked {
    Asked { grpc: true, ..ask("POST", target, &[]) }
}

fn view(asked: &Asked) -> RequestView<'_> {
    let (path, query) = asked.target.split_once('?').map_or((asked.target, None), |(path, query)| (path, Some(query)));
    RequestView { grpc: asked.grpc, method: asked.method, path, query, host: Some("echo"), headers: &asked.headers }
}

/// Name of the route and index of the rule that decides.
fn decided(table: &RouteTable, asked: &Asked) -> Option<(String, usize)> {
    let found = table.find(&view(asked))?;
    Some((table.routes()[found.route].name.name.clone(), found.rule))
}

fn rule_of(table: &RouteTable, asked: &Asked) -> Option<usize> {
    decided(table, asked).map(|(_, rule)| rule)
}

#[test]
fn a_prefix_matches_whole_segments_and_a_slash_at_its_end_is_ignored() {
    for (given, path, fits) in [
        ("/abc", "/abc", true),
        ("/abc", "/abc/", true),
        ("/abc", "/abc/def", true),
        ("/abc", "/abcd", false),
        ("/abc", "/Abc", false),
        ("/abc", "/", false),
        ("/abc/", "/abc", true),
        ("/abc/", "/abc/def", true),
        ("/", "/", true),
        ("/", "/anything", true),
        ("/", "*", true),
    ] {
        let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[&[prefix(given)]])]);
        let asked = Asked { target: path, ..get("/") };
        assert_eq!(rule_of(&table, &asked).is_some(), fits, "{given} on {path}");
    }
}

#[test]
fn each_field_of_a_match_must_fit() {
    for (given, asked, fits) in [
        (exact("/abc"), get("/abc"), true),
        (exact("/abc"), get("/abc?x=1"), true),
        (exact("/abc"), get("/abc/"), false),
        (exact("/abc"), get("/Abc"), false),
        (regex("/a[0-9]+"), get("/a12"), true),
        (regex("/a[0-9]+"), get("/a12/b"), false),
        (Match::default().method("POST"), get("/"), false),
        (Match::default().method("GET"), get("/"), true),
        (Match::default().header("x-a", "1"), ask("GET", "/", &[("X-A", "1")]), true),
        (Match::default().header("X-A", "1"), ask("GET", "/", &[("x-a", "1")]), true),
        (Match::default().header("x-a", "1"), ask("GET", "/", &[("x-a", "1"), ("x-a", "2")]), false),
        (Match::default().header("x-a", "1,2"), ask("GET", "/", &[("x-a", "1"), ("x-a", "2")]), true),
        (Match::default().header("x-a", "1,2,3"), ask("GET", "/", &[("x-a", "1"), ("x-a", "2"), ("x-a", "3")]), true),
        (Match::default().header("x-a", "1"), get("/"), false),
        (Match::default().header("x-a", ""), get("/"), false),
        (Match::default().header_like("x-a", "(one|two)"), ask("GET", "/", &[("x-a", "two")]), true),
        (Match::default().header_like("x-a", "(one|two)"), ask("GET", "/", &[("x-a", "twofold")]), false),
        (Match::default().header("host", "echo"), get("/"), true),
        (Match::default().header("host", "other"), get("/"), false),
        (Match::default().query("animal", "whale"), get("/?animal=whale"), true),
        (Match::default().query("animal", "whale"), get("/?other=1&animal=whale"), true),
        (Match::default().query("animal", "whale"), get("/?animal=whaledolphin"), false),
        (Match::default().query("animal", "whale"), get("/?animal=dog&animal=whale"), false),
        (Match::default().query("animal", "blue whale"), get("/?animal=blue%20whale"), true),
        (Match::default().query("animal", "whale"), get("/"), false),
        (exact("/a").method("GET").header("x", "1").query("y", "2"), ask("GET", "/a?y=2", &[("x", "1")]), true),
        (exact("/a").method("GET").header("x", "1").query("y", "2"), ask("GET", "/a?y=3", &[("x", "1")]), false),
    ] {
        let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[std::slice::from_ref(&given)])]);
        assert_eq!(rule_of(&table, &asked).is_some(), fits, "{given:?} on {} {}", asked.method, asked.target);
    }
}

#[test]
fn the_more_specific_match_decides_wherever_it_is_written() {
    // By precedence: each fits `GET /a/b/c?q=1&r=2` with the headers `x: 1` and `y: 2`.
    let ordered = [
        exact("/a/b/c").method("GET"),
        exact("/a/b/c").header("x", "1").header("y", "2").query("q", "1"),
        exact("/a/b/c"),
        regex("/a/b/[a-z]+"),
        regex("/a/.*").method("GET").header("x", "1"),
        prefix("/a/b/c"),
        prefix("/a/b").method("GET"),
        prefix("/a/b").header("x", "1").header("y", "2"),
        prefix("/a/b").header("x", "1").query("q", "1").query("r", "2"),
        prefix("/a/b").header("x", "1").query("q", "1"),
        prefix("/a/b").query("q", "1").query("r", "2"),
        prefix("/a/b"),
        prefix("/a").method("GET").header("x", "1").header("y", "2").query("q", "1"),
        prefix("/").method("GET"),
        Match::default().header("x", "1"),
        prefix("/").query("q", "1"),
        Match::default(),
    ];
    let asked = ask("GET", "/a/b/c?q=1&r=2", &[("x", "1"), ("y", "2")]);
    for (index, pair) in ordered.windows(2).enumerate() {
        let (first, second) = ([pair[0].clone()], [pair[1].clone()]);
        let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[&second, &first])]);
        assert_eq!(rule_of(&table, &asked), Some(1), "{:?} before {:?}", pair[0], pair[1]);
        // In routes of their own, the less specific one older and first by name.
        let older = route(RouteKind::Http, "a", 1, &[&ordered[index + 1..]]);
        let newer = route(RouteKind::Http, "b", 2, &[&first]);
        let table = RouteTable::compile(&[older, newer]);
        assert_eq!(decided(&table, &asked), Some(("b".into(), 0)), "{:?}", pair[0]);
    }
}

#[test]
fn between_equals_the_older_route_decides_then_the_name_then_the_order_of_rules() {
    let rules: &[&[Match]] = &[&[prefix("/a")], &[prefix("/a/")]];
    let of = |name: &str, created| route(RouteKind::Http, name, created, rules);
    for (routes, deciding) in [
        (vec![of("b", 2), of("a", 3)], "b"),
        (vec![of("b", 2), of("a", 2)], "a"),
        (vec![of("a", 2), of("b", 2)], "a"),
        (vec![of("a-b", 0), of("a", 0)], "a"),
    ] {
        let table = RouteTable::compile(&routes);
        assert_eq!(decided(&table, &get("/a/x")), Some((deciding.into(), 0)));
    }
    // By the text `namespace/name`: `-` comes before `/`.
    let mut other = Route::clone(&of("z", 0));
    other.name = NamespacedName::new("shop-2", "z");
    let table = RouteTable::compile(&[of("a", 0), Arc::new(other)]);
    assert_eq!(decided(&table, &get("/a")), Some(("z".into(), 0)));
}

#[test]
fn the_rows_of_the_conformance_suites_on_matching_and_queries() {
    let matching = RouteTable::compile(&[route(
        RouteKind::Http,
        "matching",
        1,
        &[
            &[prefix("/"), Match::default().header("version", "one")],
            &[prefix("/v2"), Match::default().header("version", "two")],
        ],
    )]);
    for (asked, rule) in [
        (get("/"), 0),
        (get("/example"), 0),
        (ask("GET", "/", &[("Version", "one")]), 0),
        (get("/v2example"), 0),
        (get("/foo/v2/example"), 0),
        (get("/v2"), 1),
        (get("/v2/"), 1),
        (get("/v2/example"), 1),
        (ask("GET", "/", &[("Version", "two")]), 1),
    ] {
        assert_eq!(rule_of(&matching, &asked), Some(rule), "{}", asked.target);
    }
    let queries = RouteTable::compile(&[route(
        RouteKind::Http,
        "queries",
        1,
        &[
            &[Match::default().query("animal", "whale")],
            &[Match::default().query("animal", "dolphin")],
            &[prefix("/path1").query("animal", "whale")],
            &[Match::default().header("version", "one").query("animal", "whale")],
            &[
                prefix("/path3").query("animal", "shark"),
                prefix("/path4").header("version", "three").query("animal", "kraken"),
            ],
            &[prefix("/path5")],
            &[Match::default().query("animal", "hydra")],
        ],
    )]);
    for (asked, rule) in [
        (get("/?animal=whale"), Some(0)),
        (get("/?animal=dolphin"), Some(1)),
        (get("/?animal=whale&otherparam=irrelevant"), Some(0)),
        (get("/path1?animal=whale"), Some(2)),
        (ask("GET", "/?animal=whale", &[("version", "one")]), Some(3)),
        (get("/path3?animal=shark"), Some(4)),
        (ask("GET", "/path4?animal=kraken", &[("version", "three")]), Some(4)),
        (get("/path5?animal=hydra"), Some(5)),
        (get("/?animal=hydra"), Some(6)),
        (get("/"), None),
        (get("/?color=blue"), None),
        (get("/?animal=dog"), None),
        (get("/?animal=whaledolphin"), None),
        (get("/?animal=shark"), None),
        (get("/path4?animal=kraken"), None),
    ] {
        assert_eq!(rule_of(&queries, &asked), rule, "{}", asked.target);
    }
}

#[test]
fn a_grpc_route_matches_calls_by_service_and_method_and_nothing_else() {
    let route = route(
        RouteKind::Grpc,
        "r",
        1,
        &[
            &[],
            &[rpc(None, Some("Get"))],
            &[rpc(Some("shop.Stock"), None)],
            &[rpc(Some("shop.Stock"), None).header("x", "1")],
            &[rpc(Some("shop.Stock"), Some("Get"))],
        ],
    );
    let table = RouteTable::compile(std::slice::from_ref(&route));
    let with_header = Asked { grpc: true, ..ask("POST", "/shop.Stock/Put", &[("x", "1")]) };
    for (asked, rule) in [
        (call("/shop.Stock/Get"), Some(4)),
        (with_header, Some(3)),
        (call("/shop.Stock/Put"), Some(2)),
        (call("/shop.Other/Get"), Some(1)),
        (call("/shop.Other/Put"), Some(0)),
        (call("/shop.stock/get"), Some(0)),
        (call("/"), Some(0)),
        (ask("POST", "/shop.Stock/Get", &[]), None),
    ] {
        assert_eq!(rule_of(&table, &asked), rule, "{}", asked.target);
    }
    // Both kinds on one port: the GRPCRoutes alone count, whichever is older.
    let http = super::table_tests::route(RouteKind::Http, "h", 0, &[&[exact("/shop.Stock/Get")], &[]]);
    let table = RouteTable::compile(&[http, route]);
    assert_eq!(decided(&table, &call("/shop.Stock/Get")), Some(("r".into(), 4)));
    assert_eq!(decided(&table, &get("/")), None);
}

#[test]
fn a_rule_without_matches_takes_every_request_and_no_rule_none() {
    let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[&[]])]);
    assert_eq!(rule_of(&table, &ask("OPTIONS", "*", &[])), Some(0));
    let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[])]);
    assert_eq!(rule_of(&table, &get("/")), None);
    assert!(RouteTable::compile(&[]).find(&view(&get("/"))).is_none());
}

#[test]
fn a_rule_that_cannot_be_compiled_or_was_refused_says_why_and_hides_nothing_else() {
    let mut made = Route::clone(&route(RouteKind::Http, "r", 0, &[&[exact("/a"), regex("(")], &[exact("/b")], &[]]));
    made.rules[1].refused = Some("no such filter".into());
    let table = RouteTable::compile(&[Arc::new(made)]);
    let why = |asked: &Asked| table.find(&view(asked)).map(|found| (found.rule, found.refused.map(str::to_owned)));
    let (rule, refused) = why(&get("/a")).expect("its other match fits");
    assert!(rule == 0 && refused.is_some_and(|why| why.contains("path: the regular expression")));
    assert_eq!(why(&get("/b")), Some((1, Some("no such filter".into()))));
    assert_eq!(why(&get("/c")), Some((2, None)));
    let headers = Match::default().header("not a name", "1");
    let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[&[headers]])]);
    assert!(table.find(&view(&get("/"))).is_none());
}

#[test]
fn the_matched_prefix_is_what_a_change_of_the_prefix_replaces() {
    for (given, path, length) in [
        (prefix("/foo"), "/foo/bar", 4),
        (prefix("/foo/"), "/foo/bar", 4),
        (prefix("/"), "/foo", 0),
        (exact("/foo"), "/foo", 0),
        (Match::default(), "/foo", 0),
    ] {
        let table = RouteTable::compile(&[route(RouteKind::Http, "r", 0, &[&[given]])]);
        let asked = Asked { target: path, ..get("/") };
        assert_eq!(table.find(&view(&asked)).map(|found| found.prefix), Some(length), "{path}");
    }
}

// The reference: every match of every rule is looked at, and any two are compared by the words of the API.

fn slowly_fits(given: &Match, request: &RequestView<'_>) -> bool {
    let segments = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let path = match &given.path {
        None => true,
        Some(PathMatch::Exact(path)) => path == request.path,
        Some(PathMatch::Prefix(prefix)) if prefix == "/" => true,
        Some(PathMatch::Prefix(prefix)) => {
            let (prefix, path) = (segments(prefix), segments(request.path));
            path.len() >= prefix.len() && path[..prefix.len()] == prefix
        }
        Some(_) => unreachable!("the generator makes none"),
    };
    let header = |header: &ValueMatch| {
        let lines: Vec<&str> =
            request.headers.get_all(&header.name).iter().map(|line| line.to_str().expect("text")).collect();
        !lines.is_empty() && Text::Exact(lines.join(",")) == header.value
    };
    let pairs: Vec<(&str, &str)> = request.query.unwrap_or("").split('&').filter_map(|p| p.split_once('=')).collect();
    let query = |wanted: &ValueMatch| {
        let first = pairs.iter().find(|(name, _)| *name == wanted.name);
        first.is_some_and(|(_, value)| Text::Exact((*value).into()) == wanted.value)
    };
    path && given.method.as_deref().is_none_or(|method| method == request.method)
        && given.headers.iter().all(header)
        && given.query.iter().all(query)
}

fn slowly_before(one: (&Route, usize, &Match), other: (&Route, usize, &Match)) -> Ordering {
    let exact = |given: &Match| matches!(given.path, Some(PathMatch::Exact(_)));
    let length = |given: &Match| match &given.path {
        Some(PathMatch::Prefix(path)) => path.len(),
        _ => 1,
    };
    let (a, b) = (one.2, other.2);
    let more = |first: usize, second: usize| second.cmp(&first);
    more(exact(a).into(), exact(b).into())
        .then(if exact(a) { Ordering::Equal } else { more(length(a), length(b)) })
        .then(more(a.method.is_some().into(), b.method.is_some().into()))
        .then(more(a.headers.len(), b.headers.len()))
        .then(more(a.query.len(), b.query.len()))
        .then(one.0.created.cmp(&other.0.created))
        .then(one.0.name.to_string().cmp(&other.0.name.to_string()))
        .then(one.1.cmp(&other.1))
}

fn slowly_find(routes: &[Arc<Route>], request: &RequestView<'_>) -> Option<(String, usize)> {
    let any = Match::default();
    let mut best: Option<(&Route, usize, &Match)> = None;
    for route in routes {
        for (index, rule) in route.rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { std::slice::from_ref(&any) } else { &rule.matches };
            for given in matches.iter().filter(|given| slowly_fits(given, request)) {
                let this = (&**route, index, given);
                if best.is_none_or(|best| slowly_before(this, best) == Ordering::Less) {
                    best = Some(this);
                }
            }
        }
    }
    best.map(|(route, rule, _)| (route.name.name.clone(), rule))
}

fn any_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        Just(None),
        "(/[ab]{1,2}){1,3}".prop_map(|path| Some(PathMatch::Exact(path))),
        "(/[ab]{1,2}){1,3}".prop_map(|path| Some(PathMatch::Prefix(path))),
        Just(Some(PathMatch::Prefix("/".into()))),
    ];
    let values = || {
        proptest::collection::btree_map("[xy]", "[12](,[12])?", 0..3).prop_map(|values| {
            let value = |(name, value)| ValueMatch { name, value: Text::Exact(value) };
            values.into_iter().map(value).collect::<Vec<_>>()
        })
    };
    let method = proptest::option::of("GET|POST");
    (path, method, values(), values()).prop_map(|(path, method, headers, query)| Match { path, method, headers, query })
}

fn any_routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    let rule = proptest::collection::vec(any_match(), 0..4).prop_map(|matches| Rule { matches, ..Rule::default() });
    let rules = proptest::collection::vec(rule, 1..5);
    proptest::collection::btree_map("[a-d]", (0..3_u64, rules), 1..4).prop_map(|routes| {
        let route = |(name, (created, rules))| {
            Arc::new(Route { kind: RouteKind::Http, name: NamespacedName::new("shop", name), created, rules })
        };
        routes.into_iter().map(route).collect()
    })
}

proptest! {
    #[test]
    fn the_table_decides_as_the_slow_reference_does(
        routes in any_routes(),
        method in "GET|POST",
        path in "(/[ab]{1,2}){1,4}/?",
        headers in proptest::collection::vec(("[xy]", "[12]"), 0..4),
        query in proptest::collection::vec(("[xy]", "[12]"), 0..3),
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in &headers {
            map.append(
                http::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                value.parse().expect("a value"),
            );
        }
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let request = RequestView {
            grpc: false, method: &method, path: &path, query: Some(&query), host: None, headers: &map,
        };
        let table = RouteTable::compile(&routes);
        let found = table.find(&request);
        let found = found.map(|found| (table.routes()[found.route].name.name.clone(), found.rule));
        prop_assert_eq!(found, slowly_find(&routes, &request));
    }
}
