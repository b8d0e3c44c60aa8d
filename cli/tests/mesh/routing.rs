//! Routes of the Gateway API, enforced by the caller's sidecar.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::load::{Pace, Plan};
use weft_loadtests::mesh::{WorkloadSpec, eventually};

use crate::fixture::{PATIENCE, seen, serve_http, settle};

mod limits;
mod scene;

use scene::{Scene, count, http_route, http2, raw, service, shares};

pub const TESTS: &[Test] = &[
    ("requests_are_split_by_weight_and_a_change_of_weights_drops_none", canary),
    ("the_most_specific_rule_takes_a_request_and_what_no_rule_takes_gets_404", precedence),
    ("requests_and_answers_are_changed_as_the_route_says", changed),
    ("a_redirect_is_answered_by_the_callers_sidecar", redirects),
    ("what_cannot_be_routed_gets_the_status_of_the_specification_and_names_the_route", refused),
    ("grpc_calls_are_routed_by_service_and_method_and_refused_in_their_own_terms", grpc),
    ("a_consumers_route_holds_for_its_own_namespace_alone", consumer),
    ("a_mirror_gets_a_copy_of_the_whole_request_and_harms_nothing", limits::mirror),
    ("a_request_that_takes_longer_than_its_route_allows_is_ended", limits::timeouts),
    ("a_request_is_sent_again_where_the_route_says_so_with_its_whole_body", limits::retries),
];

fn canary() -> Result<()> {
    let (scene, _apps) = Scene::start("canary")?;
    let split = |v1: u32, v2: u32| {
        http_route(&format!(
            "  - backendRefs: [{{name: v1, port: 80, weight: {v1}}}, {{name: v2, port: 80, weight: {v2}}}]\n"
        ))
    };
    scene.route(&split(90, 10))?;
    // 2,000 draws: the share is within 4 standard deviations (of 0.67 points), of any 15,000 runs in all but one.
    let servers = shares(&scene.client.pod, service(30, 8081), false, 2_000)?;
    let (one, two) = (count(&servers, "v1-1"), count(&servers, "v2-1"));
    ensure!(one + two == 2_000 && (146..=254).contains(&two), "{one} {two}");

    let url: http::Uri = format!("http://{}/", service(30, 80)).parse()?;
    let stop = scene.mesh.lab.directory().join("stop-load");
    let ended = stop.clone();
    let load = scene.client.pod.start(move || async move {
        let load = Plan::get(url).connections(4).pace(Pace::Open { per_second: 200.0 }).start()?;
        while !ended.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(load.stop().await)
    })?;
    for (v1, v2) in [(50, 50), (10, 90), (100, 0), (0, 100)] {
        let before = scene.v1.metric("weft_requests_total", &[])? + scene.v2.metric("weft_requests_total", &[])?;
        scene.route(&split(v1, v2))?;
        eventually("requests go on", PATIENCE, || {
            let now = scene.v1.metric("weft_requests_total", &[])? + scene.v2.metric("weft_requests_total", &[])?;
            Ok(now > before + 40.0)
        })?;
    }
    let servers = shares(&scene.client.pod, service(30, 8081), false, 50)?;
    ensure!(count(&servers, "v2-1") == 50, "{servers:?}");
    std::fs::write(stop, "")?;
    let report = load.join()??;
    ensure!(report.failed() == 0 && report.answered() == report.status(200), "{report:?}");
    // Counted under the backend, so that versions can be told apart.
    let ends = ["direction=\"outbound\"", "destination=\"v2\"", "status=\"200\""];
    ensure!(scene.client.metric("weft_requests_total", &ends)? > 50.0, "{}", scene.client.metrics()?);
    Ok(())
}

