//! Promises of metrics and the access log, seen from outside: events in, text out.
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::*;

/// A writer whose content can be read.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Scene {
    telemetry: Arc<Telemetry>,
    written: Written,
    guard: LogGuard,
}

fn settings(access_log: AccessLogMode) -> TelemetrySettings {
    TelemetrySettings {
        workload: Party::new("inventory", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log,
        otlp: None,
    }
}

fn scene(settings: TelemetrySettings) -> Scene {
    let written = Written::default();
    let (lines, guard) = LineSink::new(written.clone());
    Scene { telemetry: Telemetry::new(settings, lines).expect("valid settings"), written, guard }
}

impl Scene {
    /// Every line that was logged, as JSON.
    fn lines(self) -> Vec<serde_json::Value> {
        drop(self.guard);
        let bytes = self.written.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

pub(super) fn ends(source: &str) -> Ends {
    Ends {
        direction: Direction::Inbound,
        source: Party::new(source, "shop"),
        destination: Party::new("inventory", "shop"),
        protocol: Protocol::Http1,
        tls: true,
    }
}

pub(super) fn event(ends: &Ends) -> RequestEvent<'_> {
    RequestEvent {
        ends,
        method: "GET",
        path: "/stock/7",
        host: "inventory.shop.svc",
        status: 200,
        grpc_status: None,
        duration: Duration::from_millis(3),
        overhead: Some(Duration::from_micros(40)),
        request_bytes: 0,
        response_bytes: 12,
        retries: 0,
        outcome: Outcome::Forwarded,
        peer_identity: Some("spiffe://cluster.local/ns/shop/sa/orders"),
        peer_address: Some(SocketAddr::from(([10, 0, 0, 7], 40_000))),
        route: None,
    }
}

/// The samples of an exposition: (name with labels, value).
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').expect(line);
        (series.to_owned(), value.parse().expect(line))
    });
    let samples: BTreeMap<String, f64> = parsed.collect();
    assert_eq!(samples.len(), text.lines().filter(|line| !line.starts_with('#')).count(), "a series occurs once");
    samples
}

/// Sum over all series of a family (`name` without labels).
fn sum(text: &str, name: &str) -> f64 {
    let prefix = format!("{name}{{");
    samples(text).iter().filter(|(series, _)| series.starts_with(&prefix) || *series == name).map(|(_, v)| v).sum()
}

