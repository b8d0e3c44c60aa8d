//! Routes of the Gateway API and grants: how they are read, and what is refused, where and with which remedy.
use weft_api::resource::{NamespacedName, ReferenceGrant, Resource, Route, parse_documents};
use weft_api::routing::{Filter, PathMatch, RouteKind, Text};

fn parsed(kind: &str, spec: &str) -> Result<Resource, weft_api::resource::ResourceError> {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec:\n{spec}"
    );
    let mut resources = parse_documents(&text);
    assert_eq!(resources.len(), 1, "{text}");
    resources.remove(0)
}

fn route(kind: &str, spec: &str) -> Route {
    match parsed(kind, spec) {
        Ok(Resource::Route(route)) => route,
        other => panic!("{spec}\ngave {other:?}"),
    }
}

/// A rule of an HTTPRoute.
fn http(rule: &str) -> Route {
    route("HTTPRoute", &format!("rules: [{rule}]"))
}

#[test]
fn what_is_left_out_has_the_api_s_defaults() {
    let slash = PathMatch::Prefix("/".to_owned());
    for (spec, rules) in [("{}", 1), ("rules: [{}]", 1), ("rules: [{matches: []}]", 1), ("rules: [{matches: [{}]}]", 1)]
    {
        let route = route("HTTPRoute", spec);
        assert_eq!(route.rules.len(), rules, "{spec}");
        assert_eq!(route.rules[0].matches.len(), 1, "{spec}");
        assert_eq!(route.rules[0].matches[0].path.as_ref(), Some(&slash), "{spec}");
    }
    assert_eq!(route("GRPCRoute", "{}").rules, []);
    assert_eq!(route("GRPCRoute", "rules: [{}]").rules[0].matches, []);
    let route = route("HTTPRoute", "parentRefs: [{name: edge}]\nrules: [{backendRefs: [{name: a, port: 80}]}]");
    let (parent, backend) = (&route.parents[0], &route.rules[0].backends[0]);
    assert_eq!((parent.group.as_str(), parent.kind.as_str()), ("gateway.networking.k8s.io", "Gateway"));
    assert_eq!(parent.service("shop"), None);
    assert_eq!((backend.service.to_string().as_str(), backend.weight), ("shop/a", 1));
    let redirect = http("{filters: [{type: RequestRedirect, requestRedirect: {}}]}");
    assert!(matches!(&redirect.rules[0].filters[0], Filter::Redirect(redirect) if redirect.status == Some(302)));
}

#[test]
fn a_prefix_has_no_slash_at_its_end_and_zero_is_no_limit() {
    for (value, expected) in [("/", "/"), ("/a", "/a"), ("/a/", "/a"), ("/a/b/", "/a/b")] {
        let route = http(&format!("{{matches: [{{path: {{value: {value}}}}}]}}"));
        assert_eq!(route.rules[0].matches[0].path, Some(PathMatch::Prefix(expected.to_owned())), "{value}");
    }
    let timeouts = http("{timeouts: {request: 0s, backendRequest: 5s}}").rules[0].timeouts;
    assert_eq!((timeouts.request, timeouts.backend_request.map(|limit| limit.as_secs())), (None, Some(5)));
}

#[test]
fn of_equivalent_names_the_first_counts() {
    let route = http(
        "{matches: [{headers: [{name: A, value: x}, {name: a, value: y}], queryParams: [{name: A, value: x}, {name: a, value: y}]}]}",
    );
    let found = &route.rules[0].matches[0];
    assert_eq!(found.headers.len(), 1);
    assert_eq!((found.headers[0].name.as_str(), &found.headers[0].value), ("a", &Text::Exact("x".to_owned())));
    assert_eq!(found.query.len(), 2, "parameters differ by case");
}

