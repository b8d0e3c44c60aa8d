//! The metrics of a sidecar in the Prometheus formats.
//!
//! Names and labels are a contract with dashboards and alerts: see [`Metrics::encode`]'s families. Durations carry no
//! `status`: a histogram costs 16 lines a label set, and the budget of series goes further without.
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::cells::{OVERHEAD, REQUEST_DURATION};
use super::event::{Direction, Ends, TrafficEvent};
use super::process::ProcessSample;
use super::series::{FOLD_LINES, Labels, OTHER, Series, SeriesTable, Status, tcp};

/// Lines of the families without label sets of the mesh: [`Metrics::encode_fixed`], both overheads, `process_*`.
const FIXED_LINES: usize = 18 + 2 * OVERHEAD.lines() + 8;

/// The smallest budget that leaves room for the mesh beside the fixed lines.
const MIN_BUDGET: usize = FIXED_LINES + FOLD_LINES + 100;

/// Not probed yet: the gauge is left out rather than a guess.
pub(super) const CAPTURE_UNKNOWN: u8 = 0;
pub(super) const CAPTURE_WORKS: u8 = 1;
pub(super) const CAPTURE_BROKEN: u8 = 2;

type LabelSet<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// What is known beside the events of the data path. Written by the control thread, and now and then by any other.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Unix seconds; 0: no certificate yet.
    pub(super) certificate_expiry: AtomicU64,
    pub(super) control_plane_connected: AtomicBool,
    pub(super) renewals: Results,
    pub(super) config_updates: Results,
    pub(super) config_version: AtomicU64,
    /// [`CAPTURE_UNKNOWN`] or what the last probe found.
    pub(super) capture: AtomicU8,
    pub(super) spans_exported: AtomicU64,
    pub(super) spans_dropped: AtomicU64,
    pub(super) log_lines_suppressed: AtomicU64,
    pub(super) mirrored: Results,
}

/// A counter with the label `result`.
#[derive(Debug, Default)]
pub(super) struct Results {
    success: AtomicU64,
    failure: AtomicU64,
}

impl Results {
    pub(super) fn count(&self, success: bool) {
        if success { &self.success } else { &self.failure }.fetch_add(1, Ordering::Relaxed);
    }
}

/// All numbers of one sidecar.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) series: SeriesTable,
    /// Rows of the overhead histogram, a pair (inbound, outbound) a worker.
    pub(super) overhead: std::sync::Mutex<Vec<[Arc<super::cells::Cells>; 2]>>,
    pub(super) state: State,
    pub(super) log_lines_dropped: super::log::DroppedLines,
}

impl Metrics {
    /// Metrics of at most `budget` sample lines (raised to the smallest that works).
    pub(super) fn new(budget: usize, log_lines_dropped: super::log::DroppedLines) -> Self {
        let series = SeriesTable::new(budget.max(MIN_BUDGET) - FIXED_LINES - FOLD_LINES);
        Self { series, overhead: Default::default(), state: State::default(), log_lines_dropped }
    }

    /// OpenMetrics text.
    pub(super) fn encode(self: &Arc<Self>) -> String {
        self.series.sweep(Instant::now());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut out = String::with_capacity(16 * 1024);
        text::encode(&mut out, &registry).expect("a String takes everything");
        out
    }

    fn encode_fixed(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let state = &self.state;
        let expiry = state.certificate_expiry.load(Ordering::Relaxed);
        if expiry != 0 {
            gauge(
                out,
                "weft_certificate_expiry_timestamp_seconds",
                "When the sidecar's certificate expires, Unix time",
                expiry as f64,
            )?;
        }
        gauge(
            out,
            "weft_control_plane_connected",
            "1 while the configuration stream to the control plane stands",
            f64::from(u8::from(state.control_plane_connected.load(Ordering::Relaxed))),
        )?;
        let capture = state.capture.load(Ordering::Relaxed);
        if capture != CAPTURE_UNKNOWN {
            let works = f64::from(u8::from(capture == CAPTURE_WORKS));
            gauge(out, "weft_capture_works", "1 while the sidecar's probe finds the redirect rules at work", works)?;
        }
        results(out, "weft_certificate_renewals", "Certificates asked for, by result", &state.renewals)?;
        results(out, "weft_config_updates", "Configuration updates received, by result", &state.config_updates)?;
        results(out, "weft_mirrored_requests", "Copies of requests for mirrors, by result", &state.mirrored)?;
        gauge(
            out,
            "weft_config_version",
            "Version of the configuration in force",
            state.config_version.load(Ordering::Relaxed) as f64,
        )?;
        for (name, help, value) in [
            ("weft_series_folded", "Label sets that were counted as `other` for want of budget", self.series.folded()),
            ("weft_spans_exported", "Spans that the collector took", state.spans_exported.load(Ordering::Relaxed)),
            ("weft_spans_dropped", "Spans that were not delivered", state.spans_dropped.load(Ordering::Relaxed)),
            ("weft_log_lines_dropped", "Log lines lost because nobody read them", self.log_lines_dropped.get()),
            (
                "weft_log_lines_suppressed",
                "Access log lines held back by the rate bound",
                state.log_lines_suppressed.load(Ordering::Relaxed),
            ),
        ] {
            counter(&mut out.encode_descriptor(name, help, None, MetricType::Counter)?, value)?;
        }
        Ok(())
    }