fn precedence() -> Result<()> {
    let (scene, _apps) = Scene::start("precedence")?;
    scene.route(&http_route(
        "  - matches: [{path: {type: PathPrefix, value: /a}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /a/b}}, {headers: [{name: Version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: Exact, value: /a/b/c}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /a/b}, method: DELETE}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: RegularExpression, value: \"/items/[0-9]+\"}}]
    backendRefs: [{name: v2, port: 80}]\n",
    ))?;
    for (method, target, header, server) in [
        ("GET", "/a", "", Some("v1-1")),
        ("GET", "/a/x", "", Some("v1-1")),
        ("GET", "/a/b", "", Some("v2-1")),
        ("GET", "/a/b/x", "", Some("v2-1")),
        ("GET", "/a/bx", "", Some("v1-1")),
        ("GET", "/a/b/c", "", Some("v1-1")),
        ("DELETE", "/a/b/x", "", Some("v1-1")),
        ("GET", "/elsewhere", "version: two", Some("v2-1")),
        ("GET", "/elsewhere?animal=whale", "", Some("v2-1")),
        ("GET", "/elsewhere?animal=wh%61le&animal=dog", "", Some("v2-1")),
        ("GET", "/items/17", "", Some("v2-1")),
        ("GET", "/items/17x", "", None),
        ("GET", "/elsewhere?animal=dog", "", None),
        ("GET", "/ab", "", None),
        // What is routed is what policy judges.
        ("GET", "/x/../a/b", "", Some("v2-1")),
        ("GET", "/%61/./b", "", Some("v2-1")),
        ("GET", "/a/b/../x", "", Some("v1-1")),
    ] {
        let headers: &[&str] = if header.is_empty() { &[] } else { &[header] };
        let answer = scene.ask(method, target, headers)?;
        match server {
            Some(server) => ensure!(answer.status == 200 && answer.server()? == server, "{target}: {answer:?}"),
            None => {
                let named = answer.header("x-weft-error") == Some("no_route") && answer.body.contains("shop/routes");
                ensure!(answer.status == 404 && named, "{target}: {answer:?}");
            }
        }
    }
    let answer = scene.get("/a%2fb")?;
    ensure!(answer.status == 400 && answer.header("x-weft-error") == Some("encoded_slash"), "{answer:?}");
    // By its own address a pod is called past the routes of the Services before it.
    let answer = raw(
        &scene.client.pod,
        scene.v2.pod.address(8080),
        b"GET /no-rule HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n".to_vec(),
    )?;
    ensure!(answer.status == 200 && answer.server()? == "v2-1", "{answer:?}");
    // So is every Service without routes; and where the last route is gone, calls go to the endpoints again.
    std::fs::remove_file(scene.mesh.resources().join("routes.yaml"))?;
    settle(&scene.mesh, &[&scene.client])?;
    let answer = raw(
        &scene.client.pod,
        service(32, 80),
        b"GET /no-rule HTTP/1.1\r\nhost: v2\r\nconnection: close\r\n\r\n".to_vec(),
    )?;
    ensure!(answer.status == 200, "{answer:?}");
    let answer = scene.get("/a")?;
    ensure!(answer.header("x-weft-error") == Some("no_endpoints"), "{answer:?}");
    Ok(())
}