#[test]
fn a_service_is_a_parent_by_its_empty_group_alone() {
    let parents = "parentRefs: [{group: '', kind: Service, name: a}, {group: core, kind: Service, name: b, namespace: x}, \
                   {kind: Service, name: c}, {group: '', kind: Secret, name: d}]";
    let route = route("GRPCRoute", parents);
    assert_eq!(route.kind, RouteKind::Grpc);
    let services: Vec<_> =
        route.parents.iter().map(|parent| parent.service("shop").map(|name| name.to_string())).collect();
    assert_eq!(services, [Some("shop/a".to_owned()), Some("x/b".to_owned()), None, None]);
}

#[test]
fn what_the_api_has_and_a_sidecar_has_not_refuses_the_rule_alone() {
    let set = |name: &str| {
        format!(
            "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: {name}, value: x}}]}}}}]}}"
        )
    };
    for (rule, expected) in [
        ("{filters: [{type: CORS, cors: {}}]}".to_owned(), "CORS"),
        ("{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}]}".to_owned(), "ExternalAuth"),
        ("{filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]}".to_owned(), "ExtensionRef"),
        ("{sessionPersistence: {type: Cookie}}".to_owned(), "sessionPersistence"),
        ("{backendRefs: [{name: a, port: 80, filters: [{type: CORS, cors: {}}]}]}".to_owned(), "CORS"),
        (
            "{backendRefs: [{name: a, port: 80, filters: [{type: RequestRedirect, requestRedirect: {}}]}]}".to_owned(),
            "at a backend",
        ),
        (set("Host"), "`hostname`"),
        (set("Content-Length"), "content-length"),
        (set("X-Forwarded-Client-Cert"), "x-forwarded-client-cert"),
    ] {
        let route = route("HTTPRoute", &format!("rules: [{rule}, {{matches: [{{path: {{value: /b}}}}]}}]"));
        let why = route.rules[0].refused.as_deref().unwrap_or_else(|| panic!("{rule} is not refused"));
        assert!(why.contains(expected), "{rule}: {why}");
        assert_eq!(route.rules[1].refused, None, "{rule}");
    }
    let route =
        route("GRPCRoute", "rules: [{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: C, name: d}}]}]");
    assert!(route.rules[0].refused.is_some());
    let bucket = http("{backendRefs: [{group: example.org, kind: Bucket, name: Logs_1}]}");
    assert!(bucket.rules[0].backends[0].refused.as_ref().is_some_and(|why| why.contains("example.org/Bucket")));
}