    fn encode_overhead(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows = self.overhead.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut family = out.encode_descriptor(
            "weft_overhead_seconds",
            "The sidecar's own share of each request's time",
            None,
            MetricType::Histogram,
        )?;
        for (index, direction) in [Direction::Inbound, Direction::Outbound].into_iter().enumerate() {
            let mut sums = vec![0; OVERHEAD.slots()];
            rows.iter().for_each(|row| row[index].add_to(&mut sums));
            let (sum, count, buckets) = OVERHEAD.read(&sums);
            let labels = [("direction", direction.as_str())];
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_series(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // One family's samples must stand together: pick them out of the sorted table family by family.
        let table = self.series.read();
        let each = |out: &mut DescriptorEncoder<'_>,
                    name: &str,
                    help: &str,
                    kind: MetricType,
                    write: &dyn Fn(&mut MetricEncoder<'_>, &Series, &[u64]) -> fmt::Result| {
            let mut family = out.encode_descriptor(name, help, None, kind)?;
            table.iter().try_for_each(|(series, sums)| write(&mut family, series, sums))
        };
        let count = |out: &mut DescriptorEncoder<'_>, name: &str, help: &str, of: &dyn Fn(&Series) -> bool| {
            each(out, name, help, MetricType::Counter, &|family, series, sums| {
                if !of(series) {
                    return Ok(());
                }
                counter(&mut family.encode_family(&labels(series))?, sums[0])
            })
        };
        let is_requests = |series: &Series| matches!(series, Series::Requests { .. });
        count(out, "weft_requests", "HTTP and gRPC requests, by how they were answered", &is_requests)?;
        each(
            out,
            "weft_request_duration_seconds",
            "From the first byte of a request to the last of its response",
            MetricType::Histogram,
            &|family, series, sums| {
                let Series::Duration(_) = series else { return Ok(()) };
                let (sum, count, buckets) = REQUEST_DURATION.read(sums);
                family.encode_family(&labels(series))?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            },
        )?;
        count(out, "weft_tcp_connections", "Byte streams opened", &|series| matches!(series, Series::Tcp(_)))?;
        each(out, "weft_tcp_open_connections", "Byte streams open now", MetricType::Gauge, &|family, series, sums| {
            let Series::Tcp(_) = series else { return Ok(()) };
            // The slots are read one after the other: a stream that closes in between must not turn the gauge negative.
            let open = i64::try_from(sums[tcp::OPENED].saturating_sub(sums[tcp::CLOSED])).unwrap_or(i64::MAX);
            family.encode_family(&labels(series))?.encode_gauge(&open)
        })?;
        each(
            out,
            "weft_tcp_bytes",
            "Bytes of byte streams; flow is `sent` (source to destination) or `received` (back)",
            MetricType::Counter,
            &|family, series, sums| {
                let Series::Tcp(_) = series else { return Ok(()) };
                for (flow, slot) in [("sent", tcp::SENT), ("received", tcp::RECEIVED)] {
                    let mut set = labels(series);
                    set.push(("flow", flow.into()));
                    counter(&mut family.encode_family(&set)?, sums[slot])?;
                }
                Ok(())
            },
        )?;
        let is_authorization = |series: &Series| matches!(series, Series::Authorization { .. });
        count(out, "weft_authorization_decisions", "Decisions of authorization policies", &is_authorization)?;
        let is_rate_limit = |series: &Series| matches!(series, Series::RateLimit { .. });
        count(out, "weft_rate_limit_decisions", "Decisions of rate limits", &is_rate_limit)?;
        let is_refused = |series: &Series| matches!(series, Series::Refused { .. });
        count(out, "weft_connections_refused", "Connections refused before policy was asked", &is_refused)?;
        let traffic = |of: fn(TrafficEvent) -> bool| move |series: &Series| matches!(series, Series::Traffic { event, .. } if of(*event));
        let is_retry = traffic(|event| matches!(event, TrafficEvent::Repeated | TrafficEvent::NotRepeated));
        count(out, "weft_retries", "Requests that were sent again, or could have been", &is_retry)?;
        let is_shed = traffic(|event| matches!(event, TrafficEvent::Shed(_)));
        count(
            out,
            "weft_requests_shed",
            "Requests and byte streams refused by a limit of their destination",
            &is_shed,
        )?;
        let is_ejected = traffic(|event| matches!(event, TrafficEvent::Ejected(_)));
        count(out, "weft_endpoint_ejections", "Endpoints passed over for a while", &is_ejected)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_series(&mut out)?;
        self.encode_overhead(&mut out)?;
        self.encode_fixed(&mut out)?;
        let Some(process) = ProcessSample::take() else { return Ok(()) };
        let counter_out = &mut out.encode_descriptor(
            "process_cpu_seconds",
            "Processor time of the sidecar, user and system",
            None,
            MetricType::Counter,
        )?;
        counter_out.encode_counter::<NoLabelSet, _, f64>(&process.cpu_seconds, None)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory", process.resident_bytes as f64),
            ("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes as f64),
            ("process_open_fds", "Open file descriptors", process.open_fds as f64),
            ("process_max_fds", "Most file descriptors allowed", process.max_fds as f64),
            ("process_start_time_seconds", "When the sidecar started, Unix time", process.start_seconds),
            ("process_threads", "Threads", process.threads as f64),
        ] {
            gauge(&mut out, name, help, value)?;
        }
        Ok(())
    }
}

/// The label set of one series.
fn labels(series: &Series) -> LabelSet<'_> {
    match series {
        Series::Requests { ends, status, grpc_status } => {
            let mut set = ends_labels(ends);
            set.push((
                "status",
                match status {
                    Status::None => "none".into(),
                    Status::Code(code) => code.to_string().into(),
                    Status::Class(class) => format!("{class}xx").into(),
                },
            ));
            if let Some(code) = grpc_status {
                set.push(("grpc_status", code.to_string().into()));
            }
            set
        }
        Series::Duration(ends) | Series::Tcp(ends) => ends_labels(ends),
        Series::Authorization { verdict, policy } => {
            vec![("decision", verdict.as_str().into()), ("policy", policy.as_ref().into())]
        }
        Series::RateLimit { limited, policy, limit } => vec![
            ("decision", if *limited { "limit" } else { "allow" }.into()),
            ("policy", policy.as_ref().into()),
            ("limit", limit.as_ref().into()),
        ],
        Series::Refused { direction, reason } => {
            vec![("direction", direction.as_str().into()), ("reason", reason.as_ref().into())]
        }
        Series::Traffic { event, destination } => vec![
            ("destination", destination.name.as_ref().into()),
            ("destination_namespace", destination.namespace.as_ref().into()),
            match event {
                TrafficEvent::Repeated => ("decision", "repeated".into()),
                TrafficEvent::NotRepeated => ("decision", "given_up".into()),
                TrafficEvent::Shed(reason) | TrafficEvent::Ejected(reason) => ("reason", (*reason).into()),
            },
        ],
    }
}

