//! Promises about edges.
use super::*;

/// A line as sidecars write it.
fn line(metric: &str, direction: &str, ends: [&str; 2], more: &str, value: u32) -> String {
    let [source, destination] = ends.map(|end| end.split_once('/').unwrap_or(("", end)));
    format!(
        "{metric}{{direction=\"{direction}\",source=\"{}\",source_namespace=\"{}\",destination=\"{}\",\
         destination_namespace=\"{}\",{more}}} {value}\n",
        source.1, source.0, destination.1, destination.0
    )
}

fn requests(direction: &str, ends: [&str; 2], status: &str, tls: bool, value: u32) -> String {
    line(
        "weft_requests_total",
        direction,
        ends,
        &format!("protocol=\"http1\",tls=\"{tls}\",status=\"{status}\""),
        value,
    )
}

const ENDS: [&str; 2] = ["shop/orders", "shop/inventory"];

#[test]
fn an_edge_is_shown_once_as_the_calling_side_saw_it() {
    let caller = [
        requests("outbound", ENDS, "200", true, 90),
        requests("outbound", ENDS, "403", true, 5),
        requests("outbound", ENDS, "503", true, 5),
        line("weft_request_duration_seconds_bucket", "outbound", ENDS, "le=\"0.01\"", 100),
        line("weft_request_duration_seconds_bucket", "outbound", ENDS, "le=\"+Inf\"", 100),
        line("weft_tcp_connections_total", "outbound", ["shop/orders", "outside"], "protocol=\"tcp\",tls=\"false\"", 3),
    ];
    // Three never arrived; and the called side knows itself by the first of its Services.
    let called = requests("inbound", ["shop/orders", "shop/a-second-name"], "200", true, 97);
    let counted = [read(&caller.concat()), read(&called)];
    assert_eq!(
        table(&edges(counted.iter(), None)).render(true),
        "\
SOURCE        DESTINATION      REQUESTS   SUCCESS   REFUSED   STREAMS   RATE   P50     P99     MTLS   PROTOCOLS   FAILED   SEEN BY
shop/orders   outside          0          -         0         3         -      -       -       no     tcp         0        source
shop/orders   shop/inventory   100        95.00%    5         0         -      5.0ms   9.9ms   yes    http1       5        source
"
    );
}

#[test]
fn callers_that_could_not_be_asked_are_shown_as_the_called_side_saw_them() {
    let called = [
        requests("inbound", ["unknown", "shop/inventory"], "200", false, 1),
        requests("inbound", ["bank/teller", "shop/inventory"], "200", true, 2),
        requests("inbound", ["other/other", "other/other"], "200", true, 4),
        requests("outbound", ["other/other", "other/other"], "200", true, 8),
    ];
    let all = edges([read(&called.concat())].iter(), None);
    let seen: Vec<_> = all.iter().map(|edge| (edge.source.as_str(), edge.requests, edge.mtls, edge.seen_by)).collect();
    assert_eq!(
        seen,
        [
            ("unknown", 1.0, Mtls::No, "destination"),
            ("teller", 2.0, Mtls::Yes, "destination"),
            ("other", 4.0, Mtls::Yes, "destination"),
            ("other", 8.0, Mtls::Yes, "source"),
        ]
    );
}

#[test]
fn replicas_are_summed_and_mixed_protection_shows() {
    let one = requests("inbound", ENDS, "200", true, 10);
    let other = requests("inbound", ENDS, "200", false, 10);
    let all = edges([read(&one), read(&other)].iter(), None);
    assert_eq!((all.len(), all[0].requests, all[0].mtls), (1, 20.0, Mtls::Partly));
}

#[test]
fn over_a_time_only_what_happened_in_it_counts() {
    let before = read(
        &[requests("inbound", ENDS, "200", true, 100), requests("inbound", ["a/b", "shop/c"], "200", true, 5)].concat(),
    );
    let after = read(
        &[requests("inbound", ENDS, "200", true, 120), requests("inbound", ["a/b", "shop/c"], "200", true, 5)].concat(),
    );
    let all = edges([since(&after, Some(&before))].iter(), Some(Duration::from_secs(10)));
    assert_eq!(all.len(), 1, "an edge without a call is left out: {all:?}");
    assert_eq!((all[0].requests, all[0].per_second), (20.0, Some(2.0)));
    let restarted = read(&requests("inbound", ENDS, "200", true, 7));
    assert_eq!(since(&restarted, Some(&before)), restarted, "a sidecar that began anew counts from its beginning");
    assert_eq!(since(&restarted, None), restarted);
}

#[test]
fn requests_end_in_one_of_three_ways() {
    for (status, grpc_status, expected) in [
        ("200", "", 'a'),
        ("404", "", 'a'),
        ("403", "", 'r'),
        ("429", "", 'r'),
        ("200", "0", 'a'),
        ("200", "7", 'r'),
        ("200", "8", 'r'),
        ("200", "5", 'a'),
        ("200", "14", 'f'),
        ("500", "", 'f'),
        ("5xx", "", 'f'),
        ("none", "", 'f'),
    ] {
        let ended = match verdict(status, grpc_status) {
            Verdict::Answered => 'a',
            Verdict::Refused => 'r',
            Verdict::Failed => 'f',
        };
        assert_eq!(ended, expected, "{status} {grpc_status}");
    }
}