#[test]
fn what_is_wrong_is_refused_with_what_to_write_instead() {
    let many = |count: usize, item: &str| vec![item; count].join(", ");
    let matches_ = |count: usize| format!("{{matches: [{}]}}", many(count, "{path: {value: /a}}"));
    let rows: &[(&str, String, &str, &str)] = &[
        ("HTTPRoute", "ruels: []".into(), "`ruels`", "Write `rules`"),
        ("HTTPRoute", "rules: [{match: []}]".into(), "`match` in `spec.rules[0]`", "Write `matches`"),
        ("GRPCRoute", "rules: [{timeouts: {}}]".into(), "`timeouts` in `spec.rules[0]`", "fields here"),
        ("HTTPRoute", format!("rules: [{}]", many(17, "{}")), "17 items", "at most 16"),
        ("HTTPRoute", format!("rules: [{}]", matches_(65)), "65 items", "at most 64"),
        ("HTTPRoute", format!("rules: [{0}, {0}, {1}]", matches_(64), matches_(1)), "to 129", "another route"),
        ("HTTPRoute", format!("parentRefs: [{}]", many(33, "{name: a}")), "33 items", "at most 32"),
        ("HTTPRoute", "parentRefs: [{name: a}, {name: a}]".into(), "listed twice", "once"),
        ("HTTPRoute", "parentRefs: [{kind: Service}]".into(), "name` is missing", "name of a Service"),
        ("HTTPRoute", "rules: [{name: a}, {name: a}]".into(), "repeats the name", "own name"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: a}}]}]".into(), "does not begin with `/`", "whole path"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: /a//b}}]}]".into(), "holds `//`", "without it"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: /a/../b}}]}]".into(), "holds `/../`", "without it"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: /a/..}}]}]".into(), "dot segment", "that is meant"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: /a%2Fb}}]}]".into(), "holds `%2F`", "without it"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: '/a b'}}]}]".into(), "no path may", "escapes"),
        ("HTTPRoute", "rules: [{matches: [{path: {value: /a%zz}}]}]".into(), "no path may", "escapes"),
        ("HTTPRoute", "rules: [{matches: [{path: {type: Prefix, value: /a}}]}]".into(), "`Prefix`", "PathPrefix"),
        ("HTTPRoute", "rules: [{matches: [{path: {type: RegularExpression, value: '/('}}]}]".into(), "and the regular expression is not", "RE2"),
        ("HTTPRoute", "rules: [{matches: [{headers: [{name: a, value: '(?=x)', type: RegularExpression}]}]}]".into(), "and the regular expression is not", "look-around"),
        ("HTTPRoute", "rules: [{matches: [{headers: [{name: a, value: '(a{999}){999}', type: RegularExpression}]}]}]".into(), "too large", "RE2"),
        ("HTTPRoute", "rules: [{matches: [{headers: [{name: a, value: x}, {name: a, value: y}]}]}]".into(), "repeats the name", "once"),
        ("HTTPRoute", "rules: [{matches: [{headers: [{name: 'a b', value: x}]}]}]".into(), "no name of a header", "letters"),
        ("HTTPRoute", "rules: [{matches: [{headers: [{name: a}]}]}]".into(), "value` is missing", "must be"),
        ("HTTPRoute", "rules: [{matches: [{method: get}]}]".into(), "`get`", "GET"),
        ("HTTPRoute", "rules: [{backendRefs: [{name: a}]}]".into(), "port` is missing", "Service's port"),
        ("HTTPRoute", "rules: [{backendRefs: [{name: a, port: 80, weight: 1000001}]}]".into(), "out of range", "1000000"),
        ("HTTPRoute", "rules: [{backendRefs: [{name: a, port: 0}]}]".into(), "out of range", "65535"),
        ("HTTPRoute", "rules: [{timeouts: {request: 1s, backendRequest: 2s}}]".into(), "longer than `request`", "longer"),
        ("HTTPRoute", "rules: [{timeouts: {request: 1.5s}}]".into(), "no duration of the Gateway API", "1m30s"),
        ("HTTPRoute", "rules: [{timeouts: {request: 10}}]".into(), "must be a text", "quotation"),
        ("HTTPRoute", "rules: [{retry: {codes: [200]}}]".into(), "out of range", "400"),
        ("HTTPRoute", "rules: [{filters: [{type: Redirect}]}]".into(), "`Redirect`", "RequestRedirect"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite}]}]".into(), "urlRewrite` is missing", "settings"),
        ("HTTPRoute", "rules: [{filters: [{type: CORS, urlRewrite: {}}]}]".into(), "`urlRewrite`", "correct the type"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]}]".into(), "repeats the type", "one filter"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]}]".into(), "together", "redirect"),
        ("HTTPRoute", "rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 80}]}]".into(), "and `backendRefs`", "Take the backends out"),
        ("HTTPRoute", "rules: [{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}]".into(), "not exactly one match", "ReplaceFullPath"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /b}}}]}]".into(), "does not go with the type", "replaceFullPath"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/b?c'}}}]}]".into(), "no path", "without query"),
        ("HTTPRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: 'a:80'}}]}]".into(), "not a valid name", "lower-case"),
        ("HTTPRoute", "rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}]".into(), "is 304", "308"),
        ("HTTPRoute", "rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]}]".into(), "`ftp`", "`https`"),
        ("HTTPRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, percent: 1, fraction: {numerator: 1}}}]}]".into(), "beside `percent`", "one of the two"),
        ("HTTPRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, fraction: {numerator: 3, denominator: 2}}}]}]".into(), "out of range", "to 2"),
        ("HTTPRoute", "rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: \"x\\ny\"}]}}]}]".into(), "no value of a header", "visible"),
        ("GRPCRoute", "rules: [{matches: [{method: {}}]}]".into(), "neither service nor method", "leave `method` out"),
        ("GRPCRoute", "rules: [{matches: [{method: {service: a/b}}]}]".into(), "no name of gRPC", "package"),
        ("GRPCRoute", "rules: [{matches: [{method: {type: RegularExpression, method: '['}}]}]".into(), "and the regular expression is not", "RE2"),
        ("GRPCRoute", "rules: [{filters: [{type: URLRewrite, urlRewrite: {}}]}]".into(), "`urlRewrite`", "fields here"),
        ("ReferenceGrant", "to: []".into(), "`spec.from` is missing", "who may refer"),
        ("ReferenceGrant", "from: [{kind: HTTPRoute, namespace: a}]\nto: []".into(), "group` is missing", "gateway.networking.k8s.io"),
        ("ReferenceGrant", "from: []\nto: [{group: '', kind: Service, nmae: a}]".into(), "`nmae`", "Write `name`"),
    ];
    for (kind, spec, message, remedy) in rows {
        let error = parsed(kind, spec).expect_err(spec);
        assert!(error.message.contains(message), "{spec}\n{error}\nlacks {message:?}");
        assert!(error.remedy.contains(remedy), "{spec}\n{error}\nlacks {remedy:?}");
        assert_eq!(error.kind, Some(*kind), "{spec}");
        assert!(error.line > 0, "{spec}\n{error}");
    }
}