fn ends_labels(labels: &Labels) -> LabelSet<'_> {
    let (direction, ends): (_, Option<&Ends>) = match labels {
        Labels::Of(ends) => (ends.direction, Some(ends)),
        Labels::Other(direction) => (*direction, None),
    };
    let of = |value: fn(&Ends) -> &str| Cow::Borrowed(ends.map_or(OTHER, value));
    vec![
        ("direction", direction.as_str().into()),
        ("source", of(|ends| &ends.source.name)),
        ("source_namespace", of(|ends| &ends.source.namespace)),
        ("destination", of(|ends| &ends.destination.name)),
        ("destination_namespace", of(|ends| &ends.destination.namespace)),
        ("protocol", of(|ends| ends.protocol.as_str())),
        ("tls", of(|ends| if ends.tls { "true" } else { "false" })),
    ]
}

fn counter(family: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    family.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn results(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, results: &Results) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (result, value) in [("success", &results.success), ("failure", &results.failure)] {
        let labels = [("result", result)];
        counter(&mut family.encode_family(&labels)?, value.load(Ordering::Relaxed))?;
    }
    Ok(())
}

/// Unix seconds of `time`; 0 before 1970.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Rewrites OpenMetrics text as the older Prometheus text format (version 0.0.4), for scrapers that do not accept the
/// former: a counter's family is named with its `_total`, and there is no end mark.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ")
            && let Some(kind) = lines.next_if(|next| next.starts_with("# TYPE "))
        {
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            let total = if kind.ends_with(" counter") { "_total" } else { "" };
            let kind = kind.rsplit(' ').next().unwrap_or("untyped");
            out.push_str(&format!("# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}\n"));
        } else if line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