fn changed() -> Result<()> {
    let (scene, _apps) = Scene::start("changed")?;
    let edits = "{set: [{name: X-Set, value: new}], add: [{name: X-Add, value: second}], remove: [X-Remove]}";
    scene.route(&http_route(&format!(
        "  - matches: [{{path: {{type: PathPrefix, value: /headers}}}}]
    filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {edits}}}, {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Answer, value: \"yes\"}}], remove: [Content-Type]}}}}]
    backendRefs: [{{name: v1, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /backend}}}}]
    backendRefs: [{{name: v1, port: 80, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {edits}}}]}}]
  - matches: [{{path: {{type: PathPrefix, value: /prefix/one}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{hostname: one.example.org, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /one}}}}}}]
    backendRefs: [{{name: v1, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /strip-prefix}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}]
    backendRefs: [{{name: v1, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /full}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /one}}}}}}]
    backendRefs: [{{name: v1, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /h2}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{hostname: two.example.org}}}}]
    backendRefs: [{{name: v2, port: 90}}]
  - matches: [{{path: {{type: PathPrefix, value: /as-called}}}}]
    backendRefs: [{{name: v2, port: 91}}]\n"
    )))?;
    for path in ["/headers", "/backend"] {
        // A caller cannot have a header that the route sets dropped by naming it hop-by-hop.
        let sent = ["x-set: old", "x-set: older", "X-ADD: first", "x-remove: 1", "x-kept: 1"];
        let answer = scene.ask("GET", path, &sent)?;
        let seen = seen(&answer.body)?;
        let values = |name: &str| {
            let lines = seen.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
            lines.collect::<Vec<_>>().join(",")
        };
        ensure!(values("x-set") == "new" && values("x-add") == "first,second", "{path}: {seen:?}");
        ensure!(values("x-remove").is_empty() && values("x-kept") == "1", "{path}: {seen:?}");
        ensure!(values("x-forwarded-client-cert").contains("sa/client"), "{path}: {seen:?}");
        let expected = if path == "/headers" { (Some("yes"), None) } else { (None, Some("application/json")) };
        ensure!((answer.header("x-answer"), answer.header("content-type")) == expected, "{path}: {answer:?}");
    }
    for (target, path, host, version) in [
        ("/prefix/one/two?q=1", "/one/two?q=1", "one.example.org", "HTTP/1.1"),
        ("/prefix/./one/two", "/one/two", "one.example.org", "HTTP/1.1"),
        ("/prefix/one", "/one", "one.example.org", "HTTP/1.1"),
        ("/strip-prefix/three", "/three", "echo", "HTTP/1.1"),
        ("/strip-prefix", "/", "echo", "HTTP/1.1"),
        ("/full/one/two?q=1", "/one?q=1", "echo", "HTTP/1.1"),
        ("/h2/x?q=1", "/h2/x?q=1", "two.example.org", "HTTP/2.0"),
        ("/as-called", "/as-called", "echo", "HTTP/1.1"),
    ] {
        let answer = scene.ask_with("POST", target, &[], b"a body".to_vec())?;
        let seen = seen(&answer.body).with_context(|| format!("{target}: {answer:?}"))?;
        let got = (seen.path.as_str(), seen.host.as_str(), seen.version.as_str(), seen.body_length);
        ensure!(got == (path, host, version, 6), "{target}: {seen:?}");
    }
    for (target, host, version) in [
        ("/h2", "two.example.org", "HTTP/2.0"),
        ("/as-called", "asked.test", "HTTP/2.0"),
        ("/strip-prefix", "asked.test", "HTTP/1.1"),
        ("/prefix/one", "one.example.org", "HTTP/1.1"),
    ] {
        let request =
            http::Request::post(format!("http://asked.test{target}")).body(Full::from(Bytes::from("a body")))?;
        let answer = http2(&scene.client.pod, service(30, 8081), request)?;
        let seen = seen(&answer.body).with_context(|| format!("{target}: {answer:?}"))?;
        let got = (seen.host.as_str(), seen.version.as_str(), seen.body_length);
        ensure!(got == (host, version, 6), "{target} over HTTP/2: {seen:?}");
    }
    let line = scene.client.sidecar()?.wait_for_line(|line| line.contains("\"/prefix/one/two\""), PATIENCE)?;
    ensure!(line.contains("\"route\":\"shop/routes#2\"") && line.contains("\"destination\":\"v1\""), "{line}");
    Ok(())
}