#[test]
fn a_request_is_counted_under_the_names_of_the_contract() {
    let scene = scene(settings(AccessLogMode::Off));
    let worker = scene.telemetry.worker();
    let http = ends("orders");
    worker.request(&event(&http), None);
    let grpc = Ends { direction: Direction::Outbound, protocol: Protocol::Grpc, tls: false, ..http.clone() };
    worker.request(&RequestEvent { grpc_status: Some(7), ..event(&grpc) }, None);
    worker.request(&RequestEvent { status: 0, outcome: Outcome::Cancelled, overhead: None, ..event(&http) }, None);
    worker.authorization(Verdict::Allow, "shop/inventory");
    worker.authorization(Verdict::Deny, "shop/inventory");
    worker.rate_limit(true, "shop/limits", "per-client");
    let tcp = Ends { protocol: Protocol::Tcp, ..http.clone() };
    let open = worker.connection_opened(&tcp);
    let closed = worker.connection_opened(&tcp);
    open.add_sent(100);
    open.add_received(7);
    let event = ConnectionEvent { outcome: Outcome::Forwarded, peer_identity: None, peer_address: None };
    closed.finish(&event);
    let refusal = Refusal {
        direction: Direction::Inbound,
        reason: "plaintext",
        detail: None,
        peer_identity: None,
        peer_address: None,
    };
    worker.refused(&refusal);
    worker.mirrored(true);
    worker.mirrored(false);
    scene.telemetry.set_certificate_expiry(std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    scene.telemetry.set_control_plane_connected(true);
    scene.telemetry.certificate_renewed(true);
    scene.telemetry.config_applied(42);
    scene.telemetry.config_refused();

    let text = scene.telemetry.encode();
    assert!(text.ends_with("# EOF\n"));
    let samples = samples(&text);
    let parties = |direction: &str, protocol: &str, tls: &str| {
        format!(
            "direction=\"{direction}\",source=\"orders\",source_namespace=\"shop\",destination=\"inventory\",\
             destination_namespace=\"shop\",protocol=\"{protocol}\",tls=\"{tls}\""
        )
    };
    let (inbound, outbound) = (parties("inbound", "http1", "true"), parties("outbound", "grpc", "false"));
    let stream = parties("inbound", "tcp", "true");
    for (series, value) in [
        (format!("weft_requests_total{{{inbound},status=\"200\"}}"), 1.0),
        (format!("weft_requests_total{{{inbound},status=\"none\"}}"), 1.0),
        (format!("weft_requests_total{{{outbound},status=\"200\",grpc_status=\"7\"}}"), 1.0),
        (format!("weft_request_duration_seconds_count{{{inbound}}}"), 2.0),
        (format!("weft_request_duration_seconds_sum{{{inbound}}}"), 0.006),
        (format!("weft_request_duration_seconds_bucket{{le=\"0.0025\",{inbound}}}"), 0.0),
        (format!("weft_request_duration_seconds_bucket{{le=\"0.005\",{inbound}}}"), 2.0),
        (format!("weft_request_duration_seconds_bucket{{le=\"+Inf\",{inbound}}}"), 2.0),
        (format!("weft_tcp_connections_total{{{stream}}}"), 2.0),
        (format!("weft_tcp_open_connections{{{stream}}}"), 1.0),
        (format!("weft_tcp_bytes_total{{{stream},flow=\"sent\"}}"), 100.0),
        (format!("weft_tcp_bytes_total{{{stream},flow=\"received\"}}"), 7.0),
        ("weft_authorization_decisions_total{decision=\"allow\",policy=\"shop/inventory\"}".into(), 1.0),
        ("weft_authorization_decisions_total{decision=\"deny\",policy=\"shop/inventory\"}".into(), 1.0),
        ("weft_rate_limit_decisions_total{decision=\"limit\",policy=\"shop/limits\",limit=\"per-client\"}".into(), 1.0),
        ("weft_connections_refused_total{direction=\"inbound\",reason=\"plaintext\"}".into(), 1.0),
        ("weft_overhead_seconds_count{direction=\"inbound\"}".into(), 1.0),
        ("weft_overhead_seconds_count{direction=\"outbound\"}".into(), 1.0),
        ("weft_certificate_expiry_timestamp_seconds".into(), 1_800_000_000.0),
        ("weft_control_plane_connected".into(), 1.0),
        ("weft_certificate_renewals_total{result=\"success\"}".into(), 1.0),
        ("weft_config_updates_total{result=\"success\"}".into(), 1.0),
        ("weft_config_updates_total{result=\"failure\"}".into(), 1.0),
        ("weft_mirrored_requests_total{result=\"success\"}".into(), 1.0),
        ("weft_mirrored_requests_total{result=\"failure\"}".into(), 1.0),
        ("weft_config_version".into(), 42.0),
        ("weft_series_folded_total".into(), 0.0),
    ] {
        assert_eq!(samples.get(&series), Some(&value), "{series} in\n{text}");
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(samples.contains_key(name), "{name}");
    }
    drop(open);
    assert_eq!(sum(&scene.telemetry.encode(), "weft_tcp_open_connections"), 0.0);
}

#[test]
fn the_budget_holds_and_what_is_folded_keeps_its_exact_sum() {
    let scene = scene(TelemetrySettings { series_budget: 600, ..settings(AccessLogMode::Off) });
    let workers = [scene.telemetry.worker(), scene.telemetry.worker()];
    let mut open = Vec::new();
    for round in 0..2 {
        for (index, caller) in (0..500).map(|n| (n, ends(&format!("caller-{n}")))) {
            for worker in &workers {
                let status = if index % 5 == 0 { 503 } else { 200 };
                worker.request(&RequestEvent { status, ..event(&caller) }, None);
                worker.authorization(Verdict::Deny, &format!("shop/policy-{index}"));
                worker.rate_limit(false, &format!("shop/limits-{index}"), "all");
                open.push(worker.connection_opened(&Ends { protocol: Protocol::Tcp, ..caller.clone() }));
            }
        }
        let text = scene.telemetry.encode();
        let rounds = f64::from(round + 1);
        assert!(samples(&text).len() <= 600, "{} series", samples(&text).len());
        for name in [
            "weft_requests_total",
            "weft_request_duration_seconds_count",
            "weft_authorization_decisions_total",
            "weft_rate_limit_decisions_total",
            "weft_tcp_connections_total",
            "weft_tcp_open_connections",
        ] {
            assert_eq!(sum(&text, name), 1000.0 * rounds, "{name}");
        }
        let errors = samples(&text).into_iter().filter(|(series, _)| series.starts_with("weft_requests_total"));
        let errors: f64 = errors.filter(|(name, _)| name.contains("status=\"5")).map(|(_, value)| value).sum();
        assert_eq!(errors, 200.0 * rounds, "the class of a status survives folding");
        assert!(text.contains("direction=\"inbound\",source=\"other\",source_namespace=\"other\""), "{text}");
        assert!(sum(&text, "weft_series_folded_total") > 0.0);
    }
    drop(open);
    assert_eq!(sum(&scene.telemetry.encode(), "weft_tcp_open_connections"), 0.0);
}

#[test]
fn the_exposition_of_a_full_budget_stays_under_a_mebibyte() {
    let scene = scene(settings(AccessLogMode::Off));
    let worker = scene.telemetry.worker();
    for caller in (0..2_000).map(|n| ends(&format!("a-workload-with-a-name-of-ordinary-length-{n}"))) {
        worker.request(&event(&caller), None);
    }
    let text = scene.telemetry.encode();
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
    assert!(samples(&text).len() <= DEFAULT_SERIES_BUDGET);
}

#[test]
fn series_of_names_that_left_the_mesh_make_room_and_no_count_is_lost() {
    let scene = scene(TelemetrySettings { series_budget: 400, ..settings(AccessLogMode::Off) });
    let worker = scene.telemetry.worker();
    let (gone, stays) = (ends("gone"), ends("stays"));
    let stream = Ends { protocol: Protocol::Tcp, ..gone.clone() };
    worker.request(&event(&gone), None);
    worker.authorization(Verdict::Allow, "shop/gone");
    worker.request(&event(&stays), None);
    let open = worker.connection_opened(&stream);

    let table = &scene.telemetry.metrics.series;
    let mut now = std::time::Instant::now();
    // What has happened since the last sweep counts as happening then.
    table.sweep(now);
    let mut later = |event_of: &Ends| {
        now += Duration::from_secs(301);
        table.sweep(now);
        // The workers let go at their next event, the table forgets at its next sweep.
        worker.request(&event(event_of), None);
        table.sweep(now);
    };
    later(&stays);
    let text = scene.telemetry.encode();
    assert!(
        !text.contains("protocol=\"http1\",tls=\"true\",status=\"200\"} 1") && !text.contains("shop/gone"),
        "{text}"
    );
    assert_eq!(sum(&text, "weft_requests_total"), 2.0, "what is in use stays");
    assert_eq!(sum(&text, "weft_tcp_open_connections"), 1.0, "an open connection keeps its series, however idle");
    open.add_sent(5);
    drop(open);
    assert_eq!(sum(&scene.telemetry.encode(), "weft_tcp_bytes_total"), 5.0);
    later(&stays);
    later(&stays);
    assert_eq!(sum(&scene.telemetry.encode(), "weft_tcp_connections_total"), 0.0);
    worker.request(&event(&gone), None);
    assert_eq!(sum(&scene.telemetry.encode(), "weft_requests_total"), 5.0, "it may come back and starts anew");
}

#[test]
fn a_label_is_bounded_and_escaped() {
    let scene = scene(settings(AccessLogMode::Off));
    let worker = scene.telemetry.worker();
    worker.request(&event(&ends(&"é".repeat(1024))), None);
    worker.request(&event(&ends("a\"b\\c\nd")), None);
    let text = scene.telemetry.encode();
    assert!(text.contains(&format!("source=\"{}\"", "é".repeat(126))), "cut at a character");
    assert!(text.contains(r#"source="a\"b\\c\nd""#), "{text}");
    samples(&text);
}

#[test]
fn a_status_or_code_that_no_standard_knows_adds_no_series() {
    let scene = scene(settings(AccessLogMode::Off));
    let worker = scene.telemetry.worker();
    let caller = ends("orders");
    for status in [1, 99, 600, 999, 65_535] {
        worker.request(&RequestEvent { status, ..event(&caller) }, None);
    }
    for code in [17, 65_535] {
        worker.request(&RequestEvent { grpc_status: Some(code), ..event(&caller) }, None);
    }
    let text = scene.telemetry.encode();
    assert_eq!(text.lines().filter(|line| line.starts_with("weft_requests_total")).count(), 3, "{text}");
}

#[test]
fn the_classic_text_names_counters_by_their_samples() {
    let scene = scene(settings(AccessLogMode::Off));
    scene.telemetry.worker().request(&event(&ends("orders")), None);
    let text = scene.telemetry.encode_classic();
    assert!(text.contains("# TYPE weft_requests_total counter\nweft_requests_total{"), "{text}");
    assert!(text.contains("# TYPE weft_request_duration_seconds histogram\n"), "{text}");
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    assert_eq!(samples(&text).len(), samples(&scene.telemetry.encode()).len());
}

#[test]
fn each_mode_logs_what_it_says_and_refusals_always() {
    let outcomes = [
        ("forwarded", 200, None, Outcome::Forwarded),
        ("not found", 404, None, Outcome::Forwarded),
        ("server error", 500, None, Outcome::Forwarded),
        ("grpc error", 200, Some(14), Outcome::Forwarded),
        ("failed", 503, None, Outcome::Failed { reason: "connection refused" }),
        ("cancelled", 0, None, Outcome::Cancelled),
        ("denied", 403, None, Outcome::Denied { policy: "shop/inventory", reason: "rule 2" }),
        ("limited", 429, None, Outcome::Limited { policy: "shop/limits", limit: "per-client" }),
    ];
    for (mode, expected) in [
        (AccessLogMode::Off, vec!["denied", "limited"]),
        (AccessLogMode::Errors, vec!["server error", "grpc error", "failed", "denied", "limited"]),
        (AccessLogMode::All, outcomes.iter().map(|(name, ..)| *name).collect()),
    ] {
        let scene = scene(settings(mode));
        let worker = scene.telemetry.worker();
        let caller = ends("orders");
        for (name, status, grpc_status, outcome) in outcomes {
            worker.request(&RequestEvent { path: name, status, grpc_status, outcome, ..event(&caller) }, None);
        }
        let lines = scene.lines();
        let logged: Vec<&str> = lines.iter().map(|line| line["path"].as_str().expect("a path")).collect();
        assert_eq!(logged, expected, "{mode:?}");
        let denied = lines.iter().find(|line| line["outcome"] == "denied").expect("always logged");
        for (field, value) in [
            ("kind", "access"),
            ("direction", "inbound"),
            ("source", "orders"),
            ("destination_namespace", "shop"),
            ("peer", "spiffe://cluster.local/ns/shop/sa/orders"),
            ("peer_address", "10.0.0.7:40000"),
            ("policy", "shop/inventory"),
            ("reason", "rule 2"),
        ] {
            assert_eq!(denied[field], value, "{field}");
        }
        assert_eq!((&denied["status"], &denied["duration_ms"]), (&403.into(), &3.0.into()));
        assert!(denied["time"].as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')));
    }
}

#[test]
fn hostile_text_makes_one_line_escaped_and_cut_without_its_query() {
    let scene = scene(settings(AccessLogMode::All));
    let worker = scene.telemetry.worker();
    let caller = ends("orders");
    let long = format!("/{}", "a".repeat(8 * 1024));
    for (path, host, method) in [
        ("/x?token=secret", "h", "GET"),
        ("/x#secret", "h", "GET"),
        ("/\u{1b}[2J", "a\" level=error\r\n{\"kind\":\"access\"}", "G\0T"),
        (long.as_str(), "h", "GET"),
    ] {
        worker.request(&RequestEvent { path, host, method, ..event(&caller) }, None);
    }
    let written = scene.written.clone();
    let lines = scene.lines();
    assert_eq!(lines.len(), 4);
    assert_eq!((lines[0]["path"].as_str(), lines[1]["path"].as_str()), (Some("/x"), Some("/x")));
    assert_eq!(lines[2]["host"], "a\" level=error\u{fffd}\u{fffd}{\"kind\":\"access\"}");
    assert!(lines[3]["path"].as_str().is_some_and(|path| path.len() < 600 && path.ends_with('…')));
    let bytes = written.0.lock().expect("not poisoned").clone();
    assert!(!String::from_utf8_lossy(&bytes).contains("secret"));
    assert!(bytes.iter().all(|byte| *byte >= 0x20 || *byte == b'\n'), "no control character reaches the terminal");
}

#[test]
fn a_flood_of_refusals_is_logged_within_bounds_and_the_rest_counted() {
    let scene = scene(settings(AccessLogMode::Off));
    let worker = scene.telemetry.worker();
    let refusal = Refusal {
        direction: Direction::Inbound,
        reason: "plaintext",
        detail: Some("GET / HTTP/1.1"),
        peer_identity: None,
        peer_address: Some(SocketAddr::from(([10, 0, 0, 9], 1))),
    };
    (0..10_000).for_each(|_| worker.refused(&refusal));
    let text = scene.telemetry.encode();
    let lines = scene.lines();
    assert_eq!(sum(&text, "weft_connections_refused_total"), 10_000.0);
    assert_eq!(lines.len() as f64 + sum(&text, "weft_log_lines_suppressed_total"), 10_000.0);
    assert!((100..1_000).contains(&lines.len()), "{} lines", lines.len());
    assert_eq!((&lines[0]["reason"], &lines[0]["detail"]), (&"plaintext".into(), &"GET / HTTP/1.1".into()));
}

/// A pipe that nobody reads: a write blocks until the other end is gone.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_unread_standard_output_costs_lines_and_never_time() {
    let (release, stuck) = mpsc::channel();
    let (lines, guard) = LineSink::new(Stuck(stuck));
    let telemetry = Telemetry::new(settings(AccessLogMode::All), lines).expect("valid settings");
    let worker = telemetry.worker();
    let caller = ends("orders");
    // That this loop ends is the promise: a blocking log would hold it for ever.
    for _ in 0..10_000 {
        worker.request(&event(&caller), None);
    }
    let text = telemetry.encode();
    assert_eq!(sum(&text, "weft_requests_total"), 10_000.0);
    assert!(sum(&text, "weft_log_lines_dropped_total") >= 10_000.0 - 2_100.0, "{text}");
    drop(release);
    drop(guard);
}

#[test]
fn settings_that_cannot_work_say_what_to_write() {
    for (endpoint, ratio, hint) in [
        ("collector:4317", 0.1, "write http://HOST:4317"),
        ("https://collector:4317", 0.1, "TLS to the collector is not supported"),
        ("", 0.1, "write http://HOST:4317"),
        ("http://collector:4317", 1.5, "between 0 and 1"),
        ("http://collector:4317", f64::NAN, "between 0 and 1"),
    ] {
        let otlp = Some(OtlpSettings { endpoint: endpoint.into(), sampling_ratio: ratio, mark: None });
        let (lines, _guard) = LineSink::new(std::io::sink());
        let settings = TelemetrySettings { otlp, ..settings(AccessLogMode::Off) };
        let fault = Telemetry::new(settings, lines).expect_err("refused").to_string();
        assert!(fault.contains(hint), "{endpoint}: {fault}");
    }
}