#[test]
fn every_field_of_the_standard_channel_is_known() {
    let all = "
parentRefs: [{group: '', kind: Service, namespace: shop, name: a, sectionName: http, port: 80}]
hostnames: [a.example.org, '*.example.org']
rules:
- name: all
  matches:
  - path: {type: PathPrefix, value: /a}
    headers: [{type: Exact, name: a, value: b}]
    queryParams: [{type: Exact, name: a, value: b}]
    method: PATCH
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: b, value: c}], remove: [d]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: b}]}}
  - {type: RequestMirror, requestMirror: {backendRef: {group: '', kind: Service, name: a, namespace: shop, port: 80}, percent: 5}}
  - {type: URLRewrite, urlRewrite: {hostname: a.b, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
  backendRefs: [{group: '', kind: Service, name: a, namespace: shop, port: 80, weight: 3, filters: []}]
  timeouts: {request: 1s, backendRequest: 1s}
  retry: {codes: [500], attempts: 1, backoff: 1s}
useDefaultGateways: None
";
    let route = route("HTTPRoute", all);
    assert_eq!((route.rules[0].filters.len(), route.rules[0].refused.as_ref()), (4, None));
}

#[test]
fn a_grant_permits_what_it_names() {
    let grant = |to: &str| -> ReferenceGrant {
        let spec = format!("from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}}]\nto: [{to}]");
        match parsed("ReferenceGrant", &spec) {
            Ok(Resource::ReferenceGrant(grant)) => grant,
            other => panic!("{other:?}"),
        }
    };
    let (any, one) = ("{group: '', kind: Service}", "{group: '', kind: Service, name: a}");
    for (to, kind, from, service, expected) in [
        (any, "HTTPRoute", "web", "shop/a", true),
        (one, "HTTPRoute", "web", "shop/a", true),
        (one, "HTTPRoute", "web", "shop/b", false),
        (any, "GRPCRoute", "web", "shop/a", false),
        (any, "HTTPRoute", "other", "shop/a", false),
        (any, "HTTPRoute", "web", "other/a", false),
        ("{group: '', kind: Secret}", "HTTPRoute", "web", "shop/a", false),
    ] {
        let (namespace, name) = service.split_once('/').expect("both");
        let permitted = grant(to).permits(kind, from, &NamespacedName::new(namespace, name));
        assert_eq!(permitted, expected, "{to} {kind} {from} {service}");
    }
}