fn redirects() -> Result<()> {
    let scene = Scene::empty("redirects")?;
    let rule = |path: &str, filter: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {filter}}}, {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Answer, value: \"yes\"}}]}}}}]\n"
        )
    };
    let rules = [
        rule("/host", "{hostname: example.org}"),
        rule("/scheme", "{scheme: https, statusCode: 301}"),
        rule("/port", "{port: 8083}"),
        rule("/prefix", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}"),
        rule("/full", "{hostname: example.org, path: {type: ReplaceFullPath, replaceFullPath: /new}}"),
        rule("/303", "{statusCode: 303}"),
        rule("/307", "{statusCode: 307}"),
        rule("/308", "{statusCode: 308}"),
    ];
    scene.route(&http_route(&rules.concat()))?;
    for (target, status, location) in [
        ("/host/a?q=1", 302, "http://example.org/host/a?q=1"),
        ("/scheme", 301, "https://echo/scheme"),
        ("/port", 302, "http://echo:8083/port"),
        ("/prefix/a?q=1", 302, "http://echo/new/a?q=1"),
        ("/full/a", 302, "http://example.org/new"),
        ("/303", 303, "http://echo/303"),
        ("/307", 307, "http://echo/307"),
        ("/308", 308, "http://echo/308"),
    ] {
        let answer = scene.get(target)?;
        let got = (answer.status, answer.header("location"), answer.header("x-answer"));
        ensure!(got == (status, Some(location), Some("yes")), "{target}: {answer:?}");
    }
    // The port that was called is no well-known one.
    let answer = raw(
        &scene.client.pod,
        service(30, 8081),
        b"GET /host HTTP/1.1\r\nhost: echo:8081\r\nconnection: close\r\n\r\n".to_vec(),
    )?;
    ensure!(answer.header("location") == Some("http://example.org:8081/host"), "{answer:?}");
    Ok(())
}

const FAR_GRANT: &str = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: from-shop, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: \"\", kind: Service, name: far}]
";

fn refused() -> Result<()> {
    let (scene, _apps) = Scene::start("refused")?;
    let far = scene.mesh.pod(WorkloadSpec::new("far-1", "far").namespace("other"))?;
    let _far = serve_http(&far)?;
    let deny = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {targetRefs: [{kind: Service, name: v2}], action: Deny, rules: []}
";
    scene.mesh.write("policy.yaml", deny)?;
    let rule = |path: &str, backends: &str| {
        format!("  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    backendRefs: [{backends}]\n")
    };
    let rules = [
        rule("/far", "{name: far, namespace: other, port: 80}"),
        rule("/missing", "{name: missing, port: 80}"),
        rule("/nowhere", "{name: v1, port: 80, weight: 0}"),
        rule("/none", ""),
        rule("/empty", "{name: nobody, port: 80}"),
        rule("/closed", "{name: v2, port: 80}"),
        rule("/half", "{name: missing, port: 80, weight: 0}, {name: v1, port: 80}"),
    ];
    let route = http_route(&rules.concat());
    scene.route(&route)?;
    settle(&scene.mesh, &[&scene.v2])?;
    for (target, status, label, text) in [
        ("/far", 500, "backend_refused", "HTTPRoute shop/routes cannot send to Service other/far port 80"),
        ("/missing", 500, "backend_refused", "HTTPRoute shop/routes cannot send to Service shop/missing port 80"),
        ("/nowhere", 500, "no_backends", "rule 2 of HTTPRoute shop/routes"),
        ("/none", 500, "no_backends", "rule 3 of HTTPRoute shop/routes"),
        ("/empty", 503, "no_endpoints", "no endpoint"),
        ("/closed", 403, "denied", "shop/closed"),
        ("/not-matched", 404, "no_route", "shop/routes"),
    ] {
        let answer = scene.get(target)?;
        let named = answer.header("x-weft-error") == Some(label) && answer.body.contains(text);
        ensure!(answer.status == status && named, "{target}: {answer:?}");
    }
    ensure!(scene.get("/half")?.server()? == "v1-1", "what has no weight harms nothing");
    scene.route(&format!("{route}---{FAR_GRANT}"))?;
    let answer = scene.get("/far")?;
    ensure!(answer.status == 200 && answer.server()? == "far-1", "{answer:?}");
    Ok(())
}

fn grpc() -> Result<()> {
    let (scene, _apps) = Scene::start("grpcroute")?;
    let route = |rules: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: calls, namespace: shop}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo, port: 90}}]\n  rules:\n{rules}"
        )
    };
    scene.route(&route(
        "  - matches: [{method: {service: shop.Stock}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: new}]}}]
    backendRefs: [{name: v1, port: 90}]
  - matches: [{method: {service: shop.Stock, method: Reserve}}, {method: {service: shop.Stock}, headers: [{name: x-version, value: two}]}]
    backendRefs: [{name: v2, port: 90}]
  - matches: [{method: {method: Lost}}]
    backendRefs: [{name: missing, port: 90}]
  - matches: [{method: {service: delay}}]
    backendRefs: [{name: v1, port: 90}]\n",
    ))?;
    for (path, header, server) in [
        ("/shop.Stock/Get", None, "v1-1"),
        ("/shop.Stock/Reserve", None, "v2-1"),
        ("/shop.Stock/Get", Some(("x-version", "two")), "v2-1"),
    ] {
        let answer = scene.call(path, header.as_slice())?;
        let seen = seen(&answer.body).with_context(|| format!("{path}: {answer:?}"))?;
        ensure!(seen.server == server && seen.version == "HTTP/2.0", "{path}: {seen:?}");
        ensure!((seen.header("x-set") == Some("new")) == (server == "v1-1"), "{path}: {seen:?}");
        ensure!(seen.header("te") == Some("trailers"), "{path}: {seen:?}");
    }
    for (path, headers, label, status) in [
        ("/shop.Other/Get", &[][..], "no_route", "12"),
        ("/shop.Other/Lost", &[], "backend_refused", "14"),
        ("/delay/20000", &[("grpc-timeout", "300m")], "request_timeout", "4"),
    ] {
        let answer = scene.call(path, headers)?;
        let got = (answer.status, answer.header("x-weft-error"), answer.header("grpc-status"));
        ensure!(got == (200, Some(label), Some(status)), "{path}: {answer:?}");
    }
    // What is no call is not a GRPCRoute's.
    let request = http::Request::get("http://echo/shop.Stock/Get").body(Full::default())?;
    let answer = http2(&scene.client.pod, service(30, 90), request)?;
    ensure!(answer.status == 404, "{answer:?}");
    // Decided for each call, not for each connection; a backend that is missing and has no weight harms nothing.
    scene.route(&route(
        "  - backendRefs: [{name: v1, port: 90, weight: 70}, {name: v2, port: 90, weight: 30}, {name: v3, port: 90, weight: 0}]\n",
    ))?;
    let servers = shares(&scene.client.pod, service(30, 90), true, 1_000)?;
    let two = count(&servers, "v2-1");
    ensure!((240..=360).contains(&two) && two + count(&servers, "v1-1") == 1_000, "{two}");
    Ok(())
}

fn consumer() -> Result<()> {
    let (scene, _apps) = Scene::start("consumer")?;
    let guest = scene.mesh.pod(WorkloadSpec::new("guest-1", "guest").namespace("other"))?;
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: other}
spec:
  parentRefs: [{group: \"\", kind: Service, name: v1, namespace: shop}]
  rules:
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Answer, value: mine}]}}]
    backendRefs: [{name: v1, namespace: shop, port: 80}]
";
    scene.route(route)?;
    settle(&scene.mesh, &[&guest])?;
    let request = b"GET / HTTP/1.1\r\nhost: v1\r\nconnection: close\r\n\r\n";
    for (pod, expected) in [(&guest, Some("mine")), (&scene.client, None)] {
        let answer = raw(&pod.pod, service(31, 80), request.to_vec())?;
        ensure!(answer.status == 200 && answer.server()? == "v1-1", "{answer:?}");
        ensure!(answer.header("x-answer") == expected, "{}: {answer:?}", pod.spec.name);
    }
    Ok(())
}
